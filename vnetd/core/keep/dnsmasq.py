"""The dnsmasq that libvirt runs for a network lives, and serves what the network says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vnetd.core.actions import Action
from vnetd.core.drift import Conflict, Drift, NetworkDrift
from vnetd.core.model import (
    Definition,
    HostAddress,
    Libvirt,
    Observed,
    Source,
    network_object,
)
from vnetd.core.wording import few


@dataclass(frozen=True, slots=True)
class DnsmasqDead(NetworkDrift):
    source = Source.DNSMASQ

    def __str__(self) -> str:
        return "its dnsmasq is dead: no DHCP, no DNS"


@dataclass(frozen=True, slots=True)
class ReservationsLost(NetworkDrift):
    """dnsmasq reads its file of reservations anew whenever libvirt changes one."""

    addresses: tuple[HostAddress, ...]
    source = Source.DNSMASQ

    def __str__(self) -> str:
        return f"its dnsmasq is not told to reserve {few([str(item) for item in self.addresses])}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshDnsmasq(Action):
    """libvirt writes dnsmasq's files again and starts it where it is dead. dns: it answers names,
    so that libvirt can be asked for it by way of one; otherwise by way of a reservation of address,
    which is the host's own.
    """

    network: str
    dead: bool
    dns: bool
    address: HostAddress

    def __str__(self) -> str:
        what = "start dnsmasq" if self.dead else "tell dnsmasq the reservations"
        return f"let libvirt {what} of network {self.network}"


def diff(
    libvirt: Libvirt, kept: Sequence[Definition], observed: Observed
) -> Iterator[Drift | Conflict]:
    alive = observed.dnsmasq
    if alive is None:
        return
    for live in kept:
        if _has_one(live) and live.name not in alive and not _hides_its_pid(live.name):
            yield _dead(live.name, libvirt)
        if live.name in observed.reserved:
            wanted = {host.address for host in live.hosts}
            if lost := wanted - observed.reserved[live.name]:
                yield ReservationsLost(live.name, tuple(sorted(lost, key=str)))
        yield from _blocked(live, libvirt)
    names = {live.name for live in kept}
    for item in observed.intruders:
        if item.network in names:
            who = item.process or "another process"
            yield Conflict(network_object(item.network), f"{item.what} is served by {who} as well")


def plan(drift: Iterable[Drift], libvirt: Libvirt) -> Iterator[Action]:
    for item in drift:
        if isinstance(item, DnsmasqDead | ReservationsLost):
            live = libvirt.networks[item.network].definition
            yield RefreshDnsmasq(
                objects=(item.object,),
                reason=str(item),
                network=item.network,
                dead=isinstance(item, DnsmasqDead),
                dns=live.dns,
                address=live.addresses[0].ip,
            )


def _dead(network: str, libvirt: Libvirt) -> DnsmasqDead | Conflict:
    if ports := libvirt.taken_ports.get(network):
        wrong = f"its dnsmasq cannot start while others have {ports}: no DHCP, no DNS"
        return Conflict(network_object(network), wrong)
    return DnsmasqDead(network)


def _blocked(network: Definition, libvirt: Libvirt) -> Iterator[Conflict]:
    """dnsmasq gives a reserved address to nobody else, but takes it away from nobody either."""
    leases = {lease.address: lease for lease in libvirt.leases if lease.network == network.name}
    for host in network.hosts:
        lease = leases.get(host.address)
        if lease is not None and host.mac is not None and lease.mac != host.mac:
            owner = next((tap.domain for tap in libvirt.taps if tap.mac == lease.mac), "")
            who = f"{lease.mac} of guest {owner}" if owner else lease.mac
            whose = host.name or host.mac
            wrong = f"{host.address} is reserved for {whose}, but still leased to {who}"
            yield Conflict(network_object(network.name), wrong)


def _has_one(network: Definition) -> bool:
    """For DNS, unless that is off, DHCP and TFTP."""
    return bool(
        network.mode.has_own_bridge
        and network.addresses
        and (network.dns or network.ranges or network.hosts or network.tftp)
    )


def _hides_its_pid(network: str) -> bool:
    """dnsmasq takes quotes and backslashes in the name of its pid file for its configuration's:
    where it is then, libvirt does not know either.
    """
    return not {'"', "\\"}.isdisjoint(network)
