"""The box itself: what it makes goes with it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.hypervisor import TREE, Hypervisor, LabError

HOLDING = """
import signal
from tests.lab.hypervisor import Hypervisor
with Hypervisor() as box:
    box.sh("ip link add br0 type bridge; ip link set br0 up")
    box.guest("br0", "192.0.2.9/24")
    print("up", flush=True)
    signal.pause()
"""


def traces() -> dict[str, object]:
    """What a box could leave: processes, mounts, namespaces, links and files of this machine."""
    processes = {
        (name, words)
        for path in Path("/proc").glob("[0-9]*")
        if (words := _read(path / "cmdline")) and (name := _read(path / "comm"))
        if name.strip() in ("libvirtd", "dnsmasq", "dbus-daemon", "unshare", "nsenter")
        or "tests.lab" in words
        or "lab/init.py" in words
    }
    return {
        "processes": processes,
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "namespaces": set(_names("/run/netns")),
        "links": set(_names("/sys/class/net")),
        "files": {p for d in ("/tmp", "/run", "/var/lib", "/etc") for p in Path(d).glob("*")},
    }


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _names(directory: str) -> list[str]:
    return os.listdir(directory) if os.path.isdir(directory) else []


def wait_until_equal(before: dict[str, object], look: Callable[[], dict[str, object]]) -> None:
    """A killed box ends in its own time: the kernel takes its namespaces down one by one."""
    for _ in range(200):
        if look() == before:
            return
        signal.sigtimedwait([], 0.05)
    assert look() == before


def test_nothing_stays_behind() -> None:
    before = traces()
    with Hypervisor() as box:
        box.sh("ip link add br0 type bridge; ip link set br0 up")
        box.guest("br0", "192.0.2.9/24")
        box.sh("touch /etc/made-in-the-box /var/lib/made-in-the-box; ip netns add made")
    wait_until_equal(before, traces)


def test_nothing_stays_behind_when_it_fails_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    before = traces()
    monkeypatch.setattr(Hypervisor, "start_libvirtd", lambda box: box.run("false"))
    with pytest.raises(LabError), Hypervisor():
        pass
    wait_until_equal(before, traces)


def test_nothing_stays_behind_when_its_owner_is_killed() -> None:
    before = traces()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING], cwd=TREE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "up\n"
        owner.kill()
    wait_until_equal(before, traces)
