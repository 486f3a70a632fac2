"""core/rules says exactly what a real libvirt installs, whatever the network's definition."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.lab.hypervisor import Hypervisor
from vnetd.backends import iptables_save, network_xml
from vnetd.core.model import Chain, Family, Ruleset, World
from vnetd.core.rules import iptables

V4 = '<ip address="10.60.{n}.1" netmask="255.255.255.0">{inside}</ip>'
V4_PREFIX = '<ip address="10.61.{n}.129" prefix="25">{inside}</ip>'
V6 = '<ip family="ipv6" address="fd60:{n}::1" prefix="64"/>'
DHCP = '<dhcp><range start="10.60.{n}.10" end="10.60.{n}.20"/></dhcp>'
HOST = '<dhcp><host mac="52:54:00:00:00:01" name="web" ip="10.60.{n}.9"/></dhcp>'
TFTP = '<tftp root="/tmp"/>'

DEFINITIONS = {
    "nat": '<forward mode="nat"/>' + V4,
    "nat-dhcp": "<forward/>" + V4.replace("{inside}", DHCP),
    "nat-host": '<forward mode="nat"/>' + V4.replace("{inside}", HOST),
    "nat-tftp": '<forward mode="nat"/>' + V4.replace("{inside}", TFTP + DHCP),
    "nat-tftp-alone": '<forward mode="nat"/>' + V4.replace("{inside}", TFTP),
    "nat-second-dhcp": '<forward mode="nat"/>' + V4_PREFIX + V4.replace("{inside}", DHCP),
    "nat-second-tftp": '<forward mode="nat"/>'
    + V4.replace("{inside}", DHCP)
    + V4_PREFIX.replace("{inside}", TFTP),
    "nat-v6": '<forward mode="nat"/>' + V4 + V6,
    "nat-v6-only": '<forward mode="nat"/>' + V6,
    "nat-nat66": '<forward mode="nat"><nat ipv6="yes"/></forward>' + V4 + V6,
    "nat-ports": '<forward mode="nat"><nat><port start="500" end="1000"/></nat></forward>' + V4,
    "nat-source": '<forward mode="nat"><nat><address start="198.51.100.7" end="198.51.100.9"/>'
    "</nat></forward>" + V4,
    "nat-one-source": '<forward mode="nat"><nat><address start="198.51.100.7" end="198.51.100.7"/>'
    '<port start="2000" end="3000"/></nat></forward>' + V4 + V6,
    "nat-nat66-source": '<forward mode="nat"><nat ipv6="yes"><address start="198.51.100.7" '
    'end="198.51.100.8"/></nat></forward>' + V4 + V6,
    "nat-dev": '<forward mode="nat" dev="uplink0"/>' + V4 + V6,
    "nat-interface": '<forward mode="nat"><interface dev="uplink0"/></forward>' + V4,
    "nat-two-addresses": '<forward mode="nat"/>' + V4 + V4_PREFIX,
    "nat-no-dns": '<forward mode="nat"/><dns enable="no"/>' + V4,
    "route": '<forward mode="route"/>' + V4 + V6,
    "route-dev": '<forward mode="route" dev="uplink0"/>' + V4_PREFIX + V6 + V4,
    "isolated": V4,
    "isolated-dhcp-v6": V4.replace("{inside}", DHCP) + V6,
    "isolated-bare": "",
    "isolated-guest-ipv6": "",
    "open": '<forward mode="open"/>' + V4 + V6,
}


def definition(name: str, number: int) -> str:
    guest_ipv6 = ' ipv6="yes"' if name == "isolated-guest-ipv6" else ""
    body = DEFINITIONS[name].replace("{inside}", "").replace("{n}", str(number))
    return f'<network{guest_ipv6}><name>{name}</name><bridge name="vbm{number}"/>{body}</network>'


@pytest.fixture(scope="module")
def bare_box() -> Iterator[Hypervisor]:
    with Hypervisor() as box:
        yield box


def observed(box: Hypervisor) -> dict[Chain, tuple[str, ...]]:
    chains = iptables_save.parse(box.run("iptables-save"), Family.IPV4)
    chains |= iptables_save.parse(box.run("ip6tables-save"), Family.IPV6)
    shown = {*iptables.BUILTIN_CHAINS, *iptables.PRIVATE_CHAINS}
    return {chain: rules for chain, rules in chains.items() if chain in shown}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_each_definition(bare_box: Hypervisor, name: str) -> None:
    box = bare_box
    box.run("virsh", "net-create", "/dev/stdin", stdin=definition(name, 1))
    live = network_xml.parse(box.run("virsh", "net-dumpxml", name))
    seen = observed(box)
    box.run("virsh", "net-destroy", name)
    rules = iptables.network_rules(live)
    if name == "open":
        assert rules == {}
    else:
        assert seen == iptables.compose([live])


def test_all_of_them_together_in_any_order(bare_box: Hypervisor) -> None:
    box = bare_box
    names = list(DEFINITIONS)
    random.Random(7).shuffle(names)
    for number, name in enumerate(names):
        box.run("virsh", "net-create", "/dev/stdin", stdin=definition(name, number))
    lives = [network_xml.parse(box.run("virsh", "net-dumpxml", name)) for name in names]
    seen = observed(box)
    assert seen == iptables.compose(reversed(lives))
    ruled = [
        live for live in sorted(lives, key=lambda live: live.name) if iptables.network_rules(live)
    ]
    assert iptables.compose(iptables.order(ruled, Ruleset(World.IPTABLES_NFT, seen))) == seen
    for name in names:
        box.run("virsh", "net-destroy", name)
