"""Bridges and taps."""

from __future__ import annotations

from tests.faults.fault import Fault, Outcome
from tests.faults.host import Host

_DESTROY = "virsh -q net-destroy lab"
_FOREIGN = """
ip link add vblab type bridge; ip addr add 192.0.2.1/24 dev vblab
ip link add theirs0 type veth peer name theirs1; ip link set theirs0 master vblab
"""


def _is_left_alone(host: Host) -> None:
    host.run("vnetctl reconcile || true")
    host.run("ip addr show dev vblab | grep 192.0.2.1/24; ip link show theirs0 | grep vblab")
    host.run("ip link del vblab; ip link del theirs0")


def _flap_its_tap(host: Host) -> None:
    """As often as ip can, for 10 s."""
    said = len(_said_to_the_admin(host))
    host.run(
        """
        end=$(($(date +%s) + 10))
        while test $(date +%s) -lt $end; do ip link set $TAP down; ip link set $TAP up; done
        """
    )
    lines = _said_to_the_admin(host)[said:]
    writes = [line for line in lines if line.startswith("INFO: set tap")]
    assert len(writes) <= 20, lines
    assert len(lines) <= 60, lines


def _said_to_the_admin(host: Host) -> list[str]:
    return [line for line in host.box.log("vnetd").splitlines() if not line.startswith("DEBUG")]


def _unplug_a_stranger(host: Host) -> None:
    host.run("ip link set theirtap0 nomaster; vnetctl reconcile")
    assert "theirbr0" not in host.box.run("ip", "link", "show", "theirtap0")


FAULTS = (
    Fault("bridge-down", "ip link set BRIDGE down", "ip link set vblab down"),
    Fault("bridge-deleted", "ip link del BRIDGE", "ip link del vblab"),
    Fault("tap-unplugged", "ip link set TAP nomaster", "ip link set $TAP nomaster"),
    Fault("tap-down", "ip link set TAP down", "ip link set $TAP down", long=True),
    Fault(
        "tap-elsewhere",
        "a script plugs the tap into another bridge",
        "ip link add other0 type bridge; ip link set other0 up; ip link set $TAP master other0",
        undo="ip link del other0",
        long=True,
    ),
    Fault(
        "restarted",
        "net-destroy and net-start under a guest",
        f"{_DESTROY}; virsh -q net-start lab || true",
        long=True,
    ),
    Fault("destroyed", "net-destroy under a guest", _DESTROY),
    Fault("bridge-renamed", "the bridge is renamed", "ip link set vblab down name foo0 up"),
    Fault(
        "name-taken",
        "the bridge is renamed, and another takes its name",
        "vnetctl pause 60; ip link set vblab down name foo0 up; ip link add vblab type bridge; "
        "vnetctl resume",
        Outcome.NAMED,
        told="foo0",
        undo="ip link del vblab",
        long=True,
    ),
    Fault(
        "foreign-bridge",
        "a bridge of that name, with address and port, is made while the network is stopped",
        f"vnetctl pause 60; {_DESTROY}\n{_FOREIGN}\nvnetctl resume",
        Outcome.NAMED,
        told="vblab",
        undo=_is_left_alone,
        long=True,
    ),
    Fault("bridge-mtu", "the bridge's MTU is changed", "ip link set vblab mtu 1400", long=True),
    Fault("tap-mtu", "the tap's MTU is changed", "ip link set $TAP mtu 1400", long=True),
    Fault(
        "bridge-stp",
        "the bridge's STP is turned on",
        "ip link set vblab type bridge stp_state 1",
        long=True,
    ),
    Fault(
        "bridge-mac",
        "the bridge's MAC is changed",
        "ip link set vblab address 52:54:00:de:ad:01",
        long=True,
    ),
    Fault(
        "port-deleted",
        "a port of a host bridge is deleted, and made again later",
        "ip link del port0",
        Outcome.NAMED,
        told="port0",
        undo="ip link add port0 address 52:54:00:00:a0:01 type veth peer name wire0 address "
        "52:54:00:00:a0:02; ip link set wire0 up",
        long=True,
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
    Fault(
        "tap-flapping",
        "the guest's tap goes down and up all the time, for 10 s",
        _flap_its_tap,
        long=True,
    ),
    Fault(
        "uplink-down",
        "the uplink goes down for 5 s",
        """
        ip link set uplink0 down; sleep 5; ip link set uplink0 up
        ip route replace default via 198.51.100.2
        ip addr replace 2001:db8:1::1/64 dev uplink0 nodad
        ip -6 route replace default via 2001:db8:1::2
        """,
        Outcome.UNTOUCHED,
        long=True,
    ),
    Fault(
        "link-churn",
        "somebody deletes the bridge and makes one of its name, 200 times",
        """
        for n in $(seq 200); do
            ip link del vblab 2>/dev/null || true
            ip link add vblab type bridge 2>/dev/null || true
        done
        """,
        long=True,
    ),
    Fault(
        "foreign-tap",
        "a tap of a guest that vnetd does not keep is unplugged",
        _unplug_a_stranger,
        Outcome.UNTOUCHED,
        undo="ip link set theirtap0 master theirbr0",
    ),
)
