"""What iptables-nft-save prints, without running it for rules that it has printed before.

The kernel has these rules as bytes that only iptables can read. Equal bytes are equal rules, so it
has to read each of them once; and a table that nobody has changed since the last look is not read.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

from vnetd.backends import process
from vnetd.backends.firewalls import iptables_save
from vnetd.backends.firewalls.iptables_save import Table, Tables
from vnetd.backends.firewalls.nf_tables import NfTables, RawTable
from vnetd.backends.netlink import Generation
from vnetd.core.model import Family

_TOOLS = {Family.IPV4: "iptables-nft-save", Family.IPV6: "ip6tables-nft-save"}
_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_TABLES = frozenset({"filter", "nat", "mangle", "raw", "security"})
# Rules that have gone are kept in mind, so many: they may come back.
_MOST_GONE = 10_000


class IptablesNft:
    def __init__(self, kernel: NfTables) -> None:
        self._kernel = kernel
        self._families = {family: _OfFamily(kernel, family) for family in Family}
        kernel.subscribe(self._on_generation)

    async def read(self, family: Family) -> Tables:
        """Raises BackendError."""
        self._kernel.drain()
        return await self._families[family].read()

    def forget(self) -> None:
        """The next look reads all tables, whatever the kernel has told."""
        for family in self._families.values():
            family.changed |= _TABLES

    def _on_generation(self, generation: Generation | None) -> None:
        if generation is None:
            self.forget()
            return
        for family, number in _FAMILIES.items():
            changed = {table for at, table in generation.tables if at == number}
            self._families[family].changed |= changed & _TABLES


class _OfFamily:
    def __init__(self, kernel: NfTables, family: Family) -> None:
        self.changed: set[str] = set(_TABLES)
        self._kernel = kernel
        self._number = _FAMILIES[family]
        self._tool = _TOOLS[family]
        self._tables: dict[str, Table] = {}
        self._bases: set[tuple[str, str, bytes]] = set()
        self._rules: dict[bytes, str] = {}
        """What the tool has shown before: where chains are hooked in, and rules."""

    async def read(self) -> Tables:
        changed, self.changed = self.changed, set()
        try:
            found = await self._read(changed) if changed else {}
        except BaseException:
            self.changed |= changed
            raise
        for name in changed:
            old, new = self._tables.pop(name, None), found.get(name)
            if new is not None:
                self._tables[name] = old if old == new else new  # what is made of it stays good
        return dict(self._tables)

    async def _read(self, changed: set[str]) -> dict[str, Table]:
        try:
            raw = self._kernel.read(self._number, changed)
        except OSError:  # it changes too fast, or there is no nf_tables: the tool knows
            return iptables_save.tables(await process.run([self._tool]))
        found = {name: self._known(name, chains) for name, chains in raw.items()}
        unknown = [name for name, table in found.items() if table is None]
        known = {name: table for name, table in found.items() if table is not None}
        if not unknown:
            return known
        only = ("-t", *unknown) if len(unknown) == 1 else ()
        shown = iptables_save.tables(await process.run([self._tool, *only]))
        self._learn({name: raw[name] for name in unknown}, shown)
        return known | {name: shown[name] for name in unknown if name in shown}

    def _known(self, name: str, chains: RawTable) -> Table | None:
        based = [(chain, raw) for chain, raw in chains.items() if raw.base]
        if not self._bases.issuperset((name, chain, raw.base) for chain, raw in based):
            return None
        try:
            rules = {
                chain: tuple([self._rules[r] for r in raw.rules]) for chain, raw in chains.items()
            }
        except KeyError:
            return None
        return Table(rules, {chain: raw.policy for chain, raw in based})

    def _learn(self, before: dict[str, RawTable], shown: Tables) -> None:
        """Only where the kernel had the same before and after the tool looked."""
        try:
            after = self._kernel.read(self._number, before)
        except OSError:
            return
        if len(self._rules) > 2 * _count(self._tables.values()) + _MOST_GONE:
            self._rules.clear()
        for name, table in shown.items():
            chains = before.get(name)
            if chains is None or chains != after.get(name):
                continue
            # The tool also shows built-in chains that the kernel does not have, as empty ones.
            counts = {chain: len(rules) for chain, rules in table.chains.items()}
            if any(counts.get(chain) != len(raw.rules) for chain, raw in chains.items()):
                continue
            for chain, raw in chains.items():
                self._bases.add((name, chain, raw.base))
                self._rules.update(zip(raw.rules, table.chains[chain], strict=True))


def _count(tables: Iterable[Table]) -> int:
    return sum(len(rules) for table in tables for rules in table.chains.values())
