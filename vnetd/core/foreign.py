"""Drops that others' chains do to a network's flows. An accept in one table cannot override them:
they can only be named, or met at their tool's own extension point.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from vnetd.core.model import Cause, Chain, Definition, Family, Mode
from vnetd.core.packets import flows, iptables_text
from vnetd.core.packets.evaluate import Decision
from vnetd.core.packets.firewall import FilterChain, Firewall, Place, Tool
from vnetd.core.rules import iptables, repair
from vnetd.core.wording import few


@dataclass(frozen=True, slots=True)
class Block:
    """One rule or policy of others, and all that it certainly stops of a network."""

    network: str
    decision: Decision
    stopped: tuple[flows.Flow, ...]
    owner: str
    cause: Cause | None

    def __str__(self) -> str:
        kinds = list(dict.fromkeys(_named(flow) for flow in self.stopped))
        by = f"{self.owner}, {self.cause}" if self.cause else self.owner
        return f"{few(kinds, most=8)} blocked at {self.decision.hook} by {self.decision} ({by})"


def blocks(
    network: Definition, networks: Iterable[Definition], firewall: Firewall
) -> tuple[Block, ...]:
    """Empty for an open network: what it may do is for the admin's own rules to say."""
    if network.mode is Mode.OPEN:
        return ()
    found: dict[tuple[Place, str], tuple[Decision, list[flows.Flow]]] = {}
    for flow in flows.of_network(network, firewall, networks):
        for decision in flows.judge(firewall, flow):
            if decision.blocks and decision.certain and not is_ours(decision.place):
                key = decision.place, decision.rule.text if decision.rule else ""
                found.setdefault(key, (decision, []))[1].append(flow)
    return tuple(
        Block(
            network.name,
            decision,
            tuple(dict.fromkeys(stopped)),
            owner(decision.place, firewall),
            firewall.origins.get(key),
        )
        for key, (decision, stopped) in found.items()
    )


def interfaces(network: Definition, firewall: Firewall) -> set[str]:
    """All that a network's flows come and go by."""
    names = {"", network.bridge or "", network.forward_dev or ""}
    return names.union(*firewall.uplinks.values())


def is_ours(place: Place) -> bool:
    """libvirt's own, and vnetd's guard."""
    return (
        place.chain.startswith("LIBVIRT_")
        or place.table == "libvirt_network"
        or (place.family, place.table) == ("inet", "vnetd")
    )


def owner(place: Place, firewall: Firewall) -> str:
    """The tool that made it, by the names that it gives; whoever it was, by hand."""
    name = place.chain
    if place.table == "firewalld":
        return "firewalld"
    if name.startswith("DOCKER") or place.table.startswith("docker"):
        return "docker"
    if name.startswith(("ufw-", "ufw6-")):
        return "ufw"
    # A policy, or a rule in a chain that all share: of the tool that is at home in the table.
    beside = {p.chain for p in firewall.chains if _same_table(p, place)}
    if beside & {"ufw-user-forward", "ufw6-user-forward"}:
        return "ufw"
    if "DOCKER-USER" in beside and name == "FORWARD":
        return "docker"
    return "hand-written"


def with_libvirts(firewall: Firewall, expected: Mapping[Chain, Sequence[str]]) -> Firewall:
    """As it will be once libvirt's own rules are right: a drop that only stands out while they are
    missing is no one else's fault.
    """
    chains, changed = dict(firewall.chains), False
    for chain in _beside_drops(firewall):
        place, texts = _place(chain), expected.get(chain, ())
        have = chains.get(place)
        texts_now = [rule.text for rule in have.rules] if have else []
        if not repair.flaws(texts_now, texts):
            continue
        if have is None:
            have = FilterChain(place)
        others = [rule for rule in have.rules if rule.text not in texts]
        own = [rule for text in texts for rule in iptables_text.rules(text)]
        chains[place] = replace(have, rules=(*own, *others))
        changed = True
    return replace(firewall, chains=chains) if changed else firewall


def _beside_drops(firewall: Firewall) -> Iterator[Chain]:
    """libvirt's chains and jumps, as far as something there may drop a packet before them."""
    for chain in iptables.BUILTIN_CHAINS:
        if _place(chain) in firewall.chains:
            yield chain
            yield from iptables.targets(chain).values()


def _place(chain: Chain) -> Place:
    return Place(Tool.IPTABLES, chain.family.value, chain.table, chain.name)


def _named(flow: flows.Flow) -> str:
    return f"{flow.kind} (IPv6)" if flow.family is Family.IPV6 else flow.kind.value


def _same_table(one: Place, two: Place) -> bool:
    return (one.tool, one.family, one.table) == (two.tool, two.family, two.table)
