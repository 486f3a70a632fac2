"""Running guests' taps: on their network's bridge, set as libvirt set them, and on its record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vnetd.core.actions import Action
from vnetd.core.drift import Difference, Drift, NetworkDrift, joined, unequal
from vnetd.core.keep.bridges import STP_WAIT
from vnetd.core.keep.bridges import wanted as wanted_of_bridge
from vnetd.core.model import Definition, IfName, Libvirt, Link, Source, Tap
from vnetd.core.model.link import Port, PortState, Vlan, unwanted_vlans
from vnetd.core.policy import Policy

_NO_FLOOR = (
    "its guaranteed bandwidth (floor) is lost until its NIC is unplugged and plugged: libvirt "
    "reserves one only for a new NIC"
)


@dataclass(frozen=True, slots=True)
class TapSettings:
    """What of a tap must change. None and empty leave as it is. unwanted_vlans: their numbers."""

    up: bool | None = None
    mtu: int | None = None
    isolated: bool | None = None
    learning: bool | None = None
    unicast_flood: bool | None = None
    vlans: tuple[Vlan, ...] = ()
    unwanted_vlans: tuple[int, ...] = ()
    macs: tuple[str, ...] = ()

    @property
    def of_port(self) -> bool:
        """Some of it belongs to the bridge's port, and goes when the tap leaves the bridge."""
        flags = (self.isolated, self.learning, self.unicast_flood)
        others = (self.vlans, self.unwanted_vlans, self.macs)
        return any(flag is not None for flag in flags) or any(others)


@dataclass(frozen=True, slots=True)
class Unplugged(NetworkDrift):
    """A running guest's tap is not on its network's bridge. settings: once it is.
    own_bridge: libvirt made the bridge, so that all its ports are guests'.
    """

    bridge: IfName
    domain: str
    tap: IfName
    settings: TapSettings
    own_bridge: bool
    source = Source.LINKS

    def __str__(self) -> str:
        return f"tap {self.tap} of guest {self.domain} is not on bridge {self.bridge}"


@dataclass(frozen=True, slots=True)
class TapDiffers(NetworkDrift):
    """A running guest's tap is on its bridge, but not as libvirt set it."""

    domain: str
    tap: IfName
    differences: tuple[Difference, ...]
    settings: TapSettings
    source = Source.LINKS

    def __str__(self) -> str:
        return f"tap {self.tap} of guest {self.domain}: {joined(self.differences)}"


@dataclass(frozen=True, slots=True)
class Unlimited(NetworkDrift):
    """What holds a running guest to its bandwidth is gone from its tap."""

    domain: str
    tap: IfName
    source = Source.LINKS

    def __str__(self) -> str:
        return f"tap {self.tap} of guest {self.domain} has no bandwidth limit any more"


@dataclass(frozen=True, slots=True)
class Unrecorded(NetworkDrift):
    """libvirt has forgotten a running guest's tap: it does not count it any more."""

    bridge: IfName
    domain: str
    tap: IfName
    port: str
    floor: bool
    source = Source.LIBVIRT

    def __str__(self) -> str:
        return f"libvirt has no port for tap {self.tap} of guest {self.domain}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlugTap(Action):
    """pause_stp: turn the bridge's STP off for the moment, so that the port need not wait."""

    tap: IfName
    bridge: IfName
    settings: TapSettings
    pause_stp: bool = False

    def __str__(self) -> str:
        return f"plug tap {self.tap} into bridge {self.bridge}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetTap(Action):
    tap: IfName
    settings: TapSettings
    differences: tuple[Difference, ...]

    def __str__(self) -> str:
        values = ", ".join(f"{item.key} {item.want}" for item in self.differences)
        return f"set tap {self.tap}: {values}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitTap(Action):
    network: str
    domain: str
    tap: IfName

    def __str__(self) -> str:
        return f"limit the bandwidth of tap {self.tap} of guest {self.domain} again"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordPort(Action):
    network: str
    domain: str
    port: str
    bridge: IfName

    def __str__(self) -> str:
        return f"let libvirt know guest {self.domain} on network {self.network} again"


def diff(
    policy: Policy, libvirt: Libvirt, kept: Sequence[Definition], links: Mapping[IfName, Link]
) -> Iterator[Drift]:
    networks = {live.name: live for live in kept if live.bridge in links}
    on_bridge = {live.bridge: live.name for live in networks.values()}
    for tap in libvirt.taps:
        name = tap.network or on_bridge.get(tap.bridge, "")
        live, link = networks.get(name), links.get(tap.device)
        if live is None or live.bridge is None or link is None:
            continue
        mtu = wanted_of_bridge(libvirt.networks[name], policy.networks.get(name)).get("mtu")
        bridge = links[live.bridge]
        if unplugged := _unplugged(live, tap, link, bridge, mtu):
            yield unplugged
        else:
            settings, differences = _compare(tap, link, link.port, bridge, mtu)
            if differences:
                yield TapDiffers(name, tap.domain, tap.device, differences, settings)
        if not tap.qdiscs <= link.qdiscs:
            yield Unlimited(name, tap.domain, tap.device)
        if tap.port and tap.port not in libvirt.ports:
            yield Unrecorded(name, live.bridge, tap.domain, tap.device, tap.port, tap.floor)


def waiting(
    policy: Policy, libvirt: Libvirt, network: Definition, links: Mapping[IfName, Link]
) -> Iterator[Drift]:
    """For a network that libvirt has not started yet, of which it has made the bridge: what can
    go there now. STP, VLANs and a MAC table of its own libvirt sets up only after that, and before
    it sets the bridge up.
    """
    bridge = links[network.bridge] if network.bridge else None
    assert bridge is not None, "libvirt has made it"
    values = wanted_of_bridge(libvirt.networks[network.name], policy.networks.get(network.name))
    mtu, plain = values.get("mtu"), values.get("stp") is False and not values["vlan filtering"]
    for tap in libvirt.taps:
        link = links.get(tap.device)
        ready = bridge.up or (plain and not tap.vlans)
        if tap.network != network.name or link is None or not ready:
            continue
        if unplugged := _unplugged(network, tap, link, bridge, mtu):
            yield unplugged


def plan(drift: Iterable[Drift], links: Mapping[IfName, Link]) -> Iterator[Action]:
    for item in drift:
        objects, reason = (item.object,), str(item)
        match item:
            case Unplugged(bridge=bridge, tap=tap, settings=settings, own_bridge=own):
                stp = _has_stp(links.get(bridge))
                safe = own and _loop_free(bridge, links)
                yield PlugTap(
                    objects=objects,
                    reason=reason,
                    impact=STP_WAIT if stp and not safe else "none",
                    tap=tap,
                    bridge=bridge,
                    settings=settings,
                    pause_stp=stp and safe,
                )
            case TapDiffers(tap=tap, settings=settings, differences=differences):
                yield SetTap(
                    objects=objects,
                    reason=reason,
                    tap=tap,
                    settings=settings,
                    differences=differences,
                )
            case Unlimited(network=network, domain=domain, tap=tap):
                yield LimitTap(
                    objects=objects, reason=reason, network=network, domain=domain, tap=tap
                )
            case Unrecorded(network=network, domain=domain, port=port, bridge=bridge, floor=floor):
                yield RecordPort(
                    objects=objects,
                    reason=reason,
                    impact=f"guest {domain}: {_NO_FLOOR}" if floor else "none",
                    network=network,
                    domain=domain,
                    port=port,
                    bridge=bridge,
                )
            case _:
                pass


def _unplugged(
    network: Definition, tap: Tap, link: Link, bridge: Link, mtu: object
) -> Unplugged | None:
    if link.master == bridge.name and link.port:
        return None
    settings, _ = _compare(tap, link, None, bridge, mtu)
    own = network.mode.has_own_bridge
    return Unplugged(network.name, bridge.name, tap.domain, tap.device, settings, own)


def _compare(
    tap: Tap, link: Link, port: Port | None, bridge: Link, mtu: object
) -> tuple[TapSettings, tuple[Difference, ...]]:
    """port: None if it is not plugged in: then it will be as the kernel makes a new one.

    Where neither the NIC nor the network has an MTU the tap's is right, unless it is smaller than
    its bridge's: frames would get lost between the two.
    """
    wanted_mtu = tap.mtu or (mtu if isinstance(mtu, int) else max(link.mtu, bridge.mtu))
    new = port is None
    port = port or Port()
    pairs: list[tuple[str, object, object]] = [
        ("mtu", wanted_mtu, link.mtu),
        ("isolated", tap.isolated, port.isolated),
        ("learning", not tap.mac_table, port.learning),
        ("unicast flood", not tap.mac_table, port.unicast_flood),
    ]
    if not tap.link_down:
        pairs.append(("state", "up", "up" if link.up else "down"))
    macs = {tap.mac} - port.macs if tap.mac_table and not tap.paused else set[str]()
    if macs:
        pairs.append(("static MAC", tap.mac, ""))
    options = bridge.bridge
    vlans = port.vlans
    if new and options is not None and options.default_pvid:
        vlans = frozenset({Vlan(options.default_pvid, pvid=True, untagged=True)})
    by_vlan = bool(tap.vlans) and options is not None and bool(options.vlan_filtering)
    if by_vlan:
        pairs.append(("vlans", tuple(sorted(tap.vlans)), tuple(sorted(vlans))))
    differences = unequal(pairs)
    keys = {difference.key for difference in differences}
    return TapSettings(
        up=True if "state" in keys else None,
        mtu=wanted_mtu if "mtu" in keys else None,
        isolated=tap.isolated if "isolated" in keys else None,
        learning=not tap.mac_table if "learning" in keys else None,
        unicast_flood=not tap.mac_table if "unicast flood" in keys else None,
        vlans=tuple(sorted(tap.vlans - vlans)) if by_vlan else (),
        unwanted_vlans=unwanted_vlans(vlans, tap.vlans) if by_vlan else (),
        macs=tuple(sorted(macs)),
    ), differences


def _has_stp(link: Link | None) -> bool:
    return link is not None and link.bridge is not None and link.bridge.stp


def _loop_free(bridge: IfName, links: Mapping[IfName, Link]) -> bool:
    """No port of the bridge is held back now."""
    ports = [link.port for link in links.values() if link.master == bridge and link.port]
    return all(port.state is not PortState.BLOCKING for port in ports)
