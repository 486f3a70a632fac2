"""libvirt's nftables backend: its tables, and what it remembers of its rules."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

from vnetd.backends import process
from vnetd.backends.firewalls import nft_list
from vnetd.backends.libvirt import status_files
from vnetd.core.model import Chain, Chains, Family, Ruleset, World
from vnetd.core.rules.nftables import CHAINS, SCAFFOLD, TABLE
from vnetd.errors import BackendError

_CONFIGURATION = Path("/etc/libvirt/network.conf")


async def read() -> tuple[str | None, Ruleset]:
    """Also libvirt's backend as it wrote it down last."""
    lists = await asyncio.gather(*(_list(family) for family in Family))
    rules: dict[Chain, tuple[str, ...]] = {}
    handles: dict[Chain, tuple[int, ...]] = {}
    for family, text in zip(Family, lists, strict=True):
        of_family = nft_list.parse(text, family)
        rules |= of_family[0]
        handles |= of_family[1]
    backend, remembered = await _recorded()
    return backend, Ruleset(World.NFTABLES, rules, handles=handles, remembered=remembered)


def has_rules(chains: Chains) -> bool:
    """Libvirt's, or vnetd's in their place."""
    ours = {*CHAINS, *(Chain(family, TABLE, SCAFFOLD) for family in Family)}
    return any(chains.get(chain) for chain in ours if chain.name != "forward")


async def edit(script: Sequence[str]) -> None:
    await process.run(["nft", "-f", "-"], "".join(f"{line}\n" for line in script))


async def _recorded() -> tuple[str | None, frozenset[tuple[Chain, int]]]:
    """The backend, and the handles that libvirt will delete."""
    backend, newest = None, 0
    handles: set[tuple[Chain, int]] = set()
    for written, text in await status_files.read():
        try:
            said, of_network = nft_list.parse_removal(text)
        except BackendError:
            continue  # just being written
        handles |= of_network
        if said is not None and written >= newest:
            backend, newest = said, written
    return backend, frozenset(handles)


def configured() -> str | None:
    """What network.conf asks for; libvirt reads it when it starts."""
    try:
        text = _CONFIGURATION.read_text()
    except OSError:
        return None
    found = re.search(r'^\s*firewall_backend\s*=\s*"(\w+)"', text, re.MULTILINE)
    return found[1] if found else None


async def _list(family: Family) -> str:
    try:
        return await process.run(["nft", "-a", "-s", "list", "table", family, TABLE])
    except BackendError as error:
        if "No such file or directory" in str(error):
            return ""  # no such table, or no nft
        raise
