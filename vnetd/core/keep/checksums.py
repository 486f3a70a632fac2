"""DHCP answers whose checksums are complete: on the bridge of each network with rules libvirt's
nftables backend has a tc filter that completes them. Some guests take no answer without.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vnetd.core.actions import Action
from vnetd.core.drift import Conflict, Drift, NetworkDrift
from vnetd.core.model import (
    Definition,
    IfName,
    Link,
    Observed,
    Source,
    World,
    network_object,
)

# As tc names them: what libvirt hangs its filter on, and what a bridge has by itself.
_LIBVIRTS, _NONE = "htb 1:", "noqueue 0:"


@dataclass(frozen=True, slots=True)
class ChecksumFilterMissing(NetworkDrift):
    bridge: IfName
    source = Source.LINKS

    def __str__(self) -> str:
        return f"bridge {self.bridge} has no tc filter for the checksums of DHCP answers"


@dataclass(frozen=True, slots=True, kw_only=True)
class AddChecksumFilter(Action):
    """And the queueing discipline that it hangs on, where that is gone too."""

    bridge: IfName

    def __str__(self) -> str:
        return f"put the tc filter for checksums back on bridge {self.bridge}"


def bridges(observed: Observed) -> frozenset[IfName]:
    """Those that libvirt gives such a filter."""
    libvirt, ruleset = observed.libvirt, observed.firewall
    if libvirt is None or ruleset is None or ruleset.world is not World.NFTABLES:
        return frozenset()
    active = (network.live for network in libvirt.networks.values() if network.live)
    return frozenset(live.bridge for live in active if live.mode.has_rules and live.bridge)


def diff(kept: Sequence[Definition], links: Mapping[IfName, Link]) -> Iterator[Drift | Conflict]:
    """Of networks whose rules stand: libvirt takes the filter out after them, and puts it in before
    them.
    """
    for live in kept:
        link = links.get(live.bridge) if live.bridge else None
        if link is None or link.checksum_filter is not False:
            continue
        if link.root_qdisc in (_LIBVIRTS, _NONE):
            yield ChecksumFilterMissing(live.name, link.name)
        else:
            wrong = f"bridge {link.name} has the queueing discipline {link.root_qdisc}"
            lost = f"libvirt's {_LIBVIRTS} is gone with its filter for checksums of DHCP answers"
            cure = f"to get it back: tc qdisc del dev {link.name} root"
            yield Conflict(network_object(live.name), f"{wrong}; {lost}; {cure}")


def plan(drift: Iterable[Drift]) -> Iterator[AddChecksumFilter]:
    for item in drift:
        if isinstance(item, ChecksumFilterMissing):
            yield AddChecksumFilter(objects=(item.object,), reason=str(item), bridge=item.bridge)
