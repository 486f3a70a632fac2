"""What vnetd lives on: its disk, its rights, memory, descriptors, time."""

from __future__ import annotations

import signal
import time
from functools import partial

from tests.faults.fault import Fault, Outcome
from tests.faults.host import Host
from tests.lab.machine import Machine

_STATE = "/var/lib/vnetd"
_FREEZE_SECONDS = 60


def _more_than(box: Machine, records: int) -> bool:
    return len(box.history()) > records


def fill(host: Host) -> None:
    """To the last byte, and break things until the history has had its last page."""
    box = host.box
    host.run(f"mount -o remount,size=256k {_STATE}; cat /dev/zero >{_STATE}/filler || true")
    for number in range(60):
        more = partial(_more_than, box, len(box.history()))
        host.run(f"iptables -t {('nat', 'filter')[number % 2]} -F")
        box.wait_until(more, what="a record")
        if "history" in host.said():
            return


def as_it_was(host: Host) -> None:
    host.run(
        f"rm -f {_STATE}/filler; mount -o remount,rw,size=64m {_STATE}; vnetctl reconcile || true"
    )


def read_only(host: Host) -> None:
    host.box.kill("vnetd")
    host.run(f"mount -o remount,ro {_STATE}; iptables -t nat -F")
    host.hypervisor.start_vnetd()


def garbage(host: Host) -> None:
    host.box.kill("vnetd", signal.SIGKILL)
    host.run(f"""
        mkdir /run/box/state; cp -a {_STATE}/. /run/box/state
        for file in {_STATE}/*; do head -c 5000 /dev/urandom >$file; done
    """)
    host.hypervisor.start_vnetd()


def from_before(host: Host) -> None:
    """The file as it was, for the history of those that come after this."""
    box = host.box
    assert box.sh(f"ls {_STATE}/history.sqlite.damaged-*")
    box.kill("vnetd")
    host.run(f"rm -rf {_STATE}/*; cp -a /run/box/state/. {_STATE}; rm -r /run/box/state")
    host.hypervisor.start_vnetd()


def without_rights(host: Host) -> None:
    box = host.hypervisor
    box.kill("vnetd")
    none = ("setpriv", "--ambient-caps=-all", "--inh-caps=-all")
    box.serve(*none, box.tool("vnetd"), "--log-level", "debug")
    box.wait_until(lambda: box.state() not in ("", "healing"), what="vnetd's first pass")
    host.run("ip link set $TAP nomaster")
    assert host.box.vnetctl("status").returncode == 3


def restart(host: Host) -> None:
    host.box.kill("vnetd")
    host.hypervisor.start_vnetd()


def overrun(host: Host) -> None:
    host.box.signal("vnetd", signal.SIGSTOP)
    box = host.hypervisor
    box.run(*box.python("-m", "tests.lab.linkstorm", "6000", "3"))
    host.run("ip link set $TAP nomaster")
    host.box.signal("vnetd", signal.SIGCONT)


def few_descriptors(host: Host) -> None:
    """As many as it has. With too few at its start it ends, and says why."""
    box = host.hypervisor
    box.kill("vnetd")
    done = box.attempt(*box.as_service("prlimit", "--nofile=16", box.tool("vnetd")))
    assert done.returncode == 1
    assert "may open too few files" in done.stderr
    assert "Traceback" not in done.stderr
    box.start_vnetd()
    pid = box.pid("vnetd")
    last = max(map(int, box.run("ls", f"/proc/{pid}/fd").split()))
    box.run(*box.as_service("prlimit", f"--pid={pid}", f"--nofile={last + 1}"))
    box.vnetctl("reconcile")


def frozen(host: Host) -> None:
    host.box.signal("vnetd", signal.SIGSTOP)
    try:
        host.run("iptables -t nat -F; ip link set $TAP nomaster")
        time.sleep(_FREEZE_SECONDS)  # the fault itself, not a wait
    finally:
        host.box.signal("vnetd", signal.SIGCONT)


FAULTS = (
    Fault(
        "disk-full",
        "no room for the history, and rules are flushed",
        fill,
        Outcome.NAMED,
        told="history",
        undo=as_it_was,
        long=True,
    ),
    Fault(
        "disk-read-only",
        "the state directory can only be read",
        read_only,
        Outcome.NAMED,
        told="history",
        undo=as_it_was,
        restarts=("vnetd",),
        long=True,
    ),
    Fault(
        "state-damaged",
        "all files in the state directory are garbage",
        garbage,
        Outcome.NAMED,
        told="damaged",
        undo=from_before,
        restarts=("vnetd",),
        long=True,
    ),
    Fault(
        "no-rights",
        "vnetd has no CAP_NET_ADMIN, and the tap is unplugged",
        without_rights,
        Outcome.NAMED,
        told="CAP_NET_ADMIN",
        undo=restart,
        restarts=("vnetd",),
    ),
    Fault(
        "overrun",
        "vnetd stands still for 3 s under 18,000 link events, and the tap is unplugged",
        overrun,
        long=True,
    ),
    Fault(
        "few-descriptors",
        "vnetd may open few files",
        few_descriptors,
        Outcome.NAMED,
        told="open files",
        undo=restart,
        restarts=("vnetd",),
        long=True,
    ),
    Fault(
        "frozen",
        "vnetd is frozen for a minute, in which rules are flushed and the tap is unplugged",
        frozen,
        long=True,
    ),
    Fault(
        "hogs",
        "8 processes take all CPU, and rules are flushed",
        """
        hogs=; trap 'kill $hogs' EXIT
        for n in $(seq 8); do while :; do :; done & hogs="$hogs $!"; done
        iptables -t nat -F
        until iptables -t nat -C LIBVIRT_PRT -s 10.77.0.0/24 -d 224.0.0.0/24 -j RETURN; do :; done
        """,
        long=True,
    ),
)
