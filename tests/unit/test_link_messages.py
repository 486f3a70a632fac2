"""What rtnetlink says of VLANs and of the forwarding table, put together as linux/if_bridge.h has
it. Links and addresses are compared with what ip says of them in tests/integration/test_links.py.
"""

from __future__ import annotations

import struct

import pytest

from vnetd.backends import netlink
from vnetd.backends.kernel import link_messages
from vnetd.core.model.link import Vlan

PVID, UNTAGGED, RANGE_BEGIN, RANGE_END = 2, 4, 8, 16


def port(index: int, *vlans: tuple[int, int]) -> bytes:
    """An RTM_NEWLINK of the family AF_BRIDGE. vlans: flags and number of each."""
    spec = b"".join(netlink.encoded(2, struct.pack("=HH", *vlan)) for vlan in vlans)
    header = struct.pack("=BxHiII", 7, 1, index, 0, 0)
    return header + netlink.encoded(3, b"vnet9\0") + netlink.encoded(26, spec, nested=True)


def entry(index: int, state: int, mac: str) -> bytes:
    """An RTM_NEWNEIGH of the family AF_BRIDGE."""
    header = struct.pack("=B3xiHBB", 7, index, state, 0, 0)
    return header + netlink.encoded(2, bytes.fromhex(mac.replace(":", "")))


def test_vlans_come_one_by_one_and_in_ranges() -> None:
    found = link_messages.vlans(
        [port(5, (PVID | UNTAGGED, 1), (RANGE_BEGIN, 10), (RANGE_END, 12)), port(6)]
    )
    trunk = {Vlan(1, pvid=True, untagged=True), Vlan(10), Vlan(11), Vlan(12)}
    assert found == {5: trunk, 6: frozenset()}


def test_only_static_entries_count() -> None:
    permanent, static, reachable = 0x80, 0x40, 0x02
    found = link_messages.static_macs(
        [
            entry(5, permanent, "fe:54:00:00:00:01"),
            entry(5, static, "52:54:00:00:00:01"),
            entry(5, reachable, "52:54:00:00:00:02"),
        ]
    )
    assert found == {5: {"52:54:00:00:00:01"}}


NEWLINK, NEWADDR = 16, 20
NAMES, INDEXES = frozenset({"vblab", "vnet0"}), frozenset({5, 6})


def link(index: int, name: str, *, master: int = 0, kind: str = "veth") -> bytes:
    info = netlink.encoded(18, netlink.encoded(1, kind.encode() + b"\0"), nested=True)
    return (
        struct.pack("=BxHiII", 0, 1, index, 0, 0)
        + netlink.encoded(3, name.encode() + b"\0")
        + (netlink.encoded(10, struct.pack("=I", master)) if master else b"")
        + (info if kind else b"")
    )


@pytest.mark.parametrize(
    ("kind", "message", "concerns"),
    [
        (NEWLINK, link(9, "veth1a2b3c"), False),
        (NEWLINK, link(9, "veth1a2b3c", master=7), False),
        (NEWLINK, link(5, "renamed"), True),
        (NEWLINK, link(9, "vblab", kind="bridge"), True),
        (NEWLINK, link(9, "veth1a2b3c", master=6), True),
        (NEWLINK, link(9, "enp1s0", kind=""), True),
        (NEWLINK, port(9), False),
        (NEWLINK, port(6), True),
        (NEWADDR, struct.pack("=BBBBi", 2, 24, 0, 0, 9), True),
        (NEWADDR, struct.pack("=BBBBi", 10, 64, 0, 253, 9), False),
        (NEWADDR, struct.pack("=BBBBi", 10, 64, 0, 253, 5), True),
    ],
)
def test_which_events_concern_vnetd(kind: int, message: bytes, concerns: bool) -> None:
    assert link_messages.concerns(kind, message, NAMES, INDEXES) is concerns
