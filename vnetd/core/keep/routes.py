"""Networks' own routes in the kernel. libvirt sets them once, when it starts a network, and tells
nobody if that fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vnetd.core.actions import Action
from vnetd.core.drift import NetworkDrift
from vnetd.core.model import Definition, IfName, Network, Observed, Source, StaticRoute
from vnetd.core.policy import Policy


@dataclass(frozen=True, slots=True)
class RouteMissing(NetworkDrift):
    bridge: IfName
    route: StaticRoute
    source = Source.ROUTES

    def __str__(self) -> str:
        return f"route {self.route} dev {self.bridge} is missing"


@dataclass(frozen=True, slots=True)
class RouteUnexpected(NetworkDrift):
    """libvirt or vnetd made it, and the policy names it no more."""

    bridge: IfName
    route: StaticRoute
    source = Source.ROUTES

    def __str__(self) -> str:
        return f"route {self.route} dev {self.bridge} is in no policy any more"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetRoute(Action):
    """there: add it, or else remove it."""

    bridge: IfName
    route: StaticRoute
    there: bool

    def __str__(self) -> str:
        return f"{'add' if self.there else 'remove'} route {self.route} dev {self.bridge}"


def diff(policy: Policy, kept: Sequence[Definition], observed: Observed) -> Iterator[NetworkDrift]:
    libvirt, links = observed.libvirt, observed.links or {}
    if libvirt is None:
        return
    for live in kept:
        if live.bridge is None or not live.mode.has_own_bridge or live.bridge not in links:
            continue
        wanted = of_network(policy, libvirt.networks[live.name])
        there = {
            StaticRoute(route.to, route.via, route.metric): route.made_by_vnetd
            for route in observed.routes or ()
            if route.dev == live.bridge and route.via is not None
        }
        for route in wanted:
            if route not in there:
                yield RouteMissing(live.name, live.bridge, route)
        for route, made_by_vnetd in there.items():
            if route not in wanted and (made_by_vnetd or route in live.routes):
                yield RouteUnexpected(live.name, live.bridge, route)


def of_network(policy: Policy, network: Network) -> tuple[StaticRoute, ...]:
    """The policy's, or those with which libvirt will start it next time."""
    want = policy.networks.get(network.name)
    if want is not None and want.routes is not None:
        return want.routes
    return (network.config if want and network.config else network.definition).routes


def plan(drift: Iterable[object]) -> Iterator[Action]:
    """Those to remove first: they may stand in the way of others."""
    for item in drift:
        if isinstance(item, RouteUnexpected):
            yield _set(item, there=False)
    for item in drift:
        if isinstance(item, RouteMissing):
            yield _set(item, there=True)


def _set(item: RouteMissing | RouteUnexpected, *, there: bool) -> SetRoute:
    return SetRoute(
        objects=(item.object,),
        reason=str(item),
        bridge=item.bridge,
        route=item.route,
        there=there,
    )
