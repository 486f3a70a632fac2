"""People and tools that want it otherwise."""

from __future__ import annotations

import os
import time

from tests.faults.fault import Fault, Outcome
from tests.faults.host import Host

_FIGHT_SECONDS = 20.0


def cpu_seconds(host: Host) -> float:
    stat = host.box.path(f"/proc/{host.box.pid('vnetd')}/stat").read_text().rpartition(")")[2]
    return sum(int(word) for word in stat.split()[11:13]) / os.sysconf("SC_CLK_TCK")


def fight(host: Host) -> None:
    box, before, began = host.box, len(host.box.history()), cpu_seconds(host)
    loop = "while :; do iptables -t nat -F LIBVIRT_PRT; sleep 0.1; done"
    box.spawn("other-admin", "sh", "-c", loop)
    host.wait_until_said("again and again")
    until = time.monotonic() + _FIGHT_SECONDS
    box.wait_until(lambda: time.monotonic() > until, seconds=_FIGHT_SECONDS + 1)
    records = box.history()[before:]
    told = [record for record in records if record["outcome"] == "conflict"]
    assert [record["cause"]["process"] for record in told] == ["iptables"]
    assert sum(record["outcome"] == "repaired" for record in records) < 15
    print(f"{cpu_seconds(host) - began:.1f} s of CPU")


def end_of_fight(host: Host) -> None:
    host.box.kill("other-admin")


def paused(host: Host) -> None:
    """What is broken stays so until the pause is over."""
    box = host.box
    host.run("vnetctl pause 5; iptables -t nat -F; ip addr flush dev vbrouted")
    broken = box.rules(), box.run("ip", "-br", "addr")
    while (seen := (box.rules(), box.run("ip", "-br", "addr"))) == broken:
        pass
    assert box.state() != "paused", seen


FAULTS = (
    Fault(
        "fight",
        "somebody flushes libvirt's NAT chain ten times a second",
        fight,
        Outcome.NAMED,
        told="again and again",
        undo=end_of_fight,
        long=True,
    ),
    Fault(
        "paused",
        "an admin pauses vnetd for 5 s, and breaks things; then it heals",
        paused,
        long=True,
    ),
    Fault(
        "forward-policy",
        "iptables -P FORWARD DROP, which an open network does not survive",
        "iptables -P FORWARD DROP",
        Outcome.NAMED,
        told="FORWARD",
        undo="iptables -P FORWARD ACCEPT",
        long=True,
    ),
)
