"""Addresses, routes and neighbours of one link become those of another, with all they hold."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address, ip_interface, ip_network

from vnetd.backends.kernel import rtnetlink as rt
from vnetd.backends.netlink import attributes, encoded
from vnetd.core.model import Route

_MTU = encoded(2, struct.pack("=I", 1400))  # RTAX_MTU in RTA_METRICS


def number(value: int) -> bytes:
    return struct.pack("=I", value)


def ipv4_address(index: int, flags: int = 0x80) -> bytes:
    head = struct.pack("=4BI", socket.AF_INET, 24, flags & 0xFF, 0, index)
    packed = ip_address("192.0.2.10").packed
    given = ((1, packed), (2, packed), (3, b"eth0\0"), (6, bytes(16)), (8, number(flags)))
    return head + b"".join(encoded(kind, value) for kind, value in given)


def ipv4_route(*given: tuple[int, bytes], flags: int = 0) -> bytes:
    head = struct.pack("=8BI", socket.AF_INET, 0, 0, 0, 254, 3, 0, 1, flags)
    return head + b"".join(encoded(kind, value) for kind, value in given)


def test_an_address_moves_without_its_label_and_is_there_at_once() -> None:
    moved = rt.address_at(ipv4_address(2), 7)
    assert rt.address(moved) == ip_interface("192.0.2.10/24")
    assert struct.unpack_from("=I", moved, 4) == (7,)
    assert 3 not in attributes(moved[8:])
    six = struct.pack("=4BI", socket.AF_INET6, 64, 0xC0, 0, 2)
    six += encoded(1, ip_address("2001:db8::1").packed)
    (flags,) = struct.unpack("=I", attributes(rt.address_at(six, 7)[8:])[8])
    assert flags & 0x02, "no detection of duplicates: it was in use"


def test_leases_keep_their_time_and_do_not_last() -> None:
    leased = ipv4_address(2, flags=0)
    assert rt.is_leased(leased)
    assert not rt.is_lasting(leased)
    assert 6 in attributes(rt.address_at(leased, 7)[8:])
    assert rt.is_lasting(ipv4_address(2))
    assert 6 not in attributes(rt.address_at(ipv4_address(2), 7)[8:])


def test_a_route_moves_with_all_that_it_has() -> None:
    gateway = ip_address("192.0.2.1").packed
    body = ipv4_route((4, number(2)), (5, gateway), (6, number(50)), (8, _MTU), (12, bytes(32)))
    (found,) = rt.routes_of([body], 2)
    assert rt.routes_of([body], 3) == []
    moved = rt.route_at(found, 2, 7)
    assert rt.hops(moved) == {7}
    assert attributes(moved[12:])[8] == _MTU
    assert 12 not in attributes(moved[12:])
    assert rt.route(moved) == Route(ip_network("0.0.0.0/0"), ip_address("192.0.2.1"), 50)


def test_of_several_next_hops_only_the_one_over_the_link_moves() -> None:
    hop = struct.Struct("=HBBi")
    paths = hop.pack(8, 16, 0, 2) + hop.pack(8, 0, 0, 3)  # RTNH_F_LINKDOWN is a state
    moved = rt.route_at(ipv4_route((9, paths), flags=16), 2, 7)
    assert rt.hops(moved) == {7, 3}
    assert attributes(moved[12:])[9] == hop.pack(8, 0, 0, 7) + hop.pack(8, 0, 0, 3)
    assert struct.unpack_from("=I", moved, 8) == (0,)


def test_routes_to_gateways_come_behind_the_networks_that_these_are_in() -> None:
    by_gateway = ipv4_route((4, number(2)), (5, ip_address("192.0.2.1").packed))
    direct = ipv4_route((4, number(2)))
    assert rt.routes_of([by_gateway, direct], 2) == [direct, by_gateway]


def test_a_known_neighbour_is_asked_where_it_was_and_another_by_broadcast() -> None:
    host = ip_address("192.0.2.1")
    head = struct.pack("=BBHIHBB", socket.AF_INET, 0, 0, 2, rt.REACHABLE, 0, 0)
    known = head + encoded(1, host.packed) + encoded(2, bytes.fromhex("525400000001"))
    assert rt.neighbours_of([known], 2) == {host: known}
    assert rt.neighbour_state([known], 2, host) & rt.REACHABLE
    assert rt.neighbour_state([known], 3, host) == 0
    assert rt.state(rt.neighbour_at(known, 7)) == rt.STALE
    assert rt.state(rt.probe(7, host, known).body) == rt.PROBE
    assert rt.state(rt.probe(7, host, None).body) == 0
