"""nf_tables as the kernel has it: who changes which table, what stands in it, and how to change it.

The rules stay bytes: those that iptables writes are opaque to everybody but iptables. Equal rules
are equal bytes, though, and reading and writing these costs a fraction of running a tool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from vnetd.backends import netlink
from vnetd.backends.firewalls import nf_messages as nf
from vnetd.backends.firewalls.nf_messages import RawChain
from vnetd.backends.netlink import Generation

Tell = Callable[[Generation | None], None]
"""None: the kernel had to drop some of what it had to tell."""
RawTable = Mapping[str, RawChain]

_MOST_TRIES = 3


class NfTables:
    """Of this network namespace. Others subscribe to what the kernel tells."""

    def __init__(self) -> None:
        self.generation: int | None = None
        """The newest that the kernel has told of; None where that is not known."""
        try:
            self._events = netlink.open_nftables_events()
        except PermissionError:
            # One that nobody tells anything. Rules cannot be read either, which is said.
            self._events = netlink.open_nftables()
        self._asked = netlink.open_nftables()
        self._written = netlink.open_nftables()
        self.port: int = self._written.getsockname()[0]
        self._generations = netlink.Generations()
        self._told: list[Tell] = []

    def subscribe(self, tell: Tell) -> None:
        self._told.append(tell)

    async def watch(self) -> None:
        await netlink.listen(self._events, self._on_data)

    def drain(self) -> None:
        """Tell now what has come already: by the time that a tool ends, all that it wrote."""
        netlink.drain(self._events, self._on_data)

    def tables(self) -> set[tuple[str, str]]:
        """(family, name) of each. Raises OSError."""
        found = (nf.table(body)[0] for body in self._ask(nf.ask_for_tables()))
        return {(nf.FAMILIES.get(family, ""), name) for family, name in found}

    def read(self, family: int, tables: Iterable[str]) -> dict[str, RawTable]:
        """Those of these tables that exist. Raises OSError, also where they change too fast."""
        wanted = frozenset(tables)
        found: dict[str, dict[str, RawChain]] = {}
        for body in self._ask(nf.ask_for_chains(family)):
            table, name, chain = nf.chain(body)
            if table in wanted:
                found.setdefault(table, {})[name] = chain
        for table, chains in found.items():
            by_name = {name.encode(): chain for name, chain in chains.items()}
            for of_chain, handle, rule in nf.rules(self._ask(nf.ask_for_rules(family, table))):
                if (known := by_name.get(of_chain)) is not None:  # else newer than the chains
                    known.rules.append(rule)
                    known.handles.append(handle)
        return dict(found)

    def write(self, steps: Iterable[bytes], generation: int) -> None:
        """In one transaction, of which subscribers are told as of others' (with this port). Raises
        OSError, also where this generation is not the newest any more. The kernel takes its time.
        """
        self._written.send(nf.transaction(steps, generation))
        for kind, body in netlink.answers(self._written):
            if kind == netlink.ERROR:
                netlink.check(body)

    def _ask(self, question: bytes) -> list[bytes]:
        for _ in range(_MOST_TRIES - 1):
            with suppress(BlockingIOError):  # it changed meanwhile
                return netlink.dump(self._asked, question)
        return netlink.dump(self._asked, question)

    def _on_data(self, data: bytes | None) -> None:
        for generation in [None] if data is None else self._generations.feed(data):
            self.generation = generation.number if generation else None
            for tell in self._told:
                tell(generation)
