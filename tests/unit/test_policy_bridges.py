"""[bridges.NAME] of a policy. Mistakes in it are cases of tests/cases/policy."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface

import pytest

from vnetd.core.model.link import Vlan
from vnetd.core.policy import BridgePolicy, BridgePort, PolicyText, parse, uplink_name
from vnetd.errors import PolicyError


def bridge(text: str) -> BridgePolicy:
    return parse([PolicyText("vnetd.toml", f"[bridges.br0]\n{text}")]).bridges["br0"]


def test_everything_that_can_be_written() -> None:
    found = bridge("""
        ports = [
          "eth0", "PCI-0000:01:00.0", "52:54:00:AA:00:01",
         { uplink = "eth1", isolated = true, vlan = { pvid = 1, untagged = [1], tagged = ["7-8"] }},
        ]
        mac = "52:54:00:00:00:01"
        mtu = 9000
        stp = true
        forward_delay = 4
        hello_time = 1
        max_age = 6
        priority = 4096
        vlan_filtering = true
        group_fwd_mask = 16384
        multicast_snooping = false
        addresses = ["192.0.2.1/24", "198.51.100.0/31", "2001:db8::1/64"]
        gateways = ["192.0.2.254", "fe80::1"]
    """)
    vlans = frozenset({Vlan(1, pvid=True, untagged=True), Vlan(7), Vlan(8)})
    assert found.ports == (
        BridgePort("eth0"),
        BridgePort("pci-0000:01:00.0"),
        BridgePort("52:54:00:aa:00:01"),
        BridgePort("eth1", isolated=True, vlans=vlans),
    )
    assert found.addresses[1] == ip_interface("198.51.100.0/31")
    assert found.gateways == (ip_address("192.0.2.254"), ip_address("fe80::1"))
    timers = (found.forward_delay, found.hello_time, found.max_age, found.priority)
    assert timers == (4, 1, 6, 4096)
    assert (found.stp, found.vlan_filtering, found.multicast_snooping) == (True, True, False)


def test_what_is_left_out_cannot_drift() -> None:
    found = bridge("ports = []")
    assert found == BridgePolicy(found.name)
    assert found.stp is None


@pytest.mark.parametrize("text", ["eth0", "enp0s31f6", "a-name-too-long-for-the-kernel", "wan.7"])
def test_names_and_altnames_are_taken_as_they_are(text: str) -> None:
    assert uplink_name(text) == text


@pytest.mark.parametrize("text", ["", "-x", "a b", "pci-0000:01:00", "01:00:5e:00:00:01"])
def test_what_can_name_no_link(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not|names no"):
        uplink_name(text)


def test_a_wireless_uplink_is_refused_where_it_is_known_to_be_one() -> None:
    text = PolicyText("vnetd.toml", '[bridges.br0]\nports = ["eth0", "wlan0"]\n')
    with pytest.raises(PolicyError) as caught:
        parse([text], is_wireless=lambda uplink: uplink == "wlan0")
    (problem,) = caught.value.problems
    assert (problem.line, problem.key) == (2, "bridges.br0.ports[1]")
    assert "4-address" in problem.wrong
    assert "proxy ARP" in problem.right
    assert "nat" in problem.right
