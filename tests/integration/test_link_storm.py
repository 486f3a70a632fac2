"""Containers come and go by the thousand beside the guests: what is vnetd's is healed as if they
did not, and they cost it next to nothing. The long form has thirty seconds of it.
"""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from tests.lab.hypervisor import Hypervisor
from tests.long import LONG

SECONDS = 30.0 if LONG else 5.0
PER_SECOND = 2000


def tap_of(box: Hypervisor, domain: str) -> str:
    return box.run("virsh", "-q", "domiflist", domain).split()[0]


def memory(box: Hypervisor) -> int:
    """KiB."""
    status = box.path(f"/proc/{box.pid('vnetd')}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def cpu_seconds(box: Hypervisor) -> float:
    words = box.path(f"/proc/{box.pid('vnetd')}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def passes(box: Hypervisor) -> list[str]:
    """That events about links and their settings have led to."""
    lines = [line for line in box.log("vnetd").splitlines() if "pass: " in line]
    return [line for line in lines if "links" in line or "forwarding" in line]


def dropped(box: Hypervisor) -> int:
    """Messages for vnetd's socket that the kernel did not get rid of. Nobody else listens to just
    these groups: links, queueing disciplines, addresses.
    """
    groups = 1 << 0 | 1 << 3 | 1 << 4 | 1 << 8
    rows = [line.split() for line in box.run("cat", "/proc/net/netlink").splitlines()[1:]]
    (drops,) = [int(row[8]) for row in rows if row[1] == "0" and int(row[3], 16) == groups]
    return drops


def break_and_heal(box: Hypervisor, tap: str) -> float:
    """Seconds until the tap is on its bridge again."""
    records = len(box.history())
    box.run("ip", "link", "set", tap, "nomaster")
    began = time.monotonic()
    box.wait_until(lambda: "master vblab" in box.run("ip", "link", "show", tap), what="the tap")
    took = time.monotonic() - began
    box.wait_until(lambda: len(box.history()) > records, what="a record")
    return took


@pytest.mark.timeout(SECONDS + 120)
def test_a_storm_of_foreign_links_hides_no_fault_and_costs_no_pass(box: Hypervisor) -> None:
    tap = tap_of(box, box.domain_guest("lab", "10.77.0.60/24", gateway="10.77.0.1"))
    break_and_heal(box, tap)
    box.wait_until_quiet("vnetd", seconds=1)
    box.spawn("storm", *box.python("-m", "tests.lab.linkstorm", str(PER_SECOND), str(SECONDS)))
    box.wait_until(lambda: "at work" in box.log("storm"), what="the storm")
    box.wait_until_quiet("vnetd", seconds=0.5)
    before = {"KiB": memory(box), "CPU": cpu_seconds(box)}
    already = len(passes(box))
    began = time.monotonic()
    box.wait_until(
        lambda: time.monotonic() > began + SECONDS / 2, seconds=SECONDS, what="the middle"
    )
    cost, needless = cpu_seconds(box) - before["CPU"], passes(box)[already:]
    seconds = break_and_heal(box, tap)
    box.wait_until(
        lambda: "events" in box.log("storm"), seconds=SECONDS + 20, what="the storm's end"
    )
    after = break_and_heal(box, tap)
    storm = json.loads(box.log("storm").splitlines()[-1])
    kib = memory(box)
    print(
        f"{storm['per_second']} changes and {storm['events']} events a second for {SECONDS:.0f} s; "
        f"healed in {seconds * 1000:.0f} ms meanwhile, in {after * 1000:.0f} ms right after; "
        f"{len(needless)} passes and {cost:.2f} s of CPU before it; "
        f"RSS {before['KiB']} KiB before, {kib} KiB after"
    )
    assert storm["events"] > (PER_SECOND if LONG else 0), "what a busy machine leaves of it"
    assert seconds < 1
    assert after < 1, "a backlog of events holds it up"
    assert kib - before["KiB"] < 4096
    assert needless == []


def test_events_that_the_kernel_had_to_drop_lose_nothing(box: Hypervisor) -> None:
    tap = tap_of(box, box.domain_guest("lab", "10.77.0.61/24", gateway="10.77.0.1"))
    box.wait_until_quiet("vnetd", seconds=1)
    box.signal("vnetd", signal.SIGSTOP)
    already = dropped(box)

    def overrun() -> bool:
        box.run(*box.python("-m", "tests.lab.linkstorm", str(3 * PER_SECOND), "2"))
        return dropped(box) > already

    box.wait_until(overrun, seconds=60, what="more events than vnetd's socket holds")
    box.run("ip", "link", "set", tap, "nomaster")
    box.signal("vnetd", signal.SIGCONT)
    box.wait_until(lambda: "master vblab" in box.run("ip", "link", "show", tap), what="the tap")
    assert "link events were lost" in box.log("vnetd")
