"""vnetd's own table stands where libvirt's rules fall."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import pytest

from tests.lab.hypervisor import UPLINK, Hypervisor
from vnetd.backends.libvirt import network_xml
from vnetd.core.rules import guard


@pytest.fixture(scope="module")
def guest(box: Hypervisor) -> str:
    return box.guest("vblab", "10.77.0.50/24", gateway="10.77.0.1")


@pytest.fixture
def way_back(box: Hypervisor) -> Iterator[None]:
    """The wan host knows where the guests are, as a neighbour who means harm would."""
    ways = [f"{subnet} via {UPLINK}" for subnet in ("10.77.0.0/24", "10.79.0.0/24")]
    box.sh("".join(f"ip -n wan route add {way}; " for way in ways))
    yield
    box.sh("".join(f"ip -n wan route del {way}; " for way in ways))


def listed(box: Hypervisor) -> list[str]:
    text = box.run("nft", "list", "table", "inet", "vnetd")
    lines = [line.strip() for line in text.splitlines()]
    words = ("accept", "return", "reject", "masquerade", "snat", "dnat")
    return [line.partition(" comment ")[0] for line in lines if set(line.split()) & {*words}]


def guard_of(box: Hypervisor, network: str) -> str:
    (found,) = box.vnetctl_json("status", network)["Networks"]
    return str(found["Guard"])


def flush(box: Hypervisor, script: str) -> None:
    known = len(box.history())
    box.attempt("sh", "-c", script)  # -X may find the chains in use again already
    box.wait_until(lambda: len(box.history()) > known, what="a record")
    box.wait_for_state("converged")


def test_the_kernel_has_the_rules_that_the_core_says(box: Hypervisor) -> None:
    lives = [network_xml.parse(box.run("virsh", "net-dumpxml", name)) for name in ("lab", "quiet")]
    table = guard.table([guard.Guarded(live) for live in lives])
    expected = [str(rule) for rule in chain(*table.values())]
    shown = [line for line in listed(box) if "policy accept" not in line]
    assert shown == expected
    assert guard_of(box, "lab") == "on"


def test_nobody_else_can_change_it(box: Hypervisor) -> None:
    before = box.run("nft", "-a", "list", "table", "inet", "vnetd")
    assert not box.succeeds("nft", "delete", "table", "inet", "vnetd")
    assert not box.succeeds("nft", "flush", "chain", "inet", "vnetd", "forward")
    flush(box, "nft flush ruleset")
    assert box.run("nft", "-a", "list", "table", "inet", "vnetd") == before


@pytest.mark.usefixtures("way_back")
def test_what_others_leave_without_nat_stays_so(box: Hypervisor) -> None:
    # one of its own: the kernel still knows translated flows of the other
    guest = box.guest("vblab", "10.77.0.51/24", gateway="10.77.0.1")
    exemption = "POSTROUTING -s 10.77.0.0/24 -d 198.51.100.0/24 -j ACCEPT"
    box.sh(f"iptables -t nat -I {exemption}")
    box.wait_until(lambda: "ip saddr 10.77.0.0/24 ip daddr 198.51.100.0/24 return" in listed(box))
    with box.probing(guest) as outage:
        flush(box, "iptables -t mangle -F")
    assert outage.sources == ["10.77.0.51"]
    box.sh(f"iptables -t nat -D {exemption}")
    box.wait_until(lambda: "198.51.100.0" not in "".join(listed(box)))


@pytest.mark.usefixtures("way_back")
def test_what_others_let_in_comes_in(box: Hypervisor, guest: str) -> None:
    box.answer_in(guest)
    box.sh("iptables -N OTHERS; iptables -A OTHERS -d 10.77.0.50 -p udp --dport 9999 -j ACCEPT")
    box.sh("iptables -I FORWARD -i uplink0 -j OTHERS")
    with box.probing("wan", "10.77.0.50"):
        pass  # it waits for the first answer
    box.sh("iptables -D FORWARD -i uplink0 -j OTHERS; iptables -F OTHERS; iptables -X OTHERS")
    box.wait_until(lambda: "uplink0" not in "".join(listed(box)))
    box.kill(f"echo-{guest}")


def test_it_goes_with_its_networks_and_where_the_policy_says_so(box: Hypervisor) -> None:
    policy = box.run("cat", "/etc/vnetd/vnetd.toml")
    off = policy.replace('mode = "nat"', 'mode = "nat"\nguard = false')
    off = off.replace('mode = "isolated"', 'mode = "isolated"\nguard = false')
    box.write("/etc/vnetd/vnetd.toml", off)
    box.wait_until(lambda: not box.succeeds("nft", "list", "table", "inet", "vnetd"))
    assert guard_of(box, "lab") == "off"
    box.write("/etc/vnetd/vnetd.toml", policy)
    box.wait_until(lambda: box.succeeds("nft", "list", "table", "inet", "vnetd"))
