"""Compare what must be with what is. Drift is what vnetd puts right; a conflict is what it must
leave alone and report.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from vnetd.core import coexist, foreign, guarding, needs
from vnetd.core.model import (
    FIREWALL_OBJECT,
    Address,
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
    Source,
    World,
    network_object,
)
from vnetd.core.packets.firewall import Firewall
from vnetd.core.policy import NetworkPolicy, Policy, Unlisted
from vnetd.core.rules import iptables, nftables, repair
from vnetd.core.rules.guard import Table
from vnetd.core.wording import few


@dataclass(frozen=True, slots=True)
class Undefined:
    network: str


@dataclass(frozen=True, slots=True)
class Difference:
    """One key of a definition. want and have as a policy writes them."""

    key: str
    want: str
    have: str

    def __str__(self) -> str:
        return f"{self.key} is {self.have or 'none'} instead of {self.want or 'none'}"


@dataclass(frozen=True, slots=True)
class ConfigDiffers:
    """What libvirt will start next time is not what the policy says."""

    network: str
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class LiveDiffers:
    """What runs now is not what the policy says, and only a restart changes it."""

    network: str
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class DhcpDiffers:
    """Ranges or reservations of the running network, which libvirt can change while it runs."""

    network: str
    add: tuple[DhcpRange | DhcpHost, ...]
    remove: tuple[DhcpRange | DhcpHost, ...]


@dataclass(frozen=True, slots=True)
class Stopped:
    network: str


@dataclass(frozen=True, slots=True)
class AutostartDiffers:
    network: str
    want: bool


@dataclass(frozen=True, slots=True)
class Unexpected:
    """Made by vnetd, and no policy names it any more."""

    network: str


@dataclass(frozen=True, slots=True)
class BridgeMissing:
    """libvirt calls the network active, but its bridge is gone."""

    network: str
    bridge: IfName


@dataclass(frozen=True, slots=True)
class BridgeDiffers:
    network: str
    bridge: IfName
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class AddressMissing:
    network: str
    bridge: IfName
    address: Address


@dataclass(frozen=True, slots=True)
class Unplugged:
    """A running guest's tap is not on its network's bridge."""

    network: str
    bridge: IfName
    domain: str
    tap: IfName
    isolated: bool


@dataclass(frozen=True, slots=True)
class Unrecorded:
    """libvirt has forgotten a running guest's tap: it does not count it any more."""

    network: str
    bridge: IfName
    domain: str
    tap: IfName
    port: str


@dataclass(frozen=True, slots=True)
class RulesDiffer:
    """One chain, as far as this network needs it: its own rules and the jumps to them."""

    network: str
    chain: Chain
    flaws: repair.Flaws


@dataclass(frozen=True, slots=True)
class SysctlDiffers:
    """name: below /proc/sys."""

    network: str
    name: str
    want: str
    have: str


@dataclass(frozen=True, slots=True)
class DnsmasqDead:
    network: str


@dataclass(frozen=True, slots=True)
class GuardDiffers:
    """rules: how many of this network's the guard lacks."""

    network: str
    rules: int


@dataclass(frozen=True, slots=True)
class RulesLost:
    """libvirt itself must install them again. Until then vnetd's copies do their work."""

    rules: tuple[tuple[Chain, str], ...]


@dataclass(frozen=True, slots=True)
class RulesLeftOver:
    """Copies, duplicates, and rules of networks that are gone: nobody else will delete them."""

    rules: tuple[nftables.Surplus, ...]


Drift = (
    Undefined
    | ConfigDiffers
    | LiveDiffers
    | DhcpDiffers
    | Stopped
    | AutostartDiffers
    | Unexpected
    | BridgeMissing
    | BridgeDiffers
    | AddressMissing
    | Unplugged
    | Unrecorded
    | RulesDiffer
    | GuardDiffers
    | SysctlDiffers
    | DnsmasqDead
    | coexist.AcceptsDiffer
    | coexist.ZoneDiffers
    | RulesLost
    | RulesLeftOver
)


@dataclass(frozen=True, slots=True)
class Conflict:
    """cause: who made it, if the kernel told while vnetd was looking."""

    object: str
    text: str
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class Diff:
    drift: tuple[Drift, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    chains: Mapping[Chain, tuple[str, ...]] | None = None
    """All of libvirt's chains as they must be; None where vnetd does not know the firewall."""
    guard: Table | None = None
    """The guard as it must be; None where there can be none."""


def text(drift: Drift) -> str:
    """One line for people; the network is named beside it."""
    match drift:
        case Undefined():
            return "is not defined"
        case ConfigDiffers():
            return "definition: " + _joined(drift.differences)
        case LiveDiffers():
            return "running network: " + _joined(drift.differences)
        case DhcpDiffers(add=add, remove=remove):
            missing = [f"{item} is missing" for item in add]
            return "running DHCP: " + few(missing + [f"{item} is not wanted" for item in remove])
        case Stopped():
            return "is not active"
        case AutostartDiffers(want=want):
            return f"autostart is {'off' if want else 'on'}"
        case Unexpected():
            return "is in no policy any more"
        case BridgeMissing(bridge=bridge):
            return f"is active without its bridge {bridge}"
        case BridgeDiffers(bridge=bridge):
            return f"bridge {bridge}: " + _joined(drift.differences)
        case AddressMissing(bridge=bridge, address=address):
            return f"bridge {bridge}: address {address} is missing"
        case Unplugged(bridge=bridge, domain=domain, tap=tap):
            return f"tap {tap} of guest {domain} is not on bridge {bridge}"
        case Unrecorded(domain=domain, tap=tap):
            return f"libvirt has no port for tap {tap} of guest {domain}"
        case RulesDiffer(chain=chain, flaws=flaws):
            return f"{chain}: {_flaws(flaws)}"
        case GuardDiffers(rules=rules):
            return f"guard: {rules} rules missing"
        case SysctlDiffers(name=name, want=want, have=have):
            return f"sysctl {name} is {have} instead of {want}"
        case DnsmasqDead():
            return "its dnsmasq is dead: no DHCP, no DNS"
        case coexist.AcceptsDiffer() | coexist.ZoneDiffers():
            return str(drift)
        case RulesLost(rules=rules):
            return "lost by libvirt: " + few([f"{chain} {rule}" for chain, rule in rules])
        case RulesLeftOver(rules=rules):
            return "left over: " + few([f"{item.chain} {item.rule}" for item in rules])
        case _:
            assert_never(drift)


def object_of(drift: Drift) -> str:
    if isinstance(drift, RulesLost | RulesLeftOver):
        return FIREWALL_OBJECT
    return network_object(drift.network)


def source(drift: Drift) -> Source:
    """The source whose change shows it."""
    match drift:
        case RulesDiffer() | RulesLost() | RulesLeftOver():
            return Source.FIREWALL
        case GuardDiffers():
            return Source.GUARD
        case SysctlDiffers():
            return Source.SYSCTLS
        case DnsmasqDead():
            return Source.DNSMASQ
        case coexist.AcceptsDiffer() | coexist.ZoneDiffers():
            return Source.FILTERS
        case BridgeMissing() | BridgeDiffers() | AddressMissing() | Unplugged():
            return Source.LINKS
        case _:
            return Source.LIBVIRT


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
        if any(isinstance(item, RulesDiffer) for item in found):
            right = remembered  # a flush took the exceptions along
        table = guarding.wanted(policy, libvirt, kept, chains, right)
        if observed.guard.held is Held.OPEN:  # else nobody but vnetd can have changed it
            found += [
                GuardDiffers(network, rules)
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


def differences(want: NetworkPolicy, have: Definition) -> tuple[Difference, ...]:
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
) -> Iterator[Drift | Conflict]:
    for name, want in sorted(policy.networks.items()):
        have = libvirt.networks.get(name) or Network(name, None, None, autostart=False)
        if have.config is None:
            yield Undefined(name)
        elif found := differences(want, have.config):
            yield ConfigDiffers(name, found)
        if have.autostart is not want.autostart:
            yield AutostartDiffers(name, want.autostart)
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
) -> Stopped | Conflict:
    bridge = want.bridge or (have.config.bridge if have.config else None)
    if want.mode.has_own_bridge and bridge in links:
        # libvirt would fail to start the network, and delete the other bridge while failing.
        wrong = f"cannot start: a link named {bridge} exists that is not libvirt's"
        return Conflict(network_object(want.name), f"{wrong}; rename or remove it")
    return Stopped(want.name)


def _live(want: NetworkPolicy, live: Definition) -> Iterator[Drift]:
    found = differences(want, live)
    fixed = tuple(item for item in found if item.key not in (*_LIVE_KEYS, *_LINK_KEYS))
    if fixed:
        yield LiveDiffers(want.name, fixed)
    elif any(item.key in _LIVE_KEYS for item in found):
        wanted: set[DhcpRange | DhcpHost] = {*want.ranges, *want.hosts}
        served: set[DhcpRange | DhcpHost] = {*live.ranges, *live.hosts}
        add = tuple(sorted(wanted - served, key=str))
        yield DhcpDiffers(want.name, add, tuple(sorted(served - wanted, key=str)))


def _unexpected(name: str, libvirt: Libvirt) -> Unexpected | Conflict:
    guests = sorted({tap.domain for tap in libvirt.taps if tap.network == name})
    if not guests:
        return Unexpected(name)
    wrong = f"is in no policy any more, but {few(guests)} still uses it"
    return Conflict(network_object(name), wrong)


def _links(
    policy: Policy,
    libvirt: Libvirt,
    kept: Sequence[Definition],
    links: Mapping[IfName, Link],
) -> Iterator[Drift]:
    for live in kept:
        if live.bridge is None or not live.mode.has_own_bridge:
            continue
        link = links.get(live.bridge)
        if link is None:
            yield BridgeMissing(live.name, live.bridge)
            continue
        network, want = libvirt.networks[live.name], policy.networks.get(live.name)
        if found := _bridge_differences(network, want, link):
            yield BridgeDiffers(live.name, live.bridge, found)
        for address in live.addresses:
            if address not in link.addresses:
                yield AddressMissing(live.name, live.bridge, address)
    bridges = {live.name: live.bridge for live in kept if live.bridge in links}
    for tap in libvirt.taps:
        bridge, plug = bridges.get(tap.network), links.get(tap.device)
        if bridge is not None and plug is not None and plug.master != bridge:
            yield Unplugged(tap.network, bridge, tap.domain, tap.device, tap.isolated)
        if bridge is not None and tap.port and tap.port not in libvirt.ports:
            yield Unrecorded(tap.network, bridge, tap.domain, tap.device, tap.port)


def _services(kept: Sequence[Definition], observed: Observed) -> Iterator[Drift]:
    if observed.sysctls is not None:
        for live in kept:
            for name, value in needs.sysctls(live, observed.sysctls):
                yield SysctlDiffers(live.name, name, value, observed.sysctls[name])
    if observed.dnsmasq is not None:
        for name in needs.dnsmasq(kept):
            if name not in observed.dnsmasq:
                yield DnsmasqDead(name)


def _bridge_differences(
    network: Network, want: NetworkPolicy | None, link: Link
) -> tuple[Difference, ...]:
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
) -> Iterator[RulesDiffer]:
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
                yield RulesDiffer(name, chain, hit)


def _nftables_rules(
    kept: Sequence[Definition], libvirt: Libvirt, ruleset: Ruleset
) -> Iterator[Drift]:
    active = [network.live for network in libvirt.networks.values() if network.live is not None]
    findings = nftables.examine(active, ruleset)
    for live in kept:
        for chain, flaws in sorted(findings.lacking.get(live.name, {}).items()):
            yield RulesDiffer(live.name, chain, flaws)
    if lost := nftables.examine(kept, ruleset).lost:
        yield RulesLost(lost)
    if findings.surplus:
        yield RulesLeftOver(findings.surplus)


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
) -> Iterator[Drift | Conflict]:
    terms = coexist.terms(policy.coexist, tuple(kept), firewall)
    yield from terms.drift
    for block in terms.left:
        yield Conflict(network_object(block.network), str(block), block.cause)


def _flaws(flaws: repair.Flaws) -> str:
    parts = []
    for what, rules in (
        ("missing", flaws.missing),
        ("duplicate", flaws.duplicate),
        ("out of order", flaws.misplaced),
    ):
        if len(rules) == 1:
            parts.append(f"{what} {rules[0]}")
        elif rules:
            parts.append(f"{len(rules)} rules {what}")
    return ", ".join(parts)


def _unequal(pairs: Iterable[tuple[str, object, object]]) -> tuple[Difference, ...]:
    return tuple(
        Difference(key, *(_shown(a - b), _shown(b - a)))
        if isinstance(a, frozenset) and isinstance(b, frozenset)
        else Difference(key, _shown(a), _shown(b))
        for key, a, b in pairs
        if a != b
    )


def _joined(items: Iterable[Difference]) -> str:
    return ", ".join(str(item) for item in items)


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
