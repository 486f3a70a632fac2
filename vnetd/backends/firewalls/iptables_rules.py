"""Rules as iptables-save prints them → chains of the model. Pure."""

from __future__ import annotations

from vnetd.backends.firewalls.iptables_save import Table
from vnetd.core.model import Family
from vnetd.core.packets import iptables_text
from vnetd.core.packets.firewall import (
    MARK,
    Base,
    FilterChain,
    Hook,
    Place,
    Tool,
    Verdict,
)

_HOOKS = {hook.value.upper(): hook for hook in Hook}
# linux/netfilter_ipv4.h: NF_IP_PRI_*; nat is before routing at one place, behind it at another.
_PRIORITIES = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}
# Of each rule that may stop a packet, and of vnetd's own.
_BLOCKING = ("DROP", "REJECT", "QUEUE", MARK)


def parse(name: str, table: Table, family: Family, tool: Tool) -> dict[Place, FilterChain]:
    """Empty where nothing in it can stop a packet: thousands of rules may only translate."""
    chains: dict[Place, FilterChain] = {}
    if not _can_block(table):
        return chains
    for chain, texts in table.chains.items():
        place = Place(tool, family.value, name, chain)
        base = _base(name, chain, table.policies.get(chain, ""))
        rules = tuple(rule for text in texts for rule in iptables_text.rules(text))
        chains[place] = FilterChain(place, rules, base)
    return chains


def _can_block(table: Table) -> bool:
    if "DROP" in table.policies.values():
        return True
    texts = (text for rules in table.chains.values() for text in rules)
    return any(word in text for text in texts for word in _BLOCKING)


def _base(table: str, name: str, policy: str) -> Base | None:
    hook = _HOOKS.get(name)
    if hook is None or not policy:
        return None
    nat = -100 if hook in (Hook.PREROUTING, Hook.OUTPUT) else 100
    verdict = Verdict.DROP if policy == "DROP" else Verdict.ACCEPT
    kind = "nat" if table == "nat" else "filter"
    return Base(hook, _PRIORITIES.get(table, nat), verdict, kind)
