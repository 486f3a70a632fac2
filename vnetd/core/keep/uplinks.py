"""Uplinks: the links that lead from a bridge of the host to the world outside. Taking one in must
not cut the host off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vnetd.core.actions import Action
from vnetd.core.drift import Conflict, Difference, Drift, Wait, joined, unequal
from vnetd.core.keep.bridges import STP_WAIT
from vnetd.core.model import (
    Address,
    IfName,
    Link,
    Observed,
    Source,
    Uplinks,
    bridge_object,
)
from vnetd.core.model.link import unwanted_vlans
from vnetd.core.policy import INSTEAD, WIRELESS, BridgePolicy, BridgePort, Policy
from vnetd.core.uplinks import resolve
from vnetd.core.wording import few

PAUSE = (
    "connections of the host over {} pause for some 10 ms; put back within 10 s "
    "if its gateway then does not answer"
)


@dataclass(frozen=True, slots=True)
class HostBridgeDrift(Drift):
    bridge: IfName
    source = Source.LINKS

    @property
    def object(self) -> str:
        return bridge_object(self.bridge)


@dataclass(frozen=True, slots=True)
class PortMissing(HostBridgeDrift):
    """bears: it has addresses, so that the host's own connections run over it."""

    uplink: IfName
    bears: bool

    def __str__(self) -> str:
        return f"uplink {self.uplink} is not a port of it"


@dataclass(frozen=True, slots=True)
class PortDiffers(HostBridgeDrift):
    uplink: IfName
    wanted: BridgePort
    differences: tuple[Difference, ...]

    def __str__(self) -> str:
        return f"port {self.uplink}: " + joined(self.differences)


@dataclass(frozen=True, slots=True)
class PortUnwanted(HostBridgeDrift):
    """Taken in by vnetd, and its policy names it no more."""

    uplink: IfName

    def __str__(self) -> str:
        return f"port {self.uplink} is in no policy any more"


@dataclass(frozen=True, slots=True)
class Astray(HostBridgeDrift):
    """A port has addresses of its own, at which nobody answers."""

    uplink: IfName
    addresses: tuple[Address, ...]

    def __str__(self) -> str:
        own = few([str(address) for address in self.addresses])
        return f"port {self.uplink} has addresses of its own: {own}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeUplink(Action):
    """Addresses and routes that the uplink has go over to the bridge with it; all of it is put
    back where a gateway that answered before answers no more. pause_stp: turn the bridge's STP off
    for the moment, so that the port need not wait.
    """

    policy: BridgePolicy
    uplink: IfName
    pause_stp: bool = False

    def __str__(self) -> str:
        return f"take uplink {self.uplink} into bridge {self.policy.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseUplink(Action):
    """It gets back what it gave to the bridge, but for what the policy gives to the bridge."""

    policy: BridgePolicy
    uplink: IfName

    def __str__(self) -> str:
        return f"take uplink {self.uplink} out of bridge {self.policy.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPort(Action):
    """mtu: None leaves it as it is. unwanted: VLANs that it lets through."""

    bridge: IfName
    uplink: IfName
    mtu: int | None
    port: BridgePort
    unwanted: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"set port {self.uplink} of bridge {self.bridge} as the policy says"


def diff(
    want: BridgePolicy, port: BridgePort, uplink: Link, uplinks: Uplinks
) -> Iterator[Drift | Wait]:
    own = tuple(sorted((a for a in uplink.addresses if not a.is_link_local), key=str))
    if uplink.master != want.name:
        yield PortMissing(want.name, uplink.name, bool(own))
        return
    if own:
        yield Astray(want.name, uplink.name, own)
    pairs: list[tuple[str, object, object]] = [("state", "up", "up" if uplink.up else "down")]
    if want.mtu is not None:
        pairs.append(("mtu", want.mtu, uplink.mtu))
    if uplink.port is not None and port.isolated is not None:
        pairs.append(("isolated", port.isolated, uplink.port.isolated))
    if uplink.port is not None and port.vlans is not None:
        pairs.append(("vlan", port.vlans, uplink.port.vlans))
    if found := unequal(pairs):
        yield PortDiffers(want.name, uplink.name, port, found)
    elif not uplink.carrier:
        yield Wait(bridge_object(want.name), f"waits for a carrier on uplink {uplink.name}")


def plan(item: Drift, policy: Policy, observed: Observed) -> Action | None:
    """None: the drift is not of a port."""
    objects, reason = (item.object,), str(item)
    match item:
        case PortUnwanted(bridge=name, uplink=uplink):
            return ReleaseUplink(
                objects=objects,
                reason=reason,
                impact=PAUSE.format(uplink),
                policy=policy.bridges[name],
                uplink=uplink,
            )
        case PortMissing(bridge=name, uplink=uplink, bears=bears):
            return _take(objects, reason, policy.bridges[name], uplink, observed, bears=bears)
        case Astray(bridge=name, uplink=uplink):
            return _take(objects, reason, policy.bridges[name], uplink, observed, bears=True)
        case PortDiffers(bridge=name, uplink=uplink, wanted=wanted):
            return SetPort(
                objects=objects,
                reason=reason,
                bridge=name,
                uplink=uplink,
                mtu=policy.bridges[name].mtu,
                port=wanted,
                unwanted=_unwanted(wanted, (observed.links or {}).get(uplink)),
            )
        case _:
            return None


def _unwanted(wanted: BridgePort, link: Link | None) -> tuple[int, ...]:
    if wanted.vlans is None or link is None or link.port is None:
        return ()
    return unwanted_vlans(link.port.vlans, wanted.vlans)


def obstacles(
    bridge: IfName, uplink: Link, links: Mapping[IfName, Link], uplinks: Uplinks
) -> Iterator[Conflict]:
    object_, name = bridge_object(bridge), uplink.name
    if name in uplinks.wireless:
        yield Conflict(object_, f"uplink {name} {WIRELESS}; {INSTEAD}")
    if uplink.master == bridge:
        return
    if uplink.master is not None:
        kind = links[uplink.master].kind if uplink.master in links else ""
        wrong = f"uplink {name} is a port of {kind or 'link'} {uplink.master}"
        yield Conflict(object_, f"{wrong}; take it out there: ip link set {name} nomaster")
    if owner := uplinks.owners.get(name):
        wrong = f"{owner} leads uplink {name}, and would fight for its addresses"
        yield Conflict(object_, f"{wrong}; to hand it over: {owner.cure}")
    elif name in uplinks.leased:
        wrong = f"uplink {name} has its address from a DHCP client, which would renew it there"
        yield Conflict(object_, f"{wrong}; end the client and write the bridge's addresses")


def _take(
    objects: tuple[str, ...],
    reason: str,
    want: BridgePolicy,
    uplink: IfName,
    observed: Observed,
    *,
    bears: bool,
) -> TakeUplink:
    """Two ports that lead outside may close a loop, which is what STP is there for."""
    links, uplinks = observed.links or {}, observed.uplinks or Uplinks()
    found = [resolve(port.uplink, links, uplinks.pci) for port in want.ports]
    there = [link for link in found if link is not None]
    first = bool(there) and there[0].name == uplink
    alone = first and not any(x.master == want.name and x.name != uplink for x in there)
    link = links.get(want.name)
    stp = want.stp if want.stp is not None else bool(link and link.bridge and link.bridge.stp)
    impacts = [PAUSE.format(uplink)] if bears else []
    impacts += [STP_WAIT] if stp and not alone else []
    return TakeUplink(
        objects=objects,
        reason=reason,
        impact="; ".join(impacts) or "none",
        policy=want,
        uplink=uplink,
        pause_stp=stp and alone,
    )
