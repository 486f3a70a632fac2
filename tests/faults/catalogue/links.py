"""Bridges and taps."""

from __future__ import annotations

from tests.faults.fault import Fault, Outcome

_DESTROY = "virsh -q net-destroy lab"

FAULTS = (
    Fault("bridge-down", "ip link set BRIDGE down", "ip link set vblab down"),
    Fault("bridge-deleted", "ip link del BRIDGE", "ip link del vblab"),
    Fault("bridge-mtu", "the bridge's MTU is changed", "ip link set vblab mtu 1400"),
    Fault(
        "bridge-stp", "the bridge's STP is turned on", "ip link set vblab type bridge stp_state 1"
    ),
    Fault(
        "bridge-mac", "the bridge's MAC is changed", "ip link set vblab address 52:54:00:de:ad:01"
    ),
    Fault("bridge-renamed", "the bridge is renamed", "ip link set vblab down name foo0 up"),
    Fault("tap-unplugged", "ip link set TAP nomaster", "ip link set $TAP nomaster"),
    Fault("tap-down", "ip link set TAP down", "ip link set $TAP down"),
    Fault(
        "tap-elsewhere",
        "a script plugs the tap into another bridge",
        "ip link add other0 type bridge; ip link set other0 up; ip link set $TAP master other0",
        undo="ip link del other0",
    ),
    Fault("tap-mtu", "the tap's MTU is changed", "ip link set $TAP mtu 1400"),
    Fault(
        "restarted",
        "net-destroy and net-start under a guest",
        f"{_DESTROY}; virsh -q net-start lab || true",
    ),
    Fault("destroyed", "net-destroy under a guest", _DESTROY),
    Fault(
        "foreign-bridge",
        "a bridge of that name is made while the network is stopped",
        f"vnetctl pause 60; {_DESTROY}; ip link add vblab type bridge; vnetctl resume",
        Outcome.NAMED,
        told="vblab",
        undo="ip link del vblab",
    ),
    Fault(
        "flapping",
        "another port of the bridge goes up and down 100 times",
        """
        ip link add flap0 type veth peer name flap1; ip link set flap0 master vblab
        for n in $(seq 50); do ip link set flap0 up; ip link set flap0 down; done; ip link del flap0
        """,
        Outcome.UNTOUCHED,
    ),
)
