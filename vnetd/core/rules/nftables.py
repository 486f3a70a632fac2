"""The rules that libvirt's nftables backend installs (src/network/network_nftables.c, since 10.4),
as "nft -s list table" prints them, and what to make of those that are there.

libvirt deletes its rules by their handles. So what vnetd puts in the place of a lost rule only
stands in for it, under a mark, until libvirt has installed its own again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vnetd.core.model import Address, Chain, Definition, Family, Mode, Ruleset
from vnetd.core.rules import repair
from vnetd.core.rules.iptables import families

TABLE = "libvirt_network"
MARK = ' comment "vnetd"'
JUMPS = tuple(f"counter jump guest_{name}" for name in ("cross", "input", "output"))

_BASE = {
    "forward": "{ type filter hook forward priority 0; policy accept; }",
    "guest_nat": "{ type nat hook postrouting priority 100; policy accept; }",
}
_NAMES = ("forward", "guest_output", "guest_input", "guest_cross", "guest_nat")
CHAINS = tuple(Chain(fam, TABLE, name) for fam in Family for name in _NAMES)

_SUBNET = r"ip6? (?:saddr|daddr) (?P<subnet>[0-9a-f.:/]+)"
# Every form that network_rules can give, with an interface that has gone or with none.
_DEAD = re.compile(r"(?:iif|oif) \d+\b.* counter (?:accept|reject)")
_NAT = re.compile(
    rf'(?:oifname "[^"]+" )?(?:meta l4proto (?:tcp|udp) )?{_SUBNET} ip6? daddr .*'
    r"counter (?:return|masquerade|snat to)\b.*"
)


# vnetd's own, and only while libvirt installs its rules again.
SCAFFOLD = "vnetd"


@dataclass(frozen=True, slots=True)
class Surplus:
    """handle: 0 for a chain; whatever leads to it goes before."""

    chain: Chain
    handle: int
    rule: str


@dataclass(frozen=True, slots=True)
class Findings:
    """lacking: network → what its guests lack, by chain. lost: rules that libvirt must install
    again, copies that stand in for them or not. surplus: rules to delete.
    """

    lacking: Mapping[str, Mapping[Chain, repair.Flaws]] = field(default_factory=dict)
    lost: tuple[tuple[Chain, str], ...] = ()
    surplus: tuple[Surplus, ...] = ()


def network_rules(network: Definition) -> dict[Chain, tuple[str, ...]]:
    """One active network's rules, in reading order."""
    if not network.mode.has_rules or network.bridge is None:
        return {}
    bridge = network.bridge
    rules: dict[Chain, list[str]] = {}
    for fam in families(network):
        for address in reversed(network.addresses):
            if Family.of(address) is fam and network.mode is not Mode.ISOLATED:
                for name, lines in _address_rules(network, address).items():
                    rules.setdefault(Chain(fam, TABLE, name), []).extend(lines)
        for name, line in (
            ("guest_output", f'iif "{bridge}" counter reject'),
            ("guest_input", f'oif "{bridge}" counter reject'),
            ("guest_cross", f'iif "{bridge}" oif "{bridge}" counter accept'),
        ):
            rules.setdefault(Chain(fam, TABLE, name), []).append(line)
    return {chain: tuple(lines) for chain, lines in rules.items()}


def examine(networks: Sequence[Definition], ruleset: Ruleset) -> Findings:
    """networks: all that are active, kept or not; no rule of theirs is too many."""
    surplus: list[Surplus] = []
    lost: list[tuple[Chain, str]] = []
    rules = {network.name: own for network in networks if (own := network_rules(network))}
    skeleton = {chain: flaws for chain in CHAINS if (flaws := _skeleton(chain, ruleset))}
    lacking = {name: dict(skeleton) for name in rules} if skeleton else {}
    subnets = _subnets(networks)
    for chain in CHAINS:
        if chain.name == "forward":
            continue
        expected: set[str] = set()
        listed = _listed(chain, ruleset)
        places: dict[str, list[int]] = {}
        for place, (_, rule) in enumerate(listed):
            places.setdefault(_bare(rule), []).append(place)
        for name, own in rules.items():
            wanted = own.get(chain, ())
            expected.update(wanted)
            found = sorted(
                place for rule in dict.fromkeys(wanted) for place in places.get(rule, ())
            )
            of_network = [listed[place] for place in found]
            state = _state(wanted, of_network, ruleset.remembered, chain)
            if state.lacking:
                lacking.setdefault(name, {})[chain] = state.lacking
            lost += [(chain, rule) for rule in state.lost]
            surplus += [Surplus(chain, h, rule) for h, rule in of_network if h in state.surplus]
        surplus += [
            Surplus(chain, handle, rule)
            for handle, rule in listed
            if _bare(rule) not in expected and _is_left_over(rule, subnets)
        ]
    if not lost:
        surplus += [
            Surplus(chain, handle, rule)
            for chain in CHAINS
            if chain.name == "forward"
            for handle, rule in _listed(chain, ruleset)
            if rule.endswith(MARK)
        ]
        surplus += _scaffolds(ruleset)
    # While libvirt writes nothing is too many: it installs the rules of a network before it calls
    # it active, deletes them before it says so, and writes down last which of them it will delete.
    return Findings(lacking, tuple(lost), tuple(surplus) if ruleset.settled else ())


def left_behind(
    kept: Sequence[Definition], active: Sequence[Definition], ruleset: Ruleset
) -> tuple[Surplus, ...]:
    """Where libvirt writes to iptables now: its rules of the networks that are kept, those of what
    is gone, and copies. What libvirt remembers it will delete by itself, when it comes to that.
    """
    own = {
        (chain, rule)
        for network in kept
        for chain, rules in network_rules(network).items()
        for rule in rules
    }
    subnets = _subnets(active)
    rules = (
        Surplus(chain, handle, rule)
        for chain in CHAINS
        for handle, rule in _listed(chain, ruleset)
        if (chain, handle) not in ruleset.remembered
        and ((chain, rule) in own or _is_left_over(rule, subnets))
    )
    return (*rules, *_scaffolds(ruleset))


def scaffold(networks: Sequence[Definition], ruleset: Ruleset) -> tuple[str, ...]:
    """For nft -f, one transaction: all of libvirt's verdicts once more, in a chain in front of its
    own. libvirt puts its rejects in before its accepts; no packet comes that far.
    """
    lines: list[str] = []
    rules = [network_rules(network) for network in networks]
    for fam in Family:
        chain = Chain(fam, TABLE, SCAFFOLD)
        lines += [f"add chain {_path(chain)}", f"flush chain {_path(chain)}"]
        for name in ("guest_cross", "guest_input", "guest_output"):
            for own in rules:
                found = own.get(Chain(fam, TABLE, name), ())
                lines += [f"add rule {_path(chain)} {rule}{MARK}" for rule in found]
        forward = Chain(fam, TABLE, "forward")
        if not any(rule.endswith(MARK) for rule in ruleset.chains.get(forward, ())):
            lines.append(f"insert rule {_path(forward)} counter jump {SCAFFOLD}{MARK}")
    return tuple(lines)


def script(
    networks: Sequence[Definition],
    ruleset: Ruleset,
    *,
    delete: Sequence[Surplus],
    lacking: Mapping[str, Mapping[Chain, repair.Flaws]],
) -> tuple[str, ...]:
    """For nft -f, one transaction: deletes, and puts in what guests lack."""
    lines: list[str] = []
    for fam in Family:
        if not any(chain.family is fam for chain in ruleset.chains):
            lines.append(f"add table {fam} {TABLE}")
    for chain in CHAINS:
        if chain not in ruleset.chains:
            lines.append(f"add chain {_path(chain)} {_BASE.get(chain.name, '')}".rstrip())
    lines += deletions(delete)
    for chain in CHAINS:
        if chain.name == "forward" and _skeleton(chain, ruleset):
            # libvirt looks for its jumps by their text, so these carry no mark; it never
            # deletes them.
            for handle, rule in _listed(chain, ruleset):
                if rule in JUMPS:
                    lines.append(f"delete rule {_path(chain)} handle {handle}")
            lines += [f"insert rule {_path(chain)} {jump}" for jump in reversed(JUMPS)]
    for network in networks:
        for chain, rules in network_rules(network).items():
            if chain in lacking.get(network.name, {}):
                lines += [f"insert rule {_path(chain)} {r}{MARK}" for r in reversed(rules)]
    return tuple(lines)


def deletions(rules: Iterable[Surplus]) -> tuple[str, ...]:
    """For nft -f, one transaction."""
    lines: list[str] = []
    for item in rules:
        if item.handle:
            lines.append(f"delete rule {_path(item.chain)} handle {item.handle}")
        else:
            lines += [f"{verb} chain {_path(item.chain)}" for verb in ("flush", "delete")]
    return tuple(lines)


def _address_rules(network: Definition, address: Address) -> dict[str, tuple[str, ...]]:
    fam, bridge = Family.of(address), network.bridge
    subnet = _printed(address)
    nat = network.translates(fam)
    came = f'iifname "{network.forward_dev}" ' if network.forward_dev else ""
    goes = f'oifname "{network.forward_dev}" ' if network.forward_dev else ""
    state = "ct state established,related"
    rules: dict[str, tuple[str, ...]] = {
        "guest_output": (f'{fam} saddr {subnet} iif "{bridge}" {goes}counter accept',),
        "guest_input": (
            f'{came}oif "{bridge}" {fam} daddr {subnet} {state} counter accept'
            if nat
            else f'{fam} daddr {subnet} {came}oif "{bridge}" counter accept',
        ),
    }
    if nat:
        local = ("224.0.0.0/24", "255.255.255.255") if fam is Family.IPV4 else ("ff02::/16",)
        outside = f"{fam} saddr {subnet} {fam} daddr != {subnet} {goes}counter"
        ports = _translation(network, fam, ports=True)
        rules["guest_nat"] = (
            *(f"{goes}{fam} saddr {subnet} {fam} daddr {group} counter return" for group in local),
            f"meta l4proto tcp {outside} {ports}",
            f"meta l4proto udp {outside} {ports}",
            f"{outside} {_translation(network, fam, ports=False)}",
        )
    return rules


def _translation(network: Definition, fam: Family, *, ports: bool) -> str:
    low, high = network.nat_ports or (1024, 65535)
    to = f":{low}-{high}" if ports else ""
    if network.nat_source and fam is Family.IPV4:
        start, end = network.nat_source
        return f"snat to {start if start == end else f'{start}-{end}'}{to}"
    return f"masquerade to {to}" if to else "masquerade"


def _printed(address: Address) -> str:
    subnet = address.network
    return str(subnet.network_address) if subnet.prefixlen == subnet.max_prefixlen else str(subnet)


@dataclass(frozen=True, slots=True)
class _State:
    lacking: repair.Flaws
    lost: frozenset[str]
    surplus: tuple[int, ...]


def _state(
    wanted: Sequence[str],
    listed: Sequence[tuple[int, str]],
    remembered: frozenset[tuple[Chain, int]],
    chain: Chain,
) -> _State:
    """Of one network in one chain. listed: what there is of wanted, copies among it."""
    own: dict[str, int] = {}
    for handle, rule in listed:
        # Of several, that which libvirt will delete; else the newest, as after its reloads.
        if not rule.endswith(MARK):
            best = own.get(rule)
            rank = ((chain, handle) in remembered, handle)
            if best is None or rank > ((chain, best) in remembered, best):
                own[rule] = handle
    copies = [handle for handle, rule in listed if rule.endswith(MARK)]
    too_many = [h for h, rule in listed if not rule.endswith(MARK) and own[rule] != h]
    in_force = [_bare(rule) for handle, rule in listed if handle not in too_many]
    lacking = repair.flaws(list(dict.fromkeys(in_force)), wanted)
    lost = repair.flaws([rule for handle, rule in listed if own.get(rule) == handle], wanted)
    return _State(
        lacking=lacking,
        lost=lost.rules,
        surplus=tuple(too_many if lost else [*too_many, *copies]),
    )


def _skeleton(chain: Chain, ruleset: Ruleset) -> repair.Flaws:
    if chain not in ruleset.chains:
        return repair.Flaws(missing=("the chain itself",))
    if chain.name == "forward":
        return repair.flaws(ruleset.chains[chain], JUMPS)
    return repair.Flaws()


def _subnets(networks: Iterable[Definition]) -> frozenset[str]:
    return frozenset(_printed(address) for network in networks for address in network.addresses)


def _is_left_over(rule: str, subnets: Collection[str]) -> bool:
    if rule.endswith(MARK):
        return True
    if (match := _NAT.fullmatch(rule)) is not None:
        return match["subnet"] not in subnets
    return _DEAD.search(rule) is not None


def _scaffolds(ruleset: Ruleset) -> Iterator[Surplus]:
    for fam in Family:
        if (chain := Chain(fam, TABLE, SCAFFOLD)) in ruleset.chains:
            yield Surplus(chain, 0, "the whole chain")


def _listed(chain: Chain, ruleset: Ruleset) -> list[tuple[int, str]]:
    rules = ruleset.chains.get(chain, ())
    return list(zip(ruleset.handles.get(chain, ()), rules, strict=True))


def _bare(rule: str) -> str:
    return rule.removesuffix(MARK)


def _path(chain: Chain) -> str:
    return f"{chain.family} {chain.table} {chain.name}"
