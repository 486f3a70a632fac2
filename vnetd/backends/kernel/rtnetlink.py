"""rtnetlink in whole messages: what the kernel lists can be sent back to it with another link in
it, whatever it holds that nobody here knows of. Many at once run in the kernel one after the other.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network

from vnetd.backends import netlink
from vnetd.core.model import Address, HostAddress, Route

FAMILIES = (socket.AF_INET, socket.AF_INET6)

# linux/rtnetlink.h
SETLINK = 19
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30
NEWQDISC, NEWTFILTER, NEWACTION, DELACTION = 36, 44, 48, 49
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
REPLACE, EXCL, CREATE, APPEND = 0x100, 0x200, 0x400, 0x800
# Links of others that come and go cut a reading short.
_MOST_READINGS = 5
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_MULTIPATH = 1, 4, 5, 6, 9
_RTA_CACHEINFO, _RTA_TABLE, _RTA_EXPIRES, _RTA_NH_ID = 12, 15, 23, 30
_RTN_UNICAST, _CLONED, _ONLINK = 1, 0x200, 4
# linux/if_addr.h
_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL, _IFA_CACHEINFO, _IFA_FLAGS = 1, 2, 3, 6, 8
_NODAD, _PERMANENT, _TENTATIVE, _DADFAILED = 0x02, 0x80, 0x40, 0x08
# linux/neighbour.h
_NDA_DST, _NDA_LLADDR = 1, 2
NTF_PROXY = 0x08
STALE, REACHABLE, PROBE, FAILED = 0x04, 0x02, 0x10, 0x20
_PERMANENT_NEIGHBOUR, _KNOWN, _NTF_USE = 0x80, 0x02 | 0x04 | 0x08 | 0x10 | 0x80, 0x01
_GETLINK, _IFLA_MASTER, _IFLA_ALT_IFNAME = 18, 10, 53
_ROUTE, _ADDRESS, _NEIGHBOUR, _LINK = struct.Struct("=8BI"), 8, 12, struct.Struct("=BBHiII")


@dataclass(frozen=True, slots=True)
class Request:
    kind: int
    flags: int
    body: bytes


class Rtnetlink:
    """The kernel answers before the question has returned."""

    def __init__(self) -> None:
        self._socket = netlink.open_route()

    def dump(self, kind: int, *families: int) -> list[bytes]:
        """The bodies of all objects of these address families. Raises OSError."""
        found = []
        for family in families:
            question = bytes([family]) + bytes(_ROUTE.size - 1)
            found += self._dump(netlink.message(kind, _REQUEST | _DUMP, question))
        return found

    def dump_proxies(self) -> list[bytes]:
        """Of IPv6; the kernel keeps them apart from neighbours. Raises OSError."""
        question = struct.pack("=BBHIHBB", socket.AF_INET6, 0, 0, 0, 0, NTF_PROXY, 0)
        return self._dump(netlink.message(GETNEIGH, _REQUEST | _DUMP, question))

    def run(self, requests: Sequence[Request]) -> list[int]:
        """All of them in one go; the errno of each, 0 for those that went well."""
        flags = _REQUEST | _ACK
        batch = b"".join(netlink.message(r.kind, r.flags | flags, r.body) for r in requests)
        if batch:
            self._socket.send(batch)
        codes: list[int] = []
        while len(codes) < len(requests):
            for kind, body in netlink.messages(self._socket.recv(1 << 18)):
                if kind == netlink.ERROR:
                    codes.append(-struct.unpack_from("=i", body)[0])
        return codes

    def has_link(self, name: str) -> bool:
        """By name or altname."""
        body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0)
        body += netlink.encoded(_IFLA_ALT_IFNAME, name.encode() + b"\0")
        self._socket.send(netlink.message(_GETLINK, _REQUEST, body))
        ((kind, _),) = netlink.messages(self._socket.recv(1 << 18))
        return kind != netlink.ERROR

    def _dump(self, question: bytes) -> list[bytes]:
        for _ in range(_MOST_READINGS - 1):
            with suppress(BlockingIOError):
                return netlink.dump(self._socket, question)
        return netlink.dump(self._socket, question)


def check(requests: Sequence[Request], codes: Iterable[int], *fine: int) -> None:
    """Raises OSError for the first that failed, but for these errors."""
    for request, code in zip(requests, codes, strict=True):
        if code and code not in fine:
            raise OSError(code, f"{_WORDS.get(request.kind, request.kind)}: {os.strerror(code)}")


_WORDS = {
    SETLINK: "plug in the link",
    NEWADDR: "add an address",
    DELADDR: "remove an address",
    NEWROUTE: "add a route",
    DELROUTE: "remove a route",
    NEWNEIGH: "add a neighbour",
    DELNEIGH: "remove a neighbour",
    NEWQDISC: "add a queueing discipline",
    NEWTFILTER: "add a filter",
}


def set_master(index: int, master: int) -> Request:
    """master: 0 for none."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, index, 0, 0)
    return Request(SETLINK, 0, body + netlink.encoded(_IFLA_MASTER, struct.pack("=I", master)))


# -- addresses: struct ifaddrmsg


def addresses_of(dump: Iterable[bytes], index: int) -> list[bytes]:
    found = [body for body in dump if struct.unpack_from("=I", body, 4)[0] == index]
    return [body for body in found if not _address_flags(body) & _DADFAILED]


def address(body: bytes) -> Address:
    given = netlink.attributes(body[_ADDRESS:])
    packed = given.get(_IFA_LOCAL) or given[_IFA_ADDRESS]
    return ip_interface((packed, body[1]))


def is_leased(body: bytes) -> bool:
    """An IPv4 address that ends unless somebody renews it."""
    return body[0] == socket.AF_INET and not _address_flags(body) & _PERMANENT


def is_lasting(body: bytes) -> bool:
    """Neither leased, nor made by router advertisements, nor one that every link has."""
    return bool(_address_flags(body) & _PERMANENT) and not address(body).is_link_local


def address_at(body: bytes, index: int) -> bytes:
    """The same on another link, there at once: nobody else can have it, for it was in use here.
    Its label named the link.
    """
    given = netlink.attributes(body[_ADDRESS:])
    given.pop(_IFA_LABEL, None)
    flags = _address_flags(body) & ~(_TENTATIVE | _PERMANENT)
    if body[0] == socket.AF_INET6:
        flags |= _NODAD
    given[_IFA_FLAGS] = struct.pack("=I", flags)
    if _address_flags(body) & _PERMANENT:
        given.pop(_IFA_CACHEINFO, None)
    head = struct.pack("=4BI", body[0], body[1], flags & 0xFF, body[3], index)
    return head + _encoded(given)


def _address_flags(body: bytes) -> int:
    given = netlink.attributes(body[_ADDRESS:])
    flags = given.get(_IFA_FLAGS)
    return int(struct.unpack("=I", flags)[0]) if flags else body[2]


# -- routes: struct rtmsg


def routes_of(dump: Iterable[bytes], index: int) -> list[bytes]:
    """Those that packets leave by, and no gateway before the network that it is in."""
    found = [
        body
        for body in dump
        if body[7] == _RTN_UNICAST
        and not struct.unpack_from("=I", body, 8)[0] & _CLONED
        and index in hops(body)
    ]
    return sorted(found, key=lambda body: _RTA_GATEWAY in netlink.attributes(body[_ROUTE.size :]))


def hops(body: bytes) -> set[int]:
    """The indexes of the links that it leads over."""
    given = netlink.attributes(body[_ROUTE.size :])
    found = {struct.unpack("=I", given[_RTA_OIF])[0]} if _RTA_OIF in given else set()
    return found | {hop[2] for hop in _hops(given.get(_RTA_MULTIPATH, b""))}


def route(body: bytes) -> Route:
    given = netlink.attributes(body[_ROUTE.size :])
    size = 4 if body[0] == socket.AF_INET else 16
    destination = ip_network((given.get(_RTA_DST, bytes(size)), body[1]))
    gateway = ip_address(given[_RTA_GATEWAY]) if _RTA_GATEWAY in given else None
    metric = struct.unpack("=I", given[_RTA_PRIORITY])[0] if _RTA_PRIORITY in given else 0
    table = struct.unpack("=I", given[_RTA_TABLE])[0] if _RTA_TABLE in given else body[4]
    return Route(destination, gateway, metric, table)


def has_nexthop_object(body: bytes) -> bool:
    """Its link stands in the object, not in the route: ip-nexthop(8)."""
    return _RTA_NH_ID in netlink.attributes(body[_ROUTE.size :])


def route_at(body: bytes, old: int, new: int) -> bytes:
    """The same over another link."""
    given = netlink.attributes(body[_ROUTE.size :])
    given.pop(_RTA_CACHEINFO, None)
    if given.get(_RTA_OIF) == struct.pack("=I", old):
        given[_RTA_OIF] = struct.pack("=I", new)
    if _RTA_MULTIPATH in given:
        given[_RTA_MULTIPATH] = _hops_at(given[_RTA_MULTIPATH], old, new)
    if body[0] == socket.AF_INET6 and (left := _expires(body)):
        given[_RTA_EXPIRES] = struct.pack("=I", left)
    fields = [*_ROUTE.unpack_from(body)]
    fields[8] &= _ONLINK  # the kernel takes none of those that tell of a state
    return _ROUTE.pack(*fields) + _encoded(given)


def route_over(index: int, wanted: Route) -> bytes:
    """As an admin would write it."""
    family = socket.AF_INET if wanted.destination.version == 4 else socket.AF_INET6
    # RTPROT_STATIC, RT_SCOPE_UNIVERSE or RT_SCOPE_LINK
    scope = 253 if wanted.gateway is None and family == socket.AF_INET else 0
    head = _ROUTE.pack(family, wanted.destination.prefixlen, 0, 0, 0, 4, scope, _RTN_UNICAST, 0)
    given = {
        _RTA_OIF: struct.pack("=I", index),
        _RTA_TABLE: struct.pack("=I", wanted.table),
    }
    if wanted.destination.prefixlen:
        given[_RTA_DST] = wanted.destination.network_address.packed
    if wanted.gateway is not None:
        given[_RTA_GATEWAY] = wanted.gateway.packed
    if wanted.metric:
        given[_RTA_PRIORITY] = struct.pack("=I", wanted.metric)
    return head + _encoded(given)


def _expires(body: bytes) -> int:
    """Seconds: struct rta_cacheinfo, rta_expires in ticks of 1/100 s."""
    info = netlink.attributes(body[_ROUTE.size :]).get(_RTA_CACHEINFO)
    ticks = struct.unpack_from("=IIi", info)[2] if info else 0
    return max(0, int(ticks) // 100)


def _hops(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(place, length, link) of each struct rtnexthop."""
    at = 0
    while at + 8 <= len(data):
        length, _flags, _weight, index = struct.unpack_from("=HBBi", data, at)
        if length < 8:
            return
        yield at, length, index
        at += (length + 3) & ~3


def _hops_at(data: bytes, old: int, new: int) -> bytes:
    changed = bytearray(data)
    for at, _, index in _hops(data):
        if index == old:
            struct.pack_into("=i", changed, at + 4, new)
        changed[at + 2] &= _ONLINK
    return bytes(changed)


# -- neighbours: struct ndmsg


def neighbours_of(dump: Iterable[bytes], index: int) -> dict[HostAddress, bytes]:
    """Those whose MAC address is known."""
    found = {}
    for body in dump:
        (link,) = struct.unpack_from("=I", body, 4)
        given = netlink.attributes(body[_NEIGHBOUR:])
        if link == index and state(body) & _KNOWN and _NDA_DST in given and _NDA_LLADDR in given:
            found[ip_address(given[_NDA_DST])] = body
    return found


def state(body: bytes) -> int:
    return int(struct.unpack_from("=H", body, 8)[0])


def neighbour_state(dump: Iterable[bytes], index: int, host: HostAddress) -> int:
    """0: there is no such entry."""
    for body in dump:
        (link,) = struct.unpack_from("=I", body, 4)
        packed = netlink.attributes(body[_NEIGHBOUR:]).get(_NDA_DST)
        if link == index and packed == host.packed:
            return state(body)
    return 0


def neighbour_at(body: bytes, index: int) -> bytes:
    """The same behind another link, to be asked for again when it is next used."""
    given = netlink.attributes(body[_NEIGHBOUR:])
    kept = {key: given[key] for key in (_NDA_DST, _NDA_LLADDR)}
    now = _PERMANENT_NEIGHBOUR if state(body) & _PERMANENT_NEIGHBOUR else STALE
    return struct.pack("=BBHIHBB", body[0], 0, 0, index, now, 0, 0) + _encoded(kept)


def probe(index: int, host: HostAddress, known: bytes | None) -> Request:
    """Let the kernel ask a neighbour for its MAC address now."""
    family = socket.AF_INET if host.version == 4 else socket.AF_INET6
    now, flags = (PROBE, 0) if known else (0, _NTF_USE)
    head = struct.pack("=BBHIHBB", family, 0, 0, index, now, flags, 0)
    given = {_NDA_DST: host.packed}
    if known:
        given[_NDA_LLADDR] = netlink.attributes(known[_NEIGHBOUR:])[_NDA_LLADDR]
    return Request(NEWNEIGH, CREATE | REPLACE, head + _encoded(given))


def _encoded(given: Mapping[int, bytes]) -> bytes:
    return b"".join(netlink.encoded(kind, value) for kind, value in given.items())
