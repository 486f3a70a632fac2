"""Addresses, routes, and what of the kernel's settings guests need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.fault import Fault, Outcome
from tests.faults.host import POLICY, Host, System, furnish
from tests.lab.hypervisor import Hypervisor
from tests.lab.machine import Machine


@contextmanager
def with_settings_read_only(system: System) -> Iterator[Machine]:
    """As by a vnetd.service without ReadWritePaths=/proc/sys/net."""
    with Hypervisor(root=system.root) as box:
        furnish(box)
        box.start_vnetd(POLICY)
        mounts = ("nsenter", "--mount", "--root", f"--target={box.pid('vnetd')}")
        box.run(*mounts, "mount", "-o", "remount,bind,ro", "/proc/sys/net")
        yield box


def _all_else_is_healed(host: Host) -> None:
    host.box.wait_until(lambda: "MASQUERADE" in host.box.rules(), what="the rules again")
    host.run("echo 1 >/proc/sys/net/ipv4/ip_forward")


def _ask_the_way(host: Host) -> None:
    """A host may do without a default route: it is no drift of vnetd's, but a finding."""
    host.run("ip route del default")
    why = host.box.vnetctl_json("why", "lab")
    assert why["verdict"] == "blocked"
    assert "no default route" in str(why)


FAULTS = (
    Fault("address-gone", "ip addr flush dev BRIDGE", "ip addr flush dev vblab"),
    Fault(
        "address-added",
        "the bridge gets an address that is not the network's",
        "ip addr add 192.0.2.9/24 dev vblab",
        Outcome.NAMED,
        told="192.0.2.9",
        undo="ip addr del 192.0.2.9/24 dev vblab",
    ),
    Fault(
        "subnet-taken",
        "another link has the network's subnet when it is to start",
        "vnetctl pause 60; virsh -q net-destroy lab; ip link add cx type veth peer name cx-peer; "
        "ip link set cx up; ip addr add 10.77.0.7/24 dev cx; vnetctl resume",
        Outcome.NAMED,
        told="cx",
        undo="ip link del cx",
        long=True,
    ),
    Fault(
        "ipv6-off",
        "disable_ipv6 of the bridge is set, and cleared",
        "echo 1 >/proc/sys/net/ipv6/conf/vblab/disable_ipv6; "
        "echo 0 >/proc/sys/net/ipv6/conf/vblab/disable_ipv6",
    ),
    Fault(
        "forwarding-off",
        "ip_forward=0",
        "echo 0 >/proc/sys/net/ipv4/ip_forward",
    ),
    Fault(
        "accept-ra",
        "accept_ra of the bridge is set: no event, the next resync (asked for here) sees it",
        "echo 2 >/proc/sys/net/ipv6/conf/vblab/accept_ra; vnetctl reconcile",
    ),
    Fault(
        "no-way-out",
        "the host loses its default route: vnetctl why names it",
        _ask_the_way,
        Outcome.UNTOUCHED,
        undo="ip route add default via 198.51.100.2",
        long=True,
    ),
    Fault(
        "settings-read-only",
        "ip_forward=0, and vnetd.service lacks ReadWritePaths; rules are flushed as well",
        "echo 0 >/proc/sys/net/ipv4/ip_forward; iptables -t nat -F",
        Outcome.NAMED,
        told="ReadWritePaths=/proc/sys/net",
        undo=_all_else_is_healed,
        host=with_settings_read_only,
        long=True,
    ),
)
