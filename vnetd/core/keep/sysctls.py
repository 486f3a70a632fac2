"""The kernel's settings that networks need: forwarding, and what stands beside it. What vnetd set
is set back when no network needs it any more, unless somebody has changed it since.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vnetd.core.actions import Action
from vnetd.core.drift import Conflict, Drift, NetworkDrift
from vnetd.core.keep import announce
from vnetd.core.model import (
    HOST_OBJECT,
    Definition,
    IfName,
    Libvirt,
    Observed,
    Source,
)
from vnetd.core.policy import NetworkPolicy, Policy

IPV4_FORWARDING = "net/ipv4/ip_forward"
IPV6_FORWARDING = "net/ipv6/conf/all/forwarding"
_ALL_RP_FILTER = "net/ipv4/conf/all/rp_filter"


@dataclass(frozen=True, slots=True)
class SysctlDiffers(NetworkDrift):
    """name: below /proc/sys."""

    name: str
    want: str
    have: str
    source = Source.SYSCTLS

    def __str__(self) -> str:
        return f"sysctl {self.name} is {self.have} instead of {self.want}"


@dataclass(frozen=True, slots=True)
class SysctlLeft(Drift):
    """As vnetd set it for networks, none of which needs it any more."""

    name: str
    before: str
    have: str
    source = Source.SYSCTLS

    @property
    def object(self) -> str:
        return HOST_OBJECT

    def __str__(self) -> str:
        was = f"it was {self.before} before vnetd set it"
        return f"sysctl {self.name} is {self.have}, which no network needs: {was}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSysctl(Action):
    """name: below /proc/sys. back: to what it was before vnetd set it."""

    name: str
    value: str
    back: bool = False

    def __str__(self) -> str:
        return f"set sysctl {self.name} {'back ' if self.back else ''}to {self.value}"


def diff(
    policy: Policy, kept: Iterable[Definition], observed: Observed
) -> Iterator[Drift | Conflict]:
    have, libvirt = observed.sysctls, observed.libvirt
    if have is None or libvirt is None:
        return
    if observed.connections_full is not None:
        yield Conflict(
            HOST_OBJECT,
            f"the kernel has no room to track more than {observed.connections_full} connections, "
            "and new ones of guests fail: raise net.netfilter.nf_conntrack_max, or end what opens "
            "so many",
        )
    for live in kept:
        for name, value in _wanted(live, policy.networks.get(live.name), observed):
            if have.get(name, value) != value:
                yield SysctlDiffers(live.name, name, value, have[name])
    needed = {
        name
        for network, want in _needing(policy, libvirt)
        for name, _ in _wanted(network, want, observed)
    }
    # Backwards: where the kernel forwards no more, it takes router advertisements again.
    for name, raised in reversed([*observed.raised.items()]):
        if name not in needed and have.get(name) == raised.value:
            yield SysctlLeft(name, raised.before, raised.value)


def plan(drift: Iterable[Drift]) -> Iterator[Action]:
    """Each once, for all networks that need it, in the order of the first of them."""
    wanted: dict[tuple[str, str], list[SysctlDiffers]] = {}
    for item in drift:
        match item:
            case SysctlDiffers():
                wanted.setdefault((item.name, item.want), []).append(item)
            case SysctlLeft(name=name, before=before):
                yield SetSysctl(
                    objects=(item.object,), reason=str(item), name=name, value=before, back=True
                )
            case _:
                pass
    for (name, value), items in wanted.items():
        yield SetSysctl(
            objects=tuple(item.object for item in items),
            reason=str(items[0]),
            name=name,
            value=value,
        )


def of_interest(observed: Observed) -> list[str]:
    """All that may matter, by their names below /proc/sys."""
    found = [IPV4_FORWARDING, IPV6_FORWARDING, _ALL_RP_FILTER, *observed.raised]
    networks = observed.libvirt.networks.values() if observed.libvirt else ()
    lives = [network.live for network in networks if network.live is not None]
    devices = {device for live in lives for device in _devices(live)}
    for live in lives:
        for address in live.addresses:
            route = announce.uplink(address.network, (live.bridge,), observed)
            devices |= {route.dev} if route is not None and route.dev is not None else set()
    for device in sorted(devices):
        of_ipv4 = ("forwarding", "proxy_arp", "rp_filter")
        of_ipv6 = ("forwarding", "proxy_ndp")
        found += [f"net/ipv4/conf/{device}/{name}" for name in of_ipv4]
        found += [f"net/ipv6/conf/{device}/{name}" for name in of_ipv6]
    for bridge in sorted(_own_bridges(lives)):
        found += [f"net/ipv6/conf/{bridge}/{name}" for name in ("disable_ipv6", "accept_ra")]
    return found


def _needing(policy: Policy, libvirt: Libvirt) -> Iterator[tuple[Definition, NetworkPolicy | None]]:
    """Networks that run, and those that are to."""
    for name, network in libvirt.networks.items():
        want = policy.networks.get(name)
        if network.live is not None and policy.keeps(name):
            yield network.live, want
        elif network.config is not None and want is not None:
            yield network.config, want


def _wanted(
    network: Definition, want: NetworkPolicy | None, observed: Observed
) -> Iterator[tuple[str, str]]:
    """(name, value) of each that the network needs, in the order in which to set them."""
    versions = {address.version for address in network.addresses}
    if network.mode.has_own_bridge and network.bridge is not None and 6 in versions:
        # As libvirt sets them: a guest must not tell the host the way.
        yield f"net/ipv6/conf/{network.bridge}/disable_ipv6", "0"
        yield f"net/ipv6/conf/{network.bridge}/accept_ra", "0"
    if not network.mode.is_forwarded:
        return
    uplinks = announce.uplinks(want, network, observed)
    if 4 in versions:
        devices = _devices(network) + ([uplinks[4]] if 4 in uplinks else [])
        yield IPV4_FORWARDING, "1"
        yield from ((f"net/ipv4/conf/{dev}/forwarding", "1") for dev in devices)
    if 6 in versions:
        devices = _devices(network) + ([uplinks[6]] if 6 in uplinks else [])
        yield from ((name, "2") for name in _fed(observed))
        yield IPV6_FORWARDING, "1"
        yield from ((f"net/ipv6/conf/{dev}/forwarding", "1") for dev in devices)
    if 4 in uplinks:
        yield f"net/ipv4/conf/{uplinks[4]}/proxy_arp", "1"
        # For guests that take the LAN's own mask and so look for its hosts on their bridge.
        yield f"net/ipv4/conf/{network.bridge}/proxy_arp", "1"
    if 6 in uplinks:
        yield f"net/ipv6/conf/{uplinks[6]}/proxy_ndp", "1"
    if want is not None:
        yield from _loose(network, uplinks.get(4), observed)


def _fed(observed: Observed) -> list[str]:
    """accept_ra of links that router advertisements feed. Where the kernel routes IPv6 it takes
    none, unless it is 2: the host would lose its own default route.
    """
    have, networks = observed.sysctls or {}, observed.libvirt
    lives = [n.live for n in networks.networks.values() if n.live] if networks else []
    own = {f"net/ipv6/conf/{bridge}/accept_ra" for bridge in _own_bridges(lives)}
    return [
        name
        for name, value in have.items()
        if name.endswith("/accept_ra")
        and name not in own
        and (value == "1" or name in observed.raised)
    ]


def _loose(
    network: Definition, uplink: IfName | None, observed: Observed
) -> Iterator[tuple[str, str]]:
    """Where packets come in by another link than answers would leave by, a strict rp_filter drops
    them. The stricter of a link's own and the one for all holds, but 2 is loose: ip-sysctl.
    """
    have = observed.sysctls or {}
    defaults = [
        route for route in observed.routes or () if route.to.version == 4 and not route.to.prefixlen
    ]
    best = min((route.metric for route in defaults), default=0)
    out = {route.dev for route in defaults if route.metric == best}
    for dev in (network.forward_dev, uplink):
        if dev is None or not out or dev in out:
            continue
        name = f"net/ipv4/conf/{dev}/rp_filter"
        strict = max(have.get(name, "0"), have.get(_ALL_RP_FILTER, "0")) == "1"
        if strict or name in observed.raised:
            yield name, "2"


def _own_bridges(networks: Iterable[Definition]) -> set[IfName]:
    return {live.bridge for live in networks if live.bridge and live.mode.has_own_bridge}


def _devices(network: Definition) -> list[IfName]:
    return [device for device in (network.bridge, network.forward_dev) if device is not None]
