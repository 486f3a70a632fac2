"""nf_tables as the kernel has it: who changes which table, and what stands in it.

The rules stay bytes: those that iptables writes are opaque to everybody but iptables. Equal rules
are equal bytes, though, and reading them costs a fraction of running a tool.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from vnetd.backends import netlink
from vnetd.backends.netlink import Generation, attributes, encoded, message

Tell = Callable[[Generation | None], None]
"""None: the kernel had to drop some of what it had to tell."""

FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
"""linux/netfilter.h: NFPROTO_*, as nft calls them."""

# linux/netfilter/nf_tables.h
_SUBSYSTEM = 10 << 8
_GETTABLE, _GETCHAIN, _GETRULE = _SUBSYSTEM | 1, _SUBSYSTEM | 4, _SUBSYSTEM | 7
_REQUEST, _DUMP = 0x1, 0x300
_TABLE_NAME = 1
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 1, 3, 4, 5, 7
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_POLICIES = {0: "DROP", 1: "ACCEPT"}
# What changes by itself: an expression "counter" with its bytes and packets. Where a kernel lays it
# out otherwise, rules never look the same twice, which costs time only.
_COUNTER = re.compile(
    rb"\x0c\0\x01\0counter\0\x1c\0\x02[\0\x80]\x0c\0\x01\0.{8}\x0c\0\x02\0.{8}", re.DOTALL
)
_NO_COUNTER = bytes(40)
_MOST_TRIES = 3


@dataclass(frozen=True, slots=True)
class RawChain:
    """base: hook, priority and type, empty for a chain that is only jumped to. rules: each all
    that makes it what it is, but for handle, position and counters.
    """

    base: bytes = b""
    policy: str = ""
    rules: list[bytes] = field(default_factory=list)


RawTable = Mapping[str, RawChain]


class NfTables:
    """Of this network namespace. Others subscribe to what the kernel tells."""

    def __init__(self) -> None:
        try:
            self._events = netlink.open_nftables_events()
        except PermissionError:
            # One that nobody tells anything. Rules cannot be read either, which is said.
            self._events = netlink.open_nftables()
        self._asked = netlink.open_nftables()
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
        found = set()
        for body in self._ask(_question(_GETTABLE, 0)):
            name = attributes(body[4:]).get(_TABLE_NAME, b"")
            found.add((FAMILIES.get(body[0], ""), _text(name)))
        return found

    def read(self, family: int, tables: Iterable[str]) -> dict[str, RawTable]:
        """Those of these tables that exist. Raises OSError, also where they change too fast."""
        wanted = frozenset(tables)
        found: dict[str, dict[str, RawChain]] = {}
        for body in self._ask(_question(_GETCHAIN, family)):
            table, name, chain = _chain(body)
            if table in wanted:
                found.setdefault(table, {})[name] = chain
        for table, chains in found.items():
            by_name = {name.encode(): chain.rules for name, chain in chains.items()}
            of_table = encoded(_RULE_TABLE, table.encode() + b"\0")
            answer = self._ask(_question(_GETRULE, family, of_table))
            for of_chain, rule in rules(answer):
                if of_chain in by_name:  # else it is newer than the look at chains
                    by_name[of_chain].append(rule)
        return dict(found)

    def _ask(self, question: bytes) -> list[bytes]:
        for _ in range(_MOST_TRIES - 1):
            with suppress(BlockingIOError):  # it changed meanwhile
                return netlink.dump(self._asked, question)
        return netlink.dump(self._asked, question)

    def _on_data(self, data: bytes | None) -> None:
        for generation in [None] if data is None else self._generations.feed(data):
            for tell in self._told:
                tell(generation)


def rules(bodies: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Of a dump: each rule's chain, and the rule."""
    for body in bodies:
        chain, at = b"", 4
        while at + 4 <= len(body):
            length, kind = struct.unpack_from("=HH", body, at)
            if kind & 0x3FFF == _RULE_EXPRESSIONS or length < 4:
                break  # what follows belongs to the rule as well: its comment
            if kind == _RULE_CHAIN:
                chain = body[at + 4 : at + length - 1]
            at += (length + 3) & ~3
        yield chain, _COUNTER.sub(_NO_COUNTER, body[at:])


def _chain(body: bytes) -> tuple[str, str, RawChain]:
    found = attributes(body[4:])
    (policy,) = struct.unpack(">I", found.get(_CHAIN_POLICY, b"\xff" * 4))
    base = found.get(_CHAIN_HOOK, b"") + found.get(_CHAIN_TYPE, b"")
    table, name = _text(found.get(_CHAIN_TABLE, b"")), _text(found.get(_CHAIN_NAME, b""))
    return table, name, RawChain(base, _POLICIES.get(policy, ""))


def _question(kind: int, family: int, attributes_: bytes = b"") -> bytes:
    return message(kind, _REQUEST | _DUMP, struct.pack("=BBH", family, 0, 0) + attributes_)


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")
