"""The system bus, and who is on it."""

from __future__ import annotations

import signal
from functools import partial

from tests.faults.fault import Fault, Outcome
from tests.faults.host import Host

_BUS = ("busctl", "--system", "call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus")

_SQUATTER = """
import time
from gi.repository import Gio, GLib
bus = Gio.bus_get_sync(Gio.BusType.SYSTEM)
name = GLib.Variant("(su)", ("org.vnetd1", 4))
bus.call_sync(*["org.freedesktop.DBus", "/"] + ["org.freedesktop.DBus", "RequestName", name, None,
    0, -1, None])
print("has it", flush=True)
time.sleep(600)
"""


def restarted(how: signal.Signals, host: Host) -> None:
    """libvirtd may end with its bus, and on a host systemd then starts it again."""
    box = host.hypervisor
    rules = box.rules()
    box.kill("bus", how)
    host.run("iptables -t nat -F")
    box.wait_until(lambda: box.rules() == rules, what="rules without a bus")
    box.start_bus()
    host.run(f"kill -9 {box.pid('libvirtd')} 2>/dev/null || true")
    box.start_libvirtd()


def owner(host: Host) -> str:
    return host.box.run(*_BUS, "GetNameOwner", "s", "org.vnetd1")


def stopped(host: Host) -> None:
    """Meanwhile its object for the bridge changes 500 times."""
    box, before = host.box, owner(host)
    box.signal("bus", signal.SIGSTOP)
    try:
        host.run("""
            ip link add other0 type veth peer name other1
            for n in $(seq 250); do
                ip link set other0 master vblab; ip link set other0 nomaster
            done
            ip link del other0
        """)
        box.wait_until_quiet("vnetd", seconds=5)
    finally:
        box.signal("bus", signal.SIGCONT)
    assert owner(host) == before, "it had to connect again"


def name_taken(host: Host) -> None:
    box = host.hypervisor
    box.kill("vnetd")
    box.spawn("squatter", "/usr/bin/python3", "-c", _SQUATTER)
    box.wait_until(lambda: "has it" in box.log("squatter"), what="another owner of the name")
    said = len(box.log("vnetd"))
    box.spawn_vnetd("--log-level", "debug")
    wrong = "the name org.vnetd1 belongs to another process"
    box.wait_until(lambda: wrong in box.log("vnetd")[said:], what="it is said")
    rules = box.rules()
    host.run("iptables -t nat -F")
    box.wait_until(lambda: box.rules() == rules, what="rules")
    box.kill("squatter", signal.SIGKILL)


FAULTS = (
    Fault(
        "bus-restarted",
        "the bus is restarted, and rules are flushed meanwhile",
        partial(restarted, signal.SIGTERM),
        restarts=("libvirtd",),
        long=True,
    ),
    Fault(
        "bus-killed",
        "the bus is killed, and rules are flushed meanwhile",
        partial(restarted, signal.SIGKILL),
        restarts=("libvirtd",),
        long=True,
    ),
    Fault(
        "bus-stopped",
        "the bus hangs for 5 s, in which a bridge changes 500 times",
        stopped,
        Outcome.UNTOUCHED,
        long=True,
    ),
    Fault(
        "bus-name-taken",
        "somebody else has vnetd's name on the bus, and rules are flushed",
        name_taken,
        restarts=("vnetd",),
    ),
)
