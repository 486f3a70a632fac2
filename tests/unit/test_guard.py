"""The guard's table: what it holds for which networks, as nft prints it, and whose addresses the
forwards in it lead to.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

from vnetd.core.keep import guard as keep
from vnetd.core.model import (
    Definition,
    DhcpHost,
    GuardTable,
    Held,
    IfName,
    Lease,
    Libvirt,
    Mode,
    Network,
    Tap,
)
from vnetd.core.policy import Firewall, NetworkPolicy, Policy
from vnetd.core.policy.forwards import Forward, Protocol
from vnetd.core.rules import guard
from vnetd.core.rules.guard import Guarded, Key, Match, Rule, Verdict

LAB = Definition(
    "lab",
    Mode.NAT,
    bridge=IfName("vblab"),
    addresses=(ip_interface("10.77.0.1/24"), ip_interface("fd77::1/64")),
)
QUIET = Definition(
    "quiet", Mode.ISOLATED, bridge=IfName("vbq"), addresses=(ip_interface("10.79.0.1/24"),)
)
PORT = guard.Forward("tcp", (8080, 8080), "10.77.0.20", 80)
RANGE = guard.Forward("udp", (9000, 9009), "fd77::20", sources=("2001:db8::/32", "fd00::/8"))


def listed(table: guard.Table) -> str:
    return "\n".join(f"{name}: {rule}" for name, rules in table.items() for rule in rules)


def test_beside_libvirts_rules() -> None:
    passed = [(Match(Key.IP_DADDR, "10.77.0.9"),)]
    untranslated = [(Match(Key.IP_DADDR, "10.8.0.0/16"),)]
    assert (
        listed(guard.table([Guarded(LAB), Guarded(QUIET)], passed, untranslated))
        == """\
forward: ct state established,related accept
forward: iifname "vblab" oifname "vblab" accept
forward: iifname "vbq" oifname "vbq" accept
forward: ip daddr 10.77.0.9 accept
forward: oifname "vblab" ct status dnat accept
forward: oifname "vblab" ip6 daddr fd77::/64 accept
forward: oifname "vblab" reject
forward: oifname "vbq" reject
forward: iifname "vblab" ip saddr 10.77.0.0/24 accept
forward: iifname "vblab" ip6 saddr fd77::/64 accept
forward: iifname "vblab" reject
forward: iifname "vbq" reject
postrouting: ip daddr 10.8.0.0/16 return
postrouting: ip saddr 10.77.0.0/24 ip daddr 224.0.0.0/24 return
postrouting: ip saddr 10.77.0.0/24 ip daddr 255.255.255.255 return
postrouting: ip saddr 10.77.0.0/24 ip daddr != 10.77.0.0/24 meta l4proto tcp \
masquerade to :1024-65535
postrouting: ip saddr 10.77.0.0/24 ip daddr != 10.77.0.0/24 meta l4proto udp \
masquerade to :1024-65535
postrouting: ip saddr 10.77.0.0/24 ip daddr != 10.77.0.0/24 masquerade"""
    )


def test_forwards_alone() -> None:
    alone = Guarded(LAB, alone=True, forwards=(PORT, RANGE))
    chains = {"prerouting", "output", "forward"}
    table = {name: rules for name, rules in guard.table([alone]).items() if name in chains}
    assert (
        listed(table)
        == """\
prerouting: fib daddr type local meta l4proto tcp th dport 8080 dnat ip to 10.77.0.20:80
prerouting: ip6 saddr 2001:db8::/32 fib daddr type local meta l4proto udp th dport 9000-9009 \
dnat ip6 to fd77::20
prerouting: ip6 saddr fd00::/8 fib daddr type local meta l4proto udp th dport 9000-9009 \
dnat ip6 to fd77::20
output: ip daddr != 127.0.0.0/8 fib daddr type local meta l4proto tcp th dport 8080 \
dnat ip to 10.77.0.20:80
output: ip6 saddr 2001:db8::/32 ip6 daddr != ::1 fib daddr type local meta l4proto udp \
th dport 9000-9009 dnat ip6 to fd77::20
output: ip6 saddr fd00::/8 ip6 daddr != ::1 fib daddr type local meta l4proto udp \
th dport 9000-9009 dnat ip6 to fd77::20
forward: ct state established,related accept
forward: iifname "vblab" oifname "vblab" accept
forward: oifname "vblab" ct status dnat accept
forward: oifname "vblab" ip6 daddr fd77::/64 accept
forward: oifname "vblab" reject
forward: iifname "vblab" ip saddr 10.77.0.0/24 accept
forward: iifname "vblab" ip6 saddr fd77::/64 accept
forward: iifname "vblab" reject"""
    )


def test_what_others_let_through_does_not_open_a_network_that_is_vnetds_alone() -> None:
    passed = [(Match(Key.IP_DADDR, "10.77.0.9"),)]
    rules = guard.table([Guarded(LAB, alone=True)], passed)["forward"]
    texts = [str(rule) for rule in rules]
    assert texts.index('oifname "vblab" reject') < texts.index("ip daddr 10.77.0.9 accept")


def test_nat_is_what_the_network_says() -> None:
    other = replace(
        LAB,
        addresses=(ip_interface("fd77::1/64"), LAB.addresses[0]),
        forward_dev=IfName("eth0"),
        nat_ipv6=True,
        nat_source=("192.0.2.1", "192.0.2.9"),
        nat_ports=(5000, 6000),
    )
    table = guard.table([Guarded(other)])
    assert (
        listed({"postrouting": table["postrouting"]})
        == """\
postrouting: ip6 saddr fd77::/64 ip6 daddr ff02::/16 oifname "eth0" return
postrouting: ip6 saddr fd77::/64 ip6 daddr != fd77::/64 oifname "eth0" meta l4proto tcp \
masquerade to :5000-6000
postrouting: ip6 saddr fd77::/64 ip6 daddr != fd77::/64 oifname "eth0" meta l4proto udp \
masquerade to :5000-6000
postrouting: ip6 saddr fd77::/64 ip6 daddr != fd77::/64 oifname "eth0" masquerade
postrouting: ip saddr 10.77.0.0/24 ip daddr 224.0.0.0/24 oifname "eth0" return
postrouting: ip saddr 10.77.0.0/24 ip daddr 255.255.255.255 oifname "eth0" return
postrouting: ip saddr 10.77.0.0/24 ip daddr != 10.77.0.0/24 oifname "eth0" meta l4proto tcp \
snat ip to 192.0.2.1-192.0.2.9:5000-6000
postrouting: ip saddr 10.77.0.0/24 ip daddr != 10.77.0.0/24 oifname "eth0" meta l4proto udp \
snat ip to 192.0.2.1-192.0.2.9:5000-6000
postrouting: ip saddr 10.77.0.0/24 ip daddr != 10.77.0.0/24 oifname "eth0" \
snat ip to 192.0.2.1-192.0.2.9"""
    )
    assert str(table["forward"][2]) == 'oifname "vblab" ct status dnat accept'
    assert 'iifname "vblab" oifname "eth0" ip saddr 10.77.0.0/24 accept' in listed(table)


def test_without_a_bridge_there_is_nothing_to_guard() -> None:
    assert guard.table([Guarded(replace(LAB, bridge=None))]) == {}


def test_a_rule_is_known_again_by_its_digest() -> None:
    rule = Rule("lab", (Match(Key.OIFNAME, "vblab"),), Verdict.REJECT)
    others = [
        replace(rule, network="other"),
        replace(rule, verdict=Verdict.ACCEPT),
        replace(rule, matches=(Match(Key.OIFNAME, "vblab", negated=True),)),
    ]
    assert len({rule.digest, *(other.digest for other in others)}) == 4
    assert replace(rule).digest == rule.digest


# -- which networks, and whose addresses

MAC = "52:54:00:00:00:01"
OWN = NetworkPolicy("lab", Mode.NAT, LAB.bridge, addresses=LAB.addresses, firewall=Firewall.VNETD)
WEB = Forward(Protocol.TCP, (8080, 8080), "web", 80)


def ways_in(policy: NetworkPolicy, libvirt: Libvirt) -> list[str]:
    live = libvirt.networks["lab"].live
    assert live is not None
    table = keep.wanted(Policy(networks={"lab": policy}), libvirt, [live], None, None)
    return [str(rule).rpartition(" to ")[2] for rule in table.get("prerouting", ())]


def host(*leases: Lease, mode: Mode = Mode.OPEN, taps: tuple[Tap, ...] = ()) -> Libvirt:
    live = replace(LAB, mode=mode)
    guest = Tap("web", IfName("vnet0"), "lab", mac=MAC)
    networks = {"lab": Network("lab", live, live, autostart=True)}
    return Libvirt("9.0.0", 1, networks, (guest, *taps), leases=leases)


def lease(network: str, address: str, mac: str = MAC) -> Lease:
    return Lease(network, mac, ip_address(address))


def test_a_forward_follows_its_guests_address_of_each_family() -> None:
    policy = replace(OWN, forwards=(WEB,))
    assert ways_in(policy, host()) == []
    leases = (lease("lab", "10.77.0.33"), lease("lab", "fd77::33"), lease("lab", "10.77.0.34"))
    assert ways_in(policy, host(*leases)) == ["10.77.0.33:80", "[fd77::33]:80"]
    reserved = replace(policy, hosts=(DhcpHost(ip_address("10.77.0.20"), MAC),))
    assert ways_in(reserved, host(*leases)) == ["10.77.0.20:80", "[fd77::33]:80"]


def test_a_forward_follows_no_lease_of_another_network() -> None:
    """Its domain may be on both, even with one MAC, and a lease outlives its guest's move."""
    policy = replace(OWN, forwards=(WEB,))
    elsewhere = Tap("web", IfName("vnet1"), "other", mac="52:54:00:00:00:02")
    leases = (
        lease("other", "10.99.0.33"),
        lease("lab", "10.77.0.33"),
        lease("other", "10.99.0.34", "52:54:00:00:00:02"),
    )
    assert ways_in(policy, host(*leases, taps=(elsewhere,))) == ["10.77.0.33:80"]
    assert ways_in(policy, host(leases[0], leases[2], taps=(elsewhere,))) == []


def test_who_may_use_it_is_asked_of_each_family() -> None:
    only_ipv4 = replace(WEB, sources=(ip_network("192.0.2.0/24"),))
    leases = (lease("lab", "10.77.0.33"), lease("lab", "fd77::33"))
    assert ways_in(replace(OWN, forwards=(only_ipv4,)), host(*leases)) == ["10.77.0.33:80"]


def test_a_network_is_guarded_as_far_as_libvirt_runs_it() -> None:
    policy = Policy(networks={"lab": OWN})
    for mode, guarded in ((Mode.OPEN, True), (Mode.NAT, False)):  # not restarted yet
        live = replace(LAB, mode=mode)
        assert keep.is_guarded(policy, host(mode=mode), live) is guarded
    off = Policy(networks={"lab": replace(OWN, firewall=Firewall.LIBVIRT, guard=False)})
    assert not keep.is_guarded(off, host(mode=Mode.NAT), LAB)
    assert keep.is_guarded(Policy(), host(mode=Mode.NAT), LAB)
    assert not keep.is_guarded(Policy(), host(mode=Mode.ROUTE), replace(LAB, mode=Mode.ROUTE))


def test_it_is_written_where_it_differs_and_where_nobody_holds_it() -> None:
    table = guard.table([Guarded(LAB)])
    right = {name: tuple(rule.digest for rule in rules) for name, rules in table.items()}

    def planned(held: Held | None, *, mine: bool, **chains: tuple[str, ...]) -> list[str]:
        seen = GuardTable(held, mine, {**right, **chains})
        drift = list(keep.diff(table, seen))
        actions = list(keep.plan(drift, table, seen))
        assert all(isinstance(action, keep.WriteGuard) for action in actions)
        return [f"{action.reason}: {', '.join(map(str, drift))}" for action in actions]

    assert planned(Held.PERSISTENT, mine=True) == []
    assert planned(Held.PERSISTENT, mine=False) == ["nobody holds it: "]
    # of a table that nobody else can write a difference is the policy's
    assert planned(Held.PERSISTENT, mine=True, forward=()) == ["rules differ: "]
    lost = right["forward"][1:]
    assert planned(Held.OPEN, mine=True, forward=lost) == ["rules differ: "]
    lost = (right["forward"][0], *right["forward"][2:])
    assert planned(Held.OPEN, mine=True, forward=lost) == ["rules differ: guard: 1 rules missing"]
    assert list(keep.plan([], {}, GuardTable(None, mine=False))) == []
    assert [str(a) for a in keep.plan([], {}, GuardTable(Held.OPEN, True, right))] == [
        "remove the guard"
    ]
