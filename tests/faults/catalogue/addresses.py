"""Addresses, routes, forwarding."""

from __future__ import annotations

from tests.faults.fault import Fault, Outcome

FAULTS = (
    Fault("address-gone", "ip addr flush dev BRIDGE", "ip addr flush dev vblab"),
    Fault(
        "forwarding-off",
        "ip_forward=0",
        "echo 0 >/proc/sys/net/ipv4/ip_forward",
    ),
    Fault(
        "uplink-down",
        "the uplink goes down and comes back",
        """
        ip link set uplink0 down; ip link set uplink0 up
        ip route replace default via 198.51.100.2
        ip addr replace 2001:db8:1::1/64 dev uplink0 nodad
        ip -6 route replace default via 2001:db8:1::2
        """,
        Outcome.UNTOUCHED,
    ),
)
