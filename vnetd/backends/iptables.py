"""libvirt's rules in iptables, of both variants: read by iptables-save, put back by
iptables-restore. libvirt calls plain "iptables", which leads to one of them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterable
from typing import assert_never

from vnetd.backends import iptables_save, legacy, process
from vnetd.core.keep.rules import RestoreRules
from vnetd.core.model import Chains, Family, World
from vnetd.errors import BackendError

# The kernel keeps 15 bytes of a process's name.
WRITERS = tuple(f"{name}-restore"[:15] for name in ("iptables-nft", "ip6tables-nft"))
_NAMES = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}


def target() -> tuple[str, ...]:
    """What libvirt's tools lead to at the moment; cheap, and it differs when the variant does."""
    return tuple(os.path.realpath(shutil.which(name) or name) for name in _NAMES.values())


async def variant() -> World:
    try:
        version = await process.run([_NAMES[Family.IPV4], "--version"])
    except BackendError:
        return World.NONE
    return World.IPTABLES_NFT if "nf_tables" in version else World.IPTABLES_LEGACY


async def read(world: World, families: Iterable[Family]) -> dict[Family, Chains]:
    wanted = tuple(families)
    save = save_legacy if world is World.IPTABLES_LEGACY else _save
    texts = await asyncio.gather(*(save(family) for family in wanted))
    return {
        family: iptables_save.parse(text, family)
        for family, text in zip(wanted, texts, strict=True)
    }


async def _save(family: Family) -> str:
    return await process.run([_tool(World.IPTABLES_NFT, family, "save")])


async def save_legacy(family: Family) -> str:
    """Table by table: to list them all itself, the tool would have to be root's."""
    save = _tool(World.IPTABLES_LEGACY, family, "save")
    texts = (process.run([save, "-t", table]) for table in legacy.tables(family))
    return "".join(await asyncio.gather(*texts))


async def read_others(world: World) -> dict[World, Chains]:
    """The variants that libvirt does not write to, as far as libvirt's rules are there."""
    others: list[World] = []
    if world is not World.IPTABLES_NFT:
        others.append(World.IPTABLES_NFT)
    if world is not World.IPTABLES_LEGACY and any(legacy.tables(family) for family in Family):
        others.append(World.IPTABLES_LEGACY)
    found: dict[World, Chains] = {}
    for other in others:
        try:
            saved = await read(other, Family)
        except BackendError:
            continue  # the tools of that variant are not installed
        chains = {**saved[Family.IPV4], **saved[Family.IPV6]}
        if has_rules(chains):
            found[other] = chains
    return found


def has_rules(chains: Chains) -> bool:
    return any(rules for chain, rules in chains.items() if chain.name.startswith("LIBVIRT_"))


async def restore(world: World, action: RestoreRules) -> None:
    tool = _tool(world, action.family, "restore")
    await process.run([tool, "--noflush", "--wait", "5"], iptables_save.render(action.chains))


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
