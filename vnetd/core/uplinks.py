"""Links as a policy names them: by name, altname, MAC address or PCI path."""

from __future__ import annotations

from collections.abc import Mapping

from vnetd.core.basics import IfName
from vnetd.core.model.link import Link

# They bear the MAC address of the link below them.
_ABOVE_OTHERS = ("bridge", "vlan", "macvlan", "macvtap", "ipvlan", "bond", "team")


def resolve(text: str, links: Mapping[IfName, Link], pci: Mapping[IfName, str]) -> Link | None:
    """None: there is no such link now. pci: the PCI path of each network card."""
    if ":" in text and text.startswith("pci-"):
        return next((links[name] for name in sorted(pci) if pci[name] == text), None)
    if link := links.get(IfName(text)):
        return link
    ordered = sorted(links.values(), key=lambda link: link.index)
    for link in ordered:
        if text in link.altnames or text == link.permanent_mac:
            return link
    # Virtual links have no permanent address.
    own = (x for x in ordered if not x.permanent_mac and x.kind not in _ABOVE_OTHERS)
    return next((link for link in own if link.mac == text), None)


def way_out(text: str, links: Mapping[IfName, Link], pci: Mapping[IfName, str]) -> Link | None:
    """The link that packets leave by: a bridge, where the named one is a port of it."""
    link = resolve(text, links, pci)
    master = links.get(link.master) if link is not None and link.master is not None else None
    return master or link
