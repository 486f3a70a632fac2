"""A link of the kernel, as rtnetlink shows it: what any link has, what a bridge is set to, and what
a port of a bridge is set to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from vnetd.core.basics import Address, IfName


class PortState(IntEnum):
    """linux/if_bridge.h"""

    DISABLED = 0
    LISTENING = 1
    LEARNING = 2
    FORWARDING = 3
    BLOCKING = 4


@dataclass(frozen=True, slots=True, order=True)
class Vlan:
    """One that a port lets through. pvid: what comes in without a tag belongs to it."""

    id: int
    pvid: bool = False
    untagged: bool = False

    def __str__(self) -> str:
        marks = (("pvid", self.pvid), ("untagged", self.untagged))
        return " ".join((str(self.id), *(word for word, on in marks if on)))


def unwanted_vlans(have: Iterable[Vlan], wanted: Iterable[Vlan]) -> tuple[int, ...]:
    """Numbers alone: one that is wanted otherwise is only set."""
    return tuple(sorted({vlan.id for vlan in have} - {vlan.id for vlan in wanted}))


@dataclass(frozen=True, slots=True)
class Bridge:
    """Times in seconds. None: the kernel has no such thing. Defaults are the kernel's."""

    stp: bool = False
    forward_delay: float = 15.0
    hello_time: float = 2.0
    max_age: float = 20.0
    ageing_time: float = 300.0
    priority: int = 0x8000
    group_fwd_mask: int = 0
    multicast_snooping: bool | None = None
    vlan_filtering: bool | None = None
    default_pvid: int | None = None


@dataclass(frozen=True, slots=True)
class Port:
    """vlans and macs are read only of bridges that filter by VLAN. macs: of static entries in the
    bridge's forwarding table that lead to this port.
    """

    state: PortState = PortState.FORWARDING
    isolated: bool = False
    learning: bool = True
    unicast_flood: bool = True
    multicast_flood: bool = True
    broadcast_flood: bool = True
    hairpin: bool = False
    bpdu_guard: bool = False
    root_block: bool = False
    neigh_suppress: bool = False
    cost: int = 2
    priority: int = 32
    vlans: frozenset[Vlan] = frozenset()
    macs: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Link:
    """kind: rtnetlink's, "" for a device. permanent_mac: a device's own, "" if it has none.
    operational: it has carrier, and the kernel has done what follows from that. parent: the device
    behind it as sysfs names it, as in "pci 0000:00:1f.6". master may be set where port is not: a
    bond's member. alias: a free text. qdiscs: the kinds of its queueing disciplines.
    """

    index: int
    name: IfName
    kind: str
    mac: str
    mtu: int
    up: bool
    carrier: bool = True
    operational: bool = False
    master: IfName | None = None
    bridge: Bridge | None = None
    port: Port | None = None
    addresses: frozenset[Address] = frozenset()
    altnames: frozenset[str] = frozenset()
    permanent_mac: str = ""
    parent: str = ""
    alias: str = ""
    qdiscs: frozenset[str] = frozenset()
    root_qdisc: str = ""
    """As tc names it: "htb 1:"."""
    checksum_filter: bool | None = None
    """Whether libvirt's filter hangs there; None where nobody looked or the kernel has no such."""
