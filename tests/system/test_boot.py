"""Reboots and power cuts, and boots that go wrong in all the ways that they do.

Each time all is as the policy says within seconds of libvirtd's answer, without any person. The
short form boots a Debian 13 once under each condition and asks for the state alone; the long one
boots both releases, cuts the power ten times, and asks for the seconds too: run it alone.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.machine import WAN
from tests.long import LONG
from tests.system.host import Host

RELEASES = ["bookworm", "trixie"] if LONG else ["trixie"]
POWER_CUTS = 10 if LONG else 3
UPLINK_LATE_SECONDS = 20 if LONG else 2
SECONDS = 5.0

pytestmark = pytest.mark.timeout(400)

DROP_IN = "/etc/vnetd/vnetd.toml.d/test.toml"
MAC = "52:54:00:77:00:01"
POLICY = f"""
[networks.lab]
mode = "nat"
bridge = "vblab"
mac = "{MAC}"
stp = false
addresses = ["10.77.0.1/24"]
dhcp.ranges = ["10.77.0.10-10.77.0.99"]

[networks.quiet]
mode = "isolated"
bridge = "vbquiet"
stp = false
addresses = ["10.79.0.1/24"]
"""
MORE = """
[networks.more]
mode = "nat"
bridge = "vbmore"
stp = false
addresses = ["10.80.0.1/24"]
dhcp.ranges = ["10.80.0.10-10.80.0.99"]
"""

_EARLY = "DefaultDependencies=no\nAfter=systemd-tmpfiles-setup.service\nBefore=libvirtd.service"
_PORT_53 = (
    "import socket, time; kinds = socket.SOCK_STREAM, socket.SOCK_DGRAM; "
    "taken = [socket.socket(type=kind) for kind in kinds]; "
    "[each.bind(('0.0.0.0', 53)) for each in taken]; time.sleep(1e6)"
)


@dataclass(frozen=True)
class Condition:
    """What is wrong with a boot: units of that boot, and what is to be done and seen after it."""

    name: str
    units: tuple[tuple[str, str], ...] = ()
    disabled: str = ""
    """A pattern of units that are not started at this boot."""
    uplink: bool = True
    says: str = ""
    """A part of the status while vnetd waits."""
    end: Callable[[Host], object] | None = None
    """What ends the wait."""
    seconds: float = SECONDS


def unit(order: str, command: str, *, kind: str = "oneshot") -> str:
    service = f"[Service]\nType={kind}\nRemainAfterExit={'yes' if kind == 'oneshot' else 'no'}\n"
    return f"[Unit]\n{order}\n{service}ExecStart={command}\n"


def plug_late(box: Host) -> None:
    time.sleep(UPLINK_LATE_SECONDS)  # it is late by so much
    box.plug_uplink()


CONDITIONS = [
    Condition("nothing"),
    Condition(
        "libvirtd comes after vnetd",
        disabled="libvirtd*",
        says="libvirt",
        end=lambda box: box.run("systemctl", "start", "libvirtd"),
    ),
    Condition("libvirtd is started by its socket", disabled="libvirtd.service"),
    Condition("the uplink is late", uplink=False, end=plug_late),
    Condition(
        "libvirt's bridge was left behind",
        units=(("stale", unit(_EARLY, f"/sbin/ip link add vblab address {MAC} type bridge")),),
    ),
    Condition(
        "port 53 is taken",
        units=(("taken", unit(_EARLY, f'/usr/bin/python3 -c "{_PORT_53}"', kind="exec")),),
        says="port 53 of all addresses",
        end=lambda box: box.sh("systemctl stop taken"),
        seconds=30.0,  # nobody tells that a port is free: vnetd tries again after 1, 2, 4, 8 … s
    ),
    Condition(
        "a firewall flushes after vnetd",
        units=(("flush", unit("After=vnetd.service", "/sbin/nft -f /etc/nftables.conf")),),
    ),
    Condition(
        "libvirt's autostart has failed",
        units=(
            (
                "clash",
                unit(
                    _EARLY,
                    "/bin/sh -c 'ip link add clash type bridge && ip link set clash up "
                    "&& ip address add 10.77.0.9/24 dev clash'",
                ),
            ),
            (
                "noclash",
                unit("After=libvirtd.service\nBefore=vnetd.service", "/sbin/ip link delete clash"),
            ),
        ),
    ),
]
if LONG:
    CONDITIONS += [CONDITIONS[0]] * 2  # ten in a row


@pytest.fixture(scope="module", params=RELEASES)
def box(request: pytest.FixtureRequest, package: Path) -> Iterator[Host]:
    with Host(request.param) as host:
        host.boot()
        host.install(package)
        host.write(DROP_IN, POLICY)
        host.wait_until(lambda: "vbquiet" in host.rules(), what="the policy")
        host.wait_for_state("converged")
        yield host


@pytest.fixture(scope="module")
def good(box: Host) -> list[str]:
    return rules(box)


def rules(box: Host) -> list[str]:
    """Without the order between networks, which is that of their starts."""
    return sorted(line for line in box.rules().splitlines() if line.startswith("-A "))


def answering_since(box: Host) -> float:
    """When libvirtd said that it answers (time.monotonic)."""
    shown = box.run(
        "systemctl", "show", "--value", "-p", "ActiveEnterTimestampMonotonic", "libvirtd"
    )
    return int(shown) / 1e6


def is_whole(box: Host, good: list[str]) -> bool:
    return box.state() == "converged" and rules(box) == good


def converged_at(box: Host) -> float:
    """When vnetd last said that it is (time.monotonic)."""
    said = box.run("journalctl", "-b", "-u", "vnetd", "-o", "json", "--no-pager").splitlines()
    lines = [json.loads(line) for line in said]
    times = [
        int(line["__MONOTONIC_TIMESTAMP"])
        for line in lines
        if str(line["MESSAGE"]).startswith("state: converged")
    ]
    return times[-1] / 1e6


def settle(box: Host, good: list[str], since: float = 0.0) -> float:
    """Seconds from libvirtd's answer, or since then, to all as the policy says."""
    box.wait_until(lambda: is_whole(box, good), seconds=30, what="the policy")
    took = max(0.0, converged_at(box) - max(answering_since(box), since))
    print(f"{box.release}: {took:.1f} s")
    assert box.vnetctl_json("plan") == []
    assert box.run("virsh", "net-list", "--name").split() == ["lab", "quiet"]
    guest = box.guest("vblab", "10.77.0.50/24", gateway="10.77.0.1")
    box.wait_until(lambda: box.pings(guest, WAN), what="NAT")
    return took


@contextlib.contextmanager
def boot_under(box: Host, condition: Condition) -> Iterator[None]:
    """The host is off before."""
    units = box.disk("/etc/systemd/system")
    wants = units / "multi-user.target.wants"
    for name, text in condition.units:
        (units / f"{name}.service").write_text(text)
        (wants / f"{name}.service").symlink_to(f"../{name}.service")
    links = [path for path in units.glob(f"*.wants/{condition.disabled}") if condition.disabled]
    targets = {path: path.readlink() for path in links}
    for path in targets:
        path.unlink()
    try:
        box.boot(uplink=condition.uplink)
        yield
    finally:
        for name, _ in condition.units:
            (units / f"{name}.service").unlink()
            (wants / f"{name}.service").unlink()
        for path, target in targets.items():
            path.symlink_to(target)


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.name)
def test_reboot(box: Host, good: list[str], condition: Condition) -> None:
    box.shut_down("reboot")
    with boot_under(box, condition):
        if condition.says:
            box.wait_until(lambda: condition.says in status(box), what=condition.says)
        since = 0.0
        if condition.end:
            condition.end(box)
            since = time.monotonic()
        took = settle(box, good, since)
        assert took <= condition.seconds or not LONG


@pytest.mark.parametrize("number", range(POWER_CUTS))
def test_power_cut_in_the_middle_of_an_apply(box: Host, good: list[str], number: int) -> None:
    """A second network comes or goes, or rules are flushed, when the power goes."""
    moments = random.Random(f"{box.release} {number}")
    box.write(DROP_IN, POLICY + MORE)
    box.wait_until(lambda: "vbmore" in status(box), what="the policy")
    if number % 2:
        box.run("nft", "flush", "ruleset")
    box.write(DROP_IN, POLICY)
    time.sleep(moments.uniform(0.1, 1.5))  # the moment, not a wait
    box.cut_power()
    box.boot()
    took = settle(box, good)
    assert took <= SECONDS or not LONG
    assert box.history()
    assert box.run("systemctl", "is-system-running").strip() == "running"


def status(box: Host) -> str:
    """ "" while vnetd is not on the bus."""
    return box.vnetctl("--json", "status").stdout
