"""What the kernel says of nf_tables transactions, as recorded from a real kernel."""

from __future__ import annotations

import struct

from vnetd.backends import netlink
from vnetd.backends.netlink import Generation, Generations


def attribute(kind: int, data: bytes) -> bytes:
    length = 4 + len(data)
    return struct.pack("=HH", length, kind) + data + bytes(-length % 4)


def message(kind: int, family: int, *attributes: bytes) -> bytes:
    body = struct.pack("=BBH", family, 0, 0) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), 10 << 8 | kind, 0, 0, 99) + body


def test_objects_are_counted_up_to_the_generation_that_ends_them() -> None:
    rule = message(6, 2, attribute(1, b"nat\0"), attribute(2, b"LIBVIRT_PRT\0"))
    end = message(
        15,
        0,
        attribute(1, struct.pack(">I", 7)),
        attribute(2, struct.pack(">I", 4711)),
        attribute(3, b"iptables\0"),
    )
    generations = Generations()
    assert list(generations.feed(rule)) == []
    assert list(generations.feed(rule + end + end)) == [
        Generation("iptables", 4711, frozenset({(2, "nat")}), 2, number=7, port=99),
        Generation("iptables", 4711, frozenset(), 0, number=7, port=99),
    ]


def test_a_cut_message_ends_nothing() -> None:
    assert list(Generations().feed(message(15, 0)[:10])) == []


def test_a_setting_is_told_with_the_link_that_it_is_of() -> None:
    def setting(kind: int, *attributes: bytes) -> bytes:
        body = bytes([2, 0, 0, 0]) + b"".join(attributes)
        return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body

    forwarding = attribute(2, struct.pack("=i", 0))
    told = [setting(80, attribute(1, struct.pack("=i", index)), forwarding) for index in (7, -1)]
    gone = setting(81, attribute(1, struct.pack("=i", 9)))
    assert list(netlink.netconf(b"".join([*told, gone, setting(80, forwarding)]))) == [7, -1]
