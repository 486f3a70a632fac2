"""No network takes addresses that others have: what is routed, numbered or served there would be
out of the host's reach, or its guests out of reach of theirs. libvirt compares only for equality,
only IPv4, and only while it starts a network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vnetd.core.basics import overlap
from vnetd.core.drift import Conflict
from vnetd.core.keep import announce
from vnetd.core.model import (
    Definition,
    HostAddress,
    HostRoute,
    IfName,
    Network,
    Observed,
    Subnet,
    network_object,
)
from vnetd.core.policy import NetworkPolicy, Policy


@dataclass(frozen=True, slots=True)
class _Claim:
    """A network's subnets, had or wanted, and the bridges that are or were its own."""

    name: str
    subnets: tuple[Subnet, ...]
    bridges: frozenset[IfName | None]
    want: NetworkPolicy | None
    routed: bool


def refused(policy: Policy, observed: Observed) -> dict[str, tuple[str, ...]]:
    """Networks that are not, and must not become, what the policy wants; with the reasons."""
    found = {}
    for name, want in policy.networks.items():
        have = _network(name, observed)
        running = have.live if have else None
        had = {address.network for address in running.addresses} if running else set()
        fresh = tuple(a.network for a in want.addresses if a.network not in had)
        if not fresh:
            continue
        claim = _Claim(name, fresh, _bridges(want, have, observed), want, want.mode.is_routed)
        if texts := (*_clashes(claim, policy, observed), *_nameservers(want, fresh, observed)):
            verb = "cannot change" if running else "cannot start"
            found[name] = tuple(f"{verb}: {text}" for text in texts)
    return found


def diff(policy: Policy, kept: Sequence[Definition], observed: Observed) -> Iterator[Conflict]:
    """Of networks that run: both sides stay as they are."""
    for live in kept:
        if not live.mode.has_own_bridge:
            continue
        want = policy.networks.get(live.name)
        subnets = [address.network for address in live.addresses]
        static = want.routes if want and want.routes is not None else live.routes
        claim = _Claim(
            live.name,
            (*subnets, *(route.to for route in static)),
            _bridges(want, _network(live.name, observed), observed),
            want,
            policy.meant(live).mode.is_routed,
        )
        for text in _clashes(claim, policy, observed):
            yield Conflict(network_object(live.name), text)


def _clashes(claim: _Claim, policy: Policy, observed: Observed) -> Iterator[str]:
    for subnet in claim.subnets:
        seen = set()
        for route in _routes(claim, subnet, observed):
            seen.add(route.dev)
            advice = _advice(claim, route, subnet, observed)
            yield f"subnet {subnet} overlaps route {route}{advice}"
        for link in (observed.links or {}).values():
            for address in link.addresses:
                foreign = link.name not in claim.bridges and link.name not in seen
                if foreign and address.ip in subnet and not _allowed(claim, address.network):
                    yield f"subnet {subnet} contains address {address} of {link.name}"
        for route in observed.routes or ():
            gateway = route.via if route.is_default else None
            if gateway is not None and gateway in subnet and route.dev not in claim.bridges:
                yield f"subnet {subnet} contains the host's gateway {route.via} dev {route.dev}"
        yield from _others(claim, subnet, policy, observed)


def _routes(claim: _Claim, subnet: Subnet, observed: Observed) -> Iterator[HostRoute]:
    routes = observed.routes or ()
    default = {(route.dev, route.via) for route in routes if route.is_default}
    uplink = _carved_from(claim, subnet, observed)
    for route in routes:
        if not overlap(route.to, subnet) or route.is_default or route.dev in claim.bridges:
            continue
        wider = route.to.prefixlen < subnet.prefixlen
        if wider and route.dev is None:
            continue  # an aggregate: it leads nowhere where nothing narrower does
        if wider and route.via is not None and (route.dev, route.via) in default:
            continue  # says no more than the default route
        if wider and uplink is not None and contains(route.to, uplink.to):
            continue
        if not _allowed(claim, route.to):
            yield route


def _carved_from(claim: _Claim, subnet: Subnet, observed: Observed) -> HostRoute | None:
    """The uplink's own subnet, if the network announces that it is in it."""
    announced = {item.version for item in claim.want.announce} if claim.want else ()
    if subnet.version not in announced:
        return None
    return announce.uplink(subnet, claim.bridges, observed)


def _advice(claim: _Claim, route: HostRoute, subnet: Subnet, observed: Observed) -> str:
    """A routed network inside of the uplink's own subnet is well if it is announced there."""
    if not claim.routed or announce.uplink(subnet, claim.bridges, observed) != route:
        return ""
    way = "proxy-arp" if subnet.version == 4 else "proxy-ndp"
    return f'; announce = "{way}" makes it a part of that'


def _others(claim: _Claim, subnet: Subnet, policy: Policy, observed: Observed) -> Iterator[str]:
    """Networks that run have routes, which told it already."""
    networks = observed.libvirt.networks if observed.libvirt else {}
    for name, other in networks.items():
        if name == claim.name or name in policy.networks or other.live or not other.config:
            continue
        for address in other.config.addresses:
            if overlap(address.network, subnet) and not _allowed(claim, address.network):
                yield f"subnet {subnet} overlaps {address.network} of network {name}"


def _nameservers(
    want: NetworkPolicy, subnets: Sequence[Subnet], observed: Observed
) -> Iterator[str]:
    """Unless a guest is known to be one. Of a network that runs nobody can say who serves."""
    own: set[HostAddress] = {address.ip for address in want.addresses}
    own |= {host.address for host in want.hosts}
    for server in sorted(observed.nameservers - own, key=str):
        inside = [subnet for subnet in subnets if server in subnet]
        if inside and not any(server in allowed for allowed in want.overlaps):
            yield f"subnet {inside[0]} contains the host's DNS server {server}"


def _allowed(claim: _Claim, subnet: Subnet) -> bool:
    return claim.want is not None and any(contains(item, subnet) for item in claim.want.overlaps)


def _network(name: str, observed: Observed) -> Network | None:
    return observed.libvirt.networks.get(name) if observed.libvirt else None


def _bridges(
    want: NetworkPolicy | None, have: Network | None, observed: Observed
) -> frozenset[IfName | None]:
    """By their names, and by the MAC address of one that somebody has renamed."""
    definitions = [item for item in (have.config, have.live) if item] if have else []
    named = {want.bridge if want else None, *(item.bridge for item in definitions)}
    macs = {item.mac for item in definitions} - {None}
    links = (observed.links or {}).values()
    named |= {link.name for link in links if link.kind == "bridge" and link.mac in macs}
    return frozenset(named - {None})


def contains(one: Subnet, two: Subnet) -> bool:
    """Or is the same."""
    return overlap(one, two) and one.prefixlen <= two.prefixlen
