"""What networks need beside links and rules: forwarding, and a living dnsmasq."""

from __future__ import annotations

import signal
import time
from functools import partial

import pytest

from tests.integration.conftest import FIVE_NETWORKS
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


WEB = """
<domain type='qemu'><name>web</name><memory>65536</memory><os><type>hvm</type></os>
<devices><interface type='network'><mac address='{mac}'/><source network='lab'/></interface>
</devices></domain>
"""
FOR_DOMAIN = FIVE_NETWORKS.replace(
    "dhcp.hosts = [", 'dhcp.hosts = [{ domain = "web", address = "10.77.0.21" }, '
)


def reasons(box: Hypervisor) -> str:
    lab = box.vnetctl_json("status", "lab")["Networks"][0]
    return " ".join((*lab["Drift"], *lab["Reasons"]))


def test_a_reservation_follows_the_domain_that_it_is_for(box: Hypervisor) -> None:
    def reserved(mac: str) -> bool:
        return f"<host mac='{mac}' ip='10.77.0.21'/>" in box.run("virsh", "net-dumpxml", "lab")

    box.write("/etc/vnetd/vnetd.toml", FOR_DOMAIN)
    box.wait_until(lambda: "waits for domain web" in reasons(box), what="it is said")
    for mac in ("52:54:00:00:00:a1", "52:54:00:00:00:a2"):
        box.run("virsh", "define", "/dev/stdin", stdin=WEB.format(mac=mac))
        box.wait_until(partial(reserved, mac), what=f"a reservation for {mac}")
        box.wait_for_state("converged")
        box.run("virsh", "undefine", "web")
    box.write("/etc/vnetd/vnetd.toml", FIVE_NETWORKS)
    box.wait_until(lambda: not reserved("52:54:00:00:00:a2"), what="no such reservation")
    box.wait_for_state("converged")


def test_reservations_that_somebody_takes_from_dnsmasq_come_back(box: Hypervisor) -> None:
    path = "/var/lib/libvirt/dnsmasq/lab.hostsfile"
    good, records = box.run("cat", path), len(box.history())
    assert "10.77.0.20" in good
    box.sh(f": >{path}")
    box.wait_until(lambda: box.run("cat", path) == good, what="the reservations")
    box.wait_until(lambda: len(box.history()) > records, what="a record")
    assert box.history()[records]["drift"] == ["its dnsmasq is not told to reserve 10.77.0.20"]
    box.wait_for_state("converged")


LEASE = """[{{"ip-address": "10.77.0.20", "mac-address": "52:54:00:00:00:99",
"hostname": "old", "expiry-time": {expires}}}]"""


def test_a_reserved_address_that_is_leased_to_another_is_told(box: Hypervisor) -> None:
    path = "/var/lib/libvirt/dnsmasq/vblab.status"
    before = box.run("cat", path) if box.succeeds("test", "-e", path) else ""
    expires = int(time.time()) + 3600
    box.write(path, LEASE.format(expires=expires))
    told = "10.77.0.20 is reserved for web, but still leased to 52:54:00:00:00:99"
    box.wait_until(lambda: told in reasons(box), what="it is said")
    assert box.vnetctl_json("leases", "lab") == [
        {
            "network": "lab",
            "mac": "52:54:00:00:00:99",
            "address": "10.77.0.20",
            "name": "old",
            "expires": expires,
        }
    ]
    assert "10.77.0.20" in box.vnetctl("leases").stdout
    assert box.vnetctl("leases", "nosuch").returncode == 1
    box.write(path, before)
    box.wait_until(lambda: not reasons(box), what="nothing to say")


HOLD = """
import socket, sys, time
taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    try:
        taken.bind(("10.77.0.1", 53))
        break
    except OSError:
        time.sleep(0.01)
print("bound", flush=True)
time.sleep(600)
"""


def test_who_takes_dnsmasqs_port_is_named(box: Hypervisor) -> None:
    """dnsmasq cannot start; when the port is free again it is started."""
    before = box.run("virsh", "net-dumpxml", "lab")
    box.vnetctl("pause", "60")
    box.spawn("squatter", "python3", "-c", HOLD)
    box.sh(f"kill -9 {dnsmasq(box, 'lab')}")
    box.wait_until(lambda: "bound" in box.log("squatter"), what="the port is taken")
    box.vnetctl("resume")
    box.wait_until(lambda: "UDP port 53 of 10.77.0.1" in reasons(box), what="it is named")
    box.kill("vnetd")
    box.start_vnetd(as_root=True)  # only root sees whose socket it is
    box.wait_until(lambda: "UDP port 53 of 10.77.0.1: python3[" in reasons(box), what="who has it")
    box.kill("vnetd")
    box.start_vnetd()
    box.kill("squatter", signal.SIGKILL)
    box.wait_until(lambda: box.state() == "converged", seconds=10, what="another dnsmasq")
    assert box.run("cat", f"/proc/{dnsmasq(box, 'lab')}/comm") == "dnsmasq\n"
    assert box.run("virsh", "net-dumpxml", "lab") == before
