"""Bridges of the host: made, set and wired as the policy says, with their uplinks' addresses and
routes on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network

from vnetd.core.actions import Action
from vnetd.core.drift import Conflict, Difference, Drift, Wait, joined, unequal
from vnetd.core.keep import uplinks as ports
from vnetd.core.keep.bridges import AddAddress
from vnetd.core.keep.uplinks import PAUSE, HostBridgeDrift, ReleaseUplink, SetPort, TakeUplink
from vnetd.core.model import (
    Address,
    IfName,
    Link,
    Observed,
    Route,
    Taken,
    Uplinks,
    bridge_object,
)
from vnetd.core.policy import BridgePolicy, Policy
from vnetd.core.uplinks import resolve
from vnetd.core.wording import few

MARK = "made by vnetd"
"""ifalias of a bridge that vnetd made: the kernel keeps it as long as the bridge."""

_NEW_MAC = "neighbours and guests reach the host again when they have looked up its new MAC"
_EVERYWHERE = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
# What the kernel takes where nothing is said: IP6_RT_PRIO_USER
_METRICS = {4: 0, 6: 1024}

_OPTIONS = (
    "stp",
    "forward_delay",
    "hello_time",
    "max_age",
    "priority",
    "vlan_filtering",
    "group_fwd_mask",
    "multicast_snooping",
)


@dataclass(frozen=True, slots=True)
class BridgeAbsent(HostBridgeDrift):
    def __str__(self) -> str:
        return "is not there"


@dataclass(frozen=True, slots=True)
class HostBridgeDiffers(HostBridgeDrift):
    differences: tuple[Difference, ...]

    def __str__(self) -> str:
        return joined(self.differences)


@dataclass(frozen=True, slots=True)
class HostAddressMissing(HostBridgeDrift):
    address: Address

    def __str__(self) -> str:
        return f"address {self.address} is missing"


@dataclass(frozen=True, slots=True)
class RoutesMissing(HostBridgeDrift):
    routes: tuple[Route, ...]

    def __str__(self) -> str:
        return f"routes are missing: {few([str(route) for route in self.routes])}"


@dataclass(frozen=True, slots=True)
class LeftOver(HostBridgeDrift):
    """Made by vnetd, and no policy names it any more."""

    def __str__(self) -> str:
        return "is in no policy any more"


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeBridge(Action):
    """mac: None lets the kernel choose, until there is an uplink to take it from."""

    policy: BridgePolicy
    mac: str | None

    def __str__(self) -> str:
        return f"make bridge {self.policy.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetHostBridge(Action):
    """values: by the keys of BridgePolicy, as a policy shows them."""

    bridge: IfName
    values: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        parts = ["up", *(f"{key} {value}" for key, value in self.values)]
        return f"set bridge {self.bridge} {', '.join(parts)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AddRoutes(Action):
    bridge: IfName
    routes: tuple[Route, ...]

    def __str__(self) -> str:
        return f"add {len(self.routes)} routes over bridge {self.bridge}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveBridge(Action):
    """What its uplinks gave to it goes back to them."""

    bridge: IfName
    uplinks: tuple[IfName, ...]

    def __str__(self) -> str:
        back = f", {few(self.uplinks)} gets its addresses back" if self.uplinks else ""
        return f"remove bridge {self.bridge}{back}"


def diff(
    policy: Policy, links: Mapping[IfName, Link], uplinks: Uplinks, *, insist: bool
) -> Iterator[Drift | Conflict | Wait]:
    """insist: try once more what was put back."""
    if insist:
        uplinks = replace(uplinks, refused=())
    for name, want in sorted(policy.bridges.items()):
        if uplinks.asked.get(name) != want.uplinks:
            continue  # the policy has come since the look, which does not say what is in the way
        obstacles = list(_obstacles(want, links, uplinks))
        yield from obstacles or _one(want, links, uplinks)
    # An empty policy removes nothing: a file that lost its text must not cost the host its network.
    if policy.present and (policy.bridges or policy.networks):
        for name, link in sorted(links.items()):
            if link.alias == MARK and name not in policy.bridges:
                yield _left_over(policy, name, links, uplinks)


def plan(drift: Iterable[Drift], policy: Policy, observed: Observed) -> Iterator[Action]:
    """A bridge, what it is to be, its ports, then what it has beside them."""
    own = (item for item in drift if isinstance(item, HostBridgeDrift))
    actions = [_action(item, policy, observed) for item in own]
    yield from sorted(dict.fromkeys(actions), key=lambda action: _ORDER.index(type(action)))


_ORDER: tuple[type[Action], ...] = (
    RemoveBridge,
    ReleaseUplink,
    MakeBridge,
    SetHostBridge,
    TakeUplink,
    SetPort,
    AddAddress,
    AddRoutes,
)


def _action(item: HostBridgeDrift, policy: Policy, observed: Observed) -> Action:
    links, uplinks = observed.links or {}, observed.uplinks or Uplinks()
    objects, reason, name = (item.object,), str(item), item.bridge
    if (of_port := ports.plan(item, policy, observed)) is not None:
        return of_port
    match item:
        case LeftOver():
            back = tuple(taken.uplink for taken in uplinks.taken if taken.bridge == name)
            impact = PAUSE.format(few(back)) if back else "none"
            return RemoveBridge(
                objects=objects, reason=reason, impact=impact, bridge=name, uplinks=back
            )
        case BridgeAbsent():
            want = policy.bridges[name]
            found = (resolve(port.uplink, links, uplinks.pci) for port in want.ports)
            mac = wanted_mac(want, [link for link in found if link is not None])
            return MakeBridge(objects=objects, reason=reason, policy=want, mac=mac)
        case HostBridgeDiffers(differences=differences):
            return SetHostBridge(
                objects=objects,
                reason=reason,
                impact=_NEW_MAC if any(x.key == "mac" for x in differences) else "none",
                bridge=name,
                values=tuple((x.key, x.want) for x in differences if x.key != "state"),
            )
        case HostAddressMissing(address=address):
            return AddAddress(objects=objects, reason=reason, bridge=name, address=address)
        case RoutesMissing(routes=routes):
            return AddRoutes(objects=objects, reason=reason, bridge=name, routes=routes)
        case _:
            raise AssertionError(item)


def _obstacles(
    want: BridgePolicy, links: Mapping[IfName, Link], uplinks: Uplinks
) -> Iterator[Conflict]:
    """While there is one, nothing of the bridge is touched."""
    object_ = bridge_object(want.name)
    link = links.get(want.name)
    if link is not None and link.kind != "bridge":
        kind = link.kind or "network card"
        wrong = f"a link of that name is there, a {kind}; rename it, or the bridge in the policy"
        yield Conflict(object_, wrong)
    if owner := uplinks.owners.get(want.name):
        yield Conflict(object_, f"{owner} leads it already; to hand it over: {owner.cure}")
    for refusal in uplinks.refused:
        if refusal.bridge == want.name and refusal.policy == repr(want):
            again = "tried again when its policy changes, or by: vnetctl reconcile"
            yield Conflict(object_, f"{refusal.why}; {again}")
    for port in want.ports:
        uplink = resolve(port.uplink, links, uplinks.pci)
        if uplink is not None:
            yield from ports.obstacles(want.name, uplink, links, uplinks)


def _one(
    want: BridgePolicy, links: Mapping[IfName, Link], uplinks: Uplinks
) -> Iterator[Drift | Wait]:
    name, object_ = want.name, bridge_object(want.name)
    link = links.get(name)
    wired = [(port, resolve(port.uplink, links, uplinks.pci)) for port in want.ports]
    there = [uplink for _, uplink in wired if uplink is not None]
    if link is None:
        yield BridgeAbsent(name)
    elif found := _differences(want, link, wanted_mac(want, there)):
        yield HostBridgeDiffers(name, found)
    for port, uplink in wired:
        if uplink is None:
            yield Wait(object_, f"waits for uplink {port.uplink}: no such link")
        else:
            yield from ports.diff(want, port, uplink, uplinks)
    names = {uplink.name for uplink in there}
    for taken in uplinks.taken:
        if taken.bridge == name and taken.uplink not in names and taken.uplink in links:
            yield ports.PortUnwanted(name, taken.uplink)
    if any(uplink.master != name for uplink in there) or (want.ports and not there):
        return  # what it has beside them would lead nowhere, and away from where it leads now
    given = [item for item in uplinks.taken if item.bridge == name]
    have = link.addresses if link else frozenset()
    for address in wanted_addresses(want, given):
        if address not in have:
            yield HostAddressMissing(name, address)
    routes = uplinks.routes.get(name, frozenset())
    exactly = bool(want.gateways)
    if missing := _missing(wanted_routes(want, given), routes, exactly=exactly):
        yield RoutesMissing(name, missing)


def wanted_mac(want: BridgePolicy, uplinks: Sequence[Link]) -> str | None:
    """The first uplink's, under which the neighbours know the host."""
    if want.mac is not None or not uplinks:
        return want.mac
    return uplinks[0].mac


def wanted_addresses(want: BridgePolicy, given: Iterable[Taken]) -> tuple[Address, ...]:
    """Where the policy names none, those that the uplinks brought."""
    brought = {address for item in given for address in item.addresses}
    return want.addresses or tuple(sorted(brought, key=str))


def wanted_routes(want: BridgePolicy, given: Iterable[Taken]) -> tuple[Route, ...]:
    brought = {route for item in given for route in item.routes}
    if not want.gateways:
        return tuple(sorted(brought, key=str))
    return tuple(Route(_EVERYWHERE[g.version], g, _METRICS[g.version]) for g in want.gateways)


def _differences(want: BridgePolicy, link: Link, mac: str | None) -> tuple[Difference, ...]:
    pairs: list[tuple[str, object, object]] = [("state", "up", "up" if link.up else "down")]
    pairs += [("mac", mac, link.mac)] if mac is not None else []
    pairs += [("mtu", want.mtu, link.mtu)] if want.mtu is not None else []
    for key in _OPTIONS:
        wanted, have = getattr(want, key), getattr(link.bridge, key, None)
        # What the kernel does not have is off.
        if wanted is not None and not (wanted is False and have is None):
            pairs.append((key, wanted, have))
    return unequal(pairs)


def _missing(wanted: Iterable[Route], have: Iterable[Route], *, exactly: bool) -> tuple[Route, ...]:
    """exactly: another gateway will not do. Of those that an uplink brought it will: they are as
    somebody has changed them.
    """
    there = set(have)
    ways = {(route.destination, route.table) for route in there}
    return tuple(
        route
        for route in wanted
        if route not in there and (exactly or (route.destination, route.table) not in ways)
    )


def _left_over(
    policy: Policy, name: IfName, links: Mapping[IfName, Link], uplinks: Uplinks
) -> LeftOver | Conflict:
    own = {item.uplink for item in uplinks.taken if item.bridge == name}
    foreign = sorted(x.name for x in links.values() if x.master == name and x.name not in own)
    users = sorted(
        f"networks.{network.name}"
        for network in policy.networks.values()
        if network.bridge == name and not network.mode.has_own_bridge
    )
    if not foreign and not users:
        return LeftOver(name)
    what = f"{few(foreign)} is plugged into it" if foreign else f"{few(users)} is on it"
    return Conflict(bridge_object(name), f"is in no policy any more, but {what}")
