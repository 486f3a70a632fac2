"""The taps in a running domain's XML. Pure."""

from __future__ import annotations

from vnetd.backends import xmltext
from vnetd.core.model import IfName, Tap


def taps(text: str) -> list[Tap]:
    """The domain's interfaces on libvirt networks that have a device on the host."""
    root = xmltext.read(text, "a domain")
    domain = root.findtext("name") or ""
    found = []
    for interface in root.findall("devices/interface[@type='network']"):
        source, target = interface.find("source"), interface.find("target")
        if source is None or target is None or source.get("bridge") is None:
            continue  # macvtap and hostdev interfaces are on no bridge
        port, mac = interface.find("port"), interface.find("mac")
        found.append(
            Tap(
                domain=domain,
                device=IfName(target.get("dev", "")),
                network=source.get("network", ""),
                isolated=port is not None and port.get("isolated") == "yes",
                mac=mac.get("address", "").lower() if mac is not None else "",
            )
        )
    return found
