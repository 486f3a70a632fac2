"""Accepts in other tools' chains: the smallest that help, and nothing else changes by them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_interface

import pytest

from tests.unit.test_packets import LAB, recorded
from vnetd.core import foreign
from vnetd.core.diff import diff
from vnetd.core.keep import coexist
from vnetd.core.model import Family, IfName, Libvirt, Mode, Network, Observed
from vnetd.core.packets import iptables_text
from vnetd.core.packets.evaluate import Index, decide
from vnetd.core.packets.firewall import (
    Base,
    FilterChain,
    Firewall,
    Hook,
    Layer,
    Packet,
    Place,
    Tool,
    Verdict,
)
from vnetd.core.policy import Coexist, NetworkPolicy, Policy
from vnetd.core.policy import Firewall as OwnFirewall
from vnetd.core.rules import iptables

QUIET = replace(
    LAB,
    name="quiet",
    mode=Mode.ISOLATED,
    bridge=IfName("vbquiet"),
    addresses=(ip_interface("10.79.0.1/24"),),
)
ALL = frozenset(Coexist)


def applied(firewall: Firewall, terms: coexist.Terms) -> Firewall:
    for item in terms.drift:
        assert isinstance(item, coexist.AcceptsDiffer)
        rules = [rule for text in item.missing for rule in iptables_text.rules(text)]
        firewall = firewall.with_rules(item.place, item.position, rules)
    return firewall


@pytest.mark.parametrize("tool", ["docker-20.10.24", "ufw-0.36.2"])
def test_accepts_end_the_blocks_and_come_only_once(tool: str) -> None:
    firewall = recorded(tool, Tool.LEGACY)
    terms = coexist.terms(ALL, (LAB, QUIET), firewall)
    assert terms.left == ()
    after = applied(firewall, terms)
    assert foreign.blocks(LAB, [LAB, QUIET], after) == ()
    assert coexist.terms(ALL, (LAB, QUIET), after) == coexist.Terms()


@pytest.mark.parametrize("tool", ["docker-20.10.24", "ufw-0.36.2"])
@pytest.mark.parametrize(
    ("iif", "oif", "state"),
    [
        ("uplink0", "vblab", "new"),
        ("uplink0", "vbquiet", "new"),
        ("uplink0", "vbquiet", "established"),
        ("vbquiet", "uplink0", "new"),
        ("vblab", "vbquiet", "new"),
        ("vblab", "docker0", "new"),
        ("vblab", "br-web", "new"),
        ("docker0", "vblab", "new"),
        ("docker0", "uplink0", "new"),
        ("uplink0", "docker0", "new"),
    ],
)
def test_verdicts_on_other_traffic_stay(tool: str, iif: str, oif: str, state: str) -> None:
    firewall = recorded(tool, Tool.LEGACY)
    after = applied(firewall, coexist.terms(ALL, (LAB, QUIET), firewall))
    for family in Family:
        packet = Packet(
            family=family,
            iif=frozenset({iif}),
            oif=frozenset({oif}),
            state=frozenset({state}),
            protocol=frozenset({"tcp"}),
        )
        before, now = (
            [(d.base, d.verdict, d.certain) for d in decide(f, Layer.IP, Hook.FORWARD, packet)]
            for f in (firewall, after)
        )
        assert now == before


def test_a_tool_that_is_not_allowed_is_reported() -> None:
    firewall = recorded("docker-20.10.24", Tool.LEGACY)
    terms = coexist.terms(frozenset({Coexist.UFW}), (LAB,), firewall)
    assert terms.drift == ()
    assert {block.owner for block in terms.left} == {"docker"}


def test_a_nat_network_with_vnetds_own_rules_is_one_to_others_too() -> None:
    """libvirt runs it in open mode, and of open networks nothing is said."""
    own = NetworkPolicy("lab", Mode.NAT, LAB.bridge, firewall=OwnFirewall.VNETD)
    live = replace(LAB, mode=Mode.OPEN)
    libvirt = Libvirt("11.3.0", 1, {"lab": Network("lab", live, live, autostart=True)})
    seen = Observed(libvirt=libvirt, filters=recorded("docker-20.10.24", Tool.LEGACY))
    (item,) = [x for x in diff(Policy(networks={"lab": own}), seen).drift if x.source == "filters"]
    assert isinstance(item, coexist.AcceptsDiffer)
    assert item.place.chain == "DOCKER-USER"
    assert "new connections to outside" in item.why
    foreign_open = replace(own, mode=Mode.OPEN, firewall=OwnFirewall.LIBVIRT)
    found = diff(Policy(networks={"lab": foreign_open}), seen)
    assert [x for x in found.drift if x.source == "filters"] == []


def test_accepts_go_with_their_network_and_with_the_permission() -> None:
    firewall = recorded("docker-20.10.24", Tool.LEGACY)
    after = applied(firewall, coexist.terms(ALL, (LAB,), firewall))
    for terms in (coexist.terms(ALL, (), after), coexist.terms(frozenset(), (LAB,), after)):
        (item,) = terms.drift
        assert isinstance(item, coexist.AcceptsDiffer)
        assert (item.network, item.missing, len(item.unexpected)) == ("lab", (), 3)


@pytest.mark.parametrize("name", ["aaa", "zzz"])
def test_accepts_of_one_network_go_as_anothers_come(name: str) -> None:
    before = recorded("ufw-0.36.2", Tool.LEGACY)
    firewall = applied(before, coexist.terms(ALL, (LAB,), before))
    other = replace(LAB, name=name, bridge=IfName("vbnew"), addresses=QUIET.addresses)
    chains = {place: [r.text for r in c.rules] for place, c in firewall.chains.items()}
    actions = list(coexist.plan(coexist.terms(ALL, (other,), firewall).drift))
    assert len(actions) > 3
    for action in actions:
        assert isinstance(action, coexist.SetAccepts)
        chain = chains[action.place]
        for rule in action.remove:
            chain.remove(rule)
        for at, rule in enumerate(action.add, action.position):
            assert at <= len(chain) + 1, "iptables: index of insertion too big"
            chain.insert(at - 1, rule)
    (forward,) = [rules for place, rules in chains.items() if place.chain == "ufw-user-forward"]
    assert "--dport 25 -j DROP" in forward[0]
    assert [f"vnetd:{name}" in rule for rule in forward[1:]] == [True] * (len(forward) - 1)


def test_accepts_stand_behind_what_the_admin_denies() -> None:
    firewall = recorded("ufw-0.36.2", Tool.LEGACY)
    terms = coexist.terms(ALL, (LAB,), firewall)
    (forward,) = [
        item
        for item in terms.drift
        if isinstance(item, coexist.AcceptsDiffer) and item.place.chain == "ufw-user-forward"
    ]
    rules = firewall.chains[forward.place].rules
    assert "--dport 25 -j DROP" in rules[0].text
    assert forward.position == len(rules)


def test_five_hundred_networks_are_judged_by_their_own_rules_only() -> None:
    networks = tuple(
        replace(
            LAB,
            name=f"n{number}",
            bridge=IfName(f"vb{number}"),
            addresses=(ip_interface(f"10.{number // 250}.{number % 250}.1/24"),),
        )
        for number in range(500)
    )
    text = {c: r for c, r in iptables.compose(networks).items() if c.table == "filter"}
    firewall = foreign.with_libvirts(recorded("docker-20.10.24", Tool.IPTABLES), text)
    small = Index(firewall).about(foreign.interfaces(networks[0], firewall))
    assert sum(len(chain.rules) for chain in firewall.chains.values()) > 6000
    assert sum(len(chain.rules) for chain in small.chains.values()) < 100
    for network in networks[::100]:
        few = Index(firewall).about(foreign.interfaces(network, firewall))
        whole = foreign.blocks(network, (), firewall)
        assert [str(block) for block in foreign.blocks(network, (), few)] == [
            str(block) for block in whole
        ]


def test_a_bridge_goes_into_its_zone_once_however_much_is_blocked() -> None:
    hooks = (Hook.INPUT, Hook.FORWARD)
    places = {hook: Place(Tool.NFT, "inet", "firewalld", f"filter_{hook}") for hook in hooks}
    chains = {p: FilterChain(p, (), Base(h, 10, Verdict.DROP)) for h, p in places.items()}
    firewall = Firewall(chains, uplinks={Family.IPV4: frozenset({IfName("uplink0")})})
    assert len(foreign.blocks(LAB, [LAB], firewall)) == 2
    drift = coexist.terms(ALL, (LAB,), firewall).drift
    (action,) = coexist.plan(drift)
    assert str(action) == "put bridge vblab into firewalld's zone libvirt"
    assert all(str(hook) in action.reason for hook in hooks)
