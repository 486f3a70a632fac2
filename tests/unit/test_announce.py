"""Who must be told of a network, and how."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from vnetd.backends import netlink
from vnetd.backends.kernel import route_messages
from vnetd.core.drift import Drift
from vnetd.core.keep import announce
from vnetd.core.model import (
    Definition,
    HostRoute,
    IfName,
    Lease,
    Libvirt,
    Link,
    Mode,
    Network,
    Observed,
    Proxy,
    StaticRoute,
)
from vnetd.core.policy import Announce, Firewall, NetworkPolicy, Policy

ETH0, ETH1, BRIDGE = IfName("eth0"), IfName("eth1"), IfName("vblab")
LAN = ip_network("2001:db8:1::/64")
LIVE = Definition(
    "lab",
    Mode.ROUTE,
    bridge=BRIDGE,
    addresses=(ip_interface("192.168.1.225/27"), ip_interface("2001:db8:1:0:e::1/80")),
)
POLICY = Policy(
    networks={
        "lab": NetworkPolicy(
            "lab",
            Mode.ROUTE,
            BRIDGE,
            addresses=LIVE.addresses,
            announce=frozenset({Announce.PROXY_NDP}),
        )
    }
)
HOST, GUEST = ip_address("2001:db8:1:0:e::1"), ip_address("2001:db8:1:0:e::5")


def link(name: IfName, *addresses: str, mac: str = "52:54:00:00:00:01") -> Link:
    own = frozenset(ip_interface(text) for text in addresses)
    return Link(1, name, "", mac, 1500, up=True, addresses=own)


SEEN = Observed(
    libvirt=Libvirt("9.0.0", 1, {"lab": Network("lab", LIVE, LIVE, autostart=True)}),
    links={
        ETH0: link(ETH0, "192.168.1.5/24", "10.1.1.1/24", "fe80::5/64", "2001:db8:1::5/64"),
        ETH1: link(ETH1),
        IfName("tun0"): link(IfName("tun0"), mac=""),
    },
    routes=(
        HostRoute(ip_network("0.0.0.0/0"), ETH0, ip_address("192.168.1.1")),
        HostRoute(ip_network("::/0"), ETH0, ip_address("fe80::1")),
        HostRoute(ip_network("192.168.1.0/24"), ETH0),
        HostRoute(LAN, ETH0, metric=256),
    ),
)


def planned(observed: Observed, policy: Policy = POLICY) -> list[str]:
    found = list(announce.diff(policy, [LIVE], observed))
    return [str(action) for action in announce.plan(x for x in found if isinstance(x, Drift))]


def test_the_host_answers_for_itself_and_for_all_guests_that_it_knows() -> None:
    lease = Lease("lab", "52:54:00:00:00:02", ip_address("2001:db8:1:0:e::6"))
    assert SEEN.libvirt is not None
    heard = {BRIDGE: frozenset({GUEST, ip_address("fe80::7"), ip_address("2001:db8:1::9")})}
    seen = replace(SEEN, libvirt=replace(SEEN.libvirt, leases=(lease,)), neighbours=heard)
    assert planned(seen) == [f"answer on eth0 for {a}" for a in (HOST, GUEST, lease.address)]


def test_a_silent_guest_stays_announced_and_others_entries_stay() -> None:
    mine = {Proxy(ETH0, HOST), Proxy(ETH0, GUEST)}
    foreign = Proxy(ETH0, ip_address("2001:db8:9::1"), made_by_vnetd=False)
    assert planned(replace(SEEN, proxies=frozenset({*mine, foreign}))) == []


def test_what_nobody_announces_any_more_goes() -> None:
    seen = replace(SEEN, proxies=frozenset({Proxy(ETH0, GUEST)}))
    assert planned(seen, Policy()) == [f"answer no more on eth0 for {GUEST}"]


def test_the_narrowest_prefix_around_it_is_the_uplinks() -> None:
    narrower = HostRoute(ip_network("2001:db8:1::/68"), ETH1)
    tunnel = HostRoute(ip_network("2001:db8:1::/72"), IfName("tun0"))
    assert SEEN.routes is not None
    seen = replace(
        SEEN, routes=(*SEEN.routes, narrower, tunnel), proxies=frozenset({Proxy(ETH0, HOST)})
    )
    assert planned(seen) == [
        f"answer on eth1 for {HOST}",
        f"answer no more on eth0 for {HOST}",
    ]


def test_without_an_uplink_the_network_waits_for_one() -> None:
    (conflict,) = announce.diff(POLICY, [LIVE], replace(SEEN, routes=()))
    assert "no link has neighbours in a prefix around 2001:db8:1:0:e::/80" in str(conflict)


@pytest.mark.parametrize(
    ("live", "commands"),
    [
        (LIVE, ["ip route add 192.168.1.224/27 via 192.168.1.5"]),
        (replace(LIVE, name="other", mode=Mode.ISOLATED), []),
        (
            replace(LIVE, name="other", mode=Mode.NAT),
            ["ip -6 route add 2001:db8:1:0:e::/80 via 2001:db8:1::5"],
        ),
        (replace(LIVE, name="other", mode=Mode.NAT, nat_ipv6=True), []),
        (
            replace(LIVE, name="other", addresses=LIVE.addresses[:1], forward_dev=ETH1),
            ["ip route add 192.168.1.224/27 via ADDRESS-OF-THIS-HOST"],
        ),
    ],
)
def test_what_the_router_must_know(live: Definition, commands: list[str]) -> None:
    assert [text for _, text in announce.for_the_router(POLICY, live, SEEN)] == commands


def test_the_router_need_not_know_what_vnetds_own_rules_translate() -> None:
    own = replace(POLICY.networks["lab"], mode=Mode.NAT, firewall=Firewall.VNETD)
    live = replace(LIVE, mode=Mode.OPEN, addresses=LIVE.addresses[:1])
    assert announce.for_the_router(Policy(networks={"lab": own}), live, SEEN) == []


def test_routes_and_proxies_survive_their_messages() -> None:
    static = StaticRoute(ip_network("10.90.0.0/24"), ip_address("10.77.0.5"), 300)
    body = route_messages.order(static, 7, there=True).body
    to = route_messages.destination(body)
    assert to == static.to
    expected = HostRoute(static.to, BRIDGE, static.via, 300, made_by_vnetd=True)
    assert list(route_messages.routes(body, to, {7: BRIDGE}.get)) == [expected]
    assert list(route_messages.routes(body, to, lambda _: None)) == [], "its link has gone since"
    proxied = route_messages.proxy_order(GUEST, 7, there=True).body
    assert list(route_messages.proxies([proxied], {7: ETH0}.get)) == [Proxy(ETH0, GUEST)]


def test_each_next_hop_is_a_route() -> None:
    hops = b"".join(
        struct.pack("=HBBi", 16, 0, 0, index)
        + netlink.encoded(5, ip_address(f"192.0.2.{index}").packed)
        for index in (1, 2)
    )
    body = struct.pack("=8BI", 2, 0, 0, 0, 254, 3, 0, 1, 0) + netlink.encoded(9, hops)
    to = route_messages.destination(body)
    assert to is not None
    found = route_messages.routes(body, to, {1: ETH0, 2: ETH1}.get)
    assert [str(route) for route in found] == [
        "0.0.0.0/0 via 192.0.2.1 dev eth0",
        "0.0.0.0/0 via 192.0.2.2 dev eth1",
    ]
