"""A guest's end on the host."""

from __future__ import annotations

from dataclasses import dataclass

from vnetd.core.basics import IfName
from vnetd.core.model.link import Vlan


@dataclass(frozen=True, slots=True)
class Tap:
    """A running domain's interface on a bridge, as the domain's live XML says.

    network: "" if the domain names the bridge itself. vlans: empty if it names none, so that the
    bridge's own default holds. qdiscs: the kinds that hold it to its bandwidth.
    """

    domain: str
    device: IfName
    network: str
    isolated: bool = False
    mac: str = ""
    port: str = ""
    """UUID of libvirt's own record of it, which goes when its network stops."""
    bridge: IfName | None = None
    mtu: int | None = None
    vlans: frozenset[Vlan] = frozenset()
    mac_table: bool = False
    """libvirt, not the kernel, keeps the bridge's forwarding table: its port neither learns nor
    floods.
    """
    paused: bool = False
    """Its MAC may be somewhere else: libvirt tells the bridge of it when the guest goes on."""
    link_down: bool = False
    qdiscs: frozenset[str] = frozenset()
    floor: bool = False
    """It has a guaranteed bandwidth, which is a class on its network's bridge."""
