"""The dnsmasq that libvirt runs for a network lives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vnetd.core.actions import Action
from vnetd.core.drift import Drift, NetworkDrift
from vnetd.core.model import Definition, HostAddress, Libvirt, Source


@dataclass(frozen=True, slots=True)
class DnsmasqDead(NetworkDrift):
    source = Source.DNSMASQ

    def __str__(self) -> str:
        return "its dnsmasq is dead: no DHCP, no DNS"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartDnsmasq(Action):
    """dns: it answers names, so that libvirt can be asked for it by way of one; otherwise by way of
    a reservation of address, which is the host's own.
    """

    network: str
    dns: bool
    address: HostAddress

    def __str__(self) -> str:
        return f"let libvirt start dnsmasq of network {self.network}"


def diff(kept: Sequence[Definition], alive: frozenset[str]) -> Iterator[Drift]:
    for live in kept:
        if _has_one(live) and live.name not in alive:
            yield DnsmasqDead(live.name)


def plan(drift: Iterable[Drift], libvirt: Libvirt) -> Iterator[Action]:
    for item in drift:
        if isinstance(item, DnsmasqDead):
            live = libvirt.networks[item.network].definition
            yield StartDnsmasq(
                objects=(item.object,),
                reason=str(item),
                network=item.network,
                dns=live.dns,
                address=live.addresses[0].ip,
            )


def _has_one(network: Definition) -> bool:
    """For DNS, unless that is off, DHCP and TFTP."""
    return bool(
        network.mode.has_own_bridge
        and network.addresses
        and (network.dns or network.ranges or network.hosts or network.tftp)
    )
