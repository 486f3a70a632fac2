"""libvirt's networks: defined as the policy says, started, autostarted, and gone when the policy
names them no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from vnetd.core.actions import Action
from vnetd.core.drift import Conflict, Difference, Drift, NetworkDrift, Wait, joined, unequal
from vnetd.core.model import (
    Definition,
    DhcpHost,
    DhcpRange,
    IfName,
    Libvirt,
    Link,
    Network,
    Observed,
    Source,
    World,
    network_object,
)
from vnetd.core.policy import NetworkPolicy, Policy
from vnetd.core.uplinks import way_out
from vnetd.core.wording import few

# What libvirt changes in a running network, and what the kernel's own bridge tells better.
_LIVE_KEYS = ("dhcp.ranges", "dhcp.hosts")
LINK_KEYS = ("mac", "mtu", "stp")
_KERNELS_KEYS = (*LINK_KEYS, "routes")


_REWRITTEN = "new connections wait up to 1 s while libvirt rewrites the network's rules"


class _OfLibvirt(NetworkDrift):
    __slots__ = ()
    source = Source.LIBVIRT


@dataclass(frozen=True, slots=True)
class Undefined(_OfLibvirt):
    def __str__(self) -> str:
        return "is not defined"


@dataclass(frozen=True, slots=True)
class ConfigDiffers(_OfLibvirt):
    """What libvirt will start next time is not what the policy says."""

    differences: tuple[Difference, ...]

    def __str__(self) -> str:
        return "definition: " + joined(self.differences)


@dataclass(frozen=True, slots=True)
class LiveDiffers(_OfLibvirt):
    """What runs now is not what the policy says, and only a restart changes it."""

    differences: tuple[Difference, ...]

    def __str__(self) -> str:
        return "running network: " + joined(self.differences)


@dataclass(frozen=True, slots=True)
class DhcpDiffers(_OfLibvirt):
    """Ranges or reservations of the running network, which libvirt can change while it runs."""

    add: tuple[DhcpRange | DhcpHost, ...]
    remove: tuple[DhcpRange | DhcpHost, ...]

    def __str__(self) -> str:
        missing = [f"{item} is missing" for item in self.add]
        return "running DHCP: " + few(missing + [f"{item} is not wanted" for item in self.remove])


@dataclass(frozen=True, slots=True)
class UplinkDiffers(_OfLibvirt):
    """Of the running network, which libvirt can change while it runs."""

    want: IfName
    have: IfName | None

    def __str__(self) -> str:
        return f"running network: uplink is {self.have or 'any'} instead of {self.want}"


@dataclass(frozen=True, slots=True)
class Stopped(_OfLibvirt):
    def __str__(self) -> str:
        return "is not active"


@dataclass(frozen=True, slots=True)
class LeftBehind(_OfLibvirt):
    """A libvirtd that was killed left the bridge; before 10.8 libvirt does not start over it."""

    bridge: IfName

    def __str__(self) -> str:
        return f"is not active, and its old bridge {self.bridge} is in the way"


@dataclass(frozen=True, slots=True)
class AutostartDiffers(_OfLibvirt):
    want: bool

    def __str__(self) -> str:
        return f"autostart is {'off' if self.want else 'on'}"


@dataclass(frozen=True, slots=True)
class Unexpected(_OfLibvirt):
    """Made by vnetd, and no policy names it any more."""

    def __str__(self) -> str:
        return "is in no policy any more"


@dataclass(frozen=True, slots=True)
class BridgeMissing(NetworkDrift):
    """libvirt calls the network active, but its bridge is gone."""

    bridge: IfName
    source = Source.LINKS

    def __str__(self) -> str:
        return f"is active without its bridge {self.bridge}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveNetwork(Action):
    network: str

    def __str__(self) -> str:
        return f"stop and undefine network {self.network}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DefineNetwork(Action):
    policy: NetworkPolicy

    def __str__(self) -> str:
        return f"define network {self.policy.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAutostart(Action):
    network: str
    on: bool

    def __str__(self) -> str:
        return f"turn autostart of network {self.network} {'on' if self.on else 'off'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateDhcp(Action):
    network: str
    add: tuple[DhcpRange | DhcpHost, ...]
    remove: tuple[DhcpRange | DhcpHost, ...]

    def __str__(self) -> str:
        changes = f"{len(self.add)} added, {len(self.remove)} removed"
        return f"update DHCP of network {self.network}: {changes}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetUplink(Action):
    """old: None where any would do."""

    network: str
    old: IfName | None
    new: IfName

    def __str__(self) -> str:
        return f"bind network {self.network} to uplink {self.new}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartNetwork(Action):
    network: str

    def __str__(self) -> str:
        return f"start network {self.network}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveStrayBridge(Action):
    """Unless something has been plugged into it since."""

    bridge: IfName

    def __str__(self) -> str:
        return f"remove the left over bridge {self.bridge}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartNetwork(Action):
    network: str

    def __str__(self) -> str:
        return f"stop and start network {self.network}"


def diff(
    policy: Policy,
    libvirt: Libvirt,
    links: Mapping[IfName, Link],
    refused: Mapping[str, Sequence[str]],
    pci: Mapping[IfName, str],
) -> Iterator[Drift | Conflict | Wait]:
    """refused: networks that must not become what the policy wants, and why. pci: of each card."""
    for name, stated in sorted(policy.networks.items()):
        if name in refused:
            yield from (Conflict(network_object(name), why) for why in refused[name])
            continue
        want = _bound(stated, links, pci)
        if want is None:
            yield Wait(network_object(name), f"waits for uplink {stated.uplink}: no such link")
            continue
        for host in want.waiting:
            what = f"reservation of {host.address} waits for domain {host.domain}"
            yield Wait(network_object(name), f"{what}, which has no interface on the network")
        have = libvirt.networks.get(name) or Network(name, None, None, autostart=False)
        if have.config is None:
            yield Undefined(name)
        elif found := differences(want, have.config):
            yield ConfigDiffers(name, found)
        if have.autostart is not want.autostart:
            yield AutostartDiffers(name, want.autostart)
        if have.live is None:
            yield _stopped(want, have, libvirt, links)
        else:
            yield from _live(want, have.live)
            if not want.mode.has_own_bridge and want.bridge and want.bridge not in links:
                yield _waits(want)
    # An empty policy removes nothing: a file that lost its text must not cost every network.
    if policy.present and policy.networks:
        for name, network in sorted(libvirt.networks.items()):
            if name not in policy.networks and network.definition.made_by_vnetd:
                yield _unexpected(name, libvirt)


def _bound(
    want: NetworkPolicy, links: Mapping[IfName, Link], pci: Mapping[IfName, str]
) -> NetworkPolicy | None:
    """With the name that its uplink has today; that of the bridge, where it is a port of one."""
    if want.uplink is None:
        return want
    link = way_out(want.uplink, links, pci)
    return None if link is None else replace(want, uplink=link.name)


def differences(want: NetworkPolicy, have: Definition) -> tuple[Difference, ...]:
    """Where a definition is not what the policy says. Keys that the policy leaves out are free."""
    pairs: list[tuple[str, object, object]] = [("mode", want.libvirts_mode, have.mode)]
    for key in ("bridge", "mac", "mtu", "stp", "domain"):
        if getattr(want, key) is not None:
            pairs.append((key, getattr(want, key), getattr(have, key)))
    if want.mode.has_own_bridge:
        pairs += [("uplink", want.uplink, have.forward_dev)] if want.uplink is not None else []
        pairs += [
            ("addresses", want.addresses, have.addresses),
            ("dhcp.ranges", frozenset(want.ranges), frozenset(have.ranges)),
            ("dhcp.hosts", frozenset(want.hosts), frozenset(have.hosts)),
        ]
        if want.routes is not None:
            pairs.append(("routes", frozenset(want.routes), frozenset(have.routes)))
    return unequal(pairs)


def restarted(drift: Iterable[Drift], observed: Observed) -> frozenset[str]:
    """The networks that the plan stops and starts: with it comes all else that libvirt makes."""
    return frozenset(
        item.network
        for item in drift
        if isinstance(item, LiveDiffers)
        or (isinstance(item, BridgeMissing) and _bridge_is_libvirts_only(item.network, observed))
    )


def starting(found: Iterable[object], libvirt: Libvirt) -> tuple[Definition, ...]:
    """The networks that the plan starts, as they will be."""
    names = sorted({x.network for x in found if isinstance(x, Stopped | LeftBehind)})
    configs = [libvirt.networks[name].config for name in names if name in libvirt.networks]
    return tuple(config for config in configs if config is not None)


def plan(drift: Sequence[Drift], policy: Policy, observed: Observed) -> list[Action]:
    """Removing first frees names and subnets; a definition must be right before it is started."""
    actions: list[Action] = []
    for name in sorted(restarted(drift, observed)):
        reasons = [
            str(item)
            for item in drift
            if isinstance(item, LiveDiffers | BridgeMissing) and item.network == name
        ]
        actions.append(
            RestartNetwork(
                objects=(network_object(name),),
                reason="; ".join(reasons),
                impact=_restart_impact(name, observed),
                network=name,
            )
        )
    for item in drift:
        objects, reason = (item.object,), str(item)
        match item:
            case Undefined(network=name) | ConfigDiffers(network=name):
                pci = observed.uplinks.pci if observed.uplinks else {}
                definition = _bound(policy.networks[name], observed.links or {}, pci)
                if definition is not None:
                    actions.append(DefineNetwork(objects=objects, reason=reason, policy=definition))
            case DhcpDiffers(network=name, add=add, remove=remove):
                actions.append(
                    UpdateDhcp(
                        objects=objects,
                        reason=reason,
                        impact=_REWRITTEN,
                        network=name,
                        add=add,
                        remove=remove,
                    )
                )
            case UplinkDiffers(network=name, want=new, have=old):
                actions.append(
                    SetUplink(
                        objects=objects,
                        reason=reason,
                        impact=_REWRITTEN,
                        network=name,
                        old=old,
                        new=new,
                    )
                )
            case Stopped(network=name):
                actions.append(StartNetwork(objects=objects, reason=reason, network=name))
            case LeftBehind(network=name, bridge=bridge):
                actions.append(RemoveStrayBridge(objects=objects, reason=reason, bridge=bridge))
                actions.append(StartNetwork(objects=objects, reason=reason, network=name))
            case AutostartDiffers(network=name, want=want):
                actions.append(SetAutostart(objects=objects, reason=reason, network=name, on=want))
            case Unexpected(network=name):
                actions.append(RemoveNetwork(objects=objects, reason=reason, network=name))
            case _:
                pass
    return sorted(actions, key=lambda action: _ORDER.index(type(action)))


_ORDER: tuple[type[Action], ...] = (
    RemoveNetwork,
    DefineNetwork,
    SetAutostart,
    UpdateDhcp,
    SetUplink,
    RestartNetwork,
    RemoveStrayBridge,
    StartNetwork,
)


def _bridge_is_libvirts_only(name: str, observed: Observed) -> bool:
    """Something of it cannot be made but by libvirt: bandwidth, or rules bound to its index."""
    network = observed.libvirt.networks.get(name) if observed.libvirt else None
    if network is None or network.live is None or observed.firewall is None:
        return True
    return network.live.bandwidth or observed.firewall.world is World.NFTABLES


def _stopped(
    want: NetworkPolicy, have: Network, libvirt: Libvirt, links: Mapping[IfName, Link]
) -> Stopped | LeftBehind | Conflict | Wait:
    if not want.mode.has_own_bridge and want.bridge and want.bridge not in links:
        return _waits(want)
    bridge = want.bridge or (have.config.bridge if have.config else None)
    link = links.get(bridge) if bridge and want.mode.has_own_bridge else None
    own_mac = have.config.mac if have.config else None
    if link is not None and link.mac != own_mac:
        # libvirt would fail to start the network, and delete the other bridge while failing.
        wrong = f"cannot start: a link named {bridge} exists that is not libvirt's"
        return Conflict(network_object(want.name), f"{wrong}; rename or remove it")
    if ports := libvirt.taken_ports.get(want.name):
        return Conflict(network_object(want.name), f"cannot start while others have {ports}")
    if link is None or want.name not in libvirt.blocked:
        return Stopped(want.name)  # with a link libvirt may just be starting the network
    if link.kind != "bridge" or any(port.master == link.name for port in links.values()):
        wrong = f"cannot start: its bridge {bridge} is there already, and in use"
        return Conflict(network_object(want.name), f"{wrong}; rename or remove it")
    return LeftBehind(want.name, link.name)


def _waits(want: NetworkPolicy) -> Wait:
    return Wait(network_object(want.name), f"waits for bridge {want.bridge}: no such link")


def _live(want: NetworkPolicy, live: Definition) -> Iterator[Drift]:
    found = differences(want, live)
    free = (*_LIVE_KEYS, *_KERNELS_KEYS, "uplink")
    fixed = tuple(item for item in found if item.key not in free)
    if fixed:
        yield LiveDiffers(want.name, fixed)
        return
    for item in found:
        if item.key == "uplink":
            yield UplinkDiffers(want.name, IfName(item.want), live.forward_dev)
    if any(item.key in _LIVE_KEYS for item in found):
        wanted: set[DhcpRange | DhcpHost] = {*want.ranges, *want.hosts}
        served: set[DhcpRange | DhcpHost] = {*live.ranges, *live.hosts}
        add = tuple(sorted(wanted - served, key=str))
        yield DhcpDiffers(want.name, add, tuple(sorted(served - wanted, key=str)))


def _unexpected(name: str, libvirt: Libvirt) -> Unexpected | Conflict:
    guests = sorted({tap.domain for tap in libvirt.taps if tap.network == name})
    if not guests:
        return Unexpected(name)
    wrong = f"is in no policy any more, but {few(guests)} still uses it"
    return Conflict(network_object(name), wrong)


def _restart_impact(network: str, observed: Observed) -> str:
    libvirt = observed.libvirt
    taps = [tap for tap in libvirt.taps if tap.network == network] if libvirt else []
    if not taps:
        return "none: no guest is on it"
    live = libvirt.networks[network].live if libvirt else None
    gap = "1 s" if live and live.stp is False else "6 s (STP)"
    guests = ", ".join(sorted({tap.domain for tap in taps}))
    return f"guests {guests} lose the network for about {gap}"
