"""Links to bridges of the host: what they gave to these, and who else leads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vnetd.core.basics import Address, IfName
from vnetd.core.model.route import Route


@dataclass(frozen=True, slots=True)
class Owner:
    """Another tool that leads a link. where: its file or place. cure: what hands the link over."""

    tool: str
    where: str
    cure: str

    def __str__(self) -> str:
        return f"{self.tool} ({self.where})"


@dataclass(frozen=True, slots=True)
class Taken:
    """What an uplink gave to the bridge that took it in."""

    bridge: IfName
    uplink: IfName
    addresses: frozenset[Address] = frozenset()
    routes: frozenset[Route] = frozenset()


@dataclass(frozen=True, slots=True)
class Refusal:
    """An uplink that was put back, why, and under which policy of its bridge."""

    bridge: IfName
    uplink: IfName
    why: str
    policy: str


@dataclass(frozen=True, slots=True)
class Uplinks:
    """What matters of links to bridges of the host only, and is empty without any in the policy;
    but for owners, also of libvirt's bridges.

    asked: the bridges and uplinks that it was read for. leased: links whose IPv4 address a DHCP
    client must renew. routes: of each bridge.
    """

    asked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pci: Mapping[IfName, str] = field(default_factory=dict)
    wireless: frozenset[IfName] = frozenset()
    leased: frozenset[IfName] = frozenset()
    owners: Mapping[str, Owner] = field(default_factory=dict)
    routes: Mapping[IfName, frozenset[Route]] = field(default_factory=dict)
    taken: tuple[Taken, ...] = ()
    refused: tuple[Refusal, ...] = ()
