"""What the guard must hold: the networks that it guards, and what others let through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vnetd.core.actions import Action
from vnetd.core.drift import Drift, NetworkDrift
from vnetd.core.model import (
    Chain,
    Definition,
    GuardTable,
    Held,
    HostAddress,
    Libvirt,
    Mode,
    Ruleset,
    Source,
)
from vnetd.core.policy import Firewall, NetworkPolicy, Policy
from vnetd.core.rules import exceptions, guard


@dataclass(frozen=True, slots=True)
class GuardDiffers(NetworkDrift):
    """rules: how many of this network's the guard lacks."""

    rules: int
    source = Source.GUARD

    def __str__(self) -> str:
        return f"guard: {self.rules} rules missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteGuard(Action):
    """All of it in one transaction. chains: those that change. Without rules the table goes."""

    table: tuple[tuple[str, tuple[guard.Rule, ...]], ...]
    chains: tuple[str, ...]
    quick = True

    def __str__(self) -> str:
        count = sum(len(rules) for _, rules in self.table)
        return f"write the guard: {count} rules" if count else "remove the guard"


def diff(table: guard.Table, seen: GuardTable) -> Iterator[Drift]:
    if seen.held is not Held.OPEN:  # nobody but vnetd can have changed it
        return
    lacking: Counter[str] = Counter()
    for chain, rules in table.items():
        have = set(seen.chains.get(chain, ()))
        lacking.update(rule.network for rule in rules if rule.network and rule.digest not in have)
    for network, count in sorted(lacking.items()):
        yield GuardDiffers(network, count)


def plan(drift: Iterable[Drift], table: guard.Table, seen: GuardTable) -> Iterator[Action]:
    digests = {name: tuple(rule.digest for rule in rules) for name, rules in table.items()}
    changed = {
        name for name in {*digests, *seen.chains} if digests.get(name) != seen.chains.get(name)
    }
    if seen.held is None and not table:
        return
    if not changed and seen.mine:
        return
    yield WriteGuard(
        objects=tuple(item.object for item in drift if isinstance(item, GuardDiffers)),
        reason="rules differ" if changed else "nobody holds it",
        table=tuple(table.items()),
        chains=tuple(sorted(changed)),
    )


def wanted(
    policy: Policy,
    libvirt: Libvirt,
    kept: Sequence[Definition],
    own: Mapping[Chain, tuple[str, ...]] | None,
    right: Ruleset | None,
) -> guard.Table:
    """kept: the running networks. own: libvirt's rules. right: the firewall when it was last right,
    for a flush also takes the rules away that somebody had put in front of libvirt's.
    """
    guarded = [item for live in kept if (item := _guarded(policy, libvirt, live)) is not None]
    beside = [item.definition.bridge for item in guarded if not item.alone]
    bridges = [bridge for bridge in beside if bridge is not None]
    if right is None or not own or not bridges:
        return guard.table(guarded)
    return guard.table(
        guarded,
        exceptions.passed(right, own, bridges),
        exceptions.untranslated(right, own, bridges),
    )


def is_guarded(policy: Policy, libvirt: Libvirt, network: Definition) -> bool:
    return _guarded(policy, libvirt, network) is not None


def _guarded(policy: Policy, libvirt: Libvirt, live: Definition) -> guard.Guarded | None:
    want = policy.networks.get(live.name)
    if live.bridge is None:
        return None
    if want is not None and want.firewall is Firewall.VNETD:
        if live.mode is not Mode.OPEN:
            return None  # not restarted yet: libvirt's own rules stand
        forwards = tuple(_forwards(want, libvirt))
        return guard.Guarded(policy.meant(live), alone=True, forwards=forwards)
    if not live.mode.has_guard or (want is not None and not want.guard):
        return None
    return guard.Guarded(live)


def _forwards(want: NetworkPolicy, libvirt: Libvirt) -> Iterator[guard.Forward]:
    for forward in want.forwards:
        if isinstance(forward.to, str):
            addresses = _addresses(want, forward.to, libvirt)
        else:
            addresses = [forward.to]
        for address in addresses:
            sources = [item for item in forward.sources if item.version == address.version]
            if forward.sources and not sources:
                continue
            yield guard.Forward(
                protocol=forward.protocol,
                ports=forward.ports,
                to=str(address),
                to_port=forward.to_port,
                sources=tuple(str(source) for source in sources),
            )


def _addresses(want: NetworkPolicy, domain: str, libvirt: Libvirt) -> list[HostAddress]:
    """One of each family: the reservation of its MAC, else its lease."""
    macs = [t.mac for t in libvirt.taps if t.domain == domain and t.network == want.name]
    reserved = [host.address for host in want.hosts if host.mac in macs]
    leases = [lease for lease in libvirt.leases if lease.network == want.name]
    leased = [lease.address for lease in leases if lease.mac in macs]
    found: dict[int, HostAddress] = {}
    for address in (*reserved, *leased):
        found.setdefault(address.version, address)
    return list(found.values())
