"""Forwarding in the kernel, for the networks that need it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from vnetd.core.actions import Action
from vnetd.core.drift import Drift, NetworkDrift
from vnetd.core.model import Definition, IfName, Mode, Source

IPV4_FORWARDING = "net/ipv4/ip_forward"
IPV6_FORWARDING = "net/ipv6/conf/all/forwarding"
_ROUTED = (Mode.NAT, Mode.ROUTE, Mode.OPEN)


@dataclass(frozen=True, slots=True)
class SysctlDiffers(NetworkDrift):
    """name: below /proc/sys."""

    name: str
    want: str
    have: str
    source = Source.SYSCTLS

    def __str__(self) -> str:
        return f"sysctl {self.name} is {self.have} instead of {self.want}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSysctl(Action):
    """name: below /proc/sys."""

    name: str
    value: str

    def __str__(self) -> str:
        return f"set sysctl {self.name} to {self.value}"


def diff(kept: Iterable[Definition], have: Mapping[str, str]) -> Iterator[Drift]:
    for live in kept:
        for name, value in _lacking(live, have):
            yield SysctlDiffers(live.name, name, value, have[name])


def plan(drift: Iterable[Drift]) -> Iterator[Action]:
    """Each once, for all networks that need it, in the order of the first of them."""
    wanted: dict[tuple[str, str], list[SysctlDiffers]] = {}
    for item in drift:
        if isinstance(item, SysctlDiffers):
            wanted.setdefault((item.name, item.want), []).append(item)
    for (name, value), items in wanted.items():
        yield SetSysctl(
            objects=tuple(item.object for item in items),
            reason=str(items[0]),
            name=name,
            value=value,
        )


def of_interest(networks: Iterable[Definition]) -> list[str]:
    """All that may matter, by their names below /proc/sys."""
    found = [IPV4_FORWARDING, IPV6_FORWARDING]
    for device in sorted({device for network in networks for device in _devices(network)}):
        found += [f"net/ipv4/conf/{device}/forwarding", f"net/ipv6/conf/{device}/forwarding"]
    return found


def _lacking(network: Definition, have: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(name, value) of each that is not as the network needs it, in the order in which to set them.

    Where the kernel routes IPv6 it takes no router advertisements, unless accept_ra is 2: the
    host would lose its own default route.
    """
    if network.mode not in _ROUTED:
        return
    versions = {address.version for address in network.addresses}
    devices = _devices(network)
    wanted: list[tuple[str, str]] = []
    if 4 in versions:
        wanted.append((IPV4_FORWARDING, "1"))
        wanted += [(f"net/ipv4/conf/{dev}/forwarding", "1") for dev in devices]
    if 6 in versions:
        fed = [name for name, value in have.items() if name.endswith("/accept_ra") and value == "1"]
        wanted += [(name, "2") for name in fed]
        wanted.append((IPV6_FORWARDING, "1"))
        wanted += [(f"net/ipv6/conf/{dev}/forwarding", "1") for dev in devices]
    for name, value in wanted:
        if have.get(name, value) != value:
            yield name, value


def _devices(network: Definition) -> list[IfName]:
    return [device for device in (network.bridge, network.forward_dev) if device is not None]
