"""libvirt's dnsmasq."""

from __future__ import annotations

import signal

from tests.faults.fault import Fault, Outcome
from tests.faults.host import Host


def _serves(host: Host) -> None:
    host.box.wait_until(lambda: host.box.asks(host.guest, "dhcp", "eth0"), what="a lease")


_STATUS = "/var/lib/libvirt/dnsmasq/vblab.status"
_GARBAGE = "\\0garbage{["


def _spoil_the_leases(host: Host) -> None:
    host.run(f"cp {_STATUS} /run/box/status; printf '{_GARBAGE}' >{_STATUS}; vnetctl reconcile")
    leases = host.box.vnetctl("status", "lab")
    assert leases.returncode in (0, 3), leases.stderr


def _restore_the_leases(host: Host) -> None:
    host.run(f"printf '{_GARBAGE}' | cmp - {_STATUS}; cat /run/box/status >{_STATUS}")


_HOLD = """
import signal, socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held:
    held.bind(("", 67))
    print("held", flush=True)
    signal.pause()
"""


def _take_the_port(host: Host) -> None:
    """While no dnsmasq has it, for they share it among themselves."""
    box = host.box
    host.run("vnetctl pause 60; virsh -q net-destroy lab; virsh -q net-destroy quiet")
    box.spawn("holder", "/usr/bin/python3", "-c", _HOLD)
    box.wait_until(lambda: "held" in box.log("holder"), what="somebody has the port")
    host.run("vnetctl resume")


def _give_the_port(host: Host) -> None:
    started = host.box.log("vnetd").count("INFO: start network lab (")
    host.run("vnetctl reconcile || true")
    assert host.box.log("vnetd").count("INFO: start network lab (") <= started + 1
    host.box.kill("holder", signal.SIGKILL)


FAULTS = (
    Fault(
        "dnsmasq-killed",
        "dnsmasq is killed",
        "kill -9 $(cat /run/libvirt/network/lab.pid)",
        check=_serves,
    ),
    Fault(
        "dnsmasq-stopped",
        "dnsmasq is stopped (SIGSTOP): not seen; it serves again when it goes on",
        "kill -STOP $(cat /run/libvirt/network/lab.pid); vnetctl reconcile",
        Outcome.UNTOUCHED,
        undo="kill -CONT $(cat /run/libvirt/network/lab.pid)",
        check=_serves,
    ),
    Fault(
        "port-taken",
        "another program has the port of DHCP when the network is to start",
        _take_the_port,
        Outcome.NAMED,
        told="UDP port 67",
        undo=_give_the_port,
        long=True,
    ),
    Fault(
        "leases-spoiled",
        "libvirt's file of leases is garbage",
        _spoil_the_leases,
        Outcome.UNTOUCHED,
        undo=_restore_the_leases,
    ),
    Fault(
        "reservations-gone",
        "dnsmasq's file of reservations is emptied",
        ": >/var/lib/libvirt/dnsmasq/lab.hostsfile",
        long=True,
    ),
)
