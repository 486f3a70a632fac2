"""The firewall that libvirt writes to: which of them it is, what stands in it, and who changes it.

Told by what is there on every connection to libvirt, never assumed.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

from vnetd.backends import iptables, legacy, netlink, process
from vnetd.backends.base import Poke
from vnetd.core.model import Cause, Observed, Ruleset, Source, World
from vnetd.core.plan import Action, RestoreRules
from vnetd.errors import BackendError

_FAMILIES = (int(socket.AF_INET), int(socket.AF_INET6))
_LIBVIRT_TABLES = frozenset((family, "libvirt_network") for family in _FAMILIES)
_WATCHED = frozenset(
    (family, table) for family in _FAMILIES for table in ("filter", "nat", "mangle")
)
# After a firewalld reload libvirt puts its rules back by itself: it gets the time to.
_SELF_HEALING = ("libvirtd[", "virtnetworkd[", "firewalld[")


class Firewall:
    source = Source.FIREWALL
    actions: tuple[type[Action], ...] = (RestoreRules,)

    def __init__(self) -> None:
        self._world: World | None = None
        self._told_by: object = None
        self._events = netlink.open_nftables_events()
        self._generations = netlink.Generations()
        self._poke: Poke | None = None
        self._writing = False
        self._in_legacy = asyncio.Event()
        self._legacy_print = b""

    async def observe(self, observed: Observed) -> Observed:
        told_by = (observed.libvirt.session if observed.libvirt else 0, iptables.target())
        if self._world is None or told_by != self._told_by:
            self._world, self._told_by = await _detect(), told_by
        world = self._world
        ruleset = Ruleset(world)
        self._in_legacy.clear()
        if world is World.IPTABLES_LEGACY:
            # First: what changes while the tables are read counts as a change.
            self._legacy_print = legacy.fingerprint()
            self._in_legacy.set()
        if world.is_iptables:
            chains = await iptables.read(world)
            ruleset = Ruleset(world, chains, await iptables.read_others(world))
        return replace(observed, firewall=ruleset)

    async def apply(self, action: Action) -> None:
        assert isinstance(action, RestoreRules), action
        assert self._world is not None, "planned from an observation"
        self._writing = True
        try:
            await iptables.restore(self._world, action)
        finally:
            # The kernel tells of a write before the writer ends: what is ours is here by now.
            netlink.drain(self._events, self._on_data)
            self._writing = False

    async def watch(self, poke: Poke) -> None:
        self._poke = poke
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(netlink.listen(self._events, self._on_data))
            tasks.create_task(self._watch_legacy(poke))

    async def _watch_legacy(self, poke: Poke) -> None:
        """Nothing wakes up here in the other worlds."""
        while True:
            await self._in_legacy.wait()
            await asyncio.sleep(legacy.INTERVAL_SECONDS)
            if not self._in_legacy.is_set():
                continue
            try:
                if legacy.fingerprint() == self._legacy_print:
                    continue
                self._legacy_print = await legacy.settled()
            except BackendError:
                self._in_legacy.clear()  # until a look succeeds, which also says what is wrong
            poke(self.source, Source.LIBVIRT, reason="iptables-legacy changed")

    def _on_data(self, data: bytes | None) -> None:
        if self._poke is None:
            return
        if data is None:
            self._world = None
            self._poke(*Source, reason="nf_tables events were lost")
            return
        for generation in self._generations.feed(data):
            self._on_generation(generation, self._poke)

    def _on_generation(self, generation: netlink.Generation, poke: Poke) -> None:
        if generation.tables & _LIBVIRT_TABLES:
            self._world = None
        elif not generation.tables & _WATCHED:
            return
        name = generation.process
        if self._writing and name in iptables.WRITERS:
            return
        parents = process.ancestors(generation.pid, name)
        cause = Cause(name, generation.pid, parents or ())
        reason = f"firewall changed by {name}"
        if _heals_itself(generation, parents):
            # libvirt says what it did only when it is through: ask it again as well.
            poke(self.source, Source.LIBVIRT, reason=reason, cause=cause, writing=True)
        else:
            poke(self.source, reason=reason, cause=cause)


def _heals_itself(generation: netlink.Generation, parents: tuple[str, ...] | None) -> bool:
    """libvirt writes rule by rule, each by a process of its own.

    Where that has ended before it could be looked at, one that changed a single object may be
    libvirt's; one that changed several is not.
    """
    writer = f"{generation.process}["
    if writer.startswith(_SELF_HEALING) or (parents and parents[0].startswith(_SELF_HEALING)):
        return True
    tools = ("iptables", "ip6tables", "nft")
    return parents is None and generation.process in tools and generation.changes <= 1


async def _detect() -> World:
    try:
        if "counter" in await process.run(["nft", "list", "table", "ip", "libvirt_network"]):
            return World.NFTABLES
    except BackendError:
        pass  # no such table, or no nft: not libvirt's nftables backend
    return await iptables.variant()
