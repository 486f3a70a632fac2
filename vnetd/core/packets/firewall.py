"""The firewall of a whole host as one model: every chain of every table, whoever made it, and
packets as far as they are known. Matches that the model has no word for are Unknown, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from vnetd.core.basics import Cause, Family, IfName


class Hook(StrEnum):
    INGRESS = "ingress"
    PREROUTING = "prerouting"
    INPUT = "input"
    FORWARD = "forward"
    OUTPUT = "output"
    POSTROUTING = "postrouting"


class Layer(StrEnum):
    """Where a hook sits: each has families of tables of its own."""

    DEVICE = "netdev"
    BRIDGE = "bridge"
    ARP = "arp"
    IP = "inet"


class Tool(StrEnum):
    """What shows a table as it is, and changes it."""

    NFT = "nft"
    IPTABLES = "iptables"
    LEGACY = "iptables-legacy"


MARK = "vnetd:"
"""Begins the comment of every rule that vnetd puts into another tool's chain."""

UNTOLD = "?"
"""A device of an ingress hook whose name nft does not show."""


class Verdict(StrEnum):
    ACCEPT = "accept"
    DROP = "drop"
    REJECT = "reject"
    RETURN = "return"

    @property
    def blocks(self) -> bool:
        return self in (Verdict.DROP, Verdict.REJECT)


@dataclass(frozen=True, slots=True)
class Jump:
    target: str
    goto: bool = False


class Field(StrEnum):
    IIF = "iif"
    OIF = "oif"
    FAMILY = "family"
    SOURCE = "source"
    DESTINATION = "destination"
    DESTINATION_TYPE = "destination type"
    PROTOCOL = "protocol"
    SOURCE_PORT = "source port"
    DESTINATION_PORT = "destination port"
    STATE = "state"
    STATUS = "status"
    BRIDGED = "bridged"


@dataclass(frozen=True, slots=True)
class Span:
    """Ports or addresses; both families in one number space, see address_span."""

    low: int
    high: int


Words = frozenset[str]
Spans = tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """One of the values; a word that ends in * matches all that begin so."""

    field: Field
    values: Words | Spans
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Unknown:
    """A match that only the kernel can judge: a mark, a limit, a set that fills itself."""

    text: str


@dataclass(frozen=True, slots=True)
class Rule:
    """text: as its tool shows it. verdict: None leads to the next rule."""

    text: str
    verdict: Verdict | Jump | None
    matches: tuple[Match | Unknown, ...] = ()
    comment: str = ""

    @property
    def blocks(self) -> bool:
        return isinstance(self.verdict, Verdict) and self.verdict.blocks


@dataclass(frozen=True, slots=True, order=True)
class Place:
    tool: Tool
    family: str
    table: str
    chain: str

    def __str__(self) -> str:
        if self.tool is Tool.NFT:
            return f"{self.family} {self.table} {self.chain}"
        version = "IPv6 " if self.family == Family.IPV6 else ""
        legacy = " (iptables-legacy)" if self.tool is Tool.LEGACY else ""
        return f"{version}{self.table} {self.chain}{legacy}"


@dataclass(frozen=True, slots=True)
class Base:
    """Where the kernel calls a chain. devices: of an ingress hook."""

    hook: Hook
    priority: int
    policy: Verdict = Verdict.ACCEPT
    kind: str = "filter"
    devices: Words = frozenset()


@dataclass(frozen=True, slots=True)
class FilterChain:
    place: Place
    rules: tuple[Rule, ...] = ()
    base: Base | None = None


Chains = Mapping[Place, FilterChain]


@dataclass(frozen=True, slots=True, eq=False)
class Firewall:
    """All that can stop a packet; two looks are never the same.

    uplinks: where default routes lead, by family.
    bridged: families whose bridged frames br_netfilter takes through the hooks of IP as well.
    origins: who made a rule ("" is the policy), where the kernel named the process meanwhile.
    zones: of firewalld, interface → zone. zoned: bridges that vnetd itself has put into one, each
    with its network and the zone before.
    """

    chains: Chains = field(default_factory=dict)
    uplinks: Mapping[Family, frozenset[IfName]] = field(default_factory=dict)
    bridged: frozenset[Family] = frozenset()
    origins: Mapping[tuple[Place, str], Cause] = field(default_factory=dict)
    zones: Mapping[str, str] = field(default_factory=dict)
    zoned: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def without(self, comment: str) -> Firewall:
        """As it would be without the rules whose comment begins so."""
        chains = {
            place: replace(chain, rules=tuple(r for r in chain.rules if not _has(r, comment)))
            for place, chain in self.chains.items()
        }
        return replace(self, chains=chains)

    def with_rules(self, place: Place, position: int, rules: Iterable[Rule]) -> Firewall:
        """As it would be with these in a chain, before the rule of that number from 0."""
        chain = self.chains[place]
        before, after = chain.rules[:position], chain.rules[position:]
        chain = replace(chain, rules=(*before, *rules, *after))
        return replace(self, chains={**self.chains, place: chain})


def _has(rule: Rule, comment: str) -> bool:
    return rule.comment.startswith(comment)


class Truth(IntEnum):
    """Three-valued: what cannot be judged makes neither a drop nor an accept certain."""

    NO = 0
    MAYBE = 1
    YES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """What is known of a packet at one hook. None: anything. Several values: any of them."""

    family: Family
    iif: Words | None = None
    oif: Words | None = None
    source: Spans | None = None
    destination: Spans | None = None
    destination_type: Words | None = None
    protocol: Words | None = None
    source_port: Spans | None = None
    destination_port: Spans | None = None
    state: Words | None = None
    status: Words = frozenset({"none"})
    bridged: Words = frozenset({"no"})

    def value(self, wanted: Field) -> Words | Spans | None:
        if wanted is Field.FAMILY:
            return frozenset({self.family.value})
        found: Words | Spans | None = getattr(self, wanted.name.lower())
        return found


_SPACE = {4: 4 << 128, 6: 6 << 128}


def address_span(
    low: IPv4Address | IPv6Address, high: IPv4Address | IPv6Address | None = None
) -> Span:
    space = _SPACE[low.version]
    return Span(space + int(low), space + int(low if high is None else high))


def network_span(network: IPv4Network | IPv6Network) -> Span:
    return address_span(network.network_address, network.broadcast_address)


def everything_but(family: Family, holes: Iterable[Span]) -> Spans:
    """All addresses of a family outside of the holes."""
    low, bits = (_SPACE[4], 32) if family is Family.IPV4 else (_SPACE[6], 128)
    high, found = low + (1 << bits) - 1, []
    for hole in sorted((h for h in holes if low <= h.low <= high), key=lambda h: h.low):
        found.append(Span(low, hole.low - 1))
        low = max(low, hole.high + 1)
    found.append(Span(low, high))
    return tuple(span for span in found if span.low <= span.high)
