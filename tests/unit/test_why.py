"""A guest's way as it is told: all of it where it is right, and what is wrong where it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest

from tests.unit.test_packets import LAB, UPLINKS
from vnetd.core import foreign, why
from vnetd.core.diff import diff
from vnetd.core.model import (
    DhcpHost,
    Family,
    IfName,
    Libvirt,
    Link,
    Mode,
    Network,
    Observed,
    Ruleset,
    Tap,
    World,
)
from vnetd.core.model.link import Bridge, Port
from vnetd.core.packets.firewall import Base, FilterChain, Firewall, Hook, Place, Tool, Verdict
from vnetd.core.policy import Policy
from vnetd.core.rules import iptables
from vnetd.core.why import Scene, Word
from vnetd.errors import VnetdError

NET = replace(LAB, addresses=LAB.addresses[:1])
BRIDGE, TAP, UPLINK = IfName("vblab"), IfName("vnet0"), IfName("uplink0")
RULES = iptables.compose([NET])
LINKS = {
    BRIDGE: Link(
        2, BRIDGE, "bridge", "", 1500, up=True, bridge=Bridge(), addresses=frozenset(NET.addresses)
    ),
    TAP: Link(3, TAP, "tun", "", 1500, up=True, master=BRIDGE, port=Port()),
    UPLINK: Link(4, UPLINK, "veth", "", 1500, up=True),
}
RIGHT = Observed(
    libvirt=Libvirt(
        "9.0.0", 1, {"lab": Network("lab", NET, NET, autostart=True)}, (Tap("web", TAP, "lab"),)
    ),
    links=LINKS,
    firewall=Ruleset(World.IPTABLES_NFT, RULES),
    filters=foreign.with_libvirts(Firewall(uplinks=UPLINKS), RULES),
)
SCENE = Scene(
    out=UPLINK,
    gateway="198.51.100.2",
    sysctls={"net/ipv4/ip_forward": "1", "net/ipv4/conf/vblab/forwarding": "1"},
    carriers={UPLINK: True},
    dnsmasq=4711,
    listening=frozenset({53, 67}),
)


def told(observed: Observed, scene: Scene, to: str = "", subject: str = "lab") -> list[str]:
    asked = why.question(observed, subject, to)
    policy = Policy(present=False)
    answer = why.answer(asked, policy, observed, diff(policy, observed), scene)
    return [f"{step.word} {step.at}: {step.text}" for step in answer.steps]


def test_a_way_that_is_right() -> None:
    assert told(RIGHT, SCENE) == [
        "ok network: lab is active, mode nat",
        "ok bridge: vblab is up",
        "ok tap: tap vnet0 of guest web is on bridge vblab",
        "ok address: 10.77.0.1/24 is on vblab",
        "ok dnsmasq: dnsmasq[4711] listens",
        "ok forwarding: the host forwards",
        "ok route: the outside is reached by uplink0 via 198.51.100.2",
        "ok uplink: uplink0 is up",
        "ok way back: guests are reached by vblab",
        "ok libvirt's rules: all are there, in order",
        "ok firewall: traffic between guests (IPv4): nothing stops it",
        "ok firewall: DHCP (IPv4): nothing stops it",
        "ok firewall: DNS (IPv4): nothing stops it",
        "ok firewall: new connections to outside (IPv4): nothing stops it",
        "ok firewall: answers from outside (IPv4): nothing stops it",
    ]


def with_link(name: IfName, **changes: object) -> Observed:
    changed = replace(LINKS[name], **changes)  # type: ignore[arg-type]
    return replace(RIGHT, links={**LINKS, name: changed})


def without_rules(table: str) -> Observed:
    gone = {chain for chain in RULES if (chain.family, chain.table) == (Family.IPV4, table)}
    chains = {chain: () if chain in gone else rules for chain, rules in RULES.items()}
    return replace(RIGHT, firewall=Ruleset(World.IPTABLES_NFT, chains))


def dropping(hook: Hook) -> Observed:
    place = Place(Tool.NFT, "inet", "admins", f"my_{hook}")
    chain = FilterChain(place, (), Base(hook, 5, Verdict.DROP))
    assert RIGHT.filters is not None
    firewall = replace(RIGHT.filters, chains={**RIGHT.filters.chains, place: chain})
    return replace(RIGHT, filters=firewall)


ELSEWHERE = replace(SCENE, elsewhere={"10.77.0.128/25": IfName("wg0")})


@pytest.mark.parametrize(
    ("observed", "scene", "wrong"),
    [
        (
            replace(RIGHT, links={TAP: LINKS[TAP], UPLINK: LINKS[UPLINK]}),
            SCENE,
            "bridge: vblab does not exist",
        ),
        (with_link(BRIDGE, up=False), SCENE, "bridge: vblab is down"),
        (
            with_link(TAP, master=None),
            SCENE,
            "tap: tap vnet0 of guest web is not on bridge vblab",
        ),
        (with_link(TAP, up=False), SCENE, "tap: tap vnet0 of guest web is down"),
        (
            with_link(BRIDGE, addresses=frozenset()),
            SCENE,
            "address: 10.77.0.1/24 is missing on vblab",
        ),
        (
            RIGHT,
            replace(SCENE, dnsmasq=None),
            "dnsmasq: dnsmasq of lab is dead: no DHCP, no DNS",
        ),
        (
            RIGHT,
            replace(SCENE, listening=frozenset({53})),
            "dnsmasq: dnsmasq[4711] does not listen on UDP 67",
        ),
        (
            RIGHT,
            replace(SCENE, sysctls={"net/ipv4/ip_forward": "0"}),
            "forwarding: net/ipv4/ip_forward is 0: the host forwards nothing there",
        ),
        (
            with_link(UPLINK, up=False),
            replace(SCENE, out=None, no_route="unreachable"),
            "route: the host has no route to the outside: unreachable (down: uplink0)",
        ),
        (RIGHT, replace(SCENE, carriers={UPLINK: False}), "uplink: uplink0 has no carrier"),
        (RIGHT, ELSEWHERE, "way back: answers to 10.77.0.128/25 leave by wg0"),
        (
            RIGHT,
            replace(ELSEWHERE, sysctls={"net/ipv4/conf/all/rp_filter": "1"}),
            "way back: rp_filter of vblab is strict, and the way back to 10.77.0.128/25 is wg0",
        ),
        (
            without_rules("nat"),
            SCENE,
            """\
libvirt's rules: nat LIBVIRT_PRT: 5 rules missing: guests' packets leave untranslated
libvirt's rules: nat POSTROUTING: missing -j LIBVIRT_PRT: guests' packets leave untranslated""",
        ),
        (
            dropping(Hook.INPUT),
            SCENE,
            """\
firewall: DHCP (IPv4): dropped by inet admins my_input: policy drop (hand-written)
firewall: DNS (IPv4): dropped by inet admins my_input: policy drop (hand-written)""",
        ),
    ],
)
def test_what_is_wrong_is_told_and_nothing_else(
    observed: Observed, scene: Scene, wrong: str
) -> None:
    lines = [line for line in told(observed, scene) if not line.startswith("ok ")]
    assert "\n".join(line.removeprefix("blocked ") for line in lines) == wrong
    assert all(line.startswith("blocked ") for line in lines)


def test_a_rule_of_libvirts_that_lacks_stops_nobody_where_nothing_drops() -> None:
    lines = [line for line in told(without_rules("filter"), SCENE) if "libvirt's rules" in line]
    assert lines
    assert all(line.startswith("maybe ") for line in lines)


def test_a_step_says_where_it_is_and_what_cures_it() -> None:
    asked = why.question(RIGHT, "web", "192.0.2.9")
    assert (asked.network, asked.guest) == ("lab", "web")
    broken = dropping(Hook.FORWARD)
    answer = why.answer(asked, Policy(present=False), broken, diff(Policy(), broken), SCENE)
    assert answer.word is Word.BLOCKED
    step = next(step for step in answer.steps if step.word is Word.BLOCKED)
    assert (step.hook, step.table, step.chain, step.rule) == (
        "forward",
        "inet admins",
        "my_forward",
        "policy drop",
    )
    assert step.cure == "change the policy, or accept the network's traffic before it"


def test_an_isolated_network_has_no_way_out() -> None:
    quiet = replace(NET, mode=Mode.ISOLATED)
    libvirt = Libvirt("9.0.0", 1, {"lab": Network("lab", quiet, quiet, autostart=True)})
    lines = told(replace(RIGHT, libvirt=libvirt, firewall=None), SCENE, "192.0.2.9")
    wrong = "the network is isolated: guests reach the host and each other only"
    assert f"blocked route: {wrong}" in lines


def test_of_a_network_that_is_not_active_nothing_else_is_told() -> None:
    libvirt = Libvirt("9.0.0", 1, {"lab": Network("lab", NET, None, autostart=True)})
    assert told(replace(RIGHT, libvirt=libvirt), SCENE) == ["blocked network: lab is not active"]


@pytest.mark.parametrize(
    ("ask", "wrong"),
    [
        (lambda: why.question(Observed(), "lab", ""), "libvirt has not answered yet"),
        (lambda: why.question(RIGHT, "lab", "example.org"), "example.org is not an IP address"),
        (lambda: why.question(RIGHT, "nobody", ""), "neither a network nor a running guest"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(ask: Callable[[], object], wrong: str) -> None:
    with pytest.raises(VnetdError, match=wrong):
        ask()


def test_an_address_for_a_try_is_nobodys() -> None:
    assert why.free_address(LAB, Family.IPV4) == "10.77.0.254/24"
    taken = replace(LAB, hosts=(DhcpHost(ip_address("10.77.0.254")),))
    assert why.free_address(taken, Family.IPV4) == "10.77.0.253/24"
    assert why.free_address(NET, Family.IPV6) == ""
    full = replace(NET, addresses=(ip_interface("10.77.0.1/30"),), ranges=())
    assert why.free_address(full, Family.IPV4) == "10.77.0.2/30"
