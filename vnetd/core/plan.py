"""Turn drift into actions, in the order in which they must run. Planning changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from vnetd.core.actions import Action
from vnetd.core.diff import Diff
from vnetd.core.drift import NetworkDrift
from vnetd.core.keep import (
    announce,
    bridges,
    checksums,
    coexist,
    dnsmasq,
    guard,
    hostbridges,
    networks,
    routes,
    rules,
    sysctls,
    taps,
)
from vnetd.core.model import Chain, Observed, Source
from vnetd.core.policy import Policy


def plan(
    policy: Policy,
    observed: Observed,
    found: Diff,
    remembered: Mapping[Chain, Sequence[str]] | None = None,
) -> tuple[Action, ...]:
    """remembered: the chains when they were last right, with others' rules among them."""
    return tuple(_plan(policy, observed, found, remembered or {}))


def _plan(
    policy: Policy,
    observed: Observed,
    found: Diff,
    remembered: Mapping[Chain, Sequence[str]],
) -> Iterator[Action]:
    """Firewall first: it is what guests feel most, and libvirt cannot start a network without its
    chains. The host's bridges before the networks that are on them. Links of networks last:
    libvirt's actions make and remove them.
    """
    libvirt, drift = observed.libvirt, found.drift
    if libvirt is None:
        yield from hostbridges.plan(drift, policy, observed)
        return
    if observed.firewall is not None:
        yield from rules.plan(drift, libvirt, observed.firewall, found.chains, remembered)
        # A flush makes thousands, and they concern nothing below.
        drift = tuple(item for item in drift if item.source is not Source.FIREWALL)
    if observed.guard is not None and found.guard is not None:
        yield from guard.plan(drift, found.guard, observed.guard)
    yield from sysctls.plan(drift)
    yield from coexist.plan(drift)
    yield from hostbridges.plan(drift, policy, observed)
    yield from networks.plan(drift, policy, observed)
    restarted = networks.restarted(drift, observed)
    left = [
        item for item in drift if not (isinstance(item, NetworkDrift) and item.network in restarted)
    ]
    yield from dnsmasq.plan(left, libvirt)
    yield from bridges.plan(left, policy, libvirt)
    yield from checksums.plan(left)
    yield from routes.plan(left)
    yield from announce.plan(left)
    yield from taps.plan(left, observed.links or {})
