"""Compare what must be with what is. Drift is what vnetd puts right; a conflict is what it must
leave alone and report.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vnetd.core import coexist, foreign, guarding, needs
from vnetd.core import drift as d
from vnetd.core.model import (
    Cause,
    Chain,
    Definition,
    DhcpHost,
    DhcpRange,
    Held,
    IfName,
    Libvirt,
    Link,
    Network,
    Observed,
    Ruleset,
    World,
    network_object,
)
from vnetd.core.packets.firewall import Firewall
from vnetd.core.policy import NetworkPolicy, Policy, Unlisted
from vnetd.core.rules import iptables, nftables, repair
from vnetd.core.rules.guard import Table
from vnetd.core.wording import few


@dataclass(frozen=True, slots=True)
class Conflict:
    """cause: who made it, if the kernel told while vnetd was looking."""

    object: str
    text: str
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class Diff:
    drift: tuple[d.Drift, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    chains: Mapping[Chain, tuple[str, ...]] | None = None
    """All of libvirt's chains as they must be; None where vnetd does not know the firewall."""
    guard: Table | None = None
    """The guard as it must be; None where there can be none."""


def diff(policy: Policy, observed: Observed, remembered: Ruleset | None = None) -> Diff:
    """remembered: the firewall when it was last right; it tells the order of the networks."""
    libvirt = observed.libvirt
    if libvirt is None:
        return Diff()
    found = list(_networks(policy, libvirt, observed.links or {}))
    kept = [
        network.live
        for name, network in sorted(libvirt.networks.items())
        if network.live is not None and is_kept(policy, name)
    ]
    if observed.links is not None:
        found += _links(policy, libvirt, kept, observed.links)
    found += _services(kept, observed)
    chains = None
    if observed.firewall is not None:
        found += _elsewhere(kept, observed.firewall)
    if observed.firewall is not None and observed.firewall.world.is_iptables:
        here = [live for live in kept if not _has_moved(live, observed.firewall)]
        chains = _expected_chains(here, libvirt.lost_chains, observed.firewall, remembered)
        found += _rules(here, observed.firewall, chains)
    if observed.firewall is not None and observed.firewall.world is World.NFTABLES:
        found += _nftables_rules(kept, libvirt, observed.firewall)
    table = None
    if observed.guard is not None:
        right = observed.firewall
        if any(isinstance(item, d.RulesDiffer) for item in found):
            right = remembered  # a flush took the exceptions along
        table = guarding.wanted(policy, libvirt, kept, chains, right)
        if observed.guard.held is Held.OPEN:  # else nobody but vnetd can have changed it
            found += [
                d.GuardDiffers(network, rules)
                for network, rules in sorted(guarding.missing(table, observed.guard).items())
            ]
    if observed.filters is not None:
        firewall = foreign.with_libvirts(observed.filters, chains or {})
        found += _foreign(policy, kept, firewall)
    return Diff(
        drift=tuple(item for item in found if not isinstance(item, Conflict)),
        conflicts=tuple(item for item in found if isinstance(item, Conflict)),
        chains=chains,
        guard=table,
    )


def is_kept(policy: Policy, network: str) -> bool:
    """Managed, or protected: libvirt's own definition is then what must be."""
    return network in policy.networks or policy.unlisted is Unlisted.PROTECT


def _expected_chains(
    kept: Sequence[Definition],
    lost_chains: bool,
    ruleset: Ruleset,
    remembered: Ruleset | None,
) -> dict[Chain, tuple[str, ...]]:
    """The order between networks is history that libvirt does not tell: a ruleset that is right
    in some order is right. Where it is not, the order that was right last time holds.
    """
    networks = [network for network in kept if iptables.network_rules(network)]
    if not networks and not lost_chains:
        return {}
    as_seen = iptables.compose(iptables.order(networks, ruleset))
    if remembered is None or not any(
        repair.flaws(ruleset.chains.get(chain, ()), rules) for chain, rules in as_seen.items()
    ):
        return as_seen
    return iptables.compose(iptables.order(networks, remembered))


def differences(want: NetworkPolicy, have: Definition) -> tuple[d.Difference, ...]:
    """Where a definition is not what the policy says. Keys that the policy leaves out are free."""
    pairs: list[tuple[str, object, object]] = [("mode", want.libvirts_mode, have.mode)]
    for key in ("bridge", "mac", "mtu", "stp", "domain"):
        if getattr(want, key) is not None:
            pairs.append((key, getattr(want, key), getattr(have, key)))
    if want.mode.has_own_bridge:
        pairs += [
            ("addresses", want.addresses, have.addresses),
            ("dhcp.ranges", frozenset(want.ranges), frozenset(have.ranges)),
            ("dhcp.hosts", frozenset(want.hosts), frozenset(have.hosts)),
        ]
    return _unequal(pairs)


# What libvirt changes in a running network, and what the kernel's own bridge tells better.
_LIVE_KEYS = ("dhcp.ranges", "dhcp.hosts")
_LINK_KEYS = ("mac", "mtu", "stp")


def _networks(
    policy: Policy, libvirt: Libvirt, links: Mapping[IfName, Link]
) -> Iterator[d.Drift | Conflict]:
    for name, want in sorted(policy.networks.items()):
        have = libvirt.networks.get(name) or Network(name, None, None, autostart=False)
        if have.config is None:
            yield d.Undefined(name)
        elif found := differences(want, have.config):
            yield d.ConfigDiffers(name, found)
        if have.autostart is not want.autostart:
            yield d.AutostartDiffers(name, want.autostart)
        if have.live is None:
            yield _stopped(want, have, links)
        else:
            yield from _live(want, have.live)
            if not want.mode.has_own_bridge and want.bridge and want.bridge not in links:
                wrong = f"waits for bridge {want.bridge}: no such link on this host"
                yield Conflict(network_object(name), wrong)
    # An empty policy removes nothing: a file that lost its text must not cost every network.
    if policy.present and policy.networks:
        for name, network in sorted(libvirt.networks.items()):
            if name not in policy.networks and network.definition.made_by_vnetd:
                yield _unexpected(name, libvirt)


def _stopped(
    want: NetworkPolicy, have: Network, links: Mapping[IfName, Link]
) -> d.Stopped | Conflict:
    bridge = want.bridge or (have.config.bridge if have.config else None)
    if want.mode.has_own_bridge and bridge in links:
        # libvirt would fail to start the network, and delete the other bridge while failing.
        wrong = f"cannot start: a link named {bridge} exists that is not libvirt's"
        return Conflict(network_object(want.name), f"{wrong}; rename or remove it")
    return d.Stopped(want.name)


def _live(want: NetworkPolicy, live: Definition) -> Iterator[d.Drift]:
    found = differences(want, live)
    fixed = tuple(item for item in found if item.key not in (*_LIVE_KEYS, *_LINK_KEYS))
    if fixed:
        yield d.LiveDiffers(want.name, fixed)
    elif any(item.key in _LIVE_KEYS for item in found):
        wanted: set[DhcpRange | DhcpHost] = {*want.ranges, *want.hosts}
        served: set[DhcpRange | DhcpHost] = {*live.ranges, *live.hosts}
        add = tuple(sorted(wanted - served, key=str))
        yield d.DhcpDiffers(want.name, add, tuple(sorted(served - wanted, key=str)))


def _unexpected(name: str, libvirt: Libvirt) -> d.Unexpected | Conflict:
    guests = sorted({tap.domain for tap in libvirt.taps if tap.network == name})
    if not guests:
        return d.Unexpected(name)
    wrong = f"is in no policy any more, but {few(guests)} still uses it"
    return Conflict(network_object(name), wrong)


def _links(
    policy: Policy,
    libvirt: Libvirt,
    kept: Sequence[Definition],
    links: Mapping[IfName, Link],
) -> Iterator[d.Drift]:
    for live in kept:
        if live.bridge is None or not live.mode.has_own_bridge:
            continue
        link = links.get(live.bridge)
        if link is None:
            yield d.BridgeMissing(live.name, live.bridge)
            continue
        network, want = libvirt.networks[live.name], policy.networks.get(live.name)
        if found := _bridge_differences(network, want, link):
            yield d.BridgeDiffers(live.name, live.bridge, found)
        for address in live.addresses:
            if address not in link.addresses:
                yield d.AddressMissing(live.name, live.bridge, address)
    bridges = {live.name: live.bridge for live in kept if live.bridge in links}
    for tap in libvirt.taps:
        bridge, plug = bridges.get(tap.network), links.get(tap.device)
        if bridge is not None and plug is not None and plug.master != bridge:
            yield d.Unplugged(tap.network, bridge, tap.domain, tap.device, tap.isolated)
        if bridge and plug and tap.port and tap.port not in libvirt.ports:
            yield d.Unrecorded(tap.network, bridge, tap.domain, tap.device, tap.port)


def _services(kept: Sequence[Definition], observed: Observed) -> Iterator[d.Drift]:
    if observed.sysctls is not None:
        for live in kept:
            for name, value in needs.sysctls(live, observed.sysctls):
                yield d.SysctlDiffers(live.name, name, value, observed.sysctls[name])
    if observed.dnsmasq is not None:
        for name in needs.dnsmasq(kept):
            if name not in observed.dnsmasq:
                yield d.DnsmasqDead(name)


def _bridge_differences(
    network: Network, want: NetworkPolicy | None, link: Link
) -> tuple[d.Difference, ...]:
    """Where the policy leaves a key out, a managed network's bridge is as it will start next time:
    else the next restart would change it under the guests.
    """
    base = network.config if want and network.config else network.definition
    pairs: list[tuple[str, object, object]] = [("state", "up", "up" if link.up else "down")]
    for key in _LINK_KEYS:
        wanted = getattr(want, key, None)
        wanted = getattr(base, key) if wanted is None else wanted
        if wanted is not None:
            pairs.append((key, wanted, getattr(link, key)))
    return _unequal(pairs)


def _rules(
    kept: Sequence[Definition], ruleset: Ruleset, chains: Mapping[Chain, tuple[str, ...]]
) -> Iterator[d.RulesDiffer]:
    found = {
        chain: flaws
        for chain, rules in sorted(chains.items())
        if (flaws := repair.flaws(ruleset.chains.get(chain, ()), rules))
    }
    if not found:
        return
    rules = {live.name: own for live in kept if (own := iptables.network_rules(live))}
    used = {chain for own in rules.values() for chain in own}
    for name, own in rules.items():
        for chain, flaws in found.items():
            if chain in iptables.BUILTIN_CHAINS:
                # libvirt makes its jumps with the first network; one that leads to an empty chain
                # is everybody's.
                targets = iptables.targets(chain)
                needs = {jump for jump, to in targets.items() if to in own or to not in used}
            else:
                needs = set(own.get(chain, ()))
            if hit := flaws.only(needs):
                yield d.RulesDiffer(name, chain, hit)


def _nftables_rules(
    kept: Sequence[Definition], libvirt: Libvirt, ruleset: Ruleset
) -> Iterator[d.Drift]:
    active = [network.live for network in libvirt.networks.values() if network.live is not None]
    findings = nftables.examine(active, ruleset)
    for live in kept:
        for chain, flaws in sorted(findings.lacking.get(live.name, {}).items()):
            yield d.RulesDiffer(live.name, chain, flaws)
    if lost := nftables.examine(kept, ruleset).lost:
        yield d.RulesLost(lost)
    if findings.surplus:
        yield d.RulesLeftOver(findings.surplus)


def _elsewhere(kept: Sequence[Definition], ruleset: Ruleset) -> Iterator[Conflict]:
    for world, chains in ruleset.elsewhere.items():
        for live in kept:
            stands_in = nftables.stands_in if world is World.NFTABLES else iptables.stands_in
            if stands_in(live, chains):
                moved = _has_moved(live, ruleset)
                wrong = f"its rules are in {world}, but libvirt writes to {ruleset.world} now"
                left = f"rules of it are left in {world}, where libvirt no longer removes them"
                yield Conflict(network_object(live.name), wrong if moved else left)


def _has_moved(live: Definition, ruleset: Ruleset) -> bool:
    """Its rules are in the variant of iptables that libvirt's tools have left, and only there:
    until libvirtd is restarted, neither place is the right one.
    """
    if not ruleset.world.is_iptables or iptables.stands_in(live, ruleset.chains):
        return False
    others = [chains for world, chains in ruleset.elsewhere.items() if world.is_iptables]
    return any(iptables.stands_in(live, chains) for chains in others)


def _foreign(
    policy: Policy, kept: Sequence[Definition], firewall: Firewall
) -> Iterator[d.Drift | Conflict]:
    terms = coexist.terms(policy.coexist, tuple(kept), firewall)
    yield from terms.drift
    for block in terms.left:
        yield Conflict(network_object(block.network), str(block), block.cause)


def _unequal(pairs: Iterable[tuple[str, object, object]]) -> tuple[d.Difference, ...]:
    return tuple(
        d.Difference(key, *(_shown(a - b), _shown(b - a)))
        if isinstance(a, frozenset) and isinstance(b, frozenset)
        else d.Difference(key, _shown(a), _shown(b))
        for key, a, b in pairs
        if a != b
    )


def _shown(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "on" if value else "off"
        case tuple():
            return " ".join(str(item) for item in value)
        case frozenset():
            return few(sorted(str(item) for item in value))
        case _:
            return str(value)
