"""What breaks guests' networks while libvirt says that all is well, and what becomes of it."""

from __future__ import annotations

from tests.faults.catalogue import (
    addresses,
    dnsmasq,
    firewall,
    libvirtd,
    links,
    policyfile,
)
from tests.faults.fault import Fault

GROUPS = {
    "Firewall": firewall.FAULTS,
    "Links": links.FAULTS,
    "Addresses, routes, forwarding": addresses.FAULTS,
    "dnsmasq": dnsmasq.FAULTS,
    "libvirtd": libvirtd.FAULTS,
    "Policy file": policyfile.FAULTS,
}
CATALOGUE: tuple[Fault, ...] = tuple(fault for group in GROUPS.values() for fault in group)
