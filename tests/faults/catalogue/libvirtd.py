"""libvirt itself, and what it remembers."""

from __future__ import annotations

from tests.faults.fault import Fault

FAULTS = (
    Fault("undefined", "virsh net-undefine", "virsh -q net-undefine lab"),
    Fault("autostart-off", "virsh net-autostart --disable", "virsh -q net-autostart lab --disable"),
)
