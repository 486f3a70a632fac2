"""Networks that libvirt takes down or brings up just now: what their guests need not wait for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vnetd.core.drift import Difference, Drift
from vnetd.core.keep import bridges, guard, taps
from vnetd.core.model import Definition, IfName, Libvirt, Link, Mode, Network, Observed
from vnetd.core.policy import Policy


def diff(policy: Policy, libvirt: Libvirt, observed: Observed) -> Iterator[Drift]:
    """observed.leaving: those that libvirt takes down. It brings one up where there is a bridge
    that is libvirt's own by its MAC, and no running network.
    """
    links = observed.links or {}
    for name, network in sorted(libvirt.networks.items()):
        if not policy.keeps(name):
            continue
        if network.live is not None and name not in observed.leaving:
            continue
        if network.live is not None and _may_stay(policy, libvirt, network, observed):
            yield from _down(network.live, links)
        coming = network.config or network.definition
        if _own_bridge(coming, links):
            yield from taps.waiting(policy, libvirt, coming, links)


def _own_bridge(network: Definition, links: Mapping[IfName, Link]) -> Link | None:
    if network.bridge is None or network.mac is None or not network.mode.has_own_bridge:
        return None
    link = links.get(network.bridge)
    return link if link is not None and link.bridge and link.mac == network.mac else None


def _may_stay(policy: Policy, libvirt: Libvirt, network: Network, observed: Observed) -> bool:
    """libvirt sets the bridge down before it removes the rules, and then the bridge. A network that
    is to run anyhow can go on until then, if the guard does what the rules did. With STP its ports
    would be held back for longer than that.
    """
    live = network.live
    if live is None or live.name not in policy.networks:
        return False
    if bridges.wanted(network, policy.networks[live.name]).get("stp") is not False:
        return False
    held = observed.guard is not None and observed.guard.held is not None
    return live.mode is Mode.OPEN or (held and guard.is_guarded(policy, libvirt, live))


def _down(live: Definition, links: Mapping[IfName, Link]) -> Iterator[Drift]:
    link = _own_bridge(live, links)
    if link is not None and not link.up:
        yield bridges.BridgeDiffers(live.name, link.name, (Difference("state", "up", "down"),))
