"""libvirt's firewall rules: they stand, once each and in libvirt's order.

Of its iptables backend vnetd puts back what is missing. In the tables of its nftables backend vnetd
puts copies first, then lets libvirt install its own, and deletes what is too many then; or all that
is left of libvirt's, where it has moved to iptables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vnetd.core.actions import Action
from vnetd.core.drift import Conflict, Drift, NetworkDrift
from vnetd.core.memo import of_the_same
from vnetd.core.model import (
    FIREWALL_OBJECT,
    Chain,
    Definition,
    Family,
    Libvirt,
    Ruleset,
    Source,
    World,
    network_object,
)
from vnetd.core.rules import iptables, nftables, repair
from vnetd.core.wording import few


@dataclass(frozen=True, slots=True)
class RulesDiffer(NetworkDrift):
    """One chain, as far as this network needs it: its own rules and the jumps to them."""

    chain: Chain
    flaws: repair.Flaws
    source = Source.FIREWALL

    def __str__(self) -> str:
        return f"{self.chain}: {self.flaws}"


class _OfNobody(Drift):
    __slots__ = ()
    source = Source.FIREWALL

    @property
    def object(self) -> str:
        return FIREWALL_OBJECT


@dataclass(frozen=True, slots=True)
class RulesLost(_OfNobody):
    """libvirt itself must install them again. Until then vnetd's copies do their work."""

    rules: tuple[tuple[Chain, str], ...]

    def __str__(self) -> str:
        return "lost by libvirt: " + few([f"{chain} {rule}" for chain, rule in self.rules])


@dataclass(frozen=True, slots=True)
class RulesLeftOver(_OfNobody):
    """Copies, duplicates, and rules of networks that are gone: nobody else will delete them."""

    rules: tuple[nftables.Surplus, ...]

    def __str__(self) -> str:
        return "left over: " + few([f"{item.chain} {item.rule}" for item in self.rules])


@dataclass(frozen=True, slots=True)
class ChainsFailed(_OfNobody):
    """libvirt tries once per process, and keeps the error for all that follows (errInitV4 in its
    bridge_driver_linux.c). Somebody who flushes while libvirtd starts is enough.
    """

    def __str__(self) -> str:
        return "libvirt failed to make its chains, and starts or updates no network since"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainEdits:
    """new: the chain does not exist yet."""

    chain: Chain
    new: bool
    edits: tuple[repair.Edit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreRules(Action):
    """All at once."""

    chains: tuple[ChainEdits, ...]
    quick = True

    def __str__(self) -> str:
        counts = dict.fromkeys({item.chain.family for item in self.chains}, 0)
        for item in self.chains:
            counts[item.chain.family] += sum(1 for edit in item.edits if edit.position)
        rules = [f"{counts[family]} IPv{family.version}" for family in Family if family in counts]
        return f"restore {' and '.join(rules)} rules in {len(self.chains)} chains"


@dataclass(frozen=True, slots=True, kw_only=True)
class EditNftables(Action):
    """For nft -f: one transaction in libvirt's own tables."""

    what: str
    script: tuple[str, ...]
    quick = True

    def __str__(self) -> str:
        return self.what


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinstallRules(Action):
    """libvirt deletes the rules of all its networks and installs them again. scaffold: for nft -f,
    what stands in front of them meanwhile.
    """

    scaffold: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "let libvirt install the rules of all its networks again"


def expected(
    kept: Sequence[Definition],
    lost_chains: bool,
    ruleset: Ruleset,
    remembered: Ruleset | None,
) -> dict[Chain, tuple[str, ...]] | None:
    """All of libvirt's chains as they must be; None where vnetd does not know the firewall.

    The order between networks is history that libvirt does not tell: a ruleset that is right in
    some order is right. Where it is not, the order that was right last time holds.
    """
    if not ruleset.world.is_iptables:
        return None
    networks = tuple(live for live in _here(kept, ruleset) if iptables.network_rules(live))
    if not networks and not lost_chains:
        return {}
    before = None
    if remembered is not None:
        before = _before(networks, remembered)
        if not _is_flawed(ruleset, before):
            return before
    as_seen = _composed(networks, ruleset)
    return as_seen if before is None or not _is_flawed(ruleset, as_seen) else before


@of_the_same
def _before(networks: tuple[Definition, ...], remembered: Ruleset) -> dict[Chain, tuple[str, ...]]:
    return _composed(networks, remembered)


def _composed(networks: Sequence[Definition], ruleset: Ruleset) -> dict[Chain, tuple[str, ...]]:
    return _compose(tuple(iptables.order(networks, ruleset)))


@of_the_same
def _compose(networks: tuple[Definition, ...]) -> dict[Chain, tuple[str, ...]]:
    return iptables.compose(networks)


def _is_flawed(ruleset: Ruleset, chains: Mapping[Chain, tuple[str, ...]]) -> bool:
    return any(
        repair.flaws(ruleset.chains.get(chain, ()), rules) for chain, rules in chains.items()
    )


def diff(
    libvirt: Libvirt,
    kept: Sequence[Definition],
    ruleset: Ruleset,
    chains: Mapping[Chain, tuple[str, ...]] | None,
) -> Iterator[Drift | Conflict]:
    """chains: as expected() gives them."""
    yield from _elsewhere(kept, libvirt, ruleset)
    if libvirt.chains_failed:
        yield ChainsFailed()
    if chains is not None:
        yield from _iptables(_here(kept, ruleset), ruleset, chains)
    if ruleset.world is World.NFTABLES:
        yield from _nftables(kept, libvirt, ruleset)


def plan(
    drift: Sequence[Drift],
    libvirt: Libvirt,
    ruleset: Ruleset,
    chains: Mapping[Chain, Sequence[str]] | None,
    remembered: Mapping[Chain, Sequence[str]],
) -> Iterator[Action]:
    """remembered: the chains when they were last right, with others' rules among them."""
    if chains is not None:
        yield from _restore(drift, libvirt, ruleset, chains, remembered)
        if not any(isinstance(item, RulesDiffer) for item in drift):
            yield from (_delete(item.rules) for item in drift if isinstance(item, RulesLeftOver))
        # Told to install its rules again, libvirt makes its chains as well: which now are there.
        for item in drift:
            if isinstance(item, ChainsFailed):
                yield ReinstallRules(objects=(item.object,), reason=str(item))
    if ruleset.world is World.NFTABLES:
        yield from _reinstall(drift, libvirt, ruleset)


def _iptables(
    kept: Sequence[Definition], ruleset: Ruleset, chains: Mapping[Chain, tuple[str, ...]]
) -> Iterator[RulesDiffer]:
    found = {
        chain: flaws
        for chain, rules in sorted(chains.items())
        if (flaws := repair.flaws(ruleset.chains.get(chain, ()), rules))
    }
    if not found:
        return
    parts = {chain: flaws.by_rule() for chain, flaws in found.items()}
    rules = {live.name: own for live in kept if (own := iptables.network_rules(live))}
    jumps = {chain: iptables.targets(chain) for chain in iptables.BUILTIN_CHAINS if chain in parts}
    used = {chain for own in rules.values() for chain in own} if jumps else set()
    for name, own in rules.items():
        for chain, wrong in parts.items():
            needs = own.get(chain, ())
            if chain in jumps:
                # libvirt makes its jumps with the first network; one that leads to an empty chain
                # is everybody's.
                targets = jumps[chain].items()
                needs = tuple(jump for jump, to in targets if to in own or to not in used)
            if hit := repair.flaws_of(needs, wrong):
                yield RulesDiffer(name, chain, hit)


def _nftables(kept: Sequence[Definition], libvirt: Libvirt, ruleset: Ruleset) -> Iterator[Drift]:
    active = _active(libvirt)
    findings = nftables.examine(active, ruleset)
    for live in kept:
        for chain, flaws in sorted(findings.lacking.get(live.name, {}).items()):
            yield RulesDiffer(live.name, chain, flaws)
    of_kept = findings if set(kept) >= set(active) else nftables.examine(kept, ruleset)
    if of_kept.lost:
        yield RulesLost(of_kept.lost)
    if findings.surplus:
        yield RulesLeftOver(findings.surplus)


def _elsewhere(
    kept: Sequence[Definition], libvirt: Libvirt, ruleset: Ruleset
) -> Iterator[Drift | Conflict]:
    if not ruleset.elsewhere:
        return
    here = {live.name for live in _here(kept, ruleset)}
    for other in ruleset.elsewhere:
        world = other.world
        in_nftables = world is World.NFTABLES
        # After a net-update that touches no rules libvirt does not know any more which are its.
        if in_nftables and (rules := nftables.left_behind(kept, _active(libvirt), other)):
            yield RulesLeftOver(rules)
            continue
        for live in _standing(kept, other):
            wrong = f"its rules are in {world}, but libvirt writes to {ruleset.world} now"
            left = f"rules of it are left in {world}, where libvirt no longer removes them"
            yield Conflict(network_object(live.name), left if live.name in here else wrong)


def _here(kept: Sequence[Definition], ruleset: Ruleset) -> Sequence[Definition]:
    """Without those whose rules are in the variant of iptables that libvirt's tools have left, and
    only there: until libvirtd is restarted, neither place is the right one.
    """
    if not ruleset.elsewhere or not ruleset.world.is_iptables:
        return kept
    moved = {
        live.name
        for other in ruleset.elsewhere
        if other.world.is_iptables
        for live in _standing(kept, other)
    }
    moved -= {live.name for live in _standing(kept, ruleset)}
    return [live for live in kept if live.name not in moved]


def _standing(kept: Iterable[Definition], ruleset: Ruleset) -> Iterator[Definition]:
    """Those of which some rule is there."""
    backend = nftables if ruleset.world is World.NFTABLES else iptables
    there = {chain: frozenset(rules) for chain, rules in ruleset.chains.items()}
    for live in kept:
        own = backend.network_rules(live).items()
        if any(rule in there.get(chain, ()) for chain, rules in own for rule in rules):
            yield live


def _restore(
    drift: Iterable[Drift],
    libvirt: Libvirt,
    ruleset: Ruleset,
    chains: Mapping[Chain, Sequence[str]],
    remembered: Mapping[Chain, Sequence[str]],
) -> Iterator[RestoreRules]:
    differing = [item for item in drift if isinstance(item, RulesDiffer)]
    if not differing and not libvirt.lost_chains:
        return
    edited = (
        ChainEdits(
            chain=chain,
            new=chain in iptables.PRIVATE_CHAINS and chain not in ruleset.chains,
            edits=tuple(
                repair.edits(ruleset.chains.get(chain, ()), rules, remembered.get(chain, ()))
            ),
        )
        for chain, rules in sorted(chains.items())
    )
    changed = tuple(item for item in edited if item.edits or item.new)
    if changed:
        tables = sorted({item.chain.table for item in changed})
        yield RestoreRules(
            objects=tuple(sorted({item.object for item in differing})),
            reason=f"rules differ in {', '.join(tables)}",
            chains=changed,
        )


def _reinstall(drift: Iterable[Drift], libvirt: Libvirt, ruleset: Ruleset) -> Iterator[Action]:
    """First what guests lack, as copies; then libvirt's own; then the copies and all else that is
    too many goes.
    """
    lacking: dict[str, dict[Chain, repair.Flaws]] = {}
    delete: tuple[nftables.Surplus, ...] = ()
    reinstall = ""
    for item in drift:
        match item:
            case RulesDiffer(network=network, chain=chain, flaws=flaws):
                lacking.setdefault(network, {})[chain] = flaws
            case RulesLeftOver(rules=rules):
                delete = rules
            case RulesLost() | ChainsFailed():
                reinstall = str(item)
            case _:
                pass
    scaffold = nftables.scaffold(_active(libvirt), ruleset) if reinstall else ()
    if lacking or libvirt.lost_chains:
        copies = nftables.script(_active(libvirt), ruleset, delete=delete, lacking=lacking)
        yield EditNftables(
            objects=tuple(network_object(network) for network in sorted(lacking)),
            reason="rules are lacking" if lacking else "libvirt's chains are gone",
            what="put copies of lacking rules in place",
            # At once with it: libvirt may be installing its rules since somebody flushed before.
            script=(*copies, *scaffold),
        )
    elif delete:
        yield _delete(delete)
    elif reinstall:
        yield ReinstallRules(
            objects=(FIREWALL_OBJECT,),
            reason=reinstall,
            scaffold=scaffold,
        )


def _delete(rules: Sequence[nftables.Surplus]) -> EditNftables:
    return EditNftables(
        objects=(FIREWALL_OBJECT,),
        reason=f"libvirt does not delete them in {nftables.TABLE}",
        what=f"delete {len(rules)} rules that are left over",
        script=nftables.deletions(rules),
    )


def _active(libvirt: Libvirt) -> list[Definition]:
    return [network.live for _, network in sorted(libvirt.networks.items()) if network.live]
