"""The taps in a running domain's XML, and the record that libvirt has of each. Pure."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from vnetd.backends import xmltext
from vnetd.core.model import IfName, Nic, Tap
from vnetd.core.model.link import Vlan

# util/virnetdevbandwidth.c: what comes in to the guest goes out of its tap
_QDISCS = {"bandwidth/inbound": "htb", "bandwidth/outbound": "ingress"}


def taps(text: str, *, paused: bool = False) -> list[Tap]:
    """The domain's interfaces on bridges that have a device on the host."""
    root = xmltext.read(text, "a domain")
    domain = root.findtext("name") or ""
    found = []
    for interface in root.findall("devices/interface"):
        source, target = interface.find("source"), interface.find("target")
        if interface.get("type") not in ("network", "bridge") or source is None or target is None:
            continue
        if source.get("bridge") is None or interface.find("virtualport") is not None:
            continue  # macvtap and hostdev are on no bridge, Open vSwitch on none of the kernel's
        found.append(
            Tap(
                domain=domain,
                device=IfName(target.get("dev", "")),
                network=source.get("network", ""),
                bridge=IfName(source.get("bridge", "")),
                isolated=_get(interface, "port", "isolated") == "yes",
                port=source.get("portid", ""),
                mac=_get(interface, "mac", "address").lower(),
                mtu=int(_get(interface, "mtu", "size") or 0) or None,
                vlans=_vlans(interface.find("vlan")),
                mac_table=source.get("macTableManager") == "libvirt",
                link_down=_get(interface, "link", "state") == "down",
                qdiscs=frozenset(
                    kind for path, kind in _QDISCS.items() if _get(interface, path, "average")
                ),
                paused=paused,
                floor=bool(_get(interface, "bandwidth/inbound", "floor")),
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


def _vlans(vlan: ET.Element | None) -> frozenset[Vlan]:
    """As libvirt 11 sets them on a port of a Linux bridge: util/virnetdevbridge.c,
    virNetDevBridgeSetupVlans().
    """
    tags = vlan.findall("tag") if vlan is not None else []
    if vlan is None or not tags:
        return frozenset()
    if vlan.get("trunk") != "yes" and len(tags) == 1:
        return frozenset({Vlan(int(tags[0].get("id", "")), pvid=True, untagged=True)})
    return frozenset(_tagged(tag) for tag in tags)


def _tagged(tag: ET.Element) -> Vlan:
    mode = tag.get("nativeMode")
    return Vlan(int(tag.get("id", "")), pvid=mode is not None, untagged=mode == "untagged")


def _get(interface: ET.Element, path: str, key: str) -> str:
    found = interface.find(path)
    return "" if found is None else found.get(key, "")


def network_port(text: str, port: str, bridge: str) -> str:
    """The <networkport> of a tap, as libvirt's qemu driver writes it when the guest starts."""
    domain = xmltext.read(text, "a domain")
    for interface in domain.findall("devices/interface"):
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
