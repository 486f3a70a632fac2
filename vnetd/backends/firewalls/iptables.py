"""libvirt's rules in iptables, of both variants: read by iptables-save, put back by
iptables-restore. libvirt calls plain "iptables", which leads to one of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import assert_never

from vnetd.backends import process
from vnetd.backends.firewalls import iptables_save, legacy, xtables_lock
from vnetd.backends.firewalls.iptables_nft import IptablesNft
from vnetd.backends.firewalls.iptables_save import Tables
from vnetd.backends.firewalls.nf_tables import NfTables
from vnetd.core.keep.rules import ChainEdits
from vnetd.core.model import Chain, Chains, Family, Ruleset, World
from vnetd.errors import BackendError, Outdated

log = logging.getLogger(__name__)

# The kernel keeps 15 bytes of a process's name.
WRITERS = tuple(f"{name}-restore"[:15] for name in ("iptables-nft", "ip6tables-nft"))
_NAMES = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
_MOST_OUTDATED = 3

State = int | bytes | None
"""Of all tables, at a look: the kernel's own generation of nf_tables, or a fingerprint of
iptables-legacy; None where they changed meanwhile.
"""


def target() -> tuple[tuple[int, int], ...]:
    """What libvirt's tools lead to at the moment; cheap, and it differs when the variant does."""
    return tuple(_file(name) for name in _NAMES.values())


def _file(name: str) -> tuple[int, int]:
    for directory in os.get_exec_path():
        with suppress(OSError):
            found = os.stat(os.path.join(directory, name))
            return found.st_dev, found.st_ino
    return 0, 0


async def variant() -> World:
    """NONE where iptables is not installed. Raises BackendError where it is, and does not run."""
    tool = _NAMES[Family.IPV4]
    if shutil.which(tool) is None:
        return World.NONE
    version = await process.run([tool, "--version"])
    return World.IPTABLES_NFT if "nf_tables" in version else World.IPTABLES_LEGACY


class Iptables:
    """One reading for all who look at it."""

    def __init__(self, kernel: NfTables) -> None:
        self._nft = IptablesNft(kernel)
        self._outdated = 0
        """How often in a row."""

    def forget(self) -> None:
        """The next look reads all, whatever the kernel has told."""
        self._nft.forget()

    async def read(self, world: World, family: Family) -> Tables:
        """Raises BackendError."""
        if world is World.IPTABLES_NFT:
            return await self._nft.read(family)
        # Table by table: to list them all itself, the tool would have to be root's.
        save = _tool(world, family, "save")
        texts = (process.run([save, "-t", table]) for table in legacy.tables(family))
        return iptables_save.tables("".join(await asyncio.gather(*texts)))

    async def restore(self, world: World, chains: Collection[ChainEdits], state: State) -> None:
        """state: at which the edits are right. Raises BackendError; Outdated for a new look, but
        where others write all the time guests cannot wait until they pause.
        """
        try:
            if not await self._restore_at(state, chains):
                await _restore(world, chains)
        except Outdated:
            self._outdated += 1
            if self._outdated < _MOST_OUTDATED:
                raise
            await _restore(world, chains)
        self._outdated = 0

    async def _restore_at(self, state: State, chains: Collection[ChainEdits]) -> bool:
        """Only if nobody has written since; False where that cannot be done."""
        if isinstance(state, bytes):
            return await _restore_legacy(state, chains)
        return await self._nft.restore(chains, state)

    async def look(self, world: World) -> tuple[Chains, State]:
        """At both families. Raises BackendError."""
        if world is World.IPTABLES_LEGACY:
            state = legacy.fingerprint()  # first: what changes while they are read has changed
            return await self.chains(world), state
        return await self.chains(world), self._nft.generation

    async def chains(self, world: World) -> Chains:
        """Of both families. Raises BackendError."""
        found = await asyncio.gather(*(self.read(world, family) for family in Family))
        chains: dict[Chain, tuple[str, ...]] = {}
        for family, tables in zip(Family, found, strict=True):
            chains |= iptables_save.chains(tables, family)
        return chains

    async def others(self, world: World) -> tuple[Ruleset, ...]:
        """The variants that libvirt does not write to, as far as libvirt's rules are there."""
        others: list[World] = []
        if world is not World.IPTABLES_NFT:
            others.append(World.IPTABLES_NFT)
        if world is not World.IPTABLES_LEGACY and any(legacy.tables(family) for family in Family):
            others.append(World.IPTABLES_LEGACY)
        found = []
        for other in others:
            try:
                chains = await self.chains(other)
            except BackendError:
                continue  # the tools of that variant are not installed
            if has_rules(chains):
                found.append(Ruleset(other, chains))
        return tuple(found)


def has_rules(chains: Chains) -> bool:
    return any(rules for chain, rules in chains.items() if chain.name.startswith("LIBVIRT_"))


async def _restore_legacy(fingerprint: bytes, chains: Iterable[ChainEdits]) -> bool:
    try:
        async with xtables_lock.held() as env:
            if legacy.fingerprint() != fingerprint:
                raise Outdated("somebody has written rules since they were read")
            await _restore(World.IPTABLES_LEGACY, chains, env)
    except OSError as error:
        log.debug("left to iptables: %r", error)  # which says what is wrong
        return False
    return True


async def _restore(
    world: World, chains: Iterable[ChainEdits], env: Mapping[str, str] | None = None
) -> None:
    for family in Family:
        if of_family := [item for item in chains if item.chain.family is family]:
            restore = [_tool(world, family, "restore"), "--noflush", "--wait", "5"]
            await process.run(restore, iptables_save.render(of_family), env)


def _tool(world: World, family: Family, verb: str) -> str:
    match world:
        case World.IPTABLES_NFT:
            return f"{_NAMES[family]}-nft-{verb}"
        case World.IPTABLES_LEGACY:
            return f"{_NAMES[family]}-legacy-{verb}"
        case World.NFTABLES | World.NONE:
            raise AssertionError(world)
        case _:
            assert_never(world)
