"""The file of reservations that libvirt writes for dnsmasq. Pure."""

from __future__ import annotations

from ipaddress import ip_address

from vnetd.core.model import HostAddress


def addresses(text: str) -> frozenset[HostAddress]:
    """dnsmasq(8), --dhcp-host: fields with commas between them, IPv6 addresses in brackets."""
    found: set[HostAddress] = set()
    for line in text.splitlines():
        for field in line.split(","):
            if ":" in field and field[:1] != "[":
                continue  # a MAC, or an id
            try:
                found.add(ip_address(field.strip("[]")))
            except ValueError:
                continue
    return frozenset(found)
