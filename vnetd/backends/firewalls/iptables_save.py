"""iptables-save's text → tables and chains, and edits → iptables-restore's text. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

from vnetd.core.keep.rules import ChainEdits
from vnetd.core.model import Chain, Family
from vnetd.core.rules.iptables import BUILTIN_CHAINS


@dataclass(frozen=True, slots=True)
class Table:
    """chains: the rules of each, without -A CHAIN. policies: of built-in chains."""

    chains: Mapping[str, tuple[str, ...]]
    policies: Mapping[str, str]


Tables = Mapping[str, Table]


def tables(text: str) -> dict[str, Table]:
    """Those that the tool can show; what it cannot, it says in a comment."""
    found: dict[str, tuple[dict[str, list[str]], dict[str, str]]] = {}
    rules: dict[str, list[str]] = {}
    policies: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("-A "):
            name, _, rule = line[3:].partition(" ")
            rules[name].append(rule)
        elif line.startswith("*"):
            rules, policies = {}, {}
            found[line[1:]] = rules, policies
        elif line.startswith(":"):
            name, _, rest = line[1:].partition(" ")
            rules[name] = []
            if (policy := rest.partition(" ")[0]) != "-":
                policies[name] = policy
    return {
        table: Table({name: tuple(texts) for name, texts in rules.items()}, policies)
        for table, (rules, policies) in found.items()
    }


def chains(of: Tables, family: Family) -> dict[Chain, tuple[str, ...]]:
    """All chains: other people's as well, for libvirt's jumps stand among theirs."""
    return {
        Chain(family, name, chain): rules
        for name, table in of.items()
        for chain, rules in table.chains.items()
    }


def parse(text: str, family: Family) -> dict[Chain, tuple[str, ...]]:
    return chains(tables(text), family)


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
