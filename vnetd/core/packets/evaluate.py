"""Walk a packet through a firewall. An accept ends one base chain only: the others of the same hook
still have their say, so each is judged by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from vnetd.core.packets.firewall import (
    MARK,
    UNTOLD,
    Chains,
    Field,
    FilterChain,
    Firewall,
    Hook,
    Jump,
    Layer,
    Match,
    Packet,
    Place,
    Rule,
    Span,
    Spans,
    Truth,
    Unknown,
    Verdict,
    Words,
)

# The kernel refuses loops and deeper nesting (NFT_JUMP_STACK_SIZE).
_DEEPEST = 16


@dataclass(frozen=True, slots=True)
class Decision:
    """What a base chain does with a packet. rule: None is the policy. place: where the rule is.

    certain: False if that depends on a match that cannot be judged.
    """

    hook: Hook
    base: Place
    place: Place
    verdict: Verdict
    rule: Rule | None
    certain: bool

    @property
    def blocks(self) -> bool:
        return self.verdict.blocks

    def __str__(self) -> str:
        if self.rule is None:
            return f"{self.place}: policy {self.verdict}"
        return f"{self.place}: {self.rule.text}"


def decide(firewall: Firewall, layer: Layer, hook: Hook, packet: Packet) -> Iterator[Decision]:
    """One decision of each base chain that the packet meets at a hook, in the kernel's order."""
    for chain in _base_chains(firewall.chains, layer, hook, packet):
        base = chain.base
        assert base is not None, "only base chains are chosen"
        ends, falls = _walk(firewall.chains, chain, packet, 0)
        if falls:
            ends.append((base.policy, chain.place, None))
        blocking = [end for end in ends if end[0].blocks]
        sure = len(blocking) in (0, len(ends)) and not _may_miss(base.devices, packet)
        # Of several ends that all block, the last is the one that needs no guess.
        verdict, place, rule = blocking[0] if blocking and not sure else ends[-1]
        yield Decision(hook, chain.place, place, verdict, rule, sure)


def _base_chains(chains: Chains, layer: Layer, hook: Hook, packet: Packet) -> list[FilterChain]:
    if layer is Layer.IP:
        families = {packet.family.value, "inet"}
    elif layer is Layer.DEVICE:
        families = {"netdev", "inet"}
    else:
        families = {layer.value}
    found = []
    for chain in chains.values():
        base = chain.base
        if base is None or base.hook is not hook or chain.place.family not in families:
            continue
        if base.kind == "nat" and packet.state != frozenset({"new"}):
            continue  # the kernel asks them about the first packet of a flow only
        named = base.devices - {UNTOLD}
        if named and packet.iif is not None and not named & packet.iif:
            continue
        found.append(chain)
    return sorted(found, key=lambda chain: chain.base.priority if chain.base else 0)


def _may_miss(devices: Words, packet: Packet) -> bool:
    return bool(devices) and (packet.iif is None or not packet.iif <= devices)


_End = tuple[Verdict, Place, Rule | None]


def _walk(
    chains: Chains, chain: FilterChain, packet: Packet, depth: int
) -> tuple[list[_End], bool]:
    """Where the packet may end, in order; and whether it may come out at the end of the chain."""
    ends: list[_End] = []
    falls = False
    for rule in chain.rules:
        truth = matches(rule, packet)
        match rule.verdict:
            case None:
                continue
            case _ if truth is Truth.NO:
                continue
            case Jump(target=name, goto=goto):
                target = chains.get(_beside(chain.place, name))
                if target is None or depth >= _DEEPEST:
                    continue
                inner, returns = _walk(chains, target, packet, depth + 1)
                ends += inner
                falls |= goto and returns
                if truth is Truth.YES and (goto or not returns):
                    return ends, falls
            case Verdict.RETURN:
                falls = True
                if truth is Truth.YES:
                    return ends, falls
            case verdict:
                ends.append((verdict, chain.place, rule))
                if truth is Truth.YES:
                    return ends, falls
    return ends, True


def _beside(place: Place, chain: str) -> Place:
    return Place(place.tool, place.family, place.table, chain)


def matches(rule: Rule, packet: Packet) -> Truth:
    truth = Truth.YES
    for item in rule.matches:
        truth = min(truth, _judge(item, packet))
        if truth is Truth.NO:
            break
    return truth


def _judge(item: Match | Unknown, packet: Packet) -> Truth:
    if isinstance(item, Unknown):
        return Truth.MAYBE
    have = packet.value(item.field)
    if have is None:
        return Truth.MAYBE
    if isinstance(have, frozenset):
        assert isinstance(item.values, frozenset), item
        truth = _words(have, item.values)
    else:
        assert isinstance(item.values, tuple), item
        truth = _spans(have, item.values)
    return Truth(Truth.YES - truth) if item.negated else truth


def _words(have: Words, wanted: Words) -> Truth:
    hits = sum(1 for word in have if any(_like(word, pattern) for pattern in wanted))
    return Truth.YES if hits == len(have) else Truth.MAYBE if hits else Truth.NO


def _like(word: str, pattern: str) -> bool:
    return word.startswith(pattern[:-1]) if pattern.endswith("*") else word == pattern


def _spans(have: Spans, wanted: Spans) -> Truth:
    inside = [_covered(span, wanted) for span in have]
    if all(truth is Truth.YES for truth in inside):
        return Truth.YES
    return Truth.NO if all(truth is Truth.NO for truth in inside) else Truth.MAYBE


def _covered(span: Span, wanted: Spans) -> Truth:
    at, touched = span.low, False
    for item in sorted(wanted, key=lambda one: one.low):
        if item.high < span.low or item.low > span.high:
            continue
        touched = True
        if item.low > at:
            return Truth.MAYBE
        at = max(at, item.high + 1)
    if at > span.high:
        return Truth.YES
    return Truth.MAYBE if touched else Truth.NO


class Index:
    """A firewall's rules by the interface that they are about: on a host with many networks each
    needs to be walked through its own rules and those of all, not through everybody's.
    """

    def __init__(self, firewall: Firewall) -> None:
        self._firewall = firewall
        self._of_all: dict[Place, list[int]] = {}
        self._by_name: dict[str, dict[Place, list[int]]] = {}
        for place, chain in firewall.chains.items():
            self._of_all[place] = []
            for at, rule in enumerate(chain.rules):
                names = _interfaces(rule) if place.family in _BY_INTERFACE else None
                if names is None:
                    self._of_all[place].append(at)
                for name in names or ():
                    self._by_name.setdefault(name, {}).setdefault(place, []).append(at)

    def about(self, names: Iterable[str]) -> Firewall:
        """What packets meet that come and go by these interfaces only."""
        chains = {}
        for place, chain in self._firewall.chains.items():
            places = set(self._of_all[place])
            for name in names:
                places.update(self._by_name.get(name, {}).get(place, ()))
            chains[place] = replace(chain, rules=tuple(chain.rules[at] for at in sorted(places)))
        return replace(self._firewall, chains=chains)


# Frames on a bridge come by ports whose names are not asked for.
_BY_INTERFACE = ("ip", "ip6", "inet")


def _interfaces(rule: Rule) -> frozenset[str] | None:
    """The only ones that the rule can hit; None: any."""
    for item in rule.matches:
        if isinstance(item, Match) and item.field in (Field.IIF, Field.OIF) and not item.negated:
            names = frozenset(str(value) for value in item.values)
            if not any(name.endswith("*") for name in names):
                return names
    return None


def only_blocking(chains: Chains) -> dict[Place, FilterChain]:
    """Without what can stop nothing and is not vnetd's: most rules of a host translate or count."""
    kept: dict[Place, FilterChain] = {}
    for chain in chains.values():
        if chain.base is None:
            continue
        reached = _reached(chains, chain)
        rules = [rule for place in reached for rule in chains[place].rules]
        if chain.base.policy.blocks or any(rule.blocks for rule in rules):
            kept.update({place: chains[place] for place in reached})
    marked = (c for c in chains.values() if any(r.comment.startswith(MARK) for r in c.rules))
    kept.update({chain.place: chain for chain in marked})
    return kept


def _reached(chains: Chains, chain: FilterChain) -> set[Place]:
    found, waiting = {chain.place}, [chain]
    while waiting:
        for rule in waiting.pop().rules:
            if isinstance(rule.verdict, Jump):
                place = _beside(chain.place, rule.verdict.target)
                if place in chains and place not in found:
                    found.add(place)
                    waiting.append(chains[place])
    return found
