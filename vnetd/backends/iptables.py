"""libvirt's rules in iptables-nft: read by iptables-save, put back by iptables-restore, watched
through the notifications of nf_tables.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

from vnetd.backends import iptables_save, netlink, process
from vnetd.backends.base import Poke
from vnetd.core.model import Cause, Chain, Family, Observed, Ruleset, Source, World
from vnetd.core.plan import Action, RestoreRules
from vnetd.errors import BackendError

_PREFIX = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
_WATCHED = frozenset(
    (int(family), table)
    for family in (socket.AF_INET, socket.AF_INET6)
    for table in ("filter", "nat", "mangle")
)
_LIBVIRT_TABLES = frozenset(
    (int(family), "libvirt_network") for family in (socket.AF_INET, socket.AF_INET6)
)
# After a firewalld reload libvirt puts its rules back by itself: it gets the time to.
_SELF_HEALING = ("libvirtd[", "virtnetworkd[", "firewalld[")


class Iptables:
    source = Source.FIREWALL
    actions: tuple[type[Action], ...] = (RestoreRules,)

    def __init__(self) -> None:
        self._world: World | None = None
        self._session = 0
        self._events = netlink.open_nftables_events()
        self._generations = netlink.Generations()
        self._poke: Poke | None = None
        self._writing = False

    async def observe(self, observed: Observed) -> Observed:
        session = observed.libvirt.session if observed.libvirt else 0
        if self._world is None or session != self._session:
            self._world, self._session = await _detect(), session
        ruleset = Ruleset(self._world)
        if self._world is World.IPTABLES_NFT:
            texts = await asyncio.gather(
                *(process.run([f"{prefix}-save"]) for prefix in _PREFIX.values())
            )
            chains: dict[Chain, tuple[str, ...]] = {}
            for family, text in zip(_PREFIX, texts, strict=True):
                chains |= iptables_save.parse(text, family)
            ruleset = Ruleset(self._world, chains)
        return replace(observed, firewall=ruleset)

    async def apply(self, action: Action) -> None:
        assert isinstance(action, RestoreRules), action
        restore = [f"{_PREFIX[action.family]}-restore", "--noflush", "--wait", "5"]
        self._writing = True
        try:
            await process.run(restore, iptables_save.render(action.chains))
        finally:
            # The kernel tells of a write before the writer ends: what is ours is here by now.
            netlink.drain(self._events, self._on_data)
            self._writing = False

    async def watch(self, poke: Poke) -> None:
        self._poke = poke
        await netlink.listen(self._events, self._on_data)

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
        if self._writing and name.startswith(("iptables-restor", "ip6tables-resto")):
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
    """Which firewall libvirt writes to: told by what is there, never assumed."""
    try:
        if "counter" in await process.run(["nft", "list", "table", "ip", "libvirt_network"]):
            return World.NFTABLES
    except BackendError:
        pass  # no such table, or no nft: not libvirt's nftables backend
    try:
        version = await process.run(["iptables", "--version"])
    except BackendError:
        return World.NONE
    return World.IPTABLES_NFT if "nf_tables" in version else World.IPTABLES_LEGACY
