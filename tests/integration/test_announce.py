"""The classic set-up: guests have a part of the LAN's own prefix, and nobody there knows a route.
The box's uplink is the LAN, and the host "wan" a neighbour on it. The long form has both libvirts.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.lab.hypervisor import TRIXIE, WAN, Hypervisor
from tests.lab.machine import WAN_IPV6
from tests.long import LONG

ROUTED = """
[networks.routed]
mode = "route"
bridge = "vbrouted"
stp = false
addresses = ["10.78.0.1/24", "fd78::1/64"]
"""
CARVED = """
[networks.carved]
mode = "route"
bridge = "vbcarved"
stp = false
addresses = ["198.51.100.225/27", "2001:db8:1:0:e::1/80"]
announce = ["proxy-arp", "proxy-ndp"]
"""
GUEST, LIKE_ON_THE_LAN, GUEST_IPV6 = "198.51.100.228", "198.51.100.229", "2001:db8:1:0:e::5"
UPLINKS, BRIDGES = ("net/ipv4/conf/uplink0/proxy_arp", "net/ipv4/conf/vbcarved/proxy_arp")


@pytest.fixture(scope="module", params=["libvirt 11", *(["libvirt 9"] if LONG else [])])
def box(request: pytest.FixtureRequest) -> Iterator[Hypervisor]:
    with Hypervisor(root=TRIXIE if request.param == "libvirt 11" else None) as hypervisor:
        hypervisor.start_vnetd(ROUTED + CARVED)
        yield hypervisor


@pytest.fixture(scope="module")
def guest(box: Hypervisor) -> str:
    addresses = (f"{GUEST}/27", f"{GUEST_IPV6}/80")
    name = box.guest("vbcarved", *addresses, gateway="198.51.100.225")
    box.run("ip", "-n", name, "-6", "route", "add", "default", "via", "2001:db8:1:0:e::1")
    return name


def sysctl(box: Hypervisor, name: str) -> str:
    return box.run("cat", f"/proc/sys/{name}").strip()


def reached_anew(box: Hypervisor, address: str) -> bool:
    """By a neighbour that has forgotten where the address is."""
    box.sh("ip -n wan neigh flush dev eth0")
    return box.pings("wan", address)


def test_neighbours_and_guests_reach_each_other(box: Hypervisor, guest: str) -> None:
    assert box.state() == "converged"
    assert "via" not in box.run("ip", "-n", "wan", "route")
    box.wait_until(lambda: reached_anew(box, GUEST), what="the guest from the LAN")
    assert box.pings(guest, WAN)
    like = box.guest("vbcarved", f"{LIKE_ON_THE_LAN}/24")
    box.wait_until(lambda: box.pings(like, WAN), what="the LAN from a guest with the LAN's mask")
    assert reached_anew(box, LIKE_ON_THE_LAN)


def test_ipv6_guests_are_answered_for_as_soon_as_they_speak(box: Hypervisor, guest: str) -> None:
    box.wait_until(lambda: box.pings(guest, "2001:db8:1:0:e::1"), what="the host from the guest")
    box.wait_until(lambda: reached_anew(box, GUEST_IPV6), what="the guest from the LAN")
    assert box.pings(guest, WAN_IPV6)
    proxies = box.run("ip", "-6", "neigh", "show", "proxy")
    assert f"{GUEST_IPV6} dev uplink0" in proxies
    assert "2001:db8:1:0:e::1 dev uplink0" in proxies


def test_the_lan_loses_its_carrier_and_gets_it_back(box: Hypervisor, guest: str) -> None:
    box.sh("ip -n wan link set eth0 down; ip -n wan link set eth0 up")
    box.sh(f"ip -n wan addr replace {WAN_IPV6}/64 dev eth0 nodad")
    box.wait_until(lambda: reached_anew(box, GUEST_IPV6), what="the IPv6 guest again")
    box.wait_until(lambda: reached_anew(box, GUEST), what="the guest again")
    box.wait_for_state("converged")


def test_proxy_arp_comes_back(box: Hypervisor, guest: str) -> None:
    records = len(box.history())
    box.sh(f"""
        echo 0 >/proc/sys/net/ipv4/conf/all/proxy_arp
        echo 0 >/proc/sys/{UPLINKS}
        echo 0 >/proc/sys/{BRIDGES}
    """)
    box.wait_until(lambda: reached_anew(box, GUEST), what="the guest from the LAN")
    box.wait_until(lambda: len(box.history()) > records, what="a record")
    box.wait_for_state("converged")
    new = box.history()[records:]
    print("ms from the kernel's notice to verified:", [record["ms"] for record in new])
    actions = {action for record in new for action in record["actions"]}
    assert {f"set sysctl {UPLINKS} to 1", f"set sysctl {BRIDGES} to 1"} <= actions
    assert sysctl(box, "net/ipv4/conf/all/proxy_arp") == "0", "nobody needs that one"


def test_what_the_kernel_tells_nobody_of_comes_back(box: Hypervisor, guest: str) -> None:
    """Within vnetd's own interval, 10 s."""
    accept_ra = "net/ipv6/conf/vbcarved/accept_ra"
    box.sh(f"ip -6 neigh del proxy {GUEST_IPV6} dev uplink0; echo 1 >/proc/sys/{accept_ra}")
    box.wait_until(
        lambda: f"{GUEST_IPV6} dev uplink0" in box.run("ip", "-6", "neigh", "show", "proxy"),
        seconds=30,
        what="an answer for the IPv6 guest",
    )
    box.wait_until(lambda: sysctl(box, accept_ra) == "0", seconds=30, what="accept_ra = 0")
    box.wait_for_state("converged")


def test_the_bridges_ipv6_comes_back(box: Hypervisor) -> None:
    box.sh("echo 1 >/proc/sys/net/ipv6/conf/vbcarved/disable_ipv6")
    box.wait_until(
        lambda: "2001:db8:1:0:e::1/80" in box.run("ip", "-6", "addr", "show", "vbcarved"),
        what="the bridge's address",
    )
    assert sysctl(box, "net/ipv6/conf/vbcarved/disable_ipv6") == "0"
    box.wait_for_state("converged")


def test_what_the_router_must_know_is_said(box: Hypervisor) -> None:
    network = box.vnetctl_json("status", "routed")["Networks"][0]
    assert network["Upstream"] == [
        "ip route add 10.78.0.0/24 via 198.51.100.1",
        "ip -6 route add fd78::/64 via 2001:db8:1::1",
    ]
    assert box.vnetctl_json("status", "carved")["Networks"][0]["Upstream"] == []
    shown = box.vnetctl("why", "routed").stdout
    assert "there: ip route add 10.78.0.0/24 via 198.51.100.1" in shown
    assert "answers for guests on uplink0" in box.vnetctl("why", "carved").stdout


def test_a_network_inside_of_the_lan_must_be_announced(box: Hypervisor) -> None:
    more = CARVED.replace("carved", "more").replace("225/27", "65/27").replace("0:e::1", "0:f::1")
    box.load(ROUTED + CARVED + more.replace("announce", "#"))
    (network,) = box.vnetctl_json("status", "more")["Networks"]
    assert not network["Active"]
    assert 'announce = "proxy-arp" makes it a part of that' in network["Reasons"][0]
    assert 'announce = "proxy-ndp" makes it a part of that' in network["Reasons"][1]
    box.load(ROUTED + CARVED)
    box.wait_for_state("converged")


def test_another_uplink_is_followed_and_the_old_one_set_back(box: Hypervisor, guest: str) -> None:
    box.sh(f"""
        ip link add uplink1 type veth peer name eth1 netns wan
        ip link set uplink1 up
        ip -n wan link set eth1 up
        ip -n wan addr del {WAN}/24 dev eth0
        ip -n wan addr add {WAN}/24 dev eth1
        ip addr del 198.51.100.1/24 dev uplink0
        ip addr add 198.51.100.1/24 dev uplink1
    """)
    other = "net/ipv4/conf/uplink1/proxy_arp"
    box.wait_until(lambda: sysctl(box, other) == "1", what="the new uplink to answer")
    box.wait_until(lambda: sysctl(box, UPLINKS) == "0", what="the old one to answer no more")
    box.wait_until(lambda: box.pings("wan", GUEST), what="the guest from the LAN")
    assert f"set sysctl {UPLINKS} back to 0" in [
        action for record in box.history() for action in record["actions"]
    ]
    box.wait_for_state("converged")


def test_what_vnetd_set_goes_with_the_network_even_after_a_crash(box: Hypervisor) -> None:
    name = "net/ipv4/conf/uplink1/proxy_arp"
    box.kill("vnetd", signal.SIGKILL)
    assert sysctl(box, name) == "1"
    assert "dev uplink0" in box.run("ip", "-6", "neigh", "show", "proxy")
    forwards = sysctl(box, "net/ipv4/ip_forward")
    box.start_vnetd(ROUTED)
    box.wait_until(lambda: sysctl(box, name) == "0", what="what was there before")
    box.wait_until(lambda: sysctl(box, "net/ipv6/conf/uplink0/proxy_ndp") == "0", what="IPv6 too")
    box.wait_until(lambda: not box.run("ip", "-6", "neigh", "show", "proxy"), what="no answers")
    assert sysctl(box, "net/ipv4/ip_forward") == forwards == "1", "still needed"
    box.wait_for_state("converged")
