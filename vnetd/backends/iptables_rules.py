"""iptables-save's text → chains of the model. Pure."""

from __future__ import annotations

from dataclasses import replace

from vnetd.core.model import Family
from vnetd.core.packets import iptables_text
from vnetd.core.packets.firewall import (
    Base,
    FilterChain,
    Hook,
    Place,
    Rule,
    Tool,
    Verdict,
)

_HOOKS = {hook.value.upper(): hook for hook in Hook}
# linux/netfilter_ipv4.h: NF_IP_PRI_*; nat is before routing at one place, behind it at another.
_PRIORITIES = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}


def parse(text: str, family: Family, tool: Tool) -> dict[Place, FilterChain]:
    """The tables that this tool can show; what it cannot, it says in a comment."""
    chains: dict[Place, FilterChain] = {}
    rules: dict[Place, list[Rule]] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            name, policy = line[1:].split(" ")[:2]
            place = Place(tool, family.value, table, name)
            chains[place] = FilterChain(place, base=_base(table, name, policy))
            rules[place] = []
        elif line.startswith("-A "):
            name, _, rule = line[3:].partition(" ")
            place = Place(tool, family.value, table, name)
            if place in rules:
                rules[place] += iptables_text.rules(rule)
    return {place: replace(chain, rules=tuple(rules[place])) for place, chain in chains.items()}


def tables(text: str) -> frozenset[str]:
    return frozenset(line[1:] for line in text.splitlines() if line.startswith("*"))


def _base(table: str, name: str, policy: str) -> Base | None:
    hook = _HOOKS.get(name)
    if hook is None or policy == "-":
        return None
    nat = -100 if hook in (Hook.PREROUTING, Hook.OUTPUT) else 100
    verdict = Verdict.DROP if policy == "DROP" else Verdict.ACCEPT
    kind = "nat" if table == "nat" else "filter"
    return Base(hook, _PRIORITIES.get(table, nat), verdict, kind)
