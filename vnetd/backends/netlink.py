"""Netlink: the kernel's event sockets, of which only headers are read (what changed is asked for
afterwards), and how a message is put together and taken apart.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

_SOL_NETLINK, _ADD_MEMBERSHIP, _SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 270, 1, 33, 32
_DROP_MEMBERSHIP = 2
_NETLINK_ROUTE, _NETLINK_SOCK_DIAG, _NETLINK_NETFILTER = 0, 4, 12
_RECEIVE_BUFFER = 8 * 1024 * 1024
# A transaction is one message, however many rules it holds.
_SEND_BUFFER = 32 * 1024 * 1024
# Then it is others' turn on the loop.
_MOST_AT_ONCE = 256

# linux/rtnetlink.h: RTNLGRP_LINK, _TC, _IPV4_IFADDR, _IPV6_IFADDR
_LINK_GROUPS = (1, 4, 5, 9)
# RTNLGRP_IPV4_NETCONF, _IPV6_NETCONF: forwarding, globally and of each link
_NETCONF_GROUPS = (24, 25)
# RTNLGRP_IPV4_ROUTE, _IPV6_ROUTE
_ROUTE_GROUPS = (7, 11)
# RTNLGRP_NEIGH
_NEIGHBOUR_GROUP = 3
# linux/netfilter/nfnetlink.h and nf_tables.h
_NFTABLES_GROUP = 7
_SUBSYS_NFTABLES = 10
_MSG_NEWGEN = 15
_GEN_ID, _GEN_PROC_PID, _GEN_PROC_NAME = 1, 2, 3
_OBJECT_TABLE = 1
_NESTED = 0x8000
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
ERROR, DONE = 2, 3
_DUMP_INTR = 0x10
_NEWLINK, _DELLINK, _IFF_UP = 16, 17, 1
# linux/netconf.h: struct netconfmsg is one byte, then attributes
_NEWNETCONF, _NETCONFA_IFINDEX = 80, 1
ALL_LINKS = -1
"""The index under which the kernel tells of a setting for all."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One committed nf_tables transaction: who wrote it, the (address family, table) pairs that it
    touched, and how many objects. pid is one of the initial pid namespace. port: of the socket.
    """

    process: str
    pid: int
    tables: frozenset[tuple[int, str]]
    changes: int
    number: int
    port: int


def open_link_events() -> socket.socket:
    return _open(_NETLINK_ROUTE, _LINK_GROUPS)


def open_netconf_events() -> socket.socket:
    return _open(_NETLINK_ROUTE, _NETCONF_GROUPS)


def open_route_events() -> socket.socket:
    return _open(_NETLINK_ROUTE, _ROUTE_GROUPS)


def open_way_events() -> socket.socket:
    """Routes, and the links that they lead out of: with those IPv4 routes go unsaid."""
    return _open(_NETLINK_ROUTE, (*_ROUTE_GROUPS, _LINK_GROUPS[0]))


def open_nftables_events() -> socket.socket:
    return _open(_NETLINK_NETFILTER, (_NFTABLES_GROUP,))


def open_route() -> socket.socket:
    """To ask about links, routes and neighbours, and to change them."""
    return _open(_NETLINK_ROUTE, ())


def open_sock_diag() -> socket.socket:
    """To ask about sockets of all processes."""
    return _open(_NETLINK_SOCK_DIAG, ())


def open_nftables() -> socket.socket:
    """To ask and to write; its port is what the kernel calls the owner of a table."""
    nftables = _open(_NETLINK_NETFILTER, ())
    try:
        nftables.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
    except PermissionError:
        nftables.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    return nftables


async def listen(events: socket.socket, on_data: Callable[[bytes | None], None]) -> None:
    """Hand over each datagram as it comes; None: the kernel had to drop some. Until cancelled."""
    loop = asyncio.get_running_loop()
    loop.add_reader(events.fileno(), drain, events, on_data, _MOST_AT_ONCE)
    try:
        await loop.create_future()
    finally:
        loop.remove_reader(events.fileno())
        events.close()


def drain(
    events: socket.socket, on_data: Callable[[bytes | None], None], most: int | None = None
) -> None:
    """Hand over what has arrived already; most: so many datagrams, for a storm may not end."""
    for _ in count() if most is None else range(most):
        try:
            on_data(events.recv(1 << 17))
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            on_data(None)


def has_default_route(data: bytes) -> bool:
    """Whether one is among the routes that changed: struct rtmsg, dst_len."""
    return any(len(body) > 1 and body[1] == 0 for _, body in messages(data))


def links(data: bytes) -> Iterator[tuple[int, bool]]:
    """(index, whether it is down or deleted) of each link spoken of: struct ifinfomsg."""
    for kind, body in messages(data):
        if kind in (_NEWLINK, _DELLINK) and len(body) >= 16:
            index, flags = struct.unpack_from("=iI", body, 4)
            yield index, kind == _DELLINK or not flags & _IFF_UP


def netconf(data: bytes) -> Iterator[int]:
    """The index of each link of which a setting has changed, or that is new; -2: the default for
    new ones.
    """
    for kind, body in messages(data):
        if kind == _NEWNETCONF:
            index = attributes(body[4:]).get(_NETCONFA_IFINDEX, b"")
            if len(index) == 4:
                yield struct.unpack("=i", index)[0]


def follow_neighbours(events: socket.socket, *, on: bool) -> None:
    """Every guest that says something makes events of this group."""
    option = _ADD_MEMBERSHIP if on else _DROP_MEMBERSHIP
    events.setsockopt(_SOL_NETLINK, option, _NEIGHBOUR_GROUP)


class Generations:
    """Puts the messages of nf_tables together: objects first, then the NEWGEN that ends them."""

    def __init__(self) -> None:
        self._tables: set[tuple[int, str]] = set()
        self._changes = 0

    def feed(self, data: bytes) -> Iterator[Generation]:
        for kind, _, port, body in _packets(data):
            if kind >> 8 != _SUBSYS_NFTABLES:
                continue
            if kind & 0xFF == _MSG_NEWGEN:
                found = attributes(body[4:])
                (number,) = struct.unpack(">I", found.get(_GEN_ID, bytes(4)))
                (pid,) = struct.unpack(">I", found.get(_GEN_PROC_PID, bytes(4)))
                name = _text(found.get(_GEN_PROC_NAME, b""))
                tables = frozenset(self._tables)
                yield Generation(name, pid, tables, self._changes, number, port)
                self._tables, self._changes = set(), 0
            else:
                self._tables.add((body[0], _table(body)))
                self._changes += 1


def _table(body: bytes) -> str:
    """Of an object: the kernel names its table first. A flush of thousands of rules tells each."""
    length, kind = struct.unpack_from("=HH", body, 4) if len(body) >= 8 else (0, 0)
    return _text(body[8 : 4 + length]) if kind == _OBJECT_TABLE else ""


def _open(protocol: int, groups: tuple[int, ...]) -> socket.socket:
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    events.setblocking(False)
    try:
        # Goes beyond net.core.rmem_max, which a burst of 500 links overruns.
        events.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    except PermissionError:
        events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    events.bind((0, 0))
    for group in groups:
        events.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    return events


def dump(asking: socket.socket, question: bytes) -> list[bytes]:
    """The body of each message of the answer, from a socket without groups. Raises OSError: EAGAIN
    where the kernel says that it changed meanwhile, so that some may be missing.
    """
    asking.send(question)
    bodies: list[bytes] = []
    changed = False
    while True:
        for kind, flags, _, body in _packets(asking.recv(1 << 20)):
            changed = changed or bool(flags & _DUMP_INTR)
            if kind == DONE:
                if changed:
                    raise OSError(errno.EAGAIN, "it changes faster than it can be read")
                return bodies
            if kind == ERROR:
                check(body)
            bodies.append(body)


def answers(asked: socket.socket) -> list[tuple[int, bytes]]:
    """(type, body) of what has been answered: nf_tables has, by the time that send() returns."""
    found: list[tuple[int, bytes]] = []
    with suppress(BlockingIOError):
        while True:
            found += messages(asked.recv(1 << 20))
    return found


def check(body: bytes) -> None:
    """Of an ERROR message: raises OSError, unless it says that all is well."""
    if number := code(body):
        raise OSError(number, os.strerror(number))


def code(body: bytes) -> int:
    """Of an ERROR message: its errno, 0 where all is well."""
    (negative,) = struct.unpack_from("=i", body)
    return -int(negative)


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, body) of each."""
    for kind, _, _, body in _packets(data):
        yield kind, body


def _packets(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, port, body) of each: struct nlmsghdr, aligned to 4 bytes."""
    at = 0
    while at + 16 <= len(data):
        length, kind, flags, _, port = _HEADER.unpack_from(data, at)
        if length < 16:
            return
        yield kind, flags, port, data[at + 16 : at + length]
        at += (length + 3) & ~3


def message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(16 + len(body), kind, flags, 0, 0) + body


def attributes(data: bytes) -> dict[int, bytes]:
    """Type → value, of types that occur once."""
    return dict(each_attribute(data))


def each_attribute(data: bytes) -> list[tuple[int, bytes]]:
    """(type, value): struct nlattr, aligned to 4 bytes."""
    found, at, end = [], 0, len(data) - 4
    while at <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            break
        found.append((kind & 0x3FFF, data[at + 4 : at + length]))
        at += (length + 3) & ~3
    return found


def encoded(kind: int, value: bytes, *, nested: bool = False) -> bytes:
    """One attribute."""
    length = 4 + len(value)
    kind |= _NESTED if nested else 0
    return struct.pack("=HH", length, kind) + value + bytes(-length % 4)


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")
