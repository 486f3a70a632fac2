"""The box itself: what it makes goes with it, however it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab.hypervisor import OTHERS_MAY_ENTER, TREE, Hypervisor, LabError
from tests.system import escape

HOLDING = """
import signal
from tests.lab.hypervisor import Hypervisor
with Hypervisor() as box:
    box.sh("ip link add br0 type bridge; ip link set br0 up")
    box.guest("br0", "192.0.2.9/24")
    print(box.namespace(), flush=True)
    signal.pause()
"""

_WRITTEN = ("/tmp", "/run", "/var/lib", "/etc", "/usr/sbin")

# linux/capability.h
CAP_NET_ADMIN, CAP_NET_RAW = 12, 13


def traces() -> dict[str, object]:
    """What a box could leave outside. Other boxes on this machine leave none of it either."""
    return {
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "namespaces": _names("/run/netns"),
        "links": _names("/sys/class/net"),
        "files": {d: _names(d) - _of_pytest() for d in _WRITTEN},
    }


def processes(namespace: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(path / "ns/pid") == namespace:
                found.append((path / "comm").read_text())
        except OSError:
            continue  # it has ended
    return found


def assert_gone(namespace: str) -> None:
    """The kernel ends a killed namespace's processes in its own time."""
    deadline = time.monotonic() + 10
    while processes(namespace) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes(namespace) == []


def _names(directory: str) -> set[str]:
    return set(os.listdir(directory)) if os.path.isdir(directory) else set()


def _of_pytest() -> set[str]:
    return {name for name in _names("/tmp") if name.startswith("pytest-of-")}


def test_nothing_stays_behind() -> None:
    before = traces()
    with Hypervisor() as box:
        box.sh("ip link add br0 type bridge; ip link set br0 up")
        box.guest("br0", "192.0.2.9/24")
        box.sh("for d in /etc /var/lib /usr/sbin; do touch $d/made-in-the-box; done")
        box.sh("ip netns add made")
        namespace = box.namespace()
        assert len(processes(namespace)) >= 3
    assert_gone(namespace)
    assert traces() == before


def test_nothing_stays_behind_when_it_fails_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    before = traces()
    namespaces = []

    def fail(box: Hypervisor) -> None:
        namespaces.append(box.namespace())
        box.run("false")

    monkeypatch.setattr(Hypervisor, "start_libvirtd", fail)
    with pytest.raises(LabError), Hypervisor():
        pass
    assert_gone(*namespaces)
    assert traces() == before


def test_nothing_stays_behind_when_its_owner_is_killed() -> None:
    before = traces()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING], cwd=TREE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        namespace = owner.stdout.readline().strip()
        assert processes(namespace)
        owner.kill()
    assert_gone(namespace)
    assert traces() == before


def test_vnetd_is_confined_as_its_unit_says() -> None:
    """But for what systemd's filter of system calls takes: tests/system has that."""
    if not OTHERS_MAY_ENTER:
        pytest.skip("only root may enter this tree: here vnetd may read what root may")
    with Hypervisor() as box:
        box.start_vnetd("")
        run = ("/usr/bin/python3", str(Path(escape.__file__)))
        found = json.loads(box.run(*box.as_service(*run)))
        free = json.loads(box.run(*run))
        plain = rights(box)
        box.kill("vnetd")
        box.start_vnetd(legacy=True)
        beside_legacy = rights(box)
    out = {name for name in escape.ATTEMPTS if not found[name]}
    assert out <= {"make a user namespace", "make a setuid file"}
    assert {"write /etc", "open a TCP socket", "mount", "make writable code"} <= {
        name for name in escape.ATTEMPTS if not free[name]
    }
    assert plain == {1 << CAP_NET_ADMIN}
    assert beside_legacy == {1 << CAP_NET_ADMIN | 1 << CAP_NET_RAW}


def rights(box: Hypervisor) -> set[int]:
    """Capabilities that the daemon has, and that it could get."""
    status = box.run("cat", f"/proc/{box.pid('vnetd')}/status")
    has = dict(line.split(":\t", 1) for line in status.splitlines())
    assert has["Uid"].split()[0] != "0"
    return {int(has[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")}


def test_the_canary_sees_what_happens_to_it() -> None:
    with Hypervisor() as box:
        canary = box.canary
        assert canary is not None
        network = "<network><name>n</name><forward/><ip address='10.90.0.1' prefix='24'/></network>"
        box.run("virsh", "net-create", "/dev/stdin", stdin=network)
        for script in (
            "nft delete table netdev canary",
            "nft add element ip canary s '{ 192.0.2.1 }'",
            "nft insert rule bridge canary f drop",
            "iptables -D FORWARD 2",
            "iptables -t nat -D POSTROUTING -s 192.0.2.77 -m comment --comment canary -j RETURN",
            "ip6tables -A LIBVIRT_FWI -s 2001:db8::77 -m comment --comment canary -j RETURN",
            # more than the test says that it flushes
            "iptables -t mangle -F; f=-F; iptables $f LIBVIRT_INP",
        ):
            canary.perch()
            canary.check()
            box.sh(script)
            with pytest.raises(AssertionError):
                canary.check()
            box.sh("nft flush ruleset")
            box.kill("libvirtd")
            box.start_libvirtd()  # makes its chains again
        canary.perch()
        box.sh("iptables -F FORWARD")
        canary.check()
