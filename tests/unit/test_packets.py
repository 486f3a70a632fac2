"""What a whole firewall does with the flows of a network, judged without sending any."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from vnetd.backends.firewalls import iptables_rules, iptables_save, nft_json
from vnetd.core import foreign
from vnetd.core.model import Chain, Definition, DhcpRange, Family, IfName, Mode
from vnetd.core.packets import flows, iptables_text
from vnetd.core.packets.evaluate import decide, only_blocking
from vnetd.core.packets.firewall import (
    FilterChain,
    Firewall,
    Hook,
    Layer,
    Packet,
    Place,
    Span,
    Tool,
    Verdict,
    address_span,
    everything_but,
    network_span,
)
from vnetd.core.rules import iptables

FOREIGN = Path(__file__).parents[1] / "cases/foreign"
LAB = Definition(
    name="lab",
    mode=Mode.NAT,
    bridge=IfName("vblab"),
    addresses=(ip_interface("10.77.0.1/24"), ip_interface("fd77::1/64")),
    ranges=(DhcpRange(ip_address("10.77.0.10"), ip_address("10.77.0.99")),),
)
UPLINKS = {family: frozenset({IfName("uplink0")}) for family in Family}
PACKET = Packet(
    family=Family.IPV4,
    iif=frozenset({"vblab"}),
    oif=frozenset({"uplink0"}),
    source=(Span(*[address_span(ip_address("10.77.0.50")).low] * 2),),
    protocol=frozenset({"tcp"}),
    destination_port=(Span(80, 80),),
    state=frozenset({"new"}),
)


def saved(text: str, family: Family, tool: Tool) -> dict[Place, FilterChain]:
    tables = iptables_save.tables(text).items()
    parts = [iptables_rules.parse(name, table, family, tool) for name, table in tables]
    return {place: chain for part in parts for place, chain in part.items()}


def from_iptables(text: str, family: Family = Family.IPV4, tool: Tool = Tool.IPTABLES) -> Firewall:
    return Firewall(saved(text, family, tool), uplinks=UPLINKS)


def forward(rules: str, policy: str = "ACCEPT") -> str:
    """The verdict of a FORWARD chain on PACKET; with "may" if it is not certain."""
    text = f"*filter\n:FORWARD {policy}\n:OTHER -\n{rules}\nCOMMIT\n"
    (found,) = decide(from_iptables(text), Layer.IP, Hook.FORWARD, PACKET)
    return f"{'' if found.certain else 'may '}{found.verdict}"


@pytest.mark.parametrize(
    ("rules", "verdict"),
    [
        ("-A FORWARD -j DROP", "drop"),
        ("-A FORWARD -i vblab -j REJECT --reject-with icmp-port-unreachable", "reject"),
        ("-A FORWARD -i vb+ -o uplink0 -j DROP", "drop"),
        ("-A FORWARD ! -i vblab -j DROP", "accept"),
        ("-A FORWARD -s 10.77.0.0/24 -j DROP", "drop"),
        ("-A FORWARD -s 10.77.0.51/32 -j DROP", "accept"),
        ("-A FORWARD ! -s 10.77.0.0/24 -j DROP", "accept"),
        ("-A FORWARD -d 192.0.2.1/32 -j DROP", "may drop"),
        ("-A FORWARD -p udp -j DROP", "accept"),
        ("-A FORWARD -p tcp -m tcp --dport 79:81 -j DROP", "drop"),
        ("-A FORWARD -p tcp -m multiport --dports 22,80 -j DROP", "drop"),
        ("-A FORWARD -p tcp -m tcp --sport 25 -j DROP", "may drop"),
        ("-A FORWARD -m iprange --src-range 10.77.0.1-10.77.0.60 -j DROP", "drop"),
        ("-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j DROP", "accept"),
        ("-A FORWARD -m conntrack --ctstatus DNAT -j DROP", "accept"),
        ("-A FORWARD -m mark --mark 0x4000/0x4000 -j DROP", "may drop"),
        ("-A FORWARD -m limit --limit 3/min -j DROP", "may drop"),
        ("-A FORWARD -m set --match-set bad src -j DROP", "may drop"),
        ("-A FORWARD -m physdev --physdev-is-bridged -j DROP", "accept"),
        ('-A FORWARD -m comment --comment "-j ACCEPT" -j DROP', "drop"),
        ("-A FORWARD -j NFQUEUE --queue-num 1", "may drop"),
        ("-A FORWARD -j LOG\n-A FORWARD -j DROP", "drop"),
        ("-A FORWARD -j ACCEPT\n-A FORWARD -j DROP", "accept"),
        ("-A FORWARD -m mark --mark 0x1 -j ACCEPT\n-A FORWARD -j DROP", "may drop"),
        ("-A FORWARD -j OTHER\n-A FORWARD -j ACCEPT\n-A OTHER -j DROP", "drop"),
        ("-A FORWARD -j OTHER\n-A OTHER -j RETURN\n-A OTHER -j DROP", "accept"),
        ("-A FORWARD -g OTHER\n-A FORWARD -j DROP\n-A OTHER -i vblab", "accept"),
        ("-A FORWARD -j OTHER\n-A FORWARD -j DROP\n-A OTHER -i vblab -j ACCEPT", "accept"),
        ("-A FORWARD -m mark --mark 1 -g OTHER\n-A FORWARD -j DROP\n-A OTHER -i x", "may drop"),
    ],
)
def test_iptables_rules_are_judged_as_the_kernel_does(rules: str, verdict: str) -> None:
    assert forward(rules) == verdict


def test_a_policy_that_drops_is_certain_where_no_accept_is_possible() -> None:
    assert forward("-A FORWARD -m mark --mark 0x1 -j DROP", "DROP") == "drop"
    assert forward("-A FORWARD -m mark --mark 0x1 -j RETURN", "DROP") == "drop"
    assert forward("-A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT", "DROP") == "accept"


def nft(*rules: object, sets: tuple[object, ...] = ()) -> str:
    base = {"family": "inet", "table": "fw"}
    hook = {"type": "filter", "hook": "forward", "prio": 10, "policy": "accept"}
    items = [
        *sets,
        {"chain": {**base, "name": "f", **hook}},
        {"chain": {**base, "name": "c"}},
        {"rule": {**base, "chain": "c", "expr": [{"drop": None}]}},
        *({"rule": {**base, "chain": "f", "expr": rule}} for rule in rules),
    ]
    firewall = Firewall(nft_json.parse(json.dumps({"nftables": items})))
    (found,) = decide(firewall, Layer.IP, Hook.FORWARD, PACKET)
    return f"{'' if found.certain else 'may '}{found.verdict}"


def match(left: object, right: object, op: str = "==") -> dict[str, object]:
    return {"match": {"op": op, "left": left, "right": right}}


SOURCE = {"payload": {"protocol": "ip", "field": "saddr"}}
SOURCE6 = {"payload": {"protocol": "ip6", "field": "saddr"}}
PORT = {"payload": {"protocol": "tcp", "field": "dport"}}
IIF = {"meta": {"key": "iifname"}}
STATE = {"ct": {"key": "state"}}
DROP = {"drop": None}
ELEMENTS = [{"prefix": {"addr": "10.0.0.0", "len": 8}}, {"range": ["1.2.3.4", "1.2.3.9"]}]
SET = {"set": {"family": "inet", "table": "fw", "name": "s", "elem": ELEMENTS}}
FILLING = {"set": {**SET["set"], "flags": ["dynamic"]}}
MAP = {
    "map": {
        "family": "inet",
        "table": "fw",
        "name": "m",
        "elem": [["eth0", {"accept": None}], ["vblab", {"jump": {"target": "c"}}]],
    }
}


@pytest.mark.parametrize(
    ("rule", "sets", "verdict"),
    [
        ([DROP], (), "drop"),
        ([match(SOURCE, "@s"), DROP], (SET,), "drop"),
        ([match(SOURCE, "@s", "!="), DROP], (SET,), "accept"),
        ([match(SOURCE, "@s"), DROP], (FILLING,), "may drop"),
        ([match(SOURCE, {"set": ELEMENTS}), DROP], (), "drop"),
        (
            [match(SOURCE6, "fe80::1"), DROP],
            (),
            "accept",
        ),
        ([match(PORT, {"set": [22, {"range": [80, 90]}]}), DROP], (), "drop"),
        ([match({"payload": {"protocol": "udp", "field": "dport"}}, 80), DROP], (), "accept"),
        ([{"vmap": {"key": IIF, "data": "@m"}}], (MAP,), "drop"),
        ([{"vmap": {"key": STATE, "data": {"set": [["new", DROP]]}}}], (), "drop"),
        ([match(STATE, ["established", "related"], "in"), DROP], (), "accept"),
        ([match({"meta": {"key": "mark"}}, 1), DROP], (), "may drop"),
        ([match(IIF, {"set": [{"range": ["", ""]}]}), DROP], (), "may drop"),
        ([match({"meta": {"key": "iif"}}, "69"), DROP], (), "accept"),
        ([match(IIF, "vb*"), {"counter": {}}, {"reject": None}], (), "reject"),
        ([{"limit": {"rate": 3, "per": "second"}}, DROP], (), "may drop"),
        ([match({"ct": {"key": "status"}}, "dnat", "in"), DROP], (), "accept"),
        ([{"goto": {"target": "c"}}], (), "drop"),
        ([{"queue": None}], (), "may drop"),
        (
            [match({"concat": [IIF, PORT]}, {"set": [{"concat": ["vblab", 80]}]}), DROP],
            (),
            "drop",
        ),
    ],
)
def test_nft_rules_are_judged_as_the_kernel_does(
    rule: list[object], sets: tuple[object, ...], verdict: str
) -> None:
    assert nft(rule, sets=sets) == verdict


def test_an_accept_does_not_override_a_drop_in_another_table() -> None:
    text = "*filter\n:INPUT DROP\n:FORWARD ACCEPT\n-A FORWARD -j ACCEPT\nCOMMIT\n"
    accepting = from_iptables(text).chains
    dropping = saved("*filter\n:FORWARD DROP\nCOMMIT\n", Family.IPV4, Tool.LEGACY)
    found = list(decide(Firewall({**accepting, **dropping}), Layer.IP, Hook.FORWARD, PACKET))
    assert [str(decision.verdict) for decision in found] == ["accept", "drop"]


def test_what_cannot_block_is_left_out() -> None:
    text = "*nat\n:POSTROUTING ACCEPT\n-A POSTROUTING -j MASQUERADE\nCOMMIT\n"
    text += "*filter\n:FORWARD ACCEPT\n:A -\n:B -\n-A FORWARD -j A\n-A A -j DROP\nCOMMIT\n"
    assert {p.chain for p in only_blocking(from_iptables(text).chains)} == {"FORWARD", "A"}


def test_everything_but_leaves_only_what_is_outside() -> None:
    hole = network_span(LAB.addresses[0].network)
    low, high = everything_but(Family.IPV4, [hole])
    assert low.high == hole.low - 1
    assert high.low == hole.high + 1
    (all_of_it,) = everything_but(Family.IPV6, [hole])
    assert all_of_it.low >> 128 == 6
    last = network_span(ip_network("ff00::/8"))
    (all_before,) = everything_but(Family.IPV6, [last])
    assert all_before.high == last.low - 1


@pytest.mark.parametrize(
    ("rule", "is_stopped"),
    [
        ("-d 10.77.0.0/24 -j ACCEPT", True),
        ("! -d 10.77.0.0/24 -j ACCEPT", False),
        ("-d 224.0.0.0/4 -j ACCEPT", True),
        ("-d 192.0.2.0/24 -j ACCEPT", False),
    ],
)
def test_what_is_accepted_inside_gets_nobody_out(rule: str, is_stopped: bool) -> None:
    """A policy drops for certain what no rule may accept."""
    text = f"*filter\n:FORWARD DROP\n-A FORWARD -i vblab -o uplink0 {rule}\nCOMMIT\n"
    stopped = {kind for kinds in told(from_iptables(text)).values() for kind in kinds}
    assert (str(flows.Kind.OUT) in stopped) is is_stopped


def test_frames_between_ports_meet_both_hooks_of_each_stage_in_turn() -> None:
    firewall = Firewall(bridged=frozenset({Family.IPV4}))
    peers = [x for x in flows.of_network(LAB, firewall) if x.kind is flows.Kind.PEERS]
    assert [(str(x.family), [(s.layer.value, s.hook.value) for s in x.steps]) for x in peers] == [
        (
            "ip",
            [
                ("bridge", "prerouting"),
                ("inet", "prerouting"),
                ("bridge", "forward"),
                ("inet", "forward"),
                ("bridge", "postrouting"),
                ("inet", "postrouting"),
            ],
        ),
        ("ip6", [("bridge", "prerouting"), ("bridge", "forward"), ("bridge", "postrouting")]),
    ]


def libvirts() -> dict[Chain, tuple[str, ...]]:
    return {c: r for c, r in iptables.compose([LAB]).items() if c.table == "filter"}


def recorded(name: str, tool: Tool, *, with_libvirt: bool = True) -> Firewall:
    """A recorded ruleset, of one tool, beside libvirt's own in iptables-nft."""
    chains: dict[Place, FilterChain] = {}
    for family, suffix in ((Family.IPV4, "v4"), (Family.IPV6, "v6")):
        text = (FOREIGN / f"{name}.{suffix}").read_text()
        chains |= saved(text, family, tool)
    firewall = Firewall(chains, uplinks=UPLINKS, bridged=frozenset(Family))
    return foreign.with_libvirts(firewall, libvirts()) if with_libvirt else firewall


def told(firewall: Firewall, network: Definition = LAB) -> dict[str, set[str]]:
    found = foreign.blocks(network, [network], firewall)
    return {
        f"{block.owner}: {block.decision}": {foreign._named(flow) for flow in block.stopped}
        for block in found
    }


@pytest.mark.parametrize("name", ["docker-20.10.24", "ufw-0.36.2"])
def test_libvirts_rules_in_front_of_the_tools_own_open_everything(name: str) -> None:
    assert told(recorded(name, Tool.IPTABLES)) == {}


def test_docker_beside_libvirt_drops_what_is_forwarded() -> None:
    place = "filter FORWARD (iptables-legacy)"
    assert told(recorded("docker-20.10.24", Tool.LEGACY)) == {
        f"docker: {place}: policy drop": {
            str(flows.Kind.OUT),
            str(flows.Kind.ANSWERS),
            str(flows.Kind.PEERS),
        }
    }


def test_ufw_beside_libvirt_drops_dns_and_what_is_forwarded() -> None:
    found = told(recorded("ufw-0.36.2", Tool.LEGACY))
    assert found["ufw: filter INPUT (iptables-legacy): policy drop"] == {"DNS"}
    out = found["ufw: filter FORWARD (iptables-legacy): policy drop"]
    assert str(flows.Kind.OUT) in out
    assert str(flows.Kind.ANSWERS) not in out
    assert (
        f"{flows.Kind.OUT} (IPv6)"
        in found["ufw: IPv6 filter FORWARD (iptables-legacy): policy drop"]
    )


def test_rules_of_libvirt_that_are_missing_accuse_nobody() -> None:
    only_docker = recorded("docker-20.10.24", Tool.IPTABLES, with_libvirt=False)
    assert told(only_docker)
    assert told(foreign.with_libvirts(only_docker, libvirts())) == {}


def test_an_open_network_is_the_admins_own_to_open() -> None:
    assert told(recorded("docker-20.10.24", Tool.LEGACY), replace(LAB, mode=Mode.OPEN)) == {}


def test_devices_of_ingress_chains_are_read() -> None:
    text = """table inet a {
\tchain f {
\t\ttype filter hook ingress devices = { lo, vblab } priority filter; policy accept;
\t}
}
table netdev b {
\tchain g {
\t\ttype filter hook ingress device "vblab" priority filter; policy accept;
\t}
}
"""
    assert nft_json.devices(text) == {
        Place(Tool.NFT, "inet", "a", "f"): frozenset({"lo", "vblab"}),
        Place(Tool.NFT, "netdev", "b", "g"): frozenset({"vblab"}),
    }


@pytest.mark.parametrize(
    "text", ['--string "-j" --algo bm', '--string "! -j" --algo bm', '--comment "-j DROP"']
)
def test_words_in_somebodys_text_are_no_options(text: str) -> None:
    (rule,) = iptables_text.rules(f"-i vblab -m string {text} -j ACCEPT")
    assert rule.verdict is Verdict.ACCEPT
