"""The guard: vnetd's own nftables table, which no flush of others reaches.

It repeats what libvirt's rules do for NAT and isolated networks, behind them: NAT at a later
priority sees only flows that nothing before it has translated, and a reject behind a reject
changes nothing. So it is inert while libvirt's rules stand, and does their work while they do not.
For a network whose firewall is vnetd's, it is all there is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from vnetd.core.model import Address, Definition, Family, Mode

TABLE = "vnetd"


class Key(StrEnum):
    """What a match looks at, as nft writes it."""

    IIFNAME = "iifname"
    OIFNAME = "oifname"
    IP_SADDR = "ip saddr"
    IP_DADDR = "ip daddr"
    IP6_SADDR = "ip6 saddr"
    IP6_DADDR = "ip6 daddr"
    FAMILY = "meta nfproto"
    PROTOCOL = "meta l4proto"
    SPORT = "th sport"
    DPORT = "th dport"
    CT_STATE = "ct state"
    CT_STATUS = "ct status"
    DADDR_TYPE = "fib daddr type"


SADDR = {Family.IPV4: Key.IP_SADDR, Family.IPV6: Key.IP6_SADDR}
DADDR = {Family.IPV4: Key.IP_DADDR, Family.IPV6: Key.IP6_DADDR}

_NEIGHBOURS = {Family.IPV4: ("224.0.0.0/24", "255.255.255.255"), Family.IPV6: ("ff02::/16",)}
"""What is meant for those on the same link only."""
_LOOPBACK = {Family.IPV4: "127.0.0.0/8", Family.IPV6: "::1"}


@dataclass(frozen=True, slots=True)
class Match:
    """value as nft writes it; an interface name may end in "*"."""

    key: Key
    value: str
    negated: bool = False

    def __str__(self) -> str:
        value = f'"{self.value}"' if self.key in (Key.IIFNAME, Key.OIFNAME) else self.value
        return f"{self.key} {'!= ' if self.negated else ''}{value}"


PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "ipv6-icmp": 58, "sctp": 132}
"""Values of Key.PROTOCOL, with IANA's numbers."""


class Verdict(StrEnum):
    ACCEPT = "accept"
    RETURN = "return"
    REJECT = "reject"


class Nat(StrEnum):
    MASQUERADE = "masquerade"
    SNAT = "snat"
    DNAT = "dnat"


@dataclass(frozen=True, slots=True)
class Translation:
    """addresses, ports: first and last. Masquerading takes the address of the way out."""

    nat: Nat
    addresses: tuple[str, str] | None = None
    ports: tuple[int, int] | None = None

    def __str__(self) -> str:
        if self.addresses is None and self.ports is None:
            return self.nat
        addresses = _span(self.addresses) if self.addresses else ""
        if self.addresses and self.ports and ":" in self.addresses[0]:
            addresses = f"[{addresses}]"
        ports = f":{_span(self.ports)}" if self.ports else ""
        family = ""
        if self.addresses:
            family = " ip6" if ":" in self.addresses[0] else " ip"
        return f"{self.nat}{family} to {addresses}{ports}"


@dataclass(frozen=True, slots=True)
class Rule:
    """network: whose rule it is; empty for those of all."""

    network: str
    matches: tuple[Match, ...]
    verdict: Verdict | Translation

    def __str__(self) -> str:
        return " ".join((*(str(match) for match in self.matches), str(self.verdict)))

    @property
    def digest(self) -> str:
        """What the kernel keeps beside the rule, to know it again."""
        return hashlib.sha256(f"{self.network}\0{self}".encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class BaseChain:
    """hook: as linux/netfilter.h numbers them."""

    name: str
    type: str
    hook: int
    priority: int


# Behind libvirt's chains, which stand at 0 and 100.
FORWARD = BaseChain("forward", "filter", hook=2, priority=10)
POSTROUTING = BaseChain("postrouting", "nat", hook=4, priority=110)
# In front of Docker's and others' at -100: a port that the policy forwards is the policy's.
PREROUTING = BaseChain("prerouting", "nat", hook=0, priority=-110)
OUTPUT = BaseChain("output", "nat", hook=3, priority=-110)
CHAINS: Mapping[str, BaseChain] = {
    chain.name: chain for chain in (PREROUTING, OUTPUT, FORWARD, POSTROUTING)
}

Table = Mapping[str, tuple[Rule, ...]]
"""Chain name → rules."""

Matches = tuple[Match, ...]


@dataclass(frozen=True, slots=True)
class Forward:
    """A port of the host that leads to a guest. ports: first and last; to_port: None keeps them.
    sources: who may use it; empty for everybody.
    """

    protocol: str
    ports: tuple[int, int]
    to: str
    to_port: int | None = None
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Guarded:
    """A network with what the guard does for it. alone: libvirt has no rules for it."""

    definition: Definition
    alone: bool = False
    forwards: tuple[Forward, ...] = ()


def table(
    networks: Sequence[Guarded],
    passed: Iterable[Matches] = (),
    untranslated: Iterable[Matches] = (),
) -> Table:
    """passed, untranslated: what somebody has put in front of libvirt's rules, to let it through
    or to leave it without NAT. What is theirs to decide stays so.
    """
    guarded = [item for item in networks if item.definition.bridge]
    if not guarded:
        return {}
    alone = [item.definition for item in guarded if item.alone]
    beside = [item.definition for item in guarded if not item.alone]
    forward = [
        Rule("", (Match(Key.CT_STATE, "established,related"),), Verdict.ACCEPT),
        *(_between_guests(item.definition) for item in guarded),
        *(rule for network in alone for rule in _inbound(network)),
        *(Rule("", matches, Verdict.ACCEPT) for matches in passed),
        *(rule for network in beside for rule in _inbound(network)),
        *(rule for item in guarded for rule in _outbound(item.definition)),
    ]
    translated = [item for item in guarded if item.definition.mode is Mode.NAT]
    postrouting = [
        *(rule for item in guarded for rule in _hairpins(item)),
        *(rule for item in translated for rule in _nat(item.definition)),
    ]
    if postrouting:
        exempt = [Rule("", matches, Verdict.RETURN) for matches in untranslated]
        postrouting = exempt + postrouting
    chains = {
        PREROUTING.name: tuple(rule for item in guarded for rule in _forwards(item)),
        OUTPUT.name: tuple(rule for item in guarded for rule in _forwards(item, by_host=True)),
        FORWARD.name: tuple(forward),
        POSTROUTING.name: tuple(postrouting),
    }
    return {name: rules for name, rules in chains.items() if rules}


def _between_guests(network: Definition) -> Rule:
    return _rule(network, Match(Key.IIFNAME, _bridge(network)), _out(network), Verdict.ACCEPT)


def _inbound(network: Definition) -> Iterable[Rule]:
    if network.mode is Mode.NAT:
        # Somebody's port forward: it was translated on purpose.
        yield _rule(network, _out(network), Match(Key.CT_STATUS, "dnat"), Verdict.ACCEPT)
        for address in network.addresses:
            if not network.translates(Family.of(address)):
                way = [Match(Key.IIFNAME, network.forward_dev)] if network.forward_dev else []
                yield _rule(network, *way, _out(network), _destination(address), Verdict.ACCEPT)
    yield _rule(network, _out(network), Verdict.REJECT)


def _outbound(network: Definition) -> Iterable[Rule]:
    way_in = Match(Key.IIFNAME, _bridge(network))
    if network.mode is Mode.NAT:
        for address in network.addresses:
            way = [Match(Key.OIFNAME, network.forward_dev)] if network.forward_dev else []
            yield _rule(network, way_in, *way, _source(address), Verdict.ACCEPT)
    yield _rule(network, way_in, Verdict.REJECT)


def _nat(network: Definition) -> Iterable[Rule]:
    way = [Match(Key.OIFNAME, network.forward_dev)] if network.forward_dev else []
    for address in network.addresses:
        if not network.translates(Family.of(address)):
            continue
        source = _source(address)
        # Multicast and broadcast must keep the guest's address: answers could not find the way.
        for group in _NEIGHBOURS[Family.of(address)]:
            to = Match(DADDR[Family.of(address)], group)
            yield _rule(network, source, to, *way, Verdict.RETURN)
        outside = Match(_destination(address).key, str(address.network), negated=True)
        ports = network.nat_ports or (1024, 65535)
        for protocol in ("tcp", "udp"):
            of = Match(Key.PROTOCOL, protocol)
            translation = _translation(network, address, ports)
            yield _rule(network, source, outside, *way, of, translation)
        yield _rule(network, source, outside, *way, _translation(network, address, None))


def _translation(
    network: Definition, address: Address, ports: tuple[int, int] | None
) -> Translation:
    if network.nat_source and Family.of(address) is Family.IPV4:
        return Translation(Nat.SNAT, network.nat_source, ports)
    return Translation(Nat.MASQUERADE, None, ports)


def _forwards(item: Guarded, *, by_host: bool = False) -> Iterable[Rule]:
    for forward in item.forwards:
        family = Family.IPV6 if ":" in forward.to else Family.IPV4
        source = SADDR[family]
        # The host's own services on its loopback stay reachable for it.
        loopback = Match(DADDR[family], _LOOPBACK[family], negated=True)
        port = [
            *([loopback] if by_host else []),
            Match(Key.DADDR_TYPE, "local"),
            Match(Key.PROTOCOL, forward.protocol),
            Match(Key.DPORT, _span(forward.ports)),
        ]
        to_ports = (forward.to_port, forward.to_port) if forward.to_port else None
        to = Translation(Nat.DNAT, (forward.to, forward.to), to_ports)
        for allowed in forward.sources or ("",):
            matches = [Match(source, allowed)] if allowed else []
            yield _rule(item.definition, *matches, *port, to)


def _hairpins(item: Guarded) -> Iterable[Rule]:
    """A guest that uses a forwarded port of its own network: the answer must come back through
    the host, which knows the connection.
    """
    if item.forwards:
        for address in item.definition.addresses:
            dnat = Match(Key.CT_STATUS, "dnat")
            masquerade = Translation(Nat.MASQUERADE)
            yield _rule(item.definition, _out(item.definition), _source(address), dnat, masquerade)


def _source(address: Address) -> Match:
    return Match(SADDR[Family.of(address)], str(address.network))


def _destination(address: Address) -> Match:
    return Match(DADDR[Family.of(address)], str(address.network))


def _out(network: Definition) -> Match:
    return Match(Key.OIFNAME, _bridge(network))


def _bridge(network: Definition) -> str:
    assert network.bridge is not None, f"{network.name} is guarded without a bridge"
    return network.bridge


def _rule(network: Definition, *parts: Match | Verdict | Translation) -> Rule:
    *matches, verdict = parts
    assert not isinstance(verdict, Match), "a rule ends in its verdict"
    return Rule(network.name, tuple(m for m in matches if isinstance(m, Match)), verdict)


def _span(pair: tuple[object, object]) -> str:
    first, last = pair
    return str(first) if first == last else f"{first}-{last}"
