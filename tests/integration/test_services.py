"""What networks need beside links and rules: forwarding, and a living dnsmasq."""

from __future__ import annotations

import pytest

from tests.lab.hypervisor import Hypervisor

WITHOUT_DNS = """
<network><name>mute</name><forward mode='nat'/><bridge name='vbmute'/><dns enable='no'/>
<ip address='10.90.0.1' netmask='255.255.255.0'><dhcp>
<range start='10.90.0.10' end='10.90.0.20'/></dhcp></ip></network>
"""


def sysctl(box: Hypervisor, name: str) -> str:
    return box.run("cat", f"/proc/sys/{name}").strip()


def dnsmasq(box: Hypervisor, network: str) -> int:
    return int(box.run("cat", f"/run/libvirt/network/{network}.pid"))


@pytest.mark.parametrize(
    "name",
    [
        "net/ipv4/ip_forward",
        "net/ipv4/conf/vblab/forwarding",
        "net/ipv6/conf/all/forwarding",
        "net/ipv6/conf/vblab/forwarding",
    ],
)
def test_forwarding_comes_back(box: Hypervisor, name: str) -> None:
    assert sysctl(box, name) == "1"
    records = len(box.history())
    box.sh(f"echo 0 >/proc/sys/{name}")
    box.wait_until(lambda: sysctl(box, name) == "1", what=f"{name} set again")
    box.wait_until(lambda: len(box.history()) > records, what="a record")
    box.wait_for_state("converged")
    actions = [action for item in box.history()[records:] for action in item["actions"]]
    assert f"set sysctl {name} to 1" in actions


def test_forwarding_that_nobody_needs_is_left_alone(box: Hypervisor) -> None:
    name = "net/ipv4/conf/vbquiet/forwarding"
    box.sh(f"echo 0 >/proc/sys/{name}")
    assert box.vnetctl("reconcile").returncode == 0
    assert sysctl(box, name) == "0"
    box.sh(f"echo 1 >/proc/sys/{name}")


# A router advertisement (RFC 4861): hop limit 64, good as a default router for half an hour.
ADVERTISE = """
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
s.sendto(bytes((134, 0, 0, 0, 64, 0, 7, 8)) + bytes(8), ("ff02::1%eth0", 0))
"""


def test_a_host_fed_by_router_advertisements_keeps_its_route(box: Hypervisor) -> None:
    def advertised() -> bool:
        return "proto ra" in box.run("ip", "-6", "route", "show", "default")

    def advertise() -> bool:
        box.run("python3", "-c", ADVERTISE, guest="wan")
        return advertised()

    box.vnetctl("pause", "60")
    box.sh("echo 0 >/proc/sys/net/ipv6/conf/all/forwarding")
    box.sh("echo 1 >/proc/sys/net/ipv6/conf/uplink0/accept_ra")
    box.wait_until(advertise, what="a route by router advertisement")
    box.vnetctl("resume")
    box.wait_for_state("converged")
    assert sysctl(box, "net/ipv6/conf/all/forwarding") == "1"
    assert advertised(), "the kernel drops such routes when it begins to forward"
    assert advertise(), "and takes no more of them"


@pytest.mark.parametrize("network", ["lab", "mute"])
def test_a_dead_dnsmasq_is_started_again(box: Hypervisor, network: str) -> None:
    if network == "mute":
        box.run("virsh", "net-create", "/dev/stdin", stdin=WITHOUT_DNS)
        box.vnetctl("reconcile")
    before = box.run("virsh", "net-dumpxml", network)
    old, records = dnsmasq(box, network), len(box.history())
    box.sh(f"kill -9 {old}")
    box.wait_until(lambda: dnsmasq(box, network) != old, what="another dnsmasq")
    box.wait_until(lambda: len(box.history()) > records, what="a record")
    box.wait_for_state("converged")
    assert box.run("cat", f"/proc/{dnsmasq(box, network)}/comm") == "dnsmasq\n"
    assert box.run("virsh", "net-dumpxml", network) == before
    assert "vnetd.invalid" not in box.run("sh", "-c", "cat /var/lib/libvirt/dnsmasq/*")
    record = box.history()[records]
    assert record["object"] == f"network/{network}"
    assert record["drift"] == ["its dnsmasq is dead: no DHCP, no DNS"]


def test_a_stopped_network_needs_none(box: Hypervisor) -> None:
    records = len(box.history())
    box.run("virsh", "net-destroy", "mute")
    assert box.vnetctl("reconcile").returncode == 0
    assert len(box.history()) == records
