"""Compare what must be with what is: all of keep/ together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vnetd.core import foreign
from vnetd.core.drift import Conflict, Drift, NetworkDrift, Wait
from vnetd.core.keep import (
    announce,
    bridges,
    changing,
    checksums,
    coexist,
    dnsmasq,
    guard,
    guests,
    hostbridges,
    networks,
    routes,
    rules,
    subnets,
    sysctls,
    taps,
)
from vnetd.core.memo import of_the_same
from vnetd.core.model import Chain, Definition, Libvirt, Observed, Ruleset
from vnetd.core.policy import Policy
from vnetd.core.rules.guard import Table


@dataclass(frozen=True, slots=True)
class Diff:
    drift: tuple[Drift, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    waits: tuple[Wait, ...] = ()
    chains: Mapping[Chain, tuple[str, ...]] | None = None
    """All of libvirt's chains as they must be; None where vnetd does not know the firewall."""
    guard: Table | None = None
    """The guard as it must be; None where there can be none."""

    @property
    def rules_stand(self) -> bool:
        """Some of libvirt's must stand, and all of them do."""
        return bool(self.chains) and not any(isinstance(x, rules.RulesDiffer) for x in self.drift)


def diff(policy: Policy, observed: Observed, remembered: Ruleset | None = None) -> Diff:
    """remembered: the firewall when it was last right; it tells the order of the networks.

    Of a network that is leaving everything may be missing, and must not come back: only the guard
    stays with it until it has gone.
    """
    libvirt = observed.libvirt
    found: list[Drift | Conflict | Wait] = []
    if observed.links is not None and observed.uplinks is not None:
        insist = observed.insist
        found += hostbridges.diff(policy, observed.links, observed.uplinks, insist=insist)
    if libvirt is None:
        return _sorted(found)
    kept = _kept(policy, libvirt)
    staying = tuple(live for live in kept if live.name not in observed.leaving)
    apart = replace(observed, firewall=None, guard=None, filters=None, insist=False)
    found += _apart_from_rules(policy, libvirt, staying, apart)
    found += changing.diff(policy, libvirt, observed)
    found += dnsmasq.diff(libvirt, staying, observed)
    chains = libvirts = None
    if observed.firewall is not None:
        libvirts = rules.expected(kept, libvirt.lost_chains, observed.firewall, remembered)
        chains = libvirts
        if staying != kept:
            chains = rules.expected(staying, libvirt.lost_chains, observed.firewall, remembered)
        found += rules.diff(libvirt, staying, observed.firewall, chains)
        if not any(isinstance(item, rules.RulesDiffer | rules.RulesLost) for item in found):
            found += checksums.diff(staying, observed.links or {})
    starting = networks.starting(found, libvirt)
    table = None
    if observed.guard is not None:
        right = observed.firewall
        if any(isinstance(item, rules.RulesDiffer) for item in found):
            right = remembered  # a flush took the exceptions along
        running = sorted((*kept, *starting), key=lambda live: live.name)
        table = guard.wanted(policy, libvirt, running, libvirts, right)
        found += guard.diff(table, observed.guard)
    if observed.filters is not None:
        firewall = foreign.with_libvirts(observed.filters, libvirts or {})
        back_soon = {network.name for network in starting}
        meant = [policy.meant(live) for live in kept]
        for item in coexist.diff(policy.coexist, meant, firewall):
            # Its guests may be on the bridge before libvirt is through with the start.
            if not (isinstance(item, NetworkDrift) and item.network in back_soon):
                found.append(item)
    return replace(_sorted(found), chains=chains, guard=table)


def _sorted(found: list[Drift | Conflict | Wait]) -> Diff:
    return Diff(
        drift=tuple(item for item in found if not isinstance(item, Conflict | Wait)),
        conflicts=tuple(item for item in found if isinstance(item, Conflict)),
        waits=tuple(item for item in found if isinstance(item, Wait)),
    )


@of_the_same
def _kept(policy: Policy, libvirt: Libvirt) -> tuple[Definition, ...]:
    return tuple(
        network.live
        for name, network in sorted(libvirt.networks.items())
        if network.live is not None and policy.keeps(name)
    )


@of_the_same
def _apart_from_rules(
    policy: Policy, libvirt: Libvirt, staying: tuple[Definition, ...], observed: Observed
) -> list[Drift | Conflict | Wait]:
    """What no change of a firewall changes, which most passes are about."""
    refused = subnets.refused(policy, observed)
    pci = observed.uplinks.pci if observed.uplinks else {}
    found: list[Drift | Conflict | Wait] = [
        item
        for item in networks.diff(policy, libvirt, observed.links or {}, refused, pci)
        if not (isinstance(item, NetworkDrift) and item.network in observed.leaving)
    ]
    found += guests.diff(policy, libvirt)
    if observed.uplinks is not None:
        found += bridges.led_by_others(staying, observed.uplinks.owners)
    if observed.links is not None:
        found += bridges.diff(policy, libvirt, staying, observed.links)
        found += taps.diff(policy, libvirt, staying, observed.links)
    if observed.routes is not None:
        found += subnets.diff(policy, staying, observed)
        found += routes.diff(policy, staying, observed)
        found += announce.diff(policy, staying, observed)
    if observed.sysctls is not None:
        found += sysctls.diff(policy, staying, observed)
    return found
