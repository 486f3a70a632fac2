"""nf_tables' netlink messages (linux/netfilter/nf_tables.h): questions, the steps of a transaction,
and what dumps tell. Pure. What a rule does stays bytes here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from vnetd.backends.netlink import attributes, encoded, message

INET = 1
FAMILIES = {INET: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
"""linux/netfilter.h: NFPROTO_*, as nft calls them."""
OWNER, PERSIST = 0x2, 0x4
"""Flags of a table."""

_SUBSYSTEM = 10 << 8
_NEWTABLE, _GETTABLE, _DELTABLE = _SUBSYSTEM, _SUBSYSTEM | 1, _SUBSYSTEM | 2
_NEWCHAIN, _GETCHAIN, _DELCHAIN = _SUBSYSTEM | 3, _SUBSYSTEM | 4, _SUBSYSTEM | 5
_NEWRULE, _GETRULE, _DELRULE = _SUBSYSTEM | 6, _SUBSYSTEM | 7, _SUBSYSTEM | 8
_BATCH_BEGIN, _BATCH_END, _BATCH_GENERATION = 0x10, 0x11, 1
_REQUEST, _ACK, _DUMP, _CREATE, _APPEND = 0x1, 0x4, 0x300, 0x400, 0x800
_TABLE_NAME, _TABLE_FLAGS, _TABLE_OWNER = 1, 2, 7
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 1, 3, 4, 5, 7
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_POSITION = 1, 2, 3, 4, 6
_RULE_USER_DATA = 7
_ACCEPT = 1
_POLICIES = {0: "DROP", _ACCEPT: "ACCEPT"}

# What changes by itself: an expression "counter" with its bytes and packets. Where a kernel lays it
# out otherwise, rules never look the same twice, which costs time only.
_COUNTER = re.compile(
    rb"\x0c\0\x01\0counter\0\x1c\0\x02[\0\x80]\x0c\0\x01\0.{8}\x0c\0\x02\0.{8}", re.DOTALL
)
_NO_COUNT = encoded(1, b"counter\0") + encoded(
    2, encoded(1, bytes(8)) + encoded(2, bytes(8)), nested=True
)


@dataclass(frozen=True, slots=True)
class RawChain:
    """base: where it is hooked in, empty for a chain that is only jumped to. rules: each all that
    makes it what it is, but for its counters. handles: theirs.
    """

    base: bytes = b""
    policy: str = ""
    rules: list[bytes] = field(default_factory=list)
    handles: list[int] = field(default_factory=list)


# -- questions, and the messages of their answers


def ask_for_tables() -> bytes:
    return _message(_GETTABLE, _DUMP, 0)


def ask_for_chains(family: int) -> bytes:
    return _message(_GETCHAIN, _DUMP, family)


def ask_for_rules(family: int, table: str) -> bytes:
    return _message(_GETRULE, _DUMP, family, encoded(_RULE_TABLE, _bytes(table)))


def table(body: bytes) -> tuple[tuple[int, str], int, int]:
    """Its family and name, its flags, and its owner's port (0: it has none)."""
    found = attributes(body[4:])
    (flags,) = struct.unpack(">I", found.get(_TABLE_FLAGS, bytes(4)))
    (owner,) = struct.unpack(">I", found.get(_TABLE_OWNER, bytes(4)))
    return (body[0], _text(found.get(_TABLE_NAME, b""))), flags, owner


def chain(body: bytes) -> tuple[str, str, RawChain]:
    """Its table, its name, and the chain, as yet without rules."""
    found = attributes(body[4:])
    (policy,) = struct.unpack(">I", found.get(_CHAIN_POLICY, b"\xff" * 4))
    base = b""
    if _CHAIN_HOOK in found:
        base = encoded(_CHAIN_HOOK, found[_CHAIN_HOOK], nested=True)
        base += encoded(_CHAIN_TYPE, found.get(_CHAIN_TYPE, b""))
    of_table, name = _text(found.get(_CHAIN_TABLE, b"")), _text(found.get(_CHAIN_NAME, b""))
    return of_table, name, RawChain(base, _POLICIES.get(policy, ""))


def rules(bodies: Iterable[bytes]) -> Iterator[tuple[bytes, int, bytes]]:
    """Of each rule its chain, its handle, and all of it that does not change by itself."""
    for body in bodies:
        of_chain, handle, at = b"", 0, 4
        while at + 4 <= len(body):
            length, kind = struct.unpack_from("=HH", body, at)
            if kind & 0x3FFF == _RULE_EXPRESSIONS or length < 4:
                break  # what follows belongs to the rule as well: its comment
            if kind == _RULE_CHAIN:
                of_chain = body[at + 4 : at + length - 1]
            elif kind == _RULE_HANDLE:
                handle = int.from_bytes(body[at + 4 : at + length], "big")
            at += (length + 3) & ~3
        yield of_chain, handle, _COUNTER.sub(_NO_COUNT, body[at:])


# -- steps of a transaction


def transaction(steps: Iterable[bytes], generation: int | None = None) -> bytes:
    """All of it or nothing. The kernel answers the last step when it is in force.

    generation: it refuses all (ERESTART) where that is not the newest any more.
    """
    found = list(steps)
    kind, flags = struct.unpack_from("=HH", found[-1], 4)
    last = found[-1][:4] + struct.pack("=HH", kind, flags | _ACK) + found[-1][8:]
    ends = struct.pack(">BBH", 0, 0, _SUBSYSTEM >> 8)
    only_at = b"" if generation is None else encoded(_BATCH_GENERATION, _u32(generation))
    begin = message(_BATCH_BEGIN, _REQUEST, ends + only_at)
    return b"".join((begin, *found[:-1], last, message(_BATCH_END, _REQUEST, ends)))


def make_table(family: int, name: str, flags: int = 0) -> bytes:
    """Also where there is one of that name: its flags then change."""
    parts = encoded(_TABLE_NAME, _bytes(name)), encoded(_TABLE_FLAGS, _u32(flags))
    return _message(_NEWTABLE, _CREATE, family, *parts)


def delete_table(family: int, name: str) -> bytes:
    return _message(_DELTABLE, 0, family, encoded(_TABLE_NAME, _bytes(name)))


def base(hook: int, priority: int, kind: str) -> bytes:
    where = encoded(_HOOK_NUMBER, _u32(hook))
    where += encoded(_HOOK_PRIORITY, struct.pack(">i", priority))
    return encoded(_CHAIN_HOOK, where, nested=True) + encoded(_CHAIN_TYPE, _bytes(kind))


def make_chain(family: int, table: str, name: str, base: bytes = b"") -> bytes:
    """base: of a chain that is hooked in; its policy is to accept."""
    policy = encoded(_CHAIN_POLICY, _u32(_ACCEPT)) if base else b""
    return _message(_NEWCHAIN, _CREATE, family, *_chain(table, name), base, policy)


def delete_chain(family: int, table: str, name: str) -> bytes:
    return _message(_DELCHAIN, 0, family, *_chain(table, name))


def rule(expressions: bytes, user_data: bytes = b"") -> bytes:
    whole = encoded(_RULE_EXPRESSIONS, expressions, nested=True)
    return whole + (encoded(_RULE_USER_DATA, user_data) if user_data else b"")


def add_rule(family: int, table: str, chain: str, rule: bytes, before: int = 0) -> bytes:
    """before: the handle of another one (0: it is the last)."""
    where = encoded(_RULE_POSITION, struct.pack(">Q", before)) if before else b""
    flags = _CREATE if before else _CREATE | _APPEND
    return _message(_NEWRULE, flags, family, *_of_chain(table, chain), where, rule)


def delete_rule(family: int, table: str, chain: str, handle: int) -> bytes:
    which = encoded(_RULE_HANDLE, struct.pack(">Q", handle))
    return _message(_DELRULE, 0, family, *_of_chain(table, chain), which)


def delete_rules(family: int, table: str, chain: str) -> bytes:
    """All of the chain."""
    return _message(_DELRULE, 0, family, *_of_chain(table, chain))


def _chain(table: str, name: str) -> tuple[bytes, bytes]:
    return encoded(_CHAIN_TABLE, _bytes(table)), encoded(_CHAIN_NAME, _bytes(name))


def _of_chain(table: str, chain: str) -> tuple[bytes, bytes]:
    return encoded(_RULE_TABLE, _bytes(table)), encoded(_RULE_CHAIN, _bytes(chain))


def _message(kind: int, flags: int, family: int, *parts: bytes) -> bytes:
    return message(kind, _REQUEST | flags, struct.pack(">BBH", family, 0, 0) + b"".join(parts))


def _u32(value: int) -> bytes:
    return struct.pack(">I", value)


def _bytes(text: str) -> bytes:
    return text.encode() + b"\0"


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")
