"""A vnetd with nothing to do does nothing."""

from __future__ import annotations

import time

from tests.lab.hypervisor import Hypervisor
from vnetd.backends.base import CHECK_SECONDS

SECONDS = 20
LIBVIRTS_KEEPALIVE_SECONDS = 5


def switches(box: Hypervisor) -> dict[int, int]:
    """Thread → how often it has gone to sleep so far, that is, how often it was woken."""
    script = "grep -H ^voluntary_ctxt_switches /proc/$1/task/*/status"
    lines = box.run("sh", "-c", script, "sh", str(box.pid("vnetd"))).splitlines()
    return {int(line.split("/")[4]): int(line.split()[-1]) for line in lines}


def test_next_to_nothing_wakes_an_idle_vnetd(box: Hypervisor) -> None:
    box.wait_until_quiet("vnetd", seconds=5.0)
    main = box.pid("vnetd")
    before = switches(box)
    time.sleep(SECONDS)  # what is tested is that nothing happens meanwhile
    after = switches(box)
    assert after.keys() == before.keys(), "threads came or went"
    woken = {thread: after[thread] - before[thread] for thread in after}
    # a look at what the kernel tells nobody of: these networks have IPv6
    assert woken.pop(main) <= 1 + SECONDS / CHECK_SECONDS
    # libvirtd asks its clients whether they live; libvirt's own thread answers
    busy = [count for count in woken.values() if count]
    assert len(busy) <= 1
    assert sum(busy) <= 4 * (1 + SECONDS / LIBVIRTS_KEEPALIVE_SECONDS)
