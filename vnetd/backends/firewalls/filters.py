"""The firewall of the whole host, whoever wrote it: read by the tools that can show it, watched
through the notifications of nf_tables. iptables-legacy notifies nobody: it is seen by the resync.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path

from vnetd.backends import netlink, process
from vnetd.backends.base import Poke
from vnetd.backends.firewalls import iptables_rules, iptables_save, legacy, nft_json
from vnetd.backends.firewalls.iptables import Iptables
from vnetd.backends.firewalls.nf_messages import FAMILIES
from vnetd.backends.firewalls.nf_tables import NfTables
from vnetd.backends.firewalls.zoned import Zoned
from vnetd.backends.netlink import Generation
from vnetd.core.actions import Action
from vnetd.core.keep.coexist import SetAccepts, SetZone
from vnetd.core.model import Cause, Family, IfName, Observed, Source, World
from vnetd.core.packets.evaluate import only_blocking
from vnetd.core.packets.firewall import UNTOLD, FilterChain, Firewall, Place, Tool
from vnetd.core.rules.guard import TABLE
from vnetd.errors import BackendError

# Events come one a rule: a look at the whole firewall waits until the writer has had its say, and
# takes no more than this share of the time, however fast others write.
_SETTLE_SECONDS = 0.1
_REST = 9

_IPTABLES = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
_BRIDGED = {
    Family.IPV4: Path("/proc/sys/net/bridge/bridge-nf-call-iptables"),
    Family.IPV6: Path("/proc/sys/net/bridge/bridge-nf-call-ip6tables"),
}
_FIREWALLD = "org.fedoraproject.FirewallD1"
# firewalld lets nobody open a connection while it reloads: by this table, for tenths of a second.
_RELOADS, _RELOADS_SECONDS = "firewalld_policy_drop", 5.0
_Key = tuple[Place, str]
_Table = tuple[Tool, str, str]
"""Whose, its family and its name."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One table's chains, and what of iptables-save they were made of."""

    chains: dict[Place, FilterChain]
    table: iptables_save.Table | None = None


class Filters:
    source = Source.FILTERS
    actions: tuple[type[Action], ...] = (SetAccepts, SetZone)

    def __init__(self, kernel: NfTables, tools: Iptables, zoned: Zoned) -> None:
        self._kernel = kernel
        self._iptables = tools
        self._routes = netlink.open_route_events()
        self._parts: dict[_Table, _Part] = {}
        self._dirty: set[tuple[str, str]] = set()
        """Tables that the kernel has told a change of since the last look."""
        self._seen = Firewall()
        self._writers: dict[tuple[str, str], Cause] = {}
        self._known: frozenset[_Key] | None = None
        self._origins: dict[_Key, Cause] = {}
        self._zoned = zoned
        self._changed = asyncio.Event()
        self._reloaded = asyncio.Event()
        self._rest_until = 0.0
        self._reloads_since: float | None = None
        """When firewalld was first seen to."""
        kernel.subscribe(self._on_generation)

    async def observe(self, observed: Observed) -> Observed:
        began = time.monotonic()
        self._kernel.drain()
        writers, self._writers = self._writers, {}
        try:
            chains = only_blocking(self._lasting(await self._read()))
            # What came while the tables were read may be in what was read.
            self._kernel.drain()
            writers |= self._writers
            firewall = Firewall(
                chains=chains,
                uplinks=await _uplinks(),
                bridged=frozenset(f for f, path in _BRIDGED.items() if _text(path) == "1"),
                origins=self._remember(chains, writers),
                zones=await _zones() if _has_firewalld(chains) else {},
                zoned=self._zoned.bridges,
            )
        finally:
            now = time.monotonic()
            self._rest_until = now + _REST * (now - began)
        if not _same(firewall, self._seen):
            self._seen = firewall  # else what has been made of it stays good
        return replace(observed, filters=self._seen)

    async def apply(self, action: Action) -> None:
        match action:
            case SetAccepts(place=place):
                await process.run(_restore(place), _edits(action))
            case SetZone():
                await self._set_zone(action)
            case _:
                raise AssertionError(action)

    async def _set_zone(self, action: SetZone) -> None:
        bridge = action.bridge
        before = self._seen.zones.get(bridge, "")
        known = self._zoned.bridges.get(bridge)
        if known is None:
            self._zoned.note(bridge, action.network, before)  # first: vnetd may be killed
        if action.zone:
            await _firewalld("changeZoneOfInterface", "ss", action.zone, bridge)
        else:
            await _firewalld("removeInterface", "ss", "", bridge)
        if known is not None and known[1] == action.zone:
            self._zoned.forget(bridge)

    async def watch(self, poke: Poke) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(netlink.listen(self._routes, self._on_route))
            while True:
                await self._changed.wait()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._unsettled()):
                        await self._reloaded.wait()
                # Guests are shut out until their bridges are in their zones.
                at_once = self._reloaded.is_set()
                self._changed.clear()
                self._reloaded.clear()
                cause = next(reversed(self._writers.values()), None)
                reason = "the host's firewall changed"
                poke(self.source, reason=reason, cause=cause, at_once=at_once)

    async def _read(self) -> dict[Place, FilterChain]:
        """What has changed, as far as the kernel told; if it did not, this is a look at all."""
        dirty, self._dirty = self._dirty, set()
        old = self._parts if dirty else {}
        try:
            # What iptables wrote nft cannot show in full.
            parts = await self._saved(old)
            names = self._kernel.tables() - {(family, name) for _, family, name in parts}
            names.discard(("inet", TABLE))
            kept = {n: old[Tool.NFT, *n] for n in names - dirty if (Tool.NFT, *n) in old}
            parts |= {(Tool.NFT, *name): part for name, part in kept.items()}
            parts |= await _nftables(names - kept.keys())
        except BaseException as error:
            self._dirty |= dirty
            if isinstance(error, OSError):
                raise BackendError(f"nf_tables: {error.strerror}") from error
            raise
        self._parts = parts
        return {place: chain for part in parts.values() for place, chain in part.chains.items()}

    def _lasting(self, chains: dict[Place, FilterChain]) -> dict[Place, FilterChain]:
        """Without what is over by itself before an admin could read of it."""
        if not any(place.table == _RELOADS for place in chains):
            self._reloads_since = None
            return chains
        now = time.monotonic()
        if self._reloads_since is None:
            self._reloads_since = now
            asyncio.get_running_loop().call_later(_RELOADS_SECONDS, self._changed.set)
        if now - self._reloads_since >= _RELOADS_SECONDS:
            return chains
        return {place: chain for place, chain in chains.items() if place.table != _RELOADS}

    async def _saved(self, old: Mapping[_Table, _Part]) -> dict[_Table, _Part]:
        parts: dict[_Table, _Part] = {}
        for family in Family:
            looks = [(World.IPTABLES_NFT, Tool.IPTABLES)]
            if legacy.tables(family) and legacy.may_read():
                looks.append((World.IPTABLES_LEGACY, Tool.LEGACY))
            for world, tool in looks:
                for name, table in (await self._iptables.read(world, family)).items():
                    key = (tool, family.value, name)
                    part = old.get(key)
                    if part is None or part.table != table:
                        part = _Part(iptables_rules.parse(name, table, family, tool), table)
                    parts[key] = part
        return parts

    def _on_generation(self, generation: Generation | None) -> None:
        self._changed.set()
        if generation is None:
            self._parts = {}
            return
        name, pid = generation.process, generation.pid
        for number, table in generation.tables:
            key = FAMILIES.get(number, ""), table
            self._dirty.add(key)
            last = self._writers.pop(key, None)
            if last is None or (last.process, last.pid) != (name, pid):
                last = Cause(name, pid, process.ancestors(pid, name) or ())
            self._writers[key] = last
            if key == ("inet", _RELOADS) and not self._exists(key):
                self._reloaded.set()

    def _exists(self, table: tuple[str, str]) -> bool:
        try:
            return table in self._kernel.tables()
        except OSError:
            return True  # as before; there is a look anyway

    def _unsettled(self) -> float:
        return max(_SETTLE_SECONDS, self._rest_until - time.monotonic())

    def _on_route(self, data: bytes | None) -> None:
        if data is None or netlink.has_default_route(data):
            self._changed.set()

    def _remember(
        self, chains: Mapping[Place, FilterChain], writers: Mapping[tuple[str, str], Cause]
    ) -> dict[_Key, Cause]:
        """Who made each drop, if it came while vnetd was looking."""
        now = frozenset(_drops(chains))
        if self._known is not None:
            for place, text in now - self._known:
                cause = writers.get((place.family, place.table))
                if cause is not None and place.tool is not Tool.LEGACY:
                    self._origins[place, text] = cause
        self._origins = {key: cause for key, cause in self._origins.items() if key in now}
        self._known = now
        return dict(self._origins)


def _same(one: Firewall, two: Firewall) -> bool:
    return all(getattr(one, item.name) == getattr(two, item.name) for item in fields(Firewall))


def _drops(chains: Mapping[Place, FilterChain]) -> list[_Key]:
    """A policy goes by no text."""
    found = [(c.place, "") for c in chains.values() if c.base and c.base.policy.blocks]
    return found + [(c.place, r.text) for c in chains.values() for r in c.rules if r.blocks]


async def _nftables(tables: Iterable[tuple[str, str]]) -> dict[_Table, _Part]:
    """Table by table: nft 1.0.6 does not know all flags of vnetd's own, and prints broken JSON."""
    names = list(tables)
    texts = await asyncio.gather(*(_table(*name) for name in names))
    try:
        found = [nft_json.parse(text) for text in texts]
    except (ValueError, KeyError, TypeError) as error:
        raise BackendError(f"nft -j list table: not understood: {error}") from error
    untold = [c for chains in found for c in chains.values() if c.base and UNTOLD in c.base.devices]
    devices = nft_json.devices(await process.run(["nft", "list", "chains"])) if untold else {}
    for chains in found:
        for place in chains.keys() & devices.keys():
            if (base := chains[place].base) is not None:
                base = replace(base, devices=devices[place])
                chains[place] = replace(chains[place], base=base)
    return {(Tool.NFT, *name): _Part(chains) for name, chains in zip(names, found, strict=True)}


async def _table(family: str, name: str) -> str:
    try:
        return await process.run(["nft", "-j", "list", "table", family, name])
    except BackendError:
        return ""  # it has gone since


def _has_firewalld(chains: Mapping[Place, FilterChain]) -> bool:
    return any(place.table == "firewalld" for place in chains)


async def _zones() -> dict[str, str]:
    """Interface → zone; empty where firewalld has left its tables behind and answers no more."""
    try:
        text = await _firewalld("getActiveZones")
    except BackendError:
        return {}
    (zones,) = json.loads(text)["data"]
    return {name: zone for zone, of in zones.items() for name in of.get("interfaces", ())}


async def _firewalld(method: str, *arguments: str) -> str:
    """Its D-Bus API at run time: what is permanent is the admin's. By busctl: this side of vnetd
    holds no connection to the bus.
    """
    path = f"/{_FIREWALLD.replace('.', '/')}"
    call = ("busctl", "--system", "--json=short", "call", _FIREWALLD, path, f"{_FIREWALLD}.zone")
    return await process.run([*call, method, *arguments])


def _restore(place: Place) -> list[str]:
    prefix = _IPTABLES[Family(place.family)]
    flavour = "legacy" if place.tool is Tool.LEGACY else "nft"
    return [f"{prefix}-{flavour}-restore", "--noflush", "--wait", "5"]


def _edits(action: SetAccepts) -> str:
    chain = action.place.chain
    lines = [f"*{action.place.table}"]
    lines += [f"-D {chain} {rule}" for rule in action.remove]
    lines += [f"-I {chain} {at} {rule}" for at, rule in enumerate(action.add, action.position)]
    return "\n".join([*lines, "COMMIT", ""])


async def _uplinks() -> dict[Family, frozenset[IfName]]:
    found = {}
    for family, flag in ((Family.IPV4, "-4"), (Family.IPV6, "-6")):
        routes = json.loads(
            await process.run(["ip", flag, "-j", "route", "show", "default"]) or "[]"
        )
        best = min((route.get("metric", 0) for route in routes), default=0)
        hops = [
            hop
            for route in routes
            if route.get("metric", 0) == best
            for hop in (route, *route.get("nexthops", ()))
        ]
        if names := frozenset(IfName(hop["dev"]) for hop in hops if "dev" in hop):
            found[family] = names
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
