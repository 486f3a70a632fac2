"""What iptables-nft-save prints and iptables-nft-restore writes, without running them for rules
that have been printed before.

The kernel has these rules as bytes that only iptables can read. Equal bytes are equal rules, so it
has to read each of them once, and what was lost is put back as the bytes that it was. A table that
nobody has changed since the last look is not read.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Collection, Iterable, Iterator

from vnetd.backends import process
from vnetd.backends.firewalls import iptables_save
from vnetd.backends.firewalls import nf_messages as nf
from vnetd.backends.firewalls.iptables_save import Table, Tables
from vnetd.backends.firewalls.nf_tables import NfTables, RawTable
from vnetd.backends.netlink import Generation
from vnetd.core.keep.rules import ChainEdits
from vnetd.core.model import Family
from vnetd.errors import Outdated

log = logging.getLogger(__name__)

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

    @property
    def generation(self) -> int | None:
        """Of the kernel, when both families were read; None where it was not the same."""
        ipv4, ipv6 = (of_family.generation for of_family in self._families.values())
        return ipv4 if ipv4 == ipv6 else None

    async def restore(self, chains: Collection[ChainEdits], generation: int | None) -> bool:
        """All of it in one transaction. False, and nothing is done, where a rule has not been seen
        before. Raises Outdated where this generation, for which the edits are, is not the newest
        any more.
        """
        if generation is None:
            return False
        steps: list[bytes] = []
        try:
            for family, of_family in self._families.items():
                steps += of_family.steps([x for x in chains if x.chain.family is family])
            # What a flush has thrown away the kernel may have to clear up first.
            await asyncio.to_thread(self._kernel.write, steps, generation)
        except (LookupError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.ERESTART:
                raise Outdated("somebody has written rules since they were read") from None
            log.debug("left to iptables: %r", error)
            return False
        return True

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
        self.generation: int | None = None
        """Of the kernel, when it was read."""
        self._kernel = kernel
        self._number = int(_FAMILIES[family])
        self._tool = _TOOLS[family]
        self._tables: dict[str, Table] = {}
        self._handles: dict[str, dict[str, list[int]]] = {}
        """Of the rules of each chain, as far as the kernel has it."""
        self._bases: dict[tuple[str, str], bytes] = {}
        self._texts: dict[bytes, str] = {}
        self._rules: dict[str, bytes] = {}
        """What the tool has shown before: where chains are hooked in, and rules."""

    async def read(self) -> Tables:
        generation = self._kernel.generation
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
        self.generation = generation
        return dict(self._tables)

    async def _read(self, changed: set[str]) -> dict[str, Table]:
        for name in changed:
            self._handles.pop(name, None)
        try:
            raw = self._kernel.read(self._number, changed)
        except OSError:  # it changes too fast, or there is no nf_tables: the tool knows
            return iptables_save.tables(await process.run([self._tool]))
        for name, chains in raw.items():
            self._handles[name] = {chain: of_chain.handles for chain, of_chain in chains.items()}
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
        if any(self._bases.get((name, chain)) != raw.base for chain, raw in based):
            return None
        try:
            rules = {
                chain: tuple([self._texts[r] for r in raw.rules]) for chain, raw in chains.items()
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
        if len(self._texts) > 2 * _count(self._tables.values()) + _MOST_GONE:
            self._texts.clear()
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
                if raw.base:
                    self._bases[name, chain] = raw.base
                self._texts.update(zip(raw.rules, table.chains[chain], strict=True))
                self._rules.update(zip(table.chains[chain], raw.rules, strict=True))

    def steps(self, edited: Collection[ChainEdits]) -> Iterator[bytes]:
        """Of a transaction, from what was read last. Raises LookupError for what was never seen."""
        for table in sorted({item.chain.table for item in edited} - self._handles.keys()):
            yield nf.make_table(self._number, table)
        for item in edited:  # all of them before any rule: it may jump there
            table, name = item.chain.table, item.chain.name
            if name not in self._handles.get(table, ()):
                base = b"" if item.new else self._bases[table, name]
                yield nf.make_chain(self._number, table, name, base)
        for item in edited:
            yield from self._edits(item)

    def _edits(self, item: ChainEdits) -> Iterator[bytes]:
        place = self._number, item.chain.table, item.chain.name
        handles = self._handles.get(item.chain.table, {}).get(item.chain.name, [])
        texts = self._tables[item.chain.table].chains[item.chain.name] if handles else ()
        if len(texts) != len(handles):
            raise LookupError("the tool has seen others than the kernel has shown")
        rules = [*texts]
        places = [*handles]
        for edit in item.edits:
            if edit.position:
                rules.insert(edit.position - 1, edit.rule)
                places.insert(edit.position - 1, 0)
            elif edit.rule in rules:
                at = rules.index(edit.rule)
                yield nf.delete_rule(*place, places.pop(at))
                del rules[at]
        added: list[bytes] = []
        before = 0
        for text, handle in zip(reversed(rules), reversed(places), strict=True):
            before = handle or before
            if not handle:
                added.append(nf.add_rule(*place, self._rules[text], before))
        yield from reversed(added)


def _count(tables: Iterable[Table]) -> int:
    return sum(len(rules) for table in tables for rules in table.chains.values())
