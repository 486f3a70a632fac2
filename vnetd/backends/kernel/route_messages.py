"""Routes, guests and proxies in rtnetlink's messages ⇄ the model. Pure."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address

from vnetd.backends import netlink
from vnetd.backends.kernel.rtnetlink import (
    CREATE,
    DELNEIGH,
    DELROUTE,
    NEWNEIGH,
    NEWROUTE,
    NTF_PROXY,
    Request,
    neighbours_of,
)
from vnetd.backends.netlink import attributes, encoded
from vnetd.core.model import HostAddress, HostRoute, IfName, Proxy, StaticRoute, Subnet

_EXCL = 0x200
# linux/neighbour.h; the size of struct ndmsg
_NDA_DST, _NDA_PROTOCOL, _NEIGHBOUR = 1, 12, 12
_DST, _OIF, _GATEWAY, _PRIORITY, _MULTIPATH, _TABLE, _VIA = 1, 4, 5, 6, 9, 15, 18
_MAIN = 254
# linux/rtnetlink.h: RTN_UNICAST; _BLACKHOLE, _UNREACHABLE, _PROHIBIT
_UNICAST, _NOWHERE = 1, (6, 7, 8)
# Of no routing daemon: rt_protos(5) has none at this number.
_VNETD = 118
_UNIVERSE = 0
_CLONED = 0x200
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_SUBNET: dict[int, type[IPv4Network] | type[IPv6Network]] = {
    socket.AF_INET: IPv4Network,
    socket.AF_INET6: IPv6Network,
}
_LINK_LOCAL = IPv6Network("fe80::/10")

Name = Callable[[int], IfName | None]


def destination(body: bytes) -> Subnet | None:
    """Where a route of the main table leads to; None of those that are of no interest: other
    tables', multicast and broadcast, and what every link has.
    """
    if len(body) < 12:
        return None
    family, length, _, _, table, _, _, kind, flags = struct.unpack_from("=BBBBBBBBI", body)
    known = kind == _UNICAST or kind in _NOWHERE
    if family not in _SUBNET or table != _MAIN or not known or flags & _CLONED:
        return None
    size = 4 if family == socket.AF_INET else 16
    start = attributes(body[12:]).get(_DST, bytes(size))
    subnet = _SUBNET[family]((start, length))
    return None if subnet.version == 6 and subnet.subnet_of(_LINK_LOCAL) else subnet


def destinations(data: bytes) -> Iterator[Subnet]:
    """Of all routes that an event speaks of."""
    for kind, body in netlink.messages(data):
        if kind in (NEWROUTE, DELROUTE) and (to := destination(body)) is not None:
            yield to


def routes(body: bytes, to: Subnet, name: Name) -> Iterator[HostRoute]:
    """One for each next hop whose link is still there."""
    found = attributes(body[12:])
    (metric,) = struct.unpack("=I", found.get(_PRIORITY, bytes(4)))
    if body[7] in _NOWHERE:
        yield HostRoute(to, None, None, metric)
        return
    for index, hop in _hops(found):
        dev = name(index)
        if dev is not None:
            yield HostRoute(to, dev, _gateway(hop), metric, made_by_vnetd=body[5] == _VNETD)


def order(route: StaticRoute, index: int, *, there: bool) -> Request:
    """To add it, or else to remove it, whoever made it. index: the bridge's."""
    to, protocol = route.to, _VNETD if there else 0
    head = (_FAMILY[to.version], to.prefixlen, 0, 0, _MAIN, protocol, _UNIVERSE, _UNICAST, 0)
    body = struct.pack("=8BI", *head) + b"".join(
        (
            encoded(_DST, to.network_address.packed),
            encoded(_GATEWAY, route.via.packed),
            encoded(_OIF, struct.pack("=I", index)),
            encoded(_PRIORITY, struct.pack("=I", route.metric)),
        )
    )
    return Request(NEWROUTE, CREATE | _EXCL, body) if there else Request(DELROUTE, 0, body)


def _hops(found: dict[int, bytes]) -> Iterable[tuple[int, dict[int, bytes]]]:
    """(interface index, attributes): struct rtnexthop, aligned to 4 bytes."""
    if _OIF in found:
        yield struct.unpack("=I", found[_OIF])[0], found
    data, at = found.get(_MULTIPATH, b""), 0
    while at + 8 <= len(data):
        length, _, _, index = struct.unpack_from("=HBBi", data, at)
        if length < 8:
            return
        yield index, attributes(data[at + 8 : at + length])
        at += (length + 3) & ~3


def _gateway(hop: dict[int, bytes]) -> HostAddress | None:
    """Of an IPv4 route it may be IPv6: struct rtvia."""
    packed = hop.get(_GATEWAY) or hop.get(_VIA, b"")[2:]
    return ip_address(packed) if packed else None


def proxies(dump: Iterable[bytes], name: Name) -> Iterator[Proxy]:
    for body in dump:
        (index,) = struct.unpack_from("=I", body, 4)
        found = attributes(body[_NEIGHBOUR:])
        dev = name(index)
        if dev is not None and body[10] & NTF_PROXY and _NDA_DST in found:
            made_by_vnetd = found.get(_NDA_PROTOCOL) == bytes([_VNETD])
            yield Proxy(dev, ip_address(found[_NDA_DST]), made_by_vnetd)


def neighbours(data: bytes) -> Iterator[tuple[int, HostAddress]]:
    """(index of the link, IPv6 address) of each that an event says is there."""
    for kind, body in netlink.messages(data):
        if kind == NEWNEIGH and len(body) >= _NEIGHBOUR and body[0] == socket.AF_INET6:
            (index,) = struct.unpack_from("=I", body, 4)
            yield from ((index, address) for address in neighbours_of([body], index))


def proxy_order(address: HostAddress, index: int, *, there: bool) -> Request:
    """To add it, or else to remove it. index: of the link on which to answer."""
    body = struct.pack("=BBHIHBB", socket.AF_INET6, 0, 0, index, 0, NTF_PROXY, 0)
    body += encoded(_NDA_DST, address.packed)
    if not there:
        return Request(DELNEIGH, 0, body)
    return Request(NEWNEIGH, CREATE, body + encoded(_NDA_PROTOCOL, bytes([_VNETD])))
