"""Policies: what is read, and every mistake with its place."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from vnetd.core.model import DhcpHost, DhcpRange, Mode
from vnetd.core.policy import Enforcement, Policy, PolicyText, Unlisted, parse
from vnetd.errors import PolicyError

CASES = sorted((Path(__file__).parents[1] / "cases/policy").iterdir())


def read(*texts: str) -> Policy:
    return parse([PolicyText(f"{number}.toml", text) for number, text in enumerate(texts)])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_mistakes_are_told_with_file_line_and_key(case: Path) -> None:
    with pytest.raises(PolicyError) as caught:
        parse([PolicyText("vnetd.toml", (case / "vnetd.toml").read_text())])
    assert f"{caught.value}\n" == (case / "expected").read_text()


def test_there_are_twenty_different_mistakes() -> None:
    assert len({(case / "expected").read_text() for case in CASES}) >= 20


def test_everything_that_can_be_written() -> None:
    policy = read("""
        [vnetd]
        mode = "observe"
        unlisted = "ignore"
        resync = "90s"
        [networks.lab]
        mode = "nat"
        bridge = "vblab"
        autostart = false
        addresses = ["10.77.0.1/24", "fd77::1/64"]
        dhcp.ranges = ["10.77.0.10 - 10.77.0.99", "fd77::10-fd77::99"]
        dhcp.hosts = [
            { mac = "52:54:00:AA:00:01", name = "web", address = "10.77.0.20" },
            { id = "0:1:2", address = "fd77::20" },
        ]
        domain = "lab.example"
        mac = "52:54:00:00:00:FF"
        mtu = 9000
        stp = false
        [networks.lan]
        mode = "bridge"
        bridge = "br0"
    """)
    assert policy.enforcement is Enforcement.OBSERVE
    assert policy.unlisted is Unlisted.IGNORE
    assert policy.resync == 90
    lab = policy.networks["lab"]
    assert (lab.mode, lab.bridge, lab.autostart) == (Mode.NAT, "vblab", False)
    assert lab.addresses == (ip_interface("10.77.0.1/24"), ip_interface("fd77::1/64"))
    assert lab.ranges[0] == DhcpRange(ip_address("10.77.0.10"), ip_address("10.77.0.99"))
    assert lab.hosts == (
        DhcpHost(ip_address("10.77.0.20"), mac="52:54:00:aa:00:01", name="web"),
        DhcpHost(ip_address("fd77::20"), id="0:1:2"),
    )
    assert (lab.domain, lab.mac, lab.mtu, lab.stp) == (
        "lab.example",
        "52:54:00:00:00:ff",
        9000,
        False,
    )
    assert policy.networks["lan"].mode is Mode.BRIDGE


def test_nothing_written_is_the_default() -> None:
    assert read("") == Policy()


def test_a_drop_in_changes_single_keys() -> None:
    policy = read(
        '[networks.lab]\nmode = "nat"\naddresses = ["10.77.0.1/24"]\nmtu = 1500\n',
        "[networks.lab]\nmtu = 9000\n",
        '[networks.more]\nmode = "isolated"\n',
    )
    assert policy.networks["lab"].mtu == 9000
    assert str(policy.networks["lab"].addresses[0]) == "10.77.0.1/24"
    assert set(policy.networks) == {"lab", "more"}


def test_mistakes_of_several_files_are_told_together() -> None:
    with pytest.raises(PolicyError) as caught:
        read('[networks.lab]\nmode = "nat"\nbrigde = "a"\n', "[networks.lab]\nmtu = 1\n")
    places = [(problem.file, problem.line) for problem in caught.value.problems]
    assert places == [("0.toml", 1), ("0.toml", 3), ("1.toml", 2)]


def test_two_networks_may_share_a_bridge_of_the_host() -> None:
    lan = '[networks.{}]\nmode = "bridge"\nbridge = "br0"\n'
    assert len(read(lan.format("a"), lan.format("b")).networks) == 2


def test_proxy_ndp_needs_the_leases_of_its_network() -> None:
    policy = read("""
        [networks.carved]
        mode = "route"
        addresses = ["2001:db8::1/80"]
        announce = "proxy-ndp"
        [networks.other]
        mode = "isolated"
    """)
    assert policy.asked.leases == {"carved"}
