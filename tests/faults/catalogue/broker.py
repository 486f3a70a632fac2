"""The system bus is dbus-broker: another program, with other limits, of the same protocol."""

from __future__ import annotations

import signal
from functools import partial

from tests.faults.catalogue import bus
from tests.faults.catalogue.callers import harassment, with_polkit
from tests.faults.fault import Fault
from tests.lab.hypervisor import CACHE, Hypervisor

_BROKER = CACHE / "broker"


class OnBroker(Hypervisor):
    def _bus(self) -> tuple[str, ...]:
        return self.python("-m", "tests.lab.broker", str(_BROKER))


on_broker = partial(with_polkit, make=OnBroker)
_harassment = partial(harassment, host=on_broker, on="broker-")

FAULTS = (
    Fault(
        "broker-flush",
        "rules are flushed, and the tap is unplugged",
        "iptables -t nat -F; ip link set $TAP nomaster; vnetctl reconcile",
        host=on_broker,
        long=True,
    ),
    Fault(
        "broker-restarted",
        "the bus is restarted, and rules are flushed meanwhile",
        partial(bus.restarted, signal.SIGTERM),
        restarts=("libvirtd",),
        host=on_broker,
        long=True,
    ),
    Fault(
        "broker-killed",
        "the bus is killed, and rules are flushed meanwhile",
        partial(bus.restarted, signal.SIGKILL),
        restarts=("libvirtd",),
        host=on_broker,
        long=True,
    ),
    Fault(
        "broker-name-taken",
        "somebody else has vnetd's name on the bus, and rules are flushed",
        bus.name_taken,
        restarts=("vnetd",),
        host=on_broker,
        long=True,
    ),
    _harassment("messages as long as the bus lets through", "alice", "giant"),
    _harassment("calls as fast as the bus takes them", "alice", "flood"),
    _harassment(
        "300 connections of one user, who lets all others on the bus wait",
        "alice",
        "crowd",
        others_wait=True,
    ),
    _harassment("callers who vanish in the middle of a call", "alice", "vanish"),
    _harassment("arguments of all kinds for all methods", "lab-user", "fuzz"),
)
