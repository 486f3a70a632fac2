"""What rtnetlink says of VLANs and of the forwarding table, put together as linux/if_bridge.h has
it. Links and addresses are compared with what ip says of them in tests/integration/test_links.py.
"""

from __future__ import annotations

import struct

from vnetd.backends import link_messages, netlink
from vnetd.core.link import Vlan

PVID, UNTAGGED, RANGE_BEGIN, RANGE_END = 2, 4, 8, 16


def port(index: int, *vlans: tuple[int, int]) -> bytes:
    """An RTM_NEWLINK of the family AF_BRIDGE. vlans: flags and number of each."""
    spec = b"".join(netlink.encoded(2, struct.pack("=HH", *vlan)) for vlan in vlans)
    header = struct.pack("=BxHiII", 7, 1, index, 0, 0)
    return header + netlink.encoded(3, b"vnet0\0") + netlink.encoded(26, spec, nested=True)


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
