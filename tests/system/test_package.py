"""One apt install on a bare Debian, and its networks are kept; one purge, and nothing is left."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.lab.machine import TREE, UPLINK
from tests.long import LONG
from tests.system import times
from tests.system.host import Host

pytestmark = pytest.mark.timeout(400)

AGAIN_SECONDS = 2.0
GATEWAY, GUEST = "192.168.122.1", "192.168.122.50/24"
# What apt, dpkg and journald keep for themselves.
_NOT_OURS = ("proc", "sys", "dev", "run", "tmp", "root", "var/log", "var/cache", "var/lib/apt",
             "var/lib/dpkg", "var/lib/systemd")  # fmt: skip


@pytest.fixture(scope="module")
def installed(box: Host, package: Path) -> Host:
    box.install(package)
    return box


@pytest.fixture(scope="module")
def guest(box: Host) -> str:
    box.run("virsh", "-q", "net-autostart", "default")
    box.run("virsh", "-q", "net-start", "default")
    return box.guest("virbr0", GUEST, gateway=GATEWAY)


def main_pid(box: Host, unit: str) -> str:
    return box.run("systemctl", "show", "--value", "-p", "MainPID", unit).strip()


def is_running(box: Host, network: str) -> bool:
    return network in box.run("virsh", "net-list", "--name").split()


def another(package: Path, version: str, to: Path) -> Path:
    """The same package as another version."""
    tree = to / version
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {version}", control.read_text()))
    subprocess.run(["dpkg-deb", "-b", tree, to / f"{version}.deb"], check=True, capture_output=True)
    shutil.rmtree(tree)
    return to / f"{version}.deb"


def test_lints_have_nothing_to_say(package: Path) -> None:
    subprocess.run([TREE / "packaging/lint", package.parent], check=True)


def test_protects_what_runs_from_the_moment_of_its_installation(
    box: Host, guest: str, package: Path
) -> None:
    before, libvirtd = box.rules(), main_pid(box, "libvirtd")
    box.install(package)
    box.wait_for_state("converged")
    assert box.run("systemctl", "is-active", "vnetd").strip() == "active"
    assert box.run("systemctl", "is-enabled", "vnetd").strip() == "enabled"
    assert box.rules() == before
    assert main_pid(box, "libvirtd") == libvirtd
    (network,) = box.vnetctl_json("status")["Networks"]
    assert (network["Name"], network["Kept"]) == ("default", "protected")
    with box.probing(guest) as outage:
        box.run("nft", "flush", "ruleset")
        box.wait_until(lambda: box.rules() == before, what="libvirt's rules")
    assert (outage.lost, outage.sources) == (0, [UPLINK])
    assert not box.run("systemctl", "--failed", "--quiet", "--plain", "--no-legend")


def test_systemd_knows_nothing_wrong_of_the_unit(installed: Host) -> None:
    done = installed.attempt("systemd-analyze", "verify", "--man=no", "vnetd.service")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, "upgrade"])
def test_ends_in_the_middle_of_a_repair(
    installed: Host, guest: str, package: Path, tmp_path: Path, end: signal.Signals | str
) -> None:
    """SIGSTOP: the watchdog ends it. No packet is lost, nor is a record, and another has put
    everything right within two seconds of its end.
    """
    box = installed
    before, history = box.rules(), box.history()
    newer = another(package, "0.2.0", tmp_path)
    if end is signal.SIGSTOP:
        box.write("/etc/systemd/system/vnetd.service.d/test.conf", "[Service]\nWatchdogSec=2\n")
        box.sh("systemctl daemon-reload; systemctl restart vnetd")
    box.wait_for_state("converged")
    first = main_pid(box, "vnetd")
    ended = 0.0
    with box.probing(guest) as outage:
        if isinstance(end, str):
            # Asked right before the restart.
            box.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nnft flush ruleset\n")
            box.run("chmod", "+x", "/usr/sbin/policy-rc.d")
            box.install(newer)
            box.run("rm", "/usr/sbin/policy-rc.d")
        else:
            box.run("nft", "flush", "ruleset")
            ended = time.monotonic()
            box.run("kill", f"-{end.value}", first)
        box.wait_until(lambda: main_pid(box, "vnetd") not in (first, "0"), what="a new vnetd")
        box.wait_for_state("converged")
    if isinstance(end, str):
        ended = times.said(box, "Stopping vnetd.service")
    elif end is signal.SIGSTOP:
        ended = times.said(box, "Watchdog timeout")
    began = times.of_unit(box, "vnetd", "InactiveExit")
    box.wait_until(lambda: times.converged(box) > began, what="the journal")
    right = times.converged(box)
    print(f"{box.release}: {right - ended:.2f} s from its end, {right - began:.2f} s from a start")
    assert right - ended <= AGAIN_SECONDS or not LONG
    assert box.rules() == before
    assert (outage.lost, outage.sources) == (0, [UPLINK])
    assert box.history()[: len(history)] == history


def test_the_guard_stays_when_vnetd_is_dead(installed: Host, guest: str) -> None:
    """systemd holds the socket that owns it, and starts another vnetd after 0.1 s."""
    box = installed
    before = box.rules()
    box.wait_for_state("converged")
    first = main_pid(box, "vnetd")
    with box.probing(guest) as outage:
        state = box.sh(f"""
            kill -KILL {first}
            while kill -0 {first} 2>/dev/null; do :; done
            nft flush ruleset
            if nft delete table inet vnetd; then exit 1; fi
            systemctl show --value -p ActiveState vnetd""")
        box.wait_until(lambda: main_pid(box, "vnetd") not in (first, "0"), what="a new vnetd")
        box.wait_for_state("converged")
    assert state.strip() == "activating", "until another was ready"
    assert (outage.lost, outage.sources) == (0, [UPLINK])
    assert box.rules() == before


def test_systemd_networkd_leads_a_bridge_of_libvirts(installed: Host, guest: str) -> None:
    file = "/etc/systemd/network/05-mine.network"
    installed.write(file, "[Match]\nName=virbr0\n[Network]\nAddress=192.0.2.1/25\n")
    installed.run("networkctl", "reload")
    told = f"systemd-networkd ({file}) leads its bridge virbr0"
    installed.wait_until(lambda: told in installed.vnetctl("status").stdout, what=told)
    installed.sh(f"rm {file}; networkctl reload; ip addr flush dev virbr0")
    installed.wait_for_state("converged")


def test_purge_leaves_nothing_and_touches_no_network(installed: Host, package: Path) -> None:
    box = installed
    before = box.rules()
    box.run("rm", "-rf", "/etc/systemd/system/vnetd.service.d")
    box.apt("remove", "vnetd")
    assert box.succeeds("test", "-e", "/etc/vnetd/vnetd.toml")
    assert box.succeeds("test", "-e", "/var/lib/vnetd/history.sqlite")
    box.apt("purge", "vnetd")
    assert is_running(box, "default")
    assert box.rules() == before
    bare = files(box)
    assert not [path for path in bare if "vnet" in path.replace("vnet0", "")]
    box.install(package)
    box.wait_for_state("converged")
    box.run("nft", "flush", "ruleset")
    box.wait_until(lambda: bool(box.history()))
    box.apt("purge", "vnetd")
    assert files(box) == bare


def files(box: Host) -> set[str]:
    prune = [word for path in _NOT_OURS for word in ("-path", f"/{path}", "-o")]
    found = box.run("find", "/", "-xdev", "(", *prune[:-1], ")", "-prune", "-o", "-print")
    return {path for path in found.splitlines() if "__pycache__" not in path}
