"""Texts of a policy → values. Each raises ValueError("what is wrong; what would be right")."""

from __future__ import annotations

import re
from ipaddress import IPv4Interface, ip_address, ip_interface, ip_network

from vnetd.core.model import Address, DhcpRange, HostAddress, IfName, Subnet

_DURATION = re.compile(r"(\d+)\s*(s|sec|min|h)")
_SECONDS = {"s": 1, "sec": 1, "min": 60, "h": 3600}
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_DUID = re.compile(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2})+")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
# The kernel takes nearly any bytes as an interface name; this is what every tool can handle.
_IFNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,14}")


def duration(text: str) -> float:
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError("is not a duration")
    seconds = int(match[1]) * _SECONDS[match[2]]
    if not 10 <= seconds <= 86400:
        raise ValueError('is out of range; write 10s to 24h, such as "5min"')
    return float(seconds)


def metrics_file(text: str) -> str:
    """node_exporter reads the files that end so, and no others."""
    if not text.startswith("/") or not text.endswith(".prom") or not text.isprintable():
        raise ValueError("is not the path of a metrics file")
    return text


def ifname(text: str) -> IfName:
    if not _IFNAME.fullmatch(text):
        raise ValueError("is not an interface name")
    return IfName(text)


def address(text: str) -> Address:
    try:
        address = ip_interface(text)
    except ValueError:
        raise ValueError("is not an address with prefix length") from None
    if "/" not in text:
        guess = "24" if address.version == 4 else "64"
        raise ValueError(f'has no prefix length; write "{text}/{guess}"')
    if address.network.num_addresses < 4:
        raise ValueError("leaves no address for guests; write a shorter prefix")
    if address.ip in edges(address):
        first = address.network.network_address + 1
        what = "the network itself" if address.ip == edges(address)[0] else "the broadcast address"
        raise ValueError(f'is {what}; write "{first}/{address.network.prefixlen}"')
    if address.is_multicast or address.is_loopback or address.is_unspecified:
        raise ValueError("cannot be a bridge's address; take a private one")
    return address


def own_address(text: str) -> Address:
    """An address of the host in somebody else's network: a prefix of any length."""
    try:
        address = ip_interface(text)
    except ValueError:
        raise ValueError("is not an address with prefix length") from None
    if "/" not in text:
        guess = "24" if address.version == 4 else "64"
        raise ValueError(f'has no prefix length; write "{text}/{guess}"')
    # /31 and /127 have no such addresses (RFC 3021, RFC 6164), nor has a single one.
    if address.network.num_addresses > 2 and address.ip in edges(address):
        raise ValueError("is the network itself or its broadcast address; write a host's")
    if address.is_multicast or address.is_loopback or address.is_unspecified:
        raise ValueError("cannot be a bridge's address; write a host's")
    return address


def vlan_ids(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    try:
        low, high = int(first), int(last or first)
    except ValueError:
        raise ValueError("is not a VLAN") from None
    if not 1 <= low <= high <= 4094:
        raise ValueError("is out of range; write 1 to 4094")
    return low, high


def host_address(text: str) -> HostAddress:
    try:
        return ip_address(text)
    except ValueError:
        raise ValueError("is not an IP address") from None


def edges(address: Address) -> tuple[HostAddress, ...]:
    """Addresses that no host may have: IPv6 has no broadcast (RFC 4291)."""
    network = address.network
    if isinstance(address, IPv4Interface):
        return (network.network_address, network.broadcast_address)
    return (network.network_address,)


def dhcp_range(text: str) -> DhcpRange:
    first, dash, last = text.partition("-")
    if not dash:
        raise ValueError('is not a range; write "FIRST-LAST"')
    start, end = host_address(first.strip()), host_address(last.strip())
    if start.version != end.version:
        raise ValueError("mixes IPv4 and IPv6; write both ends alike")
    if int(end) < int(start):
        raise ValueError(f'ends before it starts; write "{end}-{start}"')
    return DhcpRange(start, end)


def mac(text: str) -> str:
    mac = text.lower()
    if not _MAC.fullmatch(mac):
        raise ValueError("is not a MAC address")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise ValueError("is not a unicast address")
    return mac


def duid(text: str) -> str:
    if not _DUID.fullmatch(text):
        raise ValueError("is not a DUID")
    return text.lower()


def domain(text: str) -> str:
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in text.split(".")):
        raise ValueError("is not a DNS name")
    return text


def host_name(text: str) -> str:
    if not _LABEL.fullmatch(text):
        raise ValueError("is not a host name")
    return text


def within(address: HostAddress, item: DhcpRange) -> bool:
    return int(item.start) <= int(address) <= int(item.end)


def overlap(one: DhcpRange, two: DhcpRange) -> bool:
    return int(one.start) <= int(two.end) and int(two.start) <= int(one.end)


def ports(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    try:
        low, high = int(first), int(last or first)
    except ValueError:
        raise ValueError("is not a port") from None
    if not 1 <= low <= high <= 65535:
        raise ValueError("is out of range; write 1 to 65535")
    return low, high


def target(text: str) -> tuple[HostAddress | str, int | None]:
    """ "ADDRESS:PORT", "[IPV6]:PORT" or "DOMAIN:PORT"; without a port: None."""
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):
        host, port = text, ""
    host = host.removeprefix("[").removesuffix("]")
    to_port = ports(port)[0] if port else None
    try:
        return ip_address(host), to_port
    except ValueError:
        if not host or "/" in host or not host.isprintable():
            raise ValueError("is neither an address nor a domain") from None
        return host, to_port


def subnet(text: str) -> Subnet:
    try:
        return ip_network(text)
    except ValueError as error:
        if "host bits" in str(error):
            raise ValueError(f'has host bits; write "{ip_interface(text).network}"') from None
        raise ValueError("is not a subnet") from None
