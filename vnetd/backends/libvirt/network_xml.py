"""libvirt's network XML ⇄ the model. Pure.

Rendering edits the XML that is there: what the policy does not speak of (DNS records, bandwidth,
port groups, other people's metadata) stays as it is.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network

from vnetd.backends import xmltext
from vnetd.core.model import (
    Address,
    Definition,
    DhcpHost,
    DhcpRange,
    HostAddress,
    IfName,
    Mode,
    StaticRoute,
)
from vnetd.core.policy import NetworkPolicy

# network_iptables.c, network_nftables.c
_DEFAULT_PORTS = (1024, 65535)
_MARK = "{urn:vnetd:network:1}made"
ET.register_namespace("vnetd", "urn:vnetd:network:1")
ET.register_namespace("dnsmasq", "http://libvirt.org/schemas/network/dnsmasq/1.0")


def parse(text: str) -> Definition:
    root = xmltext.read(text, "a network")
    name = root.findtext("name") or ""
    forward = root.find("forward")
    bridge = root.find("bridge")
    nat = root.find("forward/nat")
    ips = root.findall("ip")
    device = _get(forward, "dev") or _get(root.find("forward/interface"), "dev")
    return Definition(
        name=name,
        mode=Mode.ISOLATED if forward is None else _mode(forward),
        uuid=root.findtext("uuid"),
        bridge=IfName(bridge.get("name", "")) or None if bridge is not None else None,
        mac=_lower(_get(root.find("mac"), "address")),
        mtu=_number(_get(root.find("mtu"), "size")),
        stp={"on": True, "off": False}.get(_get(bridge, "stp") or ""),
        domain=_get(root.find("domain"), "name"),
        addresses=tuple(_address(ip) for ip in ips),
        ranges=tuple(_range(item) for ip in ips for item in ip.findall("dhcp/range")),
        hosts=tuple(
            _host(item) for ip in ips for item in ip.findall("dhcp/host") if item.get("ip")
        ),
        forward_dev=IfName(device) if device else None,
        nat_ipv6=_get(nat, "ipv6") == "yes",
        nat_source=_nat_source(nat),
        nat_ports=_nat_ports(nat),
        delay=_decimal(_get(bridge, "delay")),
        mac_table=_get(bridge, "macTableManager") == "libvirt",
        bandwidth=root.find("bandwidth") is not None,
        guest_ipv6=root.get("ipv6") == "yes",
        tftp=_tftp(ips),
        dns=_get(root.find("dns"), "enable") != "no",
        routes=tuple(_route(item) for item in root.findall("route")),
        made_by_vnetd=root.find(f"metadata/{_MARK}") is not None,
    )


def render(policy: NetworkPolicy, base: str | None) -> str:
    """The policy written into a network's XML; into a new one, with vnetd's mark, without base."""
    if base is None:
        root = ET.Element("network")
        ET.SubElement(root, "name").text = policy.name
        ET.SubElement(ET.SubElement(root, "metadata"), _MARK)
    else:
        root = xmltext.read(base, f"network {policy.name}")
        root.attrib.pop("connections", None)
    old_mode = Mode.ISOLATED if (f := root.find("forward")) is None else _mode(f)
    if old_mode is not policy.libvirts_mode:
        _change_mode(root, old_mode, policy.libvirts_mode)
    if policy.bridge is not None:
        _child(root, "bridge").set("name", policy.bridge)
    if policy.uplink is not None and (forward := root.find("forward")) is not None:
        for interface in forward.findall("interface"):
            forward.remove(interface)
        forward.set("dev", policy.uplink)
    if policy.mode.has_own_bridge:
        _render_own_bridge(root, policy)
        _render_addresses(root, policy)
        if policy.routes is not None:
            _render_routes(root, policy.routes)
    return ET.tostring(root, encoding="unicode")


def uplink_item(device: IfName) -> str:
    """A forward interface as virNetworkUpdate takes it."""
    return ET.tostring(ET.Element("interface", dev=device), encoding="unicode")


def definition(live: str) -> str:
    """The one behind a running network's XML, which also has what libvirt adds at the start: how
    many guests are on it, and NAT's default ports.
    """
    root = xmltext.read(live, "a network")
    for element in (root, *root.findall("forward/interface")):
        element.attrib.pop("connections", None)
    forward, nat = root.find("forward"), root.find("forward/nat")
    if forward is not None and nat is not None and _nat_ports(nat) == _DEFAULT_PORTS:
        nat.remove(_child(nat, "port"))
        if not len(nat) and not nat.attrib:
            forward.remove(nat)
    return ET.tostring(root, encoding="unicode")


def dhcp_item(item: DhcpRange | DhcpHost) -> str:
    """A range or host as virNetworkUpdate takes it."""
    return ET.tostring(_dhcp_element(item), encoding="unicode")


def dhcp_parent(text: str, item: DhcpRange | DhcpHost) -> int:
    """The index of the <ip> that a range or host belongs to, as virNetworkUpdate counts."""
    address = item.start if isinstance(item, DhcpRange) else item.address
    for index, ip in enumerate(xmltext.read(text, "a network").findall("ip")):
        if address in _address(ip).network:
            return index
    return -1


def _change_mode(root: ET.Element, old: Mode, new: Mode) -> None:
    for forward in root.findall("forward"):
        root.remove(forward)
    if new is not Mode.ISOLATED:
        ET.SubElement(root, "forward", mode=new.value)
    if old.has_own_bridge is not new.has_own_bridge:
        # What libvirt refuses beside a bridge of the host, and a name that is somebody else's.
        for tag in ("bridge", "mac", "mtu", "domain", "dns", "ip", "route"):
            for element in root.findall(tag):
                root.remove(element)


def _render_own_bridge(root: ET.Element, policy: NetworkPolicy) -> None:
    if policy.stp is not None:
        _child(root, "bridge").set("stp", "on" if policy.stp else "off")
    if policy.mac is not None:
        _child(root, "mac").set("address", policy.mac)
    if policy.mtu is not None:
        _child(root, "mtu").set("size", str(policy.mtu))
    if policy.domain is not None:
        _child(root, "domain").set("name", policy.domain)


def _render_addresses(root: ET.Element, policy: NetworkPolicy) -> None:
    there = {_address(ip): ip for ip in root.findall("ip")}
    place = next((at for at, child in enumerate(root) if child.tag == "ip"), len(root))
    for ip in root.findall("ip"):
        root.remove(ip)
    for at, address in enumerate(policy.addresses, place):
        ip = there[address] if address in there else _ip_element(address)
        root.insert(at, ip)
        _render_dhcp(ip, address, policy)


def _render_dhcp(ip: ET.Element, address: Address, policy: NetworkPolicy) -> None:
    wanted: list[DhcpRange | DhcpHost] = [r for r in policy.ranges if r.start in address.network]
    wanted += [host for host in policy.hosts if host.address in address.network]
    dhcp = _child(ip, "dhcp")
    for element in [*dhcp.findall("range"), *dhcp.findall("host")]:
        item = _range(element) if element.tag == "range" else _host(element)
        if item in wanted:
            wanted.remove(item)
        else:
            dhcp.remove(element)
    for item in wanted:
        dhcp.append(_dhcp_element(item))
    if not len(dhcp):
        ip.remove(dhcp)


def _render_routes(root: ET.Element, routes: tuple[StaticRoute, ...]) -> None:
    wanted = list(routes)
    for element in root.findall("route"):
        route = _route(element)
        if route in wanted:
            wanted.remove(route)
        else:
            root.remove(element)
    for route in wanted:
        keys = {
            "family": "ipv6" if route.to.version == 6 else "ipv4",
            "address": str(route.to.network_address),
            "prefix": str(route.to.prefixlen),
            "gateway": str(route.via),
            "metric": str(route.metric),
        }
        root.append(ET.Element("route", keys))


def _ip_element(address: Address) -> ET.Element:
    ip = ET.Element("ip", address=str(address.ip), prefix=str(address.network.prefixlen))
    if address.version == 6:
        ip.set("family", "ipv6")
    return ip


def _dhcp_element(item: DhcpRange | DhcpHost) -> ET.Element:
    if isinstance(item, DhcpRange):
        return ET.Element("range", start=str(item.start), end=str(item.end))
    keys = {"mac": item.mac, "id": item.id, "name": item.name, "ip": str(item.address)}
    return ET.Element("host", {key: value for key, value in keys.items() if value is not None})


def _mode(forward: ET.Element) -> Mode:
    mode = forward.get("mode", "nat")
    return Mode.ISOLATED if mode == "none" else Mode(mode)


def _address(ip: ET.Element) -> Address:
    address = ip_address(ip.get("address", ""))
    suffix = ip.get("prefix") or ip.get("netmask") or _default_prefix(address)
    return ip_interface(f"{address}/{suffix}")


def _route(element: ET.Element) -> StaticRoute:
    address = ip_address(element.get("address", ""))
    suffix = element.get("prefix") or element.get("netmask") or _default_prefix(address)
    return StaticRoute(
        to=ip_network(f"{address}/{suffix}", strict=False),
        via=ip_address(element.get("gateway", "")),
        metric=int(element.get("metric") or 1),
    )


def _default_prefix(address: HostAddress) -> str:
    """libvirt's own (virSocketAddrGetIPPrefix): classful for IPv4, 64 for IPv6."""
    if int(address) == 0:
        return "0"
    if not isinstance(address, IPv4Address):
        return "64"
    first = address.packed[0]
    return "8" if first < 128 else "16" if first < 192 else "24"


def _range(element: ET.Element) -> DhcpRange:
    return DhcpRange(ip_address(element.get("start", "")), ip_address(element.get("end", "")))


def _host(element: ET.Element) -> DhcpHost:
    return DhcpHost(
        address=ip_address(element.get("ip", "")),
        mac=_lower(element.get("mac")),
        id=_lower(element.get("id")),
        name=element.get("name"),
    )


def _nat_source(nat: ET.Element | None) -> tuple[str, str] | None:
    address = nat.find("address") if nat is not None else None
    if address is None:
        return None
    start = address.get("start", "")
    return start, address.get("end", start)


def _nat_ports(nat: ET.Element | None) -> tuple[int, int] | None:
    port = nat.find("port") if nat is not None else None
    if port is None:
        return None
    return int(port.get("start", "0")), int(port.get("end", "0"))


def _tftp(ips: list[ET.Element]) -> bool:
    """libvirt looks at the first IPv4 address that has DHCP or TFTP."""
    for ip in ips:
        if _address(ip).version == 4 and any(True for _ in _dhcp_or_tftp(ip)):
            return ip.find("tftp") is not None
    return False


def _dhcp_or_tftp(ip: ET.Element) -> Iterator[ET.Element]:
    for path in ("dhcp/range", "dhcp/host", "tftp"):
        yield from ip.findall(path)


def _child(parent: ET.Element, tag: str) -> ET.Element:
    found = parent.find(tag)
    return ET.SubElement(parent, tag) if found is None else found


def _get(element: ET.Element | None, key: str) -> str | None:
    return None if element is None else element.get(key)


def _lower(text: str | None) -> str | None:
    return None if text is None else text.lower()


def _decimal(text: str | None) -> float | None:
    return None if text is None else float(text)


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)
