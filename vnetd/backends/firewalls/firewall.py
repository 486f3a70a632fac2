"""The firewall that libvirt writes to: which of them it is, what stands in it, and who changes it.

Told by what is there on every connection to libvirt, never assumed.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace

from vnetd.backends import netlink, process
from vnetd.backends.base import Poke
from vnetd.backends.firewalls import audit, iptables, legacy, nftables
from vnetd.backends.firewalls.nf_tables import NfTables
from vnetd.backends.libvirt import status_files
from vnetd.backends.netlink import Generation
from vnetd.core.actions import Action
from vnetd.core.keep.rules import EditNftables, ReinstallRules, RestoreRules
from vnetd.core.model import Cause, Libvirt, Observed, Ruleset, Source, World
from vnetd.errors import BackendError

_FAMILIES = (int(socket.AF_INET), int(socket.AF_INET6))
_LIBVIRT_TABLES = frozenset((family, "libvirt_network") for family in _FAMILIES)
_WATCHED = _LIBVIRT_TABLES | {
    (family, table) for family in _FAMILIES for table in ("filter", "nat", "mangle")
}
# After a firewalld reload libvirt puts its rules back by itself: it gets the time to.
_SELF_HEALING = ("libvirtd[", "virtnetworkd[", "firewalld[")
# libvirt writes one rule after the other, some 10 to 30 ms apart. It hears of a reload at once, but
# may be busy with a network.
_QUIET_SECONDS = 0.5
# firewalld flushes iptables as well when it reloads, by children that may have ended before they
# can be looked at.
_CHILDREN, _CHILDREN_SECONDS = ("iptables-restor", "ip6tables-resto"), 1.0
_HEARS_SECONDS, _REINSTALLS_SECONDS, _POLL_SECONDS = 10.0, 90.0, 0.02
# The first libvirt with an nftables backend.
_NFTABLES_SINCE = (10, 4)


class Firewall:
    source = Source.FIREWALL
    actions: tuple[type[Action], ...] = (RestoreRules, EditNftables, ReinstallRules)

    def __init__(
        self,
        kernel: NfTables,
        tools: iptables.Iptables,
        ask_for_rules: Callable[[int], Awaitable[None]],
    ) -> None:
        """ask_for_rules: makes the libvirt of this pid install all its rules again."""
        self._kernel = kernel
        self._iptables = tools
        self._ask_for_rules = ask_for_rules
        self._world = World.NONE
        self._told_by: object = None
        self._session = 0
        self._daemon: Cause | None = None
        """The libvirt that was there when this session's rules were first looked at."""
        self._left: tuple[Ruleset, ...] = ()
        """What stands in a backend that it does not write to."""
        self._changed = False
        """The kernel has told so since the last look."""
        self._state: iptables.State = None
        """Of iptables, at the last look."""
        self._poke: Poke | None = None
        self._writing = False
        self._libvirt_wrote_at = float("-inf")
        self._libvirt_wrote = asyncio.Event()
        self._firewalld_wrote_at = float("-inf")
        """To any table."""
        self._ruled: list[str] = []
        """Active networks that libvirt has rules for."""
        self._awaited: dict[str, int] = {}
        """Of these, those that libvirt was told to install again, and when it did so before."""
        self._others_wrote = False
        """To libvirt's nftables, since the last look."""
        self._look_again: asyncio.TimerHandle | None = None
        self._in_legacy = asyncio.Event()
        self._legacy_print = b""
        self._legacy_told = asyncio.Event()
        self._legacy_writer: Cause | None = None
        kernel.subscribe(self._on_generation)

    async def observe(self, observed: Observed) -> Observed:
        self._kernel.drain()
        libvirt = observed.libvirt
        session = libvirt.session if libvirt else 0
        if session != self._session:
            self._session, self._daemon = session, process.libvirt()
        told_by = (session, iptables.target())
        if told_by != self._told_by:
            self._told_by = told_by
            try:
                self._world, self._left = await _detect(libvirt)
            except BackendError:
                self._told_by = None
                raise
            self._changed = False
        networks = libvirt.networks if libvirt else {}
        self._ruled = [n for n, it in networks.items() if it.live and it.live.mode.has_rules]
        world = self._world
        if not self._changed:
            self._iptables.forget()  # nobody told of a change: this is a look at everything
        self._changed = self._others_wrote = False
        ruleset = Ruleset(world)
        self._in_legacy.clear()
        if world.is_iptables:
            chains, self._state = await self._iptables.look(world)
            if isinstance(self._state, bytes):
                self._legacy_print = self._state
                self._in_legacy.set()
            left = self._left if self._is_same_libvirt() else ()
            ruleset = Ruleset(world, chains, (*left, *await self._iptables.others(world)))
        if world is World.NFTABLES:
            recorded, ruleset = await nftables.read()
            if recorded == "iptables" and self._is_same_libvirt():
                self._told_by = None  # its leftovers were taken for rules in force
                return await self.observe(observed)
            others = await self._iptables.others(world)
            if self._is_same_libvirt():
                self._left = others
            settled = self._is_settled(libvirt)
            ruleset = replace(ruleset, elsewhere=self._left, settled=settled)
        return replace(observed, firewall=ruleset)

    def is_known(self) -> bool:
        """Nobody has written rules since the last look."""
        self._kernel.drain()
        return not self._changed

    def _is_same_libvirt(self) -> bool:
        """Else one has started that may write elsewhere, and what stands there be its new rules."""
        return process.libvirt() == self._daemon

    async def apply(self, action: Action) -> None:
        match action:
            case RestoreRules(chains=chains):
                await self._write(self._iptables.restore(self._world, chains, self._state))
            case EditNftables(script=script):
                await self._write(nftables.edit(script))
            case ReinstallRules(scaffold=scaffold):
                if scaffold:
                    await self._write(nftables.edit(scaffold))
                await self._reinstall()
            case _:
                raise AssertionError(action)

    async def _write(self, work: Coroutine[None, None, None]) -> None:
        self._writing = True
        try:
            await work
        finally:
            # The kernel tells of a write before the writer ends: what is ours is here by now.
            self._kernel.drain()
            self._writing = False

    async def _reinstall(self) -> None:
        """Returns when libvirt has written what it writes. Or, in its nftables, when somebody else
        does meanwhile: what guests lack then comes first.
        """
        daemon = process.libvirt()
        if daemon is None:
            raise BackendError("libvirt cannot be told to install its rules again: no pid file")
        work = {World.IPTABLES_LEGACY: self._in_iptables_legacy, World.NFTABLES: self._in_nftables}
        try:
            async with asyncio.timeout(_REINSTALLS_SECONDS):
                await work.get(self._world, self._in_iptables_nft)(daemon.pid)
        except TimeoutError:
            raise BackendError(f"{daemon} does not install its rules again") from None

    async def _in_iptables_legacy(self, pid: int) -> None:
        before = legacy.fingerprint()
        await self._ask_for_rules(pid)
        async with asyncio.timeout(_HEARS_SECONDS):
            await legacy.changed(before)
        await legacy.settled()

    async def _in_iptables_nft(self, pid: int) -> None:
        self._libvirt_wrote.clear()
        await self._ask_for_rules(pid)
        async with asyncio.timeout(_HEARS_SECONDS):
            await self._libvirt_wrote.wait()
        with suppress(TimeoutError):
            while True:
                self._libvirt_wrote.clear()
                async with asyncio.timeout(_QUIET_SECONDS):
                    await self._libvirt_wrote.wait()

    async def _in_nftables(self, pid: int) -> None:
        await self._installed()  # told before: it would do all of it twice
        if not self._others_wrote:
            self._awaited = status_files.written(self._ruled)
            await self._ask_for_rules(pid)
            await self._installed()

    async def _installed(self) -> None:
        """libvirt writes a network's file when it has installed its rules, however long it takes
        for that: 0.1 s, or seconds where the machine is busy.
        """
        began = time.monotonic()
        while self._awaited and not self._others_wrote:
            written = status_files.written(self._awaited)
            self._awaited = {n: at for n, at in self._awaited.items() if written.get(n) == at}
            if not self._awaited:
                self._libvirt_wrote_at = float("-inf")  # it is through
            elif time.monotonic() - max(began, self._libvirt_wrote_at) > _HEARS_SECONDS:
                self._awaited = {}
                raise TimeoutError
            await asyncio.sleep(_POLL_SECONDS)

    def _is_settled(self, libvirt: Libvirt | None) -> bool:
        """What was read is whole, and libvirt's answer tells whose it is. Else there is a look to
        come: when it has been quiet for a while, or when it has been asked again.
        """
        self._kernel.drain()
        if time.monotonic() - self._libvirt_wrote_at <= _QUIET_SECONDS:
            if self._look_again is None:
                loop = asyncio.get_running_loop()
                self._look_again = loop.call_later(_QUIET_SECONDS, self._on_settled)
            return False
        return libvirt is None or self._libvirt_wrote_at < libvirt.asked_at

    def _is_of_firewalld(self, name: str, parents: tuple[str, ...] | None) -> bool:
        since = time.monotonic() - self._firewalld_wrote_at
        return parents is None and name in _CHILDREN and since < _CHILDREN_SECONDS

    async def watch(self, poke: Poke) -> None:
        self._poke = poke
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_legacy(poke))
            if (records := audit.open_events()) is not None:
                tasks.create_task(netlink.listen(records, self._on_record))

    async def _watch_legacy(self, poke: Poke) -> None:
        while True:  # nothing wakes up here but for iptables-legacy: the kernel tells of the others
            await self._in_legacy.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(legacy.INTERVAL_SECONDS):
                    await self._legacy_told.wait()
            self._legacy_told.clear()
            writer, self._legacy_writer = self._legacy_writer, None
            if not self._in_legacy.is_set():
                continue
            try:
                if legacy.fingerprint() == self._legacy_print:
                    continue
                self._legacy_print = await legacy.settled()
            except BackendError:
                self._in_legacy.clear()  # until a look succeeds, which also says what is wrong
            poke(self.source, Source.LIBVIRT, reason="iptables-legacy changed", cause=writer)

    def _on_record(self, data: bytes | None) -> None:
        """Of audit, where it is on."""
        writer = audit.writer(data or b"")
        if writer is not None and not self._writing:
            parents = process.ancestors(writer.pid, writer.process)
            self._legacy_writer = replace(writer, parents=parents or ())
            self._legacy_told.set()

    def _on_settled(self) -> None:
        self._look_again = None
        if self._poke is not None:
            self._poke(self.source, Source.LIBVIRT, reason="libvirt has written its rules")

    def _on_generation(self, generation: Generation | None) -> None:
        poke = self._poke
        if poke is None:
            return
        if generation is None:
            self._told_by = None
            poke(*Source, reason="nf_tables events were lost")
            return
        name = generation.process
        if name == "firewalld":
            self._firewalld_wrote_at = time.monotonic()
        if not generation.tables & _WATCHED:
            if name == "firewalld" and self._changed:
                poke(self.source, reason="firewalld reloads", writing=True)
            return
        self._changed = True
        if generation.tables & _LIBVIRT_TABLES and self._world is not World.NFTABLES:
            self._told_by = None
        if generation.port == self._kernel.port:
            return
        if self._writing and name in (*iptables.WRITERS, "nft"):
            return  # whoever else writes right now is seen by the look that follows
        parents = process.ancestors(generation.pid, name)
        cause = Cause(name, generation.pid, parents or ())
        reason = f"firewall changed by {name}"
        if _heals_itself(generation, parents) or self._is_of_firewalld(name, parents):
            self._libvirt_wrote_at = time.monotonic()
            self._libvirt_wrote.set()
            # libvirt says what it did only when it is through: ask it again as well.
            poke(self.source, reason=reason, cause=cause, writing=True)
            poke(Source.LIBVIRT, reason=reason, writing=True)
        else:
            if generation.tables & _LIBVIRT_TABLES:
                self._others_wrote = True
            poke(self.source, reason=reason, cause=cause)


def _heals_itself(generation: Generation, parents: tuple[str, ...] | None) -> bool:
    """libvirt writes rule by rule, each by a process of its own.

    Where that has ended before it could be looked at, one that changed a single object may be
    libvirt's; one that changed several is not.
    """
    writer = f"{generation.process}["
    if writer.startswith(_SELF_HEALING) or (parents and parents[0].startswith(_SELF_HEALING)):
        return True
    tools = ("iptables", "ip6tables", "nft")
    return parents is None and generation.process in tools and generation.changes <= 1


async def _detect(libvirt: Libvirt | None) -> tuple[World, tuple[Ruleset, ...]]:
    """What libvirt writes to, and what it has left behind in its nftables tables if it does not.

    Its own record of the rules that it made is the truth; where it has none, its rules tell, and
    where there are none, its configuration.
    """
    version = tuple(int(part) for part in libvirt.version.split(".")[:2]) if libvirt else (0,)
    if version < _NFTABLES_SINCE:
        return await iptables.variant(), ()
    backend, there = await nftables.read()
    if backend is None and nftables.has_rules(there.chains):
        backend = "nftables"
    if (backend or nftables.configured()) == "nftables":
        return World.NFTABLES, ()
    return await iptables.variant(), (there,) if nftables.has_rules(there.chains) else ()
