"""The taps in a running domain's XML, and the record that libvirt has of each. Pure."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from vnetd.backends import xmltext
from vnetd.core.model import IfName, Nic, Tap


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
                port=source.get("portid", ""),
                mac=mac.get("address", "").lower() if mac is not None else "",
            )
        )
    return found


def nics(text: str) -> list[Nic]:
    """The domain's interfaces on libvirt networks, whether it runs or not."""
    root = xmltext.read(text, "a domain")
    found = []
    for interface in root.findall("devices/interface[@type='network']"):
        source, mac = interface.find("source"), interface.find("mac")
        if source is not None and mac is not None:
            found.append(
                Nic(
                    domain=root.findtext("name") or "",
                    network=source.get("network", ""),
                    mac=mac.get("address", "").lower(),
                )
            )
    return found


def network_port(text: str, port: str, bridge: str) -> str:
    """The <networkport> of a tap, as libvirt's qemu driver writes it when the guest starts."""
    domain = xmltext.read(text, "a domain")
    for interface in domain.findall("devices/interface[@type='network']"):
        source = interface.find("source")
        if source is None or source.get("portid") != port:
            continue
        root = ET.Element("networkport")
        ET.SubElement(root, "uuid").text = port
        owner = ET.SubElement(root, "owner")
        ET.SubElement(owner, "name").text = domain.findtext("name")
        ET.SubElement(owner, "uuid").text = domain.findtext("uuid")
        if group := source.get("portgroup"):
            ET.SubElement(root, "group").text = group
        root.extend(
            item
            for tag in ("mac", "bandwidth", "vlan", "port")
            if (item := interface.find(tag)) is not None
        )
        ET.SubElement(root, "plug", type="network", bridge=bridge)
        return ET.tostring(root, encoding="unicode")
    raise ValueError(f"no interface has the port {port}")
