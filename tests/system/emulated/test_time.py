"""A clock that is set, and a machine that stands still."""

from __future__ import annotations

import re
import time

from tests.system.vm import Vm

DOWN = "ip link set virbr0 down"


def passes(box: Vm) -> int:
    found = re.search(r"^vnetd_passes_total (\d+)", box.ask("Metrics"), re.M)
    assert found is not None
    return int(found[1])


def lines_since(box: Vm, cursor: str) -> list[str]:
    said = box.run("journalctl", "-u", "vnetd", "-o", "cat", f"--after-cursor={cursor}")
    return said.splitlines()


def cursor(box: Vm) -> str:
    return box.run("journalctl", "-n", "1", "--show-cursor").rpartition("-- cursor: ")[2].strip()


def ports(box: Vm) -> set[str]:
    """The states of virbr0's; 3 is forwarding. Each change is one look more."""
    return set(box.sh("cat /sys/class/net/virbr0/brif/*/state").split())


def assert_one_line(box: Vm, since: str) -> None:
    box.wait_until(lambda: bool(lines_since(box, since)), seconds=60, what="a line")
    (line,) = lines_since(box, since)
    assert "the clock was set by" in line


def test_a_clock_that_is_set_costs_one_line_and_one_look(box: Vm) -> None:
    box.converge()
    box.sh("systemctl stop '*.timer' systemd-timesyncd || true")  # they wake up four years late
    for jump in ("+4 years", "-1 day", "-4 years +1 day"):
        box.wait_until(lambda: ports(box) == {"3"}, seconds=60, what="STP through with its port")
        box.run("vnetctl", "reconcile")
        before, since = passes(box), cursor(box)
        box.sh(f"date -s '{jump}'")
        assert_one_line(box, since)
        assert passes(box) <= before + 2
        (record,) = box.healed(DOWN)
        print(f"{jump}: {record['ms']} ms")


def test_a_machine_that_stood_still_goes_on(box: Vm) -> None:
    box.converge()
    pid = box.run("systemctl", "show", "--value", "-p", "MainPID", "vnetd")
    records = len(box.history())
    box.monitor("stop")
    time.sleep(20)  # this is the fault
    box.monitor("cont")
    box.converge()
    assert len(box.history()) == records
    (record,) = box.healed(DOWN)
    print(f"the first repair after it: {record['ms']} ms")
    assert box.run("systemctl", "show", "--value", "-p", "MainPID", "vnetd") == pid
