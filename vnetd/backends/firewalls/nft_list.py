"""What nft and libvirt say of libvirt's nftables backend: "nft -a -s list table" → chains, a
network's status file → the handles that libvirt will delete. Pure.
"""

from __future__ import annotations

import re

from vnetd.backends import xmltext
from vnetd.core.model import Chain, Family
from vnetd.core.rules.nftables import TABLE

_HANDLE = re.compile(r"(.*) # handle (\d+)")


def parse(
    text: str, family: Family
) -> tuple[dict[Chain, tuple[str, ...]], dict[Chain, tuple[int, ...]]]:
    """The rules of each chain, and their handles."""
    rules: dict[Chain, list[str]] = {}
    handles: dict[Chain, list[int]] = {}
    chain = None
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("chain "):
            chain = Chain(family, TABLE, line.split()[1])
            rules[chain], handles[chain] = [], []
        elif chain is not None and (match := _HANDLE.fullmatch(line)) is not None:
            rules[chain].append(match[1])
            handles[chain].append(int(match[2]))
    return (
        {chain: tuple(found) for chain, found in rules.items()},
        {chain: tuple(found) for chain, found in handles.items()},
    )


def parse_removal(text: str) -> tuple[str | None, frozenset[tuple[Chain, int]]]:
    """The backend that made this network's rules, where the file tells, and their handles."""
    firewall = xmltext.read(text, "a network's status").find("firewall")
    if firewall is None:
        return None, frozenset()
    handles = set()
    for action in firewall.iter("action"):
        match [item.text or "" for item in action.iter("item")]:
            case ["delete", "rule", ("ip" | "ip6") as family, table, chain, "handle", handle]:
                handles.add((Chain(Family(family), table, chain), int(handle)))
            case _:
                pass  # tc's
    return firewall.get("backend"), frozenset(handles)
