"""Guests that did not start because their network was not there. vnetd starts no guest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vnetd.core.drift import Conflict
from vnetd.core.model import Libvirt, network_object
from vnetd.core.policy import Policy


def diff(policy: Policy, libvirt: Libvirt) -> Iterator[Conflict]:
    for domain, networks in sorted(libvirt.refused.items()):
        for network in sorted(networks):
            if policy.keeps(network):
                wrong = f"guest {domain} failed to start when network {network} was not active"
                yield Conflict(network_object(network), f"{wrong}; start it: virsh start {domain}")


def refused(
    failed: Mapping[str, frozenset[str]], now: Libvirt, before: Libvirt | None
) -> dict[str, frozenset[str]]:
    """failed: all networks of each domain whose last start failed. libvirt says neither when nor
    why it did: the networks that were not active at this look or the one before are to blame, and
    what was found once holds until the domain is started.
    """
    known = before.refused if before else {}
    active = {name for name, network in now.networks.items() if network.live}
    if before is not None:
        active &= {name for name, network in before.networks.items() if network.live}
    return {
        domain: known[domain] if domain in known else networks - active
        for domain, networks in failed.items()
    }
