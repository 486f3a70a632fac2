"""Users of the bus who mean no good; each for as long as a heal of flushed rules takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.faults.fault import Fault, Outcome
from tests.faults.host import Host, System
from tests.integration.conftest import FIVE_NETWORKS
from tests.lab.hypervisor import Hypervisor


@contextmanager
def with_polkit(
    system: System, make: Callable[..., Hypervisor] = Hypervisor
) -> Iterator[Hypervisor]:
    """lab-user may read and plan, alice nothing."""
    with make(root=system.root) as box:
        box.sh("groupadd -f libvirt; usermod -aG libvirt lab-user")
        box.sh("ip link add br0 type bridge; ip link set br0 up")
        box.start_polkit()
        box.start_vnetd(FIVE_NETWORKS)
        yield box


def harassment(what: str, user: str, kind: str, *, others_wait: bool = False) -> Fault:
    """others_wait: for the bus, which forwards nobody's calls in time; nothing is asked then."""

    def inject(host: Host) -> None:
        """Root is answered meanwhile: it has a budget of its own."""
        box, rules = host.hypervisor, host.box.rules()
        box.harass(kind, user, kind)
        box.sh("iptables -t nat -F")
        box.wait_until(lambda: box.rules() == rules, what="rules meanwhile")
        if not others_wait:
            done = box.vnetctl("status")
            assert done.returncode in (0, 3), done.stderr
        box.kill(kind)

    return Fault(f"caller-{kind}", what, inject, host=with_polkit, long=True)


_ARGUMENTS = r"""
manager="org.vnetd1 /org/vnetd1 org.vnetd1.Manager"
for name in ';touch /tmp/owned' '$(touch /tmp/owned)' '`touch /tmp/owned`' ../../etc/passwd -rf; do
    fails busctl --system -- call $manager GetNetwork s "$name" 2>>/run/box/said
    fails busctl --system -- call $manager Why ss "$name" '' 2>>/run/box/said
    fails busctl --system -- call $manager Why ss lab "$name" 2>>/run/box/said
done
fails grep -v '^Call failed: ' /run/box/said
fails test -e /tmp/owned
"""

_AS_ALICE = r"""
as_alice() { setpriv --reuid=alice --regid=alice --init-groups busctl --system "$@"; }
manager="org.vnetd1 /org/vnetd1 org.vnetd1.Manager"
refused() { fails as_alice "$@" 2>/run/box/said; grep -q "$wrong" /run/box/said; }
as_alice get-property $manager State | grep -q converged
wrong='needs a password\|does not grant'
refused call $manager Reload
refused call $manager Pause t 60
refused call $manager History
wrong='cannot be set'
refused set-property $manager State s fine
wrong='not allowed to own\|Access denied\|Request to own name refused'
refused call org.freedesktop.DBus / org.freedesktop.DBus RequestName su org.vnetd1 4
"""

FAULTS = (
    harassment("messages as long as the bus lets through", "alice", "giant"),
    harassment("calls as fast as the bus takes them", "alice", "flood"),
    harassment("256 connections of one user, and more", "alice", "crowd"),
    harassment("callers who vanish in the middle of a call", "alice", "vanish"),
    harassment("forged signals of the bus, firewalld and logind", "lab-user", "churn"),
    harassment("arguments of all kinds for all methods", "lab-user", "fuzz"),
    Fault(
        "caller-names",
        "names and addresses that a shell would run",
        _ARGUMENTS,
        Outcome.REFUSED,
        host=with_polkit,
        long=True,
    ),
    Fault(
        "caller-without-rights",
        "a user reloads, pauses, reads the history, sets a property, takes the name",
        _AS_ALICE,
        Outcome.REFUSED,
        host=with_polkit,
        long=True,
    ),
)
