"""libvirt's dnsmasq."""

from __future__ import annotations

from tests.faults.fault import Fault

FAULTS = (
    Fault("dnsmasq-killed", "dnsmasq is killed", "kill -9 $(cat /run/libvirt/network/lab.pid)"),
    Fault(
        "reservations-gone",
        "dnsmasq's file of reservations is emptied",
        ": >/var/lib/libvirt/dnsmasq/lab.hostsfile",
    ),
)
