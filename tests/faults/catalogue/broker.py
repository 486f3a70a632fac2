"""The system bus is dbus-broker: another program, with other limits, of the same protocol."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from tests.faults.catalogue import bus, callers
from tests.faults.fault import Fault
from tests.lab.hypervisor import CACHE, Hypervisor

_BROKER = CACHE / "broker"


class OnBroker(Hypervisor):
    def _bus(self) -> tuple[str, ...]:
        return self.python("-m", "tests.lab.broker", str(_BROKER))


on_broker = partial(callers.with_polkit, make=OnBroker)

_OF_ANY_BUS = (
    "bus-restarted",
    "bus-killed",
    "bus-name-taken",
    "caller-giant",
    "caller-flood",
    "caller-vanish",
    "caller-fuzz",
)
# The broker takes from each of the 300 in turn, and gives whom they call little at a time; it keeps
# up to 128 MiB of one user's calls, behind which everybody's wait. It is so with any service: with
# the crowd at polkit in place of vnetd, root's Ping of polkit had no answer in 12 s, while polkit
# used 4 % of a CPU; vnetd's and the bus's own answers took 14 ms and less.
_CROWD = callers.harassment(
    "300 connections of one user, whose calls all others' to vnetd wait behind",
    "alice",
    "crowd",
    others_wait=True,
)


def _on_broker(fault: Fault) -> Fault:
    id_ = f"broker-{fault.id.removeprefix('bus-')}"
    return replace(fault, id=id_, host=on_broker, long=True)


FAULTS = (
    Fault(
        "broker-flush",
        "rules are flushed, and the tap is unplugged",
        "iptables -t nat -F; ip link set $TAP nomaster; vnetctl reconcile",
        host=on_broker,
        long=True,
    ),
    *(_on_broker(fault) for fault in (*bus.FAULTS, *callers.FAULTS) if fault.id in _OF_ANY_BUS),
    _on_broker(_CROWD),
)
