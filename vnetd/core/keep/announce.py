"""How neighbours on the uplink come to send packets to a network's guests. Where these have a part
of the LAN's own prefix, the host answers in their place: for IPv4 the kernel does for all that it
routes elsewhere, once the sysctl proxy_arp is on; for IPv6 it wants each address. Others must be
told by a router.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from vnetd.core.actions import Action
from vnetd.core.basics import overlap
from vnetd.core.drift import Conflict, Drift, NetworkDrift
from vnetd.core.model import (
    HOST_OBJECT,
    Definition,
    Family,
    HostAddress,
    HostRoute,
    IfName,
    Observed,
    Proxy,
    Source,
    Subnet,
    network_object,
)
from vnetd.core.policy import Announce, NetworkPolicy, Policy


@dataclass(frozen=True, slots=True)
class ProxyMissing(NetworkDrift):
    uplink: IfName
    address: HostAddress
    source = Source.ROUTES

    def __str__(self) -> str:
        return f"{self.uplink} does not answer for {self.address}"


@dataclass(frozen=True, slots=True)
class ProxyUnexpected(Drift):
    """One of vnetd's that no network announces any more."""

    proxy: Proxy
    source = Source.ROUTES

    @property
    def object(self) -> str:
        return HOST_OBJECT

    def __str__(self) -> str:
        return f"{self.proxy.dev} answers for {self.proxy.address}, which no network announces"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetProxy(Action):
    """there: add it, or else remove it."""

    uplink: IfName
    address: HostAddress
    there: bool

    def __str__(self) -> str:
        what = "answer" if self.there else "answer no more"
        return f"{what} on {self.uplink} for {self.address}"


def diff(
    policy: Policy, kept: Sequence[Definition], observed: Observed
) -> Iterator[Drift | Conflict]:
    answered = {(proxy.dev, proxy.address) for proxy in observed.proxies}
    wanted = set()
    for live in kept:
        for kind, subnet, route in _announced(policy, live, observed):
            if route is None:
                wrong = f'announce = "{kind}": no link has neighbours in a prefix around {subnet}'
                yield Conflict(network_object(live.name), wrong)
            elif kind is Announce.PROXY_NDP and route.dev is not None:
                for address in sorted(_known(live, subnet, observed), key=int):
                    wanted.add((route.dev, address))
                    if (route.dev, address) not in answered:
                        yield ProxyMissing(live.name, route.dev, address)
                # A guest that is silent for a while is still there.
                wanted |= {(d, a) for d, a in answered if d == route.dev and a in subnet}
    for proxy in sorted(observed.proxies, key=str):
        if proxy.made_by_vnetd and (proxy.dev, proxy.address) not in wanted:
            yield ProxyUnexpected(proxy)


def plan(drift: Iterable[Drift]) -> Iterator[Action]:
    for item in drift:
        objects, reason = (item.object,), str(item)
        match item:
            case ProxyUnexpected(proxy=proxy):
                yield SetProxy(
                    objects=objects,
                    reason=reason,
                    uplink=proxy.dev,
                    address=proxy.address,
                    there=False,
                )
            case ProxyMissing(uplink=dev, address=address):
                yield SetProxy(
                    objects=objects, reason=reason, uplink=dev, address=address, there=True
                )
            case _:
                pass


def uplinks(want: NetworkPolicy | None, live: Definition, observed: Observed) -> dict[int, IfName]:
    """By IP version, of those kinds that the network announces."""
    found: dict[int, IfName] = {}
    for kind in want.announce if want else ():
        for address in live.addresses:
            route = uplink(address.network, (live.bridge,), observed)
            if address.version == kind.version and route is not None and route.dev is not None:
                found[kind.version] = route.dev
    return found


def uplink(
    subnet: Subnet, bridges: Collection[IfName | None], observed: Observed
) -> HostRoute | None:
    """The route to the neighbours of which the subnet is a part, as the kernel chooses it. Tunnels
    have no neighbours, nor MAC addresses.
    """
    lans = {link.name for link in (observed.links or {}).values() if link.mac}
    wider = [
        route
        for route in observed.routes or ()
        if route.via is None
        and route.dev in lans
        and route.dev not in bridges
        and not route.is_default
        and route.to.prefixlen < subnet.prefixlen
        and overlap(route.to, subnet)
    ]
    return max(wider, key=lambda route: (route.to.prefixlen, -route.metric), default=None)


def for_the_router(policy: Policy, live: Definition, observed: Observed) -> list[tuple[int, str]]:
    """(IP version, command) of each that tells the next router where the guests are, where nothing
    else does.
    """
    want = policy.networks.get(live.name)
    announced = {kind.version for kind in want.announce} if want else set()
    found: list[tuple[int, str]] = []
    meant = policy.meant(live)
    for address in live.addresses:
        outside = meant.mode.is_forwarded and not meant.translates(Family.of(address))
        if outside and address.version not in announced and observed.routes is not None:
            via = _seen_from_router(live, address.version, observed)
            flag = " -6" if address.version == 6 else ""
            here = via or "ADDRESS-OF-THIS-HOST"
            command = f"ip{flag} route add {address.network} via {here}"
            found.append((address.version, command))
    return found


def _seen_from_router(live: Definition, version: int, observed: Observed) -> HostAddress | None:
    """The host's address on the way to the default gateway."""
    defaults = [
        route
        for route in observed.routes or ()
        if route.to.version == version
        and route.to.prefixlen == 0
        and route.dev is not None
        and live.forward_dev in (None, route.dev)
    ]
    best = min(defaults, key=lambda route: route.metric, default=None)
    dev = best.dev if best else live.forward_dev
    link = (observed.links or {}).get(dev) if dev else None
    own = [a for a in link.addresses if a.version == version] if link else []
    gateway = best.via if best else None
    near = [a for a in own if gateway is not None and gateway in a.network]
    # A gateway known by its link-local address is reached from any of the link's own.
    near = [a for a in near if not a.is_link_local] or [a for a in own if not a.is_link_local]
    return min((a.ip for a in near), key=int, default=None)


def _announced(
    policy: Policy, live: Definition, observed: Observed
) -> Iterator[tuple[Announce, Subnet, HostRoute | None]]:
    want = policy.networks.get(live.name)
    for kind in sorted(want.announce) if want else ():
        for address in live.addresses:
            if address.version == kind.version:
                yield kind, address.network, uplink(address.network, (live.bridge,), observed)


def _known(live: Definition, subnet: Subnet, observed: Observed) -> set[HostAddress]:
    """The guests' addresses as far as they are known, and the host's own: IPv6 answers for those of
    the link asked on only.
    """
    found = {address.ip for address in live.addresses}
    found |= {host.address for host in live.hosts}
    if observed.libvirt is not None:
        found |= {x.address for x in observed.libvirt.leases if x.network == live.name}
    if live.bridge is not None:
        found |= observed.neighbours.get(live.bridge, frozenset())
    return {address for address in found if address in subnet}
