"""What guests of a network send and need answered, as packets at each hook on their way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv6Network, ip_address, ip_network

from vnetd.core.model import Address, Definition, Family, HostAddress, IfName, Mode
from vnetd.core.packets.evaluate import Decision, decide
from vnetd.core.packets.firewall import (
    Firewall,
    Hook,
    Layer,
    Packet,
    Span,
    Spans,
    Words,
    address_span,
    everything_but,
    network_span,
)


class Kind(StrEnum):
    DHCP = "DHCP"
    DNS = "DNS"
    NEIGHBOURS = "neighbour discovery"
    OUT = "new connections to outside"
    ANSWERS = "answers from outside"
    IN = "new connections from outside"
    PEERS = "traffic between guests"


@dataclass(frozen=True, slots=True)
class Step:
    layer: Layer
    hook: Hook
    packet: Packet


@dataclass(frozen=True, slots=True)
class Flow:
    kind: Kind
    steps: tuple[Step, ...]

    @property
    def family(self) -> Family:
        return self.steps[0].packet.family


@dataclass(frozen=True, slots=True)
class Ends:
    """Narrower than the whole network. None: any guest, anywhere outside."""

    guest: HostAddress | None = None
    destination: HostAddress | None = None
    out: IfName | None = None


_EPHEMERAL = (Span(1024, 65535),)
_ANY_LINK_LOCAL = (network_span(IPv6Network("fe80::/10")),)
_UNSPECIFIED = (address_span(ip_address("0.0.0.0")),)
_BROADCAST = (address_span(ip_address("255.255.255.255")),)
_DHCP_AGENTS = (address_span(ip_address("ff02::1:2")),)
# A firewall that lets pings through and nothing else is one that drops.
_TCP: Words = frozenset({"tcp"})
_NOWHERE: Words = frozenset({""})
_MULTICAST = (
    network_span(ip_network("224.0.0.0/4")),
    network_span(ip_network("255.255.255.255/32")),
    network_span(ip_network("ff00::/8")),
)


def of_network(
    network: Definition,
    firewall: Firewall,
    others: Iterable[Definition] = (),
    ends: Ends | None = None,
) -> list[Flow]:
    """others: networks whose subnets are not outside either."""
    if network.bridge is None:
        return []
    flows = list(_peers(network, network.bridge, firewall))
    if network.mode.has_own_bridge:
        inside = [network_span(a.network) for n in (network, *others) for a in n.addresses]
        flows += _to_host(network, network.bridge)
        if network.mode is not Mode.ISOLATED:
            for address in network.addresses:
                outside = everything_but(Family.of(address), (*inside, *_MULTICAST))
                flows += _through(network, address, outside, firewall, ends or Ends())
    return flows


def judge(firewall: Firewall, flow: Flow) -> list[Decision]:
    """Every base chain's word, in the order in which the packet meets them."""
    return [
        decision
        for step in flow.steps
        for decision in decide(firewall, step.layer, step.hook, step.packet)
    ]


def _to_host(network: Definition, bridge: IfName) -> Iterator[Flow]:
    if Family.IPV4 in network.dhcp_families:
        ask = _ask(Family.IPV4, bridge, 68, 67, _UNSPECIFIED, _BROADCAST, "broadcast")
        yield _asked(Kind.DHCP, bridge, ask)
    if Family.IPV6 in network.dhcp_families:
        ask = _ask(Family.IPV6, bridge, 546, 547, _ANY_LINK_LOCAL, _DHCP_AGENTS, "multicast")
        yield _asked(Kind.DHCP, bridge, ask)
    for address in network.addresses:
        fam = Family.of(address)
        subnet, own = (network_span(address.network),), (address_span(address.ip),)
        if network.dns:
            for protocol in ("udp", "tcp"):
                ask = _ask(fam, bridge, 0, 53, subnet, own, "local")
                ask = replace(ask, protocol=frozenset({protocol}), source_port=_EPHEMERAL)
                yield _asked(Kind.DNS, bridge, ask)
        if fam is Family.IPV6:
            packet = Packet(
                family=fam,
                iif=frozenset({bridge}),
                oif=_NOWHERE,
                protocol=frozenset({"ipv6-icmp"}),
                state=frozenset({"untracked"}),
            )
            yield _asked(Kind.NEIGHBOURS, bridge, packet)


def _ask(
    fam: Family,
    bridge: IfName,
    source_port: int,
    port: int,
    source: Spans,
    destination: Spans,
    kind: str,
) -> Packet:
    return Packet(
        family=fam,
        iif=frozenset({bridge}),
        oif=_NOWHERE,
        source=source,
        destination=destination,
        destination_type=frozenset({kind}),
        protocol=frozenset({"udp"}),
        source_port=(Span(source_port, source_port),),
        destination_port=(Span(port, port),),
        state=frozenset({"new"}),
    )


def _asked(kind: Kind, bridge: IfName, ask: Packet) -> Flow:
    """The question in, and the answer out. DHCP's answer is no part of the question's flow."""
    answer = Packet(
        family=ask.family,
        iif=_NOWHERE,
        oif=frozenset({bridge}),
        source=None if kind is Kind.DHCP else ask.destination,
        destination=None if kind is Kind.DHCP else ask.source,
        protocol=ask.protocol,
        source_port=ask.destination_port,
        destination_port=ask.source_port,
        state=frozenset({"new" if kind is Kind.DHCP else "established"}),
    )
    if kind is Kind.NEIGHBOURS:
        answer = replace(ask, iif=_NOWHERE, oif=frozenset({bridge}))
    return Flow(
        kind,
        (
            *_from_bridge(bridge, ask),
            Step(Layer.IP, Hook.INPUT, ask),
            Step(Layer.IP, Hook.OUTPUT, answer),
            *_to_bridge(answer),
        ),
    )


def _through(
    network: Definition, address: Address, outside: Spans, firewall: Firewall, ends: Ends
) -> Iterator[Flow]:
    fam, bridge = Family.of(address), network.bridge
    assert bridge is not None, "a network with flows has a bridge"
    uplinks = frozenset({ends.out}) if ends.out else firewall.uplinks.get(fam, frozenset())
    if network.forward_dev is not None:
        uplinks = frozenset({network.forward_dev})
    if not uplinks or (ends.guest and ends.guest.version != address.version):
        return
    guests: Spans = (network_span(address.network),)
    if ends.guest is not None:
        guests = (address_span(ends.guest),)
    if ends.destination is not None:
        if ends.destination.version != address.version:
            return
        outside = (address_span(ends.destination),)
    nat = network.translates(fam)
    out = Packet(
        family=fam,
        iif=frozenset({bridge}),
        oif=frozenset(uplinks),
        source=guests,
        destination=outside,
        destination_type=frozenset({"unicast"}),
        protocol=_TCP,
        state=frozenset({"new"}),
    )
    back = replace(
        out,
        iif=out.oif,
        oif=out.iif,
        source=outside,
        destination=guests,
        state=frozenset({"established"}),
    )
    yield Flow(Kind.OUT, _routed(bridge, out, outward=True, nat=nat))
    yield Flow(Kind.ANSWERS, _routed(bridge, back, outward=False, nat=nat))
    if network.mode is Mode.ROUTE:
        into = replace(back, state=frozenset({"new"}))
        yield Flow(Kind.IN, _routed(bridge, into, outward=False, nat=nat))


def _routed(bridge: IfName, packet: Packet, *, outward: bool, nat: bool) -> tuple[Step, ...]:
    # Before the routing the way out, and with NAT the guest, is not seen yet.
    arriving = replace(packet, oif=_NOWHERE)
    if nat and not outward:
        arriving = replace(arriving, destination=None, destination_type=frozenset({"local"}))
    before = (
        _from_bridge(bridge, arriving)
        if outward
        else (
            Step(Layer.DEVICE, Hook.INGRESS, arriving),
            Step(Layer.IP, Hook.PREROUTING, arriving),
        )
    )
    after = (Step(Layer.IP, Hook.POSTROUTING, packet),) if outward else _to_bridge(packet)
    return (*before, Step(Layer.IP, Hook.FORWARD, packet), *after)


def _from_bridge(bridge: IfName, packet: Packet) -> tuple[Step, ...]:
    """Up from a guest's port, which nobody knows by name here."""
    frame = replace(packet, iif=None, oif=None)
    return (
        Step(Layer.BRIDGE, Hook.PREROUTING, frame),
        Step(Layer.BRIDGE, Hook.INPUT, frame),
        Step(Layer.DEVICE, Hook.INGRESS, replace(packet, iif=frozenset({bridge}))),
        Step(Layer.IP, Hook.PREROUTING, packet),
    )


def _to_bridge(packet: Packet) -> tuple[Step, ...]:
    frame = replace(packet, iif=None, oif=None)
    return (
        Step(Layer.IP, Hook.POSTROUTING, packet),
        Step(Layer.BRIDGE, Hook.OUTPUT, frame),
        Step(Layer.BRIDGE, Hook.POSTROUTING, frame),
    )


def _peers(network: Definition, bridge: IfName, firewall: Firewall) -> Iterator[Flow]:
    """From port to port of one bridge; br_netfilter shows such frames to IP's hooks as well, each
    time behind the bridge's own.
    """
    own = network.mode.has_own_bridge
    for fam in Family:
        addresses = [a for a in network.addresses if Family.of(a) is fam]
        if own and not addresses and not (fam is Family.IPV6 and network.guest_ipv6):
            continue
        subnets = tuple(network_span(address.network) for address in addresses) or None
        packet = Packet(
            family=fam,
            iif=frozenset({bridge}),
            oif=frozenset({bridge}),
            source=subnets,
            destination=subnets,
            destination_type=frozenset({"unicast"}),
            protocol=_TCP,
            state=frozenset({"new"}),
            bridged=frozenset({"yes"}),
        )
        frame = replace(packet, iif=None, oif=None)
        steps: list[Step] = []
        for hook in (Hook.PREROUTING, Hook.FORWARD, Hook.POSTROUTING):
            steps.append(Step(Layer.BRIDGE, hook, frame))
            if fam in firewall.bridged:
                arriving = hook is Hook.PREROUTING
                seen = replace(packet, oif=_NOWHERE) if arriving else packet
                steps.append(Step(Layer.IP, hook, seen))
        yield Flow(Kind.PEERS, tuple(steps))
