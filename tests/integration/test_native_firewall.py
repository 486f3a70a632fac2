"""With firewall = "vnetd" libvirt makes no rules: vnetd's table carries all, and port forwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.echo import PORT
from tests.lab.hypervisor import UPLINK, UPLINK_IPV6, WAN, Hypervisor

POLICY = f"""
[networks.own]
mode = "nat"
firewall = "vnetd"
bridge = "vbown"
stp = false
addresses = ["10.80.0.1/24", "fd80::1/64"]
dhcp.ranges = ["10.80.0.100-10.80.0.199"]
dhcp.hosts = [{{ mac = "52:54:00:00:00:01", name = "web", address = "10.80.0.20" }}]
forwards = [
    {{ protocol = "udp", port = {PORT}, to = "10.80.0.20" }},
    {{ protocol = "udp", port = {PORT}, to = "[fd80::20]:{PORT}" }},
    {{ protocol = "udp", port = 9100, to = "g1:{PORT}", sources = ["192.0.2.0/24"] }},
    {{ protocol = "tcp", port = "9200-9210", to = "vm3" }},
]
"""


@pytest.fixture(scope="module")
def own_box() -> Iterator[Hypervisor]:
    with Hypervisor() as box:
        box.start_vnetd(POLICY)
        guest = box.domain_guest("own", "10.80.0.20/24", "fd80::20/64", gateway="10.80.0.1")
        assert guest == "g1", "the name that the policy has"
        # It answers from the address that it was asked at, not from one that dnsmasq announces.
        box.sh("""
            ip netns exec g1 sysctl -qw net.ipv6.conf.eth0.accept_ra=0
            ip -n g1 -6 addr flush dev eth0 dynamic
            ip -n g1 -6 route replace default via fd80::1 dev eth0
        """)
        box.answer_in("g1")
        box.wait_until(lambda: "dport 9100 dnat ip to 10.80.0.20" in listed(box))
        yield box


def listed(box: Hypervisor) -> str:
    return box.run("nft", "list", "table", "inet", "vnetd")


def test_libvirt_has_no_rule(own_box: Hypervisor) -> None:
    box = own_box
    assert "vbown" not in box.rules()
    assert "mode='open'" in box.run("virsh", "net-dumpxml", "own")
    (network,) = box.vnetctl_json("status", "own")["Networks"]
    assert (network["State"], network["Mode"], network["Guard"]) == ("converged", "nat", "on")
    assert box.vnetctl("plan").returncode == 0


def test_the_guest_gets_out_behind_the_hosts_address(own_box: Hypervisor) -> None:
    with own_box.probing("g1") as outage:
        for _ in range(3):
            own_box.sh("nft flush ruleset")
    assert (outage.lost, outage.sources) == (0, [UPLINK])


def test_the_guest_gets_out_beside_docker(own_box: Hypervisor) -> None:
    box = own_box
    box.sh(
        "iptables -N DOCKER-USER; iptables -A DOCKER-USER -j RETURN;"
        "iptables -A FORWARD -j DOCKER-USER; iptables -P FORWARD DROP"
    )
    box.wait_until(lambda: "vnetd:own" in box.run("iptables-save"), what="vnetd's accepts")
    box.wait_for_state("converged")
    assert box.pings("g1", WAN)
    box.sh(
        "iptables -P FORWARD ACCEPT; iptables -D FORWARD -j DOCKER-USER;"
        "iptables -F DOCKER-USER; iptables -X DOCKER-USER"
    )
    box.wait_for_state("converged")


def test_the_port_is_reached_from_everywhere(own_box: Hypervisor) -> None:
    box = own_box
    other = box.guest("vbown", "10.80.0.30/24", gateway="10.80.0.1")
    for source, seen_as in (("wan", WAN), (None, UPLINK), (other, "10.80.0.1")):
        with box.probing(source, UPLINK) as outage:
            pass  # it waits for the first answer
        assert outage.sources == [seen_as], f"from {source or 'the host'}"


def test_the_hosts_own_service_on_loopback_stays_its_own(own_box: Hypervisor) -> None:
    box = own_box
    box.answer_in(None)
    for address, seen_as in (
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        (UPLINK, UPLINK),
        (UPLINK_IPV6, UPLINK_IPV6),
    ):
        with box.probing(None, address) as outage:
            pass
        assert outage.sources == [seen_as]
    box.kill("echo-host")
    for address in (UPLINK, UPLINK_IPV6):
        with box.probing(None, address):
            pass  # it was the guest who answered


def test_a_restricted_port_is_closed_to_others(own_box: Hypervisor) -> None:
    assert "ip saddr 192.0.2.0/24 fib daddr type local udp dport 9100" in listed(own_box)
    own_box.sh(f"ip -n wan route add 10.80.0.0/24 via {UPLINK}")
    with own_box.probing("wan", "10.80.0.20", in_vain=True) as outage:
        own_box.sh("iptables -F; iptables -t nat -F")
    assert outage.lost == outage.sent > 0


def test_the_port_follows_a_lease(own_box: Hypervisor) -> None:
    vm = own_box.vm("own")
    assert vm == "vm3", "the name that the policy has"
    own_box.wait_until(lambda: "tcp dport 9200-9210 dnat ip to 10.80.0.1" in listed(own_box))
    leases = own_box.run("virsh", "-q", "net-dhcp-leases", "own").splitlines()
    (address,) = [lease.split()[4].partition("/")[0] for lease in leases if ":00:03" in lease]
    assert f"dnat ip to {address} " in listed(own_box)
    own_box.run("virsh", "destroy", vm)
    own_box.wait_until(lambda: "dport 9200" not in listed(own_box))


def test_the_port_goes_with_the_guest(own_box: Hypervisor) -> None:
    own_box.run("virsh", "destroy", "g1")
    own_box.wait_until(lambda: "dport 9100 dnat" not in listed(own_box))
    (network,) = own_box.vnetctl_json("status", "own")["Networks"]
    assert network["Reasons"] == []
