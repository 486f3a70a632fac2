"""What the host's firewalls do with the flows of a network, and whose doing it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vnetd.core import foreign
from vnetd.core.diff import Diff
from vnetd.core.keep import rules
from vnetd.core.model import Definition, Family, Mode, Observed, World
from vnetd.core.packets import flows
from vnetd.core.packets.evaluate import Decision
from vnetd.core.packets.firewall import Field, Firewall, Match, Rule, network_span
from vnetd.core.policy import Policy
from vnetd.core.why.question import Question, Scene, Step, Word, restart


def steps(
    asked: Question,
    live: Definition,
    policy: Policy,
    observed: Observed,
    found: Diff,
    scene: Scene,
) -> Iterator[Step]:
    firewall = observed.filters
    if firewall is None:
        return
    networks = observed.libvirt.networks.values() if observed.libvirt else ()
    kept = [network.live for network in networks if network.live]
    ends = flows.Ends(destination=asked.destination, out=scene.out)
    right = foreign.with_libvirts(firewall, found.chains or {})
    ways = flows.of_network(policy.meant(live), right, kept, ends)
    yield from _libvirts(live, observed, found, ways)
    told: dict[str, dict[str, Step]] = {}
    for way in ways:
        name = f"{way.kind} (IPv{way.family.version})"
        of_name = told.setdefault(name, {})  # DNS by UDP and by TCP are one to a reader
        for item in flows.judge(right, way):
            if item.blocks:
                of_name.setdefault(str(item), _verdict(name, way, item, right))
    for name, verdicts in told.items():
        yield from verdicts.values() or [Step(at="firewall", text=f"{name}: nothing stops it")]


def _verdict(name: str, way: flows.Flow, item: Decision, firewall: Firewall) -> Step:
    place, rule = item.place, item.rule.text if item.rule else f"policy {item.verdict}"
    cause = firewall.origins.get((place, item.rule.text if item.rule else ""))
    owner = "libvirt" if foreign.is_ours(place) else foreign.owner(place, firewall)
    may = "" if item.certain else "may be "
    taken = _takes_frames(way, item)
    return Step(
        at="firewall",
        word=Word.BLOCKED if item.certain else Word.MAYBE,
        text=f"{name}: {may}{_past(item)} by {item} ({owner})"
        + (f", as {taken} is 1" if taken else ""),
        cure=_cure(item, owner) + (f"; or {taken}=0" if taken else "") if item.certain else "",
        hook=item.hook.value,
        table=f"{place.family} {place.table}",
        chain=place.chain,
        rule=rule,
        process=str(cause or ""),
    )


def _takes_frames(way: flows.Flow, item: Decision) -> str:
    """The sysctl by which frames between ports of one bridge come to hooks of IP at all."""
    if way.kind is not flows.Kind.PEERS or item.place.family not in ("ip", "ip6", "inet"):
        return ""
    return f"bridge-nf-call-{'iptables' if way.family is Family.IPV4 else 'ip6tables'}"


def _past(item: Decision) -> str:
    return "rejected" if item.verdict == "reject" else "dropped"


def _cure(item: Decision, owner: str) -> str:
    match owner:
        case "docker":
            return 'coexist = ["docker"], or an accept in DOCKER-USER'
        case "ufw":
            return 'coexist = ["ufw"], or: ufw route allow'
        case "firewalld":
            return 'coexist = ["firewalld"], or: firewall-cmd --zone=libvirt --change-interface'
        case _:
            what = "change the policy" if item.rule is None else "remove the rule"
            return f"{what}, or accept the network's traffic before it"


def _libvirts(
    live: Definition, observed: Observed, found: Diff, ways: Iterable[flows.Flow]
) -> Iterator[Step]:
    """libvirt's own rules: what is missing stops guests only if something then does."""
    firewall = observed.filters
    assert firewall is not None, "asked for with a firewall only"
    right = foreign.with_libvirts(firewall, found.chains or {})
    now = {str(item) for way in ways for item in flows.judge(firewall, way) if _stops(item)}
    then = {str(item) for way in ways for item in flows.judge(right, way) if _stops(item)}
    flaws = [x for x in found.drift if isinstance(x, rules.RulesDiffer) and x.network == live.name]
    for item in flaws:
        translation = item.chain.table == "nat" and live.mode is Mode.NAT
        stops = translation or (item.chain.table == "filter" and bool(now - then))
        yield Step(
            at="libvirt's rules",
            word=Word.BLOCKED if stops else Word.MAYBE,
            text=str(item) + (": guests' packets leave untranslated" if translation else ""),
            cure="vnetctl reconcile" if stops else "",
            table=f"{item.chain.family} {item.chain.table}",
            chain=item.chain.name,
        )
    dead = list(_dead_rules(live, firewall))
    for rule in dead:
        wrong = f"libvirt's rule is bound to an interface that is gone: {rule.text}"
        cure = f"restart libvirt's network daemon, or the network: {restart(live.name)}"
        yield Step(
            at="libvirt's rules",
            word=Word.BLOCKED,
            text=wrong,
            cure=cure,
            table="libvirt_network",
            rule=rule.text,
        )
    world = observed.firewall.world if observed.firewall else World.NONE
    if not flaws and not dead and live.mode.has_rules and world is World.IPTABLES_NFT:
        yield Step(at="libvirt's rules", text="all are there, in order")


def _stops(item: Decision) -> bool:
    return item.blocks and item.certain


def _dead_rules(live: Definition, firewall: Firewall) -> Iterator[Rule]:
    """The nftables backend binds to interface indexes, which a new bridge does not have."""
    subnets = {network_span(address.network) for address in live.addresses}
    for chain in firewall.chains.values():
        if chain.place.table != "libvirt_network":
            continue
        for rule in chain.rules:
            matches = [item for item in rule.matches if isinstance(item, Match)]
            own = any(isinstance(m.values, tuple) and subnets & set(m.values) for m in matches)
            links = [m for m in matches if m.field in (Field.IIF, Field.OIF)]
            names = {str(name) for m in links for name in m.values}
            if own and any(name.startswith("#") for name in names):
                yield rule
