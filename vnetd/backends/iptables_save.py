"""iptables-save's text → chains, and edits → iptables-restore's text. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from vnetd.core.keep.rules import ChainEdits
from vnetd.core.model import Chain, Family
from vnetd.core.rules.iptables import BUILTIN_CHAINS


def parse(text: str, family: Family) -> dict[Chain, tuple[str, ...]]:
    """All chains: other people's as well, for libvirt's jumps stand among theirs."""
    chains: dict[Chain, list[str]] = {}
    table, of_table = "", dict[str, list[str]]()
    for line in text.splitlines():
        if line.startswith("-A "):
            name, _, rule = line[3:].partition(" ")
            of_table[name].append(rule)
        elif line.startswith("*"):
            table, of_table = line[1:], {}
        elif line.startswith(":"):
            name = line[1:].split(" ", 1)[0]
            of_table[name] = chains[Chain(family, table, name)] = []
    return {chain: tuple(rules) for chain, rules in chains.items()}


def render(changes: Iterable[ChainEdits]) -> str:
    """For iptables-restore --noflush: one transaction for each table.

    A chain is made with -N: the usual ":CHAIN" line would empty one that libvirt has just made.
    """
    lines = []
    for table, group in groupby(sorted(changes, key=_place), key=lambda item: item.chain.table):
        chains = list(group)
        lines.append(f"*{table}")
        lines += [f"-N {item.chain.name}" for item in chains if item.new]
        for item in chains:
            for edit in item.edits:
                if edit.position:
                    lines.append(f"-I {item.chain.name} {edit.position} {edit.rule}")
                else:
                    lines.append(f"-D {item.chain.name} {edit.rule}")
        lines.append("COMMIT")
    return "\n".join(lines) + "\n"


def _place(item: ChainEdits) -> tuple[str, bool, Chain]:
    return item.chain.table, item.chain in BUILTIN_CHAINS, item.chain
