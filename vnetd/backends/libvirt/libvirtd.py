"""libvirt: networks, the taps of running domains, and what libvirt is asked to do.

Networks and domains have a connection each: they may be two daemons (virtnetworkd, virtqemud), of
which one is restarted without the other. Nothing of libvirt leaves this folder but values of the
model. Its events only say where to look.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt

from vnetd.backends import files, process
from vnetd.backends.base import Poke
from vnetd.backends.libvirt import calls
from vnetd.backends.libvirt.connection import DOMAIN_EVENTS, NETWORK_EVENTS, Connection, in_thread
from vnetd.backends.libvirt.taken_ports import TakenPorts
from vnetd.core.actions import Action
from vnetd.core.keep import guests
from vnetd.core.keep.dnsmasq import RefreshDnsmasq
from vnetd.core.keep.networks import (
    DefineNetwork,
    RemoveNetwork,
    RestartNetwork,
    SetAutostart,
    SetUplink,
    StartNetwork,
    UpdateDhcp,
)
from vnetd.core.keep.taps import LimitTap, RecordPort
from vnetd.core.model import Cause, Lease, Nic, Observed, Source
from vnetd.errors import BackendError, NotConnected, is_want_of_files

# network_conf/virnetworkobj: what changes without an event (net-update, net-autostart, SIGHUP).
DIRECTORIES = tuple(
    Path(path)
    for path in (
        "/etc/libvirt/qemu/networks",
        "/etc/libvirt/qemu/networks/autostart",
        "/run/libvirt/network",
    )
)
# What a change by libvirt may touch. Rules are left out: the kernel tells of them.
_TOUCHED = (Source.LIBVIRT, Source.LINKS, Source.ROUTES, Source.SYSCTLS, Source.DNSMASQ)
# bridge_driver.c: libvirt deletes a network's file there before anything else of the network, and
# writes it after all else.
_STATUS = Path("/run/libvirt/network")
# qemu_domain.c: written anew with each change of a running domain; of most there is no event.
_DOMAINS = Path("/run/libvirt/qemu")
_LEASES = Path("/var/lib/libvirt/dnsmasq")
_CHAINS_LOST = "No chain/target/match by that name"
_BRIDGE_EXISTS = "File exists"
# Of the command that failed: a rule of a network never jumps to libvirt's chains, nor makes one.
_CHAINS_FAILED = re.compile(
    r"--(new-chain|insert \w+ --jump) LIBVIRT_|--list-rules|nft .*(add (table|chain)|jump guest_)"
)
# Networks as such are served by whichever daemon has them; through the domains' daemon their events
# would be lost with virtnetworkd.
_NETWORKS_OF = {"qemu:///system": "network:///system"}


class Libvirtd:
    source = Source.LIBVIRT
    actions: tuple[type[Action], ...] = (
        RemoveNetwork,
        DefineNetwork,
        SetAutostart,
        UpdateDhcp,
        SetUplink,
        StartNetwork,
        RestartNetwork,
        RefreshDnsmasq,
        RecordPort,
        LimitTap,
    )

    def __init__(self, uri: str) -> None:
        self._networks = Connection(_NETWORKS_OF.get(uri, uri), network_events=NETWORK_EVENTS)
        self._domains = Connection(uri, domain_events=DOMAIN_EVENTS)
        # Sessions: another daemon makes its chains anew.
        self._chains_lost_in = 0
        self._chains_failed_in = 0
        self._blocked: frozenset[str] = frozenset()
        self._ports = TakenPorts()
        self._reads_leases = False
        self._active: frozenset[str] = frozenset()
        self._stopped: list[str] = []
        """Since the last look began, as libvirt has told."""

    async def observe(self, observed: Observed) -> Observed:
        asked = observed.asked
        if self._networks.resting and observed.libvirt is not None and not asked.networks:
            return observed  # a change would have woken it
        if observed.insist:
            self._ports.forget()
        told = len(self._stopped)
        recorded = _recorded()
        seen = await self._networks.read(lambda c: calls.read(c, asked), "reading networks")
        recorded |= _recorded()  # of those that have started meanwhile
        try:
            taps = await self._domains.read(calls.taps, "reading domains")
            failed = await self._domains.read(calls.failed, "reading domains")
            refused = guests.refused(failed, seen, observed.libvirt)
        except NotConnected:
            # Without their daemon guests run on as they are.
            taps = observed.libvirt.taps if observed.libvirt else ()
            refused = {}
        nics = await self._nics(asked.domains)
        names = {tap.network for tap in taps if tap.network}
        ports = await self._networks.read(lambda c: calls.ports(c, names), "reading ports")
        session = self._networks.session
        seen = replace(
            seen,
            session=session,
            taps=taps,
            nics=nics,
            ports=ports,
            refused=refused,
            lost_chains=self._chains_lost_in == session,
            chains_failed=self._chains_failed_in == session,
            blocked=self._blocked,
            taken_ports=self._ports.of(seen.networks),
            read_only=self._networks.read_only,
        )
        self._active = frozenset(
            name for name, network in seen.networks.items() if network.live and name in recorded
        )
        del self._stopped[:told]
        self._reads_leases = bool(calls.leased(seen.networks, asked))
        idle = not asked.networks and not any(item.live for item in seen.networks.values())
        for connection in (self._networks, self._domains):
            connection.set_idle(idle)
        return replace(observed, libvirt=seen)

    async def _nics(self, domains: frozenset[str]) -> tuple[Nic, ...]:
        if not domains:
            return ()
        return await self._domains.read(lambda c: calls.nics(c, domains), "reading domains")

    def expect_chains(self) -> None:
        """It has been told to make them again."""
        self._chains_failed_in = 0

    def leaving(self) -> frozenset[str]:
        """Networks that were active at the last look, and of which libvirt has begun to remove
        everything since; libvirt itself says so only when it is through. Or may have started them
        anew by now, which is no longer as it was seen.
        """
        try:
            gone = self._active - _recorded() if self._active else frozenset()
            return gone | self._active.intersection(self._stopped)
        except OSError as error:
            if is_want_of_files(error):
                return frozenset()  # cannot tell; the next look may
            raise

    async def leases(self, network: str) -> tuple[Lease, ...]:
        """Of this network, or "" for all that run. Raises BackendError."""
        return await self._networks.read(
            lambda c: calls.leases(c, [network] if network else calls.active(c)), "reading leases"
        )

    async def apply(self, action: Action) -> None:
        match action:
            case DefineNetwork(policy=policy):
                await self._change(lambda c: calls.define(c, policy), policy.name)
            case SetAutostart(network=name, on=on):
                await self._change(lambda c: calls.set_autostart(c, name, on), name)
            case SetUplink(network=name):
                await self._change(lambda c: calls.set_uplink(c, action), name)
            case UpdateDhcp(network=name):
                await self._change(lambda c: calls.update_dhcp(c, action), name)
            case StartNetwork(network=name):
                await self._start(lambda c: calls.start(c, name), name)
            case RestartNetwork(network=name):
                await self._start(lambda c: calls.restart(c, name), name)
            case RecordPort(network=name, domain=domain):
                xml = await self._domains.read(lambda c: calls.domain(c, domain), domain)
                await self._change(lambda c: calls.record_port(c, action, xml), name)
            case LimitTap(domain=domain):
                await self._domains.change(lambda c: calls.limit_tap(c, action), domain)
            case RefreshDnsmasq(network=name):
                await self._change(lambda c: calls.refresh_dnsmasq(c, action), name)
            case RemoveNetwork(network=name):
                await self._change(lambda c: calls.remove(c, name), name)
            case _:
                raise AssertionError(action)

    async def watch(self, poke: Poke) -> None:
        def tell(
            reason: str,
            *,
            cause: Cause | None = None,
            writing: bool | None = None,
            stopped: str = "",
            everything: bool = False,
        ) -> None:
            if stopped:
                self._stopped.append(stopped)
            sources = tuple(Source) if everything else _TOUCHED
            poke(*sources, reason=reason, cause=cause, writing=writing)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                self._networks.keep(
                    tell, (lambda: self._watch_files(poke), lambda: self._watch_leases(poke))
                )
            )
            tasks.create_task(
                self._ports.watch(lambda: poke(*_TOUCHED, reason="a port is free again"))
            )
            tasks.create_task(self._domains.keep(tell, (lambda: self._watch_domains(poke),)))

    async def _watch_files(self, poke: Poke) -> None:
        watch = files.DirectoryWatch(DIRECTORIES, created=True)
        try:
            while True:
                await watch.changed()
                self._networks.wake()
                self._domains.wake()
                poke(*_TOUCHED, reason="libvirt's files changed", cause=process.libvirt())
        finally:
            watch.close()

    async def _watch_domains(self, poke: Poke) -> None:
        watch = files.DirectoryWatch([_DOMAINS])
        try:
            while True:
                await watch.changed()
                poke(self.source, Source.LINKS, reason="a running guest changed")
        finally:
            watch.close()

    async def _watch_leases(self, poke: Poke) -> None:
        watch = files.DirectoryWatch([_LEASES])
        try:
            while True:
                await watch.changed()
                if self._reads_leases:
                    poke(self.source, Source.DNSMASQ, reason="leases or reservations changed")
        finally:
            watch.close()

    async def _change(self, work: Callable[[Any], object], network: str) -> None:
        session = self._networks.session
        try:
            await self._networks.change(work, f"network {network}")
        except BackendError as error:
            if _CHAINS_FAILED.search(str(error)):
                self._chains_failed_in = session
            if taken := self._ports.refused(network, str(error)):
                raise BackendError(f"{error}; {taken}") from error
            raise

    async def _start(self, work: Callable[[Any], object], network: str) -> None:
        session = self._networks.session
        try:
            await self._change(work, network)
        except BackendError as error:
            if _CHAINS_LOST in str(error):
                self._chains_lost_in = session
            if _BRIDGE_EXISTS in str(error):
                self._blocked |= {network}
            raise
        self._chains_lost_in = 0
        self._blocked -= {network}


def _recorded() -> frozenset[str]:
    """Raises OSError where vnetd may open no more files."""
    return frozenset(path.stem for path in _STATUS.glob("*.xml"))


async def ask_version(uri: str) -> str:
    """By a connection of its own. Raises BackendError; a stopped libvirtd never answers."""
    libvirt.registerErrorHandler(lambda *_: None, None)  # else errors go to stderr as well
    try:
        return await in_thread(lambda: calls.version(libvirt.open(uri)))
    except libvirt.libvirtError as error:
        raise BackendError(error.get_error_message() or str(error)) from error
