"""What breaks guests' networks while libvirt says that all is well, and what becomes of it."""

from __future__ import annotations

from tests.faults.catalogue import (
    addresses,
    admins,
    broker,
    bus,
    callers,
    crashes,
    dnsmasq,
    firewall,
    libvirtd,
    links,
    names,
    policyfile,
    resources,
)
from tests.faults.fault import Fault

GROUPS = {
    "Firewall": firewall.FAULTS,
    "Links": links.FAULTS,
    "Addresses, routes, forwarding": addresses.FAULTS,
    "dnsmasq": dnsmasq.FAULTS,
    "libvirtd": libvirtd.FAULTS,
    "The bus": bus.FAULTS,
    "dbus-broker in place of dbus-daemon": broker.FAULTS,
    "Hostile callers": callers.FAULTS,
    "Hostile names": names.FAULTS,
    "Policy file": policyfile.FAULTS,
    "Disk, rights, time": resources.FAULTS,
    "vnetd itself": crashes.FAULTS,
    "Others": admins.FAULTS,
}
CATALOGUE: tuple[Fault, ...] = tuple(fault for group in GROUPS.values() for fault in group)
