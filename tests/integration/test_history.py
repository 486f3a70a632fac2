"""The history on a real vnetd: a disk that takes no more, or not at all, and a damaged file."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.integration.conftest import FIVE_NETWORKS
from tests.lab.hypervisor import Hypervisor

STATE = "/var/lib/vnetd"


@pytest.fixture(scope="module")
def box() -> Iterator[Hypervisor]:
    with Hypervisor() as hypervisor:
        hypervisor.sh("ip link add br0 type bridge; ip link set br0 up")
        hypervisor.start_vnetd(FIVE_NETWORKS)
        yield hypervisor


def file(box: Hypervisor) -> str:
    return box.sh(f"sha256sum {STATE}/history.sqlite")


def heal(box: Hypervisor) -> None:
    """Something is broken and comes back, whatever becomes of the history."""
    good = box.rules()
    records = len(box.history())
    # Refused while somebody else is just writing.
    box.wait_until(lambda: box.succeeds("iptables", "-t", "nat", "-F"), what="a flush")
    box.wait_until(lambda: box.rules() == good, what="rules repaired")
    box.wait_until(lambda: len(box.history()) > records, what="a record")


def wait_for_reason(box: Hypervisor, part: str) -> None:
    def told() -> bool:
        status = box.vnetctl_json("status")
        return status["State"] == "degraded" and any(part in r for r in status["Reasons"])

    box.wait_until(told, what=f"degraded: {part}")


def test_a_full_disk_stops_no_repair_and_loses_no_record(box: Hypervisor) -> None:
    box.sh(f"mount -o remount,size=256k {STATE}; ! cat /dev/zero >{STATE}/filler 2>/dev/null")
    before = file(box)
    while not box.vnetctl_json("status")["Reasons"]:  # what is left of the last page goes first
        heal(box)
    wait_for_reason(box, "full")
    assert file(box) == before
    told = box.history()
    box.sh(f"rm {STATE}/filler; mount -o remount,size=64m {STATE}")
    box.vnetctl("reconcile")
    box.wait_for_state("converged")
    box.kill("vnetd", signal.SIGKILL)
    box.start_vnetd()
    assert box.history()[: len(told)] == told


def test_vnetd_starts_on_a_disk_that_cannot_be_written(box: Hypervisor) -> None:
    told = box.history()
    assert box.kill("vnetd") == 0
    box.sh(f"mount -o remount,ro {STATE}")
    before = file(box)
    box.start_vnetd()
    wait_for_reason(box, "history")
    heal(box)
    assert box.history()[: len(told)] == told
    assert file(box) == before
    told = box.history()
    box.sh(f"mount -o remount,rw {STATE}")
    box.vnetctl("reconcile")
    box.wait_for_state("converged")
    assert box.history() == told


def test_a_damaged_file_is_moved_aside(box: Hypervisor) -> None:
    rules = box.rules()
    box.kill("vnetd", signal.SIGKILL)
    box.sh(f"rm -f {STATE}/*-wal; head -c 50000 /dev/urandom >{STATE}/history.sqlite")
    damaged = box.sh(f"sha256sum <{STATE}/history.sqlite")
    box.start_vnetd()
    wait_for_reason(box, "history.sqlite.damaged-")
    assert box.sh(f"cat {STATE}/history.sqlite.damaged-*[0-9]Z | sha256sum") == damaged
    assert box.history() == []
    assert box.rules() == rules
    heal(box)
