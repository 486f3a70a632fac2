"""Running guests' taps: on their network's bridge, and on libvirt's record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vnetd.core.actions import Action
from vnetd.core.drift import Drift, NetworkDrift
from vnetd.core.link import PortState
from vnetd.core.model import Definition, IfName, Libvirt, Link, Source

_STP_WAIT = "STP holds the port back for twice the forward delay, 4 s at least"


@dataclass(frozen=True, slots=True)
class Unplugged(NetworkDrift):
    """A running guest's tap is not on its network's bridge."""

    bridge: IfName
    domain: str
    tap: IfName
    isolated: bool
    source = Source.LINKS

    def __str__(self) -> str:
        return f"tap {self.tap} of guest {self.domain} is not on bridge {self.bridge}"


@dataclass(frozen=True, slots=True)
class Unrecorded(NetworkDrift):
    """libvirt has forgotten a running guest's tap: it does not count it any more."""

    bridge: IfName
    domain: str
    tap: IfName
    port: str
    source = Source.LIBVIRT

    def __str__(self) -> str:
        return f"libvirt has no port for tap {self.tap} of guest {self.domain}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlugTap(Action):
    """pause_stp: turn the bridge's STP off for the moment, so that the port need not wait."""

    tap: IfName
    bridge: IfName
    isolated: bool
    pause_stp: bool = False

    def __str__(self) -> str:
        return f"plug tap {self.tap} into bridge {self.bridge}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordPort(Action):
    network: str
    domain: str
    port: str
    bridge: IfName

    def __str__(self) -> str:
        return f"let libvirt know guest {self.domain} on network {self.network} again"


def diff(
    libvirt: Libvirt, kept: Sequence[Definition], links: Mapping[IfName, Link]
) -> Iterator[Drift]:
    bridges = {live.name: live.bridge for live in kept if live.bridge in links}
    for tap in libvirt.taps:
        bridge, plug = bridges.get(tap.network), links.get(tap.device)
        if bridge is None or plug is None:
            continue
        if plug.master != bridge:
            yield Unplugged(tap.network, bridge, tap.domain, tap.device, tap.isolated)
        if tap.port and tap.port not in libvirt.ports:
            yield Unrecorded(tap.network, bridge, tap.domain, tap.device, tap.port)


def plan(drift: Iterable[Drift], links: Mapping[IfName, Link]) -> Iterator[Action]:
    for item in drift:
        objects, reason = (item.object,), str(item)
        match item:
            case Unplugged(bridge=bridge, tap=tap, isolated=isolated):
                stp, safe = _has_stp(links.get(bridge)), _loop_free(bridge, links)
                yield PlugTap(
                    objects=objects,
                    reason=reason,
                    impact=_STP_WAIT if stp and not safe else "none",
                    tap=tap,
                    bridge=bridge,
                    isolated=isolated,
                    pause_stp=stp and safe,
                )
            case Unrecorded(network=network, domain=domain, port=port, bridge=bridge):
                yield RecordPort(
                    objects=objects,
                    reason=reason,
                    network=network,
                    domain=domain,
                    port=port,
                    bridge=bridge,
                )
            case _:
                pass


def _has_stp(link: Link | None) -> bool:
    return link is not None and link.bridge is not None and link.bridge.stp


def _loop_free(bridge: IfName, links: Mapping[IfName, Link]) -> bool:
    """No port of the bridge is held back now. On libvirt's own bridges all ports are guests'."""
    ports = [link.port for link in links.values() if link.master == bridge and link.port]
    return all(port.state is not PortState.BLOCKING for port in ports)
