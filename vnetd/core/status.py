"""What a pass found, as the bus shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from vnetd.core.diff import Diff
from vnetd.core.keep import announce, guard, taps
from vnetd.core.keep import bridges as b
from vnetd.core.keep.networks import BridgeMissing
from vnetd.core.model import (
    Definition,
    Held,
    IfName,
    Mode,
    Observed,
    State,
    bridge_object,
    network_object,
)
from vnetd.core.model.link import PortState
from vnetd.core.policy import Enforcement, Policy


class Kept(StrEnum):
    """How vnetd stands to a network."""

    MANAGED = "managed"
    PROTECTED = "protected"
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class NetworkStatus:
    name: str
    state: State
    kept: Kept
    uuid: str
    mode: str
    bridge: str
    active: bool
    autostart: bool
    addresses: tuple[str, ...]
    guard: str
    """ "on", "off" or "" for a mode in which there is nothing to guard."""
    drift: tuple[str, ...]
    reasons: tuple[str, ...]
    upstream: tuple[str, ...] = ()
    """Commands by which the next router learns where the guests are, if nothing else tells it."""


@dataclass(frozen=True, slots=True)
class BridgeStatus:
    """A bridge of the host that the policy names or libvirt's networks use, whoever made it."""

    name: str
    state: State
    kept: Kept
    networks: tuple[str, ...]
    present: bool
    up: bool
    mac: str
    mtu: int
    stp: bool
    addresses: tuple[str, ...]
    ports: tuple[str, ...]
    drift: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PortStatus:
    """A running guest's tap. bridge: where it must be; "" while its network is not active."""

    device: str
    state: State
    domain: str
    network: str
    bridge: str
    plugged: bool
    mac: str
    isolated: bool
    forwarding: PortState | None
    drift: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Status:
    state: State
    enforcement: Enforcement
    reasons: tuple[str, ...]
    libvirt: str
    firewall: str
    guard: str
    networks: Mapping[str, NetworkStatus]
    bridges: Mapping[str, BridgeStatus]
    ports: Mapping[str, PortStatus]


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the daemon knows beside drift. failures and fights: object → why."""

    paused: bool = False
    healing: bool = False
    failures: Mapping[str, str] | None = None
    fights: Mapping[str, str] | None = None
    troubles: Sequence[str] = ()


def status(policy: Policy, observed: Observed, found: Diff, now: Circumstances) -> Status:
    libvirt = observed.libvirt
    world = observed.firewall.world if observed.firewall else None
    troubles = [*now.troubles]
    if libvirt is not None and libvirt.read_only:
        troubles.insert(0, _READ_ONLY)
    observing = policy.enforcement is Enforcement.OBSERVE
    per_object = _per_object(found, now)
    networks = {}
    names = set(policy.networks) | set(libvirt.networks if libvirt else ())
    for name in sorted(names):
        drift, reasons = per_object.pop(network_object(name), ((), ()))
        have = libvirt.networks.get(name) if libvirt else None
        definition = have.definition if have else None
        networks[name] = NetworkStatus(
            name=name,
            state=_state(drift, reasons, now, observing=observing),
            kept=_kept(policy, name),
            uuid=definition.uuid or "" if definition else "",
            mode=_mode(policy, name, definition),
            bridge=definition.bridge or "" if definition else "",
            active=have.live is not None if have else False,
            autostart=have.autostart if have else False,
            addresses=tuple(str(a) for a in definition.addresses) if definition else (),
            guard=_guard(policy, observed, definition),
            drift=drift,
            reasons=reasons,
            upstream=_upstream(policy, observed, definition),
        )
    bridges = _bridges(observed, found, now, networks, per_object, observing=observing)
    states = [network.state for network in networks.values()]
    states += [bridge.state for bridge in bridges.values()]
    for drift, reasons in per_object.values():
        troubles += reasons
        states.append(_state(drift, reasons, now, observing=observing))
    return Status(
        state=_worst([*states, _state((), troubles, now, observing=observing)]),
        enforcement=policy.enforcement,
        reasons=tuple(troubles),
        libvirt=libvirt.version if libvirt else "",
        firewall=str(world or ""),
        guard=_GUARD[observed.guard.held if observed.guard else None],
        networks=networks,
        bridges=bridges,
        ports=_ports(observed, found, now, observing=observing),
    )


def _bridges(
    observed: Observed,
    found: Diff,
    now: Circumstances,
    networks: Mapping[str, NetworkStatus],
    per_object: _PerObject,
    *,
    observing: bool,
) -> dict[str, BridgeStatus]:
    # Also those that nobody names any more, as long as there is something to say of them.
    spoken = (object_.partition("/") for object_ in per_object)
    left = {name for kind, _, name in spoken if bridge_object(name) == f"{kind}/{name}"}
    users: dict[str, list[NetworkStatus]] = {name: [] for name in {*observed.asked.bridges, *left}}
    for network in networks.values():
        if network.bridge:
            users.setdefault(network.bridge, []).append(network)
    flaws: dict[str, list[str]] = {}
    for item in found.drift:
        if isinstance(item, BridgeMissing | b.BridgeDiffers | b.AddressMissing):
            flaws.setdefault(item.bridge, []).append(str(item))
    links = observed.links or {}
    plugged: dict[str, list[str]] = {}
    for link in links.values():
        if link.master is not None:
            plugged.setdefault(link.master, []).append(link.name)
    bridges = {}
    for name in sorted(users):
        bridge = links.get(IfName(name))
        own, reasons = per_object.pop(bridge_object(name), ((), ()))
        drift = (*own, *flaws.get(name, ()))
        makers = [Kept.MANAGED] if name in observed.asked.bridges else []
        makers += [network.kept for network in users[name] if Mode(network.mode).has_own_bridge]
        bridges[name] = BridgeStatus(
            name=name,
            state=_state(drift, reasons, now, observing=observing),
            kept=makers[0] if makers else Kept.IGNORED,
            networks=tuple(network.name for network in users[name]),
            present=bridge is not None,
            up=bridge.up if bridge else False,
            mac=bridge.mac if bridge else "",
            mtu=bridge.mtu if bridge else 0,
            stp=bridge.bridge.stp if bridge and bridge.bridge else False,
            addresses=tuple(sorted(str(a) for a in bridge.addresses)) if bridge else (),
            ports=tuple(sorted(plugged.get(name, ()))),
            drift=drift,
            reasons=reasons,
        )
    return bridges


def _ports(
    observed: Observed, found: Diff, now: Circumstances, *, observing: bool
) -> dict[str, PortStatus]:
    if observed.libvirt is None:
        return {}
    flaws: dict[str, list[str]] = {}
    for item in found.drift:
        if isinstance(item, taps.Unplugged | taps.TapDiffers | taps.Unlimited | taps.Unrecorded):
            flaws.setdefault(item.tap, []).append(str(item))
    networks, links = observed.libvirt.networks, observed.links or {}
    ports: dict[str, PortStatus] = {}
    for tap in sorted(observed.libvirt.taps, key=lambda tap: tap.device):
        network, link = networks.get(tap.network), links.get(tap.device)
        own = None if tap.network else tap.bridge
        bridge = network.live.bridge if network and network.live else own
        drift = tuple(flaws.get(tap.device, ()))
        ports[tap.device] = PortStatus(
            device=tap.device,
            state=_state(drift, (), now, observing=observing),
            domain=tap.domain,
            network=tap.network,
            bridge=bridge or "",
            plugged=link is not None and link.master is not None and link.master == bridge,
            mac=tap.mac,
            isolated=tap.isolated,
            forwarding=link.port.state if link and link.port else None,
            drift=drift,
        )
    return ports


_READ_ONLY = (
    "in libvirt vnetd may look but change nothing: it needs polkit's action org.libvirt.unix.manage"
)
_SEVERITY = (State.PAUSED, State.DEGRADED, State.DRIFTED, State.HEALING, State.CONVERGED)


def _worst(states: Sequence[State]) -> State:
    return min(states, key=_SEVERITY.index)


def _state(
    drift: Sequence[str], reasons: Sequence[str], now: Circumstances, *, observing: bool
) -> State:
    if now.paused:
        return State.PAUSED
    if reasons:
        return State.DEGRADED
    if drift:
        return State.HEALING if now.healing and not observing else State.DRIFTED
    return State.CONVERGED


_PerObject = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
"""Object → drift, reasons."""


def _per_object(found: Diff, now: Circumstances) -> _PerObject:
    drift: dict[str, list[str]] = {}
    reasons: dict[str, list[str]] = {}
    for item in found.drift:
        drift.setdefault(item.object, []).append(str(item))
    for wait in found.waits:
        drift.setdefault(wait.object, []).append(wait.text)
    for conflict in found.conflicts:
        reasons.setdefault(conflict.object, []).append(conflict.text)
    for object_, why in (*(now.failures or {}).items(), *(now.fights or {}).items()):
        reasons.setdefault(object_, []).append(why)
    return {
        object_: (tuple(drift.get(object_, ())), tuple(reasons.get(object_, ())))
        for object_ in (*drift, *reasons)
    }


def _upstream(policy: Policy, observed: Observed, definition: Definition | None) -> tuple[str, ...]:
    if definition is None:
        return ()
    return tuple(text for _, text in announce.for_the_router(policy, definition, observed))


def _kept(policy: Policy, network: str) -> Kept:
    if network in policy.networks:
        return Kept.MANAGED
    return Kept.PROTECTED if policy.keeps(network) else Kept.IGNORED


_GUARD = {
    None: "",
    Held.PERSISTENT: "owner, persist",
    Held.OWNED: "owner; it goes when vnetd stops, for this kernel is older than 6.9",
    Held.OPEN: "open to others, for this kernel is older than 5.12",
}


def _guard(policy: Policy, observed: Observed, definition: Definition | None) -> str:
    if definition is None or observed.guard is None or observed.libvirt is None:
        return ""
    name = definition.name
    on = policy.keeps(name) and guard.is_guarded(policy, observed.libvirt, definition)
    return ("on" if on else "off") if policy.meant(definition).mode.has_guard else ""


def _mode(policy: Policy, network: str, definition: Definition | None) -> Mode:
    """Known from libvirt, or from the policy."""
    return policy.meant(definition).mode if definition else policy.networks[network].mode
