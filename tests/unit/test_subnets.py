"""What a network's subnets may not overlap, and what they may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from vnetd.core.diff import diff
from vnetd.core.keep.networks import Stopped
from vnetd.core.model import (
    Address,
    Definition,
    DhcpHost,
    HostRoute,
    IfName,
    Libvirt,
    Link,
    Mode,
    Network,
    Observed,
)
from vnetd.core.model.link import Bridge
from vnetd.core.policy import Announce, NetworkPolicy, Policy

UPLINK = IfName("eth0")
LAN = HostRoute(ip_network("192.168.1.0/24"), UPLINK)
DEFAULT = HostRoute(ip_network("0.0.0.0/0"), UPLINK, ip_address("192.168.1.1"))


def route(to: str, dev: str | None = "tun0", via: str = "") -> HostRoute:
    return HostRoute(ip_network(to), IfName(dev) if dev else None, ip_address(via) if via else None)


def network(address: str, mode: Mode = Mode.NAT) -> NetworkPolicy:
    return NetworkPolicy("lab", mode, IfName("vblab"), addresses=(ip_interface(address),))


def link(name: str, *addresses: Address) -> Link:
    return Link(
        index=1,
        name=IfName(name),
        kind="bridge",
        mac="52:54:00:00:00:01",
        mtu=1500,
        up=True,
        bridge=Bridge(),
        addresses=frozenset(addresses),
    )


def conflicts(
    want: NetworkPolicy,
    *routes: HostRoute,
    running: bool = False,
    others: Sequence[Link] = (),
    nameservers: Sequence[str] = (),
) -> tuple[str, ...]:
    config = Definition("lab", want.mode, bridge=want.bridge, addresses=want.addresses)
    lab = Network("lab", config, config if running else None, autostart=True)
    links = [link("eth0"), *others, *([link("vblab", *want.addresses)] if running else [])]
    observed = Observed(
        libvirt=Libvirt("9.0.0", 1, {"lab": lab}),
        links={item.name: item for item in links},
        routes=routes,
        nameservers=frozenset(ip_address(text) for text in nameservers),
    )
    found = diff(Policy(networks={"lab": want}), observed)
    starts = any(isinstance(item, Stopped) for item in found.drift)
    assert running or starts is not bool(found.conflicts), "it starts, or it is told why not"
    return tuple(conflict.text for conflict in found.conflicts)


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize(
    ("address", "others"),
    [
        ("10.77.0.1/24", "10.0.0.0/8"),
        ("10.77.0.1/24", "10.77.0.0/24"),
        ("10.77.0.1/24", "10.77.0.64/26"),
        ("10.77.0.1/24", "10.77.0.9/32"),
        ("fd77::1/64", "fd00::/8"),
        ("fd77::1/64", "fd77::/64"),
        ("fd77::1/64", "fd77::9/128"),
    ],
)
def test_overlap_of_any_kind_is_a_conflict(address: str, others: str, *, running: bool) -> None:
    (text,) = conflicts(network(address), route(others), running=running)
    refused = "" if running else "cannot start: "
    subnet = ip_interface(address).network
    assert text == f"{refused}subnet {subnet} overlaps route {others} dev tun0"


@pytest.mark.parametrize(
    "other",
    [
        route("10.77.0.0/24", "vblab"),
        route("10.78.0.0/24"),
        route("0.0.0.0/0"),
        route("0.0.0.0/1"),
        route("128.0.0.0/1"),
        route("10.0.0.0/8", "eth0", "192.168.1.1"),
        route("10.0.0.0/8", None),
    ],
    ids=str,
)
def test_what_is_no_overlap(other: HostRoute) -> None:
    assert conflicts(network("10.77.0.1/24"), LAN, DEFAULT, other) == ()


def test_a_part_of_it_that_leads_elsewhere_is_one_whatever_the_next_hop() -> None:
    for part in (route("10.77.0.7/32", "eth0", "192.168.1.1"), route("10.77.0.128/25", None)):
        assert conflicts(network("10.77.0.1/24"), LAN, DEFAULT, part)


def test_the_policy_may_allow_it() -> None:
    allowed = replace(network("10.77.0.1/24"), overlaps=(ip_network("10.0.0.0/8"),))
    assert conflicts(allowed, route("10.0.0.0/8")) == ()
    assert conflicts(allowed, route("10.64.0.0/10")) == ()
    assert conflicts(allowed, route("8.0.0.0/6"))


def test_a_range_of_the_lan_is_one_unless_it_is_announced() -> None:
    carved = network("192.168.1.225/27", Mode.ROUTE)
    (text,) = conflicts(carved, LAN, DEFAULT)
    assert text.endswith('192.168.1.0/24 dev eth0; announce = "proxy-arp" makes it a part of that')
    announced = replace(carved, announce=frozenset({Announce.PROXY_ARP}))
    assert conflicts(announced, LAN, DEFAULT) == ()
    assert conflicts(announced, LAN, DEFAULT, route("192.168.1.230/32"))
    # Shadowed by the LAN's own already.
    assert conflicts(announced, LAN, DEFAULT, route("192.168.0.0/16")) == ()


@pytest.mark.parametrize("running", [False, True])
def test_the_hosts_gateway_is_never_shadowed(*, running: bool) -> None:
    announced = replace(
        network("192.168.1.2/27", Mode.ROUTE),
        announce=frozenset({Announce.PROXY_ARP}),
        overlaps=(ip_network("192.168.1.0/24"),),
    )
    (text,) = conflicts(announced, LAN, DEFAULT, running=running)
    assert text.endswith("subnet 192.168.1.0/27 contains the host's gateway 192.168.1.1 dev eth0")


def test_the_hosts_own_address_is_never_shadowed() -> None:
    carved = network("192.168.1.225/27", Mode.ROUTE)
    announced = replace(carved, announce=frozenset({Announce.PROXY_ARP}))
    eth0 = link("eth0", ip_interface("192.168.1.230/24"))
    (text,) = conflicts(announced, LAN, DEFAULT, others=[eth0])
    assert text.endswith("contains address 192.168.1.230/24 of eth0")


def test_dns_servers_are_not_shadowed_unless_a_guest_may_be_one() -> None:
    lab = network("10.77.0.1/24")
    (text,) = conflicts(lab, nameservers=["10.77.0.53"])
    assert text.endswith("subnet 10.77.0.0/24 contains the host's DNS server 10.77.0.53")
    assert conflicts(lab, nameservers=["10.77.0.53"], running=True) == ()
    assert conflicts(lab, nameservers=["10.77.0.1"]) == ()
    reserved = DhcpHost(ip_address("10.77.0.53"), mac="52:54:00:00:00:01")
    assert conflicts(replace(lab, hosts=(reserved,)), nameservers=["10.77.0.53"]) == ()


def test_a_network_that_is_off_takes_its_subnet_too() -> None:
    other = Definition(
        "other", Mode.NAT, bridge=IfName("vbother"), addresses=(ip_interface("10.77.9.1/16"),)
    )
    networks = {"other": Network("other", other, None, autostart=False)}
    observed = Observed(libvirt=Libvirt("9.0.0", 1, networks), links={}, routes=())
    (conflict,) = diff(Policy(networks={"lab": network("10.77.0.1/24")}), observed).conflicts
    assert conflict.text.endswith("subnet 10.77.0.0/24 overlaps 10.77.0.0/16 of network other")


def test_a_subnet_that_a_running_network_is_to_get_is_refused_and_it_runs_on() -> None:
    live = Definition(
        "lab", Mode.NAT, bridge=IfName("vblab"), addresses=(ip_interface("10.70.0.1/24"),)
    )
    observed = Observed(
        libvirt=Libvirt("9.0.0", 1, {"lab": Network("lab", live, live, autostart=True)}),
        links={IfName("vblab"): link("vblab", *live.addresses)},
        routes=(route("10.0.0.0/8"),),
    )
    want = replace(network("10.77.0.1/24"), overlaps=(ip_network("10.70.0.0/15"),))
    found = diff(Policy(networks={"lab": want}), observed)
    assert found.drift == ()
    texts = [conflict.text for conflict in found.conflicts]
    assert texts[0] == "cannot change: subnet 10.77.0.0/24 overlaps route 10.0.0.0/8 dev tun0"
