"""Reboots and power cuts, and boots that go wrong in all the ways that they do.

Each time all is as the policy says within seconds of libvirtd's answer, without any person. The
short form boots a Debian 13 once under each condition and asks for the state alone; the long one
boots both releases ten times in a row under each, cuts the power ten times, and asks for the
seconds too: run it alone.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.lab.machine import WAN
from tests.long import LONG
from tests.system import times
from tests.system.host import Host

RELEASES = ["bookworm", "trixie"] if LONG else ["trixie"]
REBOOTS = 10 if LONG else 1
POWER_CUTS = 10 if LONG else 2
UPLINK_LATE_SECONDS = 20 if LONG else 2
SECONDS = 5.0
READY_SECONDS = 3.0  # for libvirt's answer it waits no longer than 2

pytestmark = pytest.mark.timeout(400)

POLICY_FILE = "/etc/vnetd/vnetd.toml"
DROP_IN = "/etc/vnetd/vnetd.toml.d/test.toml"
MORE_DROP_IN = "/etc/vnetd/vnetd.toml.d/test-more.toml"
MAC = "52:54:00:77:00:01"
NETWORKS = ["lab", "lan", "own", "quiet"]
# Of each kind one: libvirt starts lab, own and lan by itself, quiet it does not; own's masquerading
# and brhost are nobody's but vnetd's.
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
autostart = false
addresses = ["10.79.0.1/24"]

[networks.own]
mode = "nat"
firewall = "vnetd"
bridge = "vbown"
stp = false
addresses = ["10.78.0.1/24"]

[networks.lan]
mode = "bridge"
bridge = "brhost"

[bridges.brhost]
addresses = ["192.0.2.1/24"]
"""
MORE = """
[networks.more]
mode = "nat"
bridge = "vbmore"
stp = false
addresses = ["10.80.0.1/24"]
dhcp.ranges = ["10.80.0.10-10.80.0.99"]
"""
BOUND = """
[networks.more]
mode = "nat"
bridge = "vbmore"
stp = false
uplink = "uplink0"
addresses = ["10.80.0.1/24"]

[networks.far]
mode = "bridge"
bridge = "brfar"

[bridges.brfar]
ports = ["uplink1"]
"""

_EARLY = "DefaultDependencies=no\nAfter=systemd-tmpfiles-setup.service\nBefore=libvirtd.service"
_PORT_53 = (
    "import socket, time; kinds = socket.SOCK_STREAM, socket.SOCK_DGRAM; "
    "taken = [socket.socket(type=kind) for kind in kinds]; "
    "[each.bind(('0.0.0.0', 53)) for each in taken]; taken[0].listen(); time.sleep(1e6)"
)
_LIBVIRTD = ("libvirtd.service", "libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket")


@dataclass(frozen=True)
class Condition:
    """What is wrong with a boot: units of that boot, and what is to be done and seen after it."""

    name: str
    units: tuple[tuple[str, str], ...] = ()
    disabled: str = ""
    """A pattern of units that are not started at this boot."""
    masked: tuple[str, ...] = ()
    uplink: bool = True
    more: str = ""
    """What the policy has at this boot beside the usual."""
    says: tuple[str, ...] = ()
    """Parts of the status while vnetd waits."""
    lasts: float = 0.0
    """So many seconds it is to last, after which comes its end."""
    end: Callable[[Host], object] = lambda _: None


def unit(order: str, command: str, *, kind: str = "oneshot") -> str:
    service = f"[Service]\nType={kind}\nRemainAfterExit={'yes' if kind == 'oneshot' else 'no'}\n"
    return f"[Unit]\n{order}\n{service}ExecStart={command}\n"


def plug(box: Host) -> None:
    box.plug_uplink()
    box.plug("uplink1", "wan1")


def unmask(box: Host) -> None:
    box.run("systemctl", "unmask", *_LIBVIRTD)
    box.run("systemctl", "start", "libvirtd")


CONDITIONS = [
    Condition("libvirtd is masked", masked=_LIBVIRTD, says=("libvirt-sock",), end=unmask),
    Condition("libvirtd is started by its socket", disabled="libvirtd.service"),
    Condition(
        "the uplink is late",
        uplink=False,
        more=BOUND,
        says=("waits for uplink uplink0: no such link", "waits for uplink uplink1: no such link"),
        lasts=UPLINK_LATE_SECONDS,
        end=plug,
    ),
    Condition(
        "libvirt's bridge was left behind",
        units=(("stale", unit(_EARLY, f"/sbin/ip link add vblab address {MAC} type bridge")),),
    ),
    Condition(
        "port 53 is taken",
        units=(("taken", unit(_EARLY, f'/usr/bin/python3 -c "{_PORT_53}"', kind="exec")),),
        says=("port 53 of all addresses: taken.service",),
        end=lambda box: box.run("systemctl", "stop", "taken"),
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
    CONDITIONS += [
        Condition("nothing"),
        Condition(
            "libvirtd comes after vnetd",
            disabled="libvirtd*",
            says=("libvirt-sock",),
            end=lambda box: box.run("systemctl", "start", "libvirtd"),
        ),
    ]


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
    """Without the order between networks, which is that of their starts, and without more's."""
    lines = [line for line in box.rules().splitlines() if line.startswith("-A ")]
    return sorted(line for line in lines if "vbmore" not in line and "10.80.0." not in line)


def running(box: Host) -> list[str]:
    return sorted(box.run("virsh", "net-list", "--name").split())


def settle(box: Host, good: list[str], more: str = "", since: float = 0.0) -> float:
    """Seconds from libvirtd's answer, or since then, to all as the policy says."""
    networks = sorted(NETWORKS + [name for name in ("more", "far") if f"networks.{name}]" in more])

    def is_whole() -> bool:
        return box.state() == "converged" and rules(box) == good and running(box) == networks

    box.wait_until(is_whole, seconds=30, what="the policy")
    began = max(times.of_unit(box, "libvirtd", "ActiveEnter"), since)
    took = max(0.0, times.converged(box) - began)
    start, ready = (times.of_unit(box, "vnetd", what) for what in ("InactiveExit", "ActiveEnter"))
    print(f"{box.release}: converged after {took:.2f} s, ready after {ready - start:.2f} s")
    assert ready - start <= READY_SECONDS or not LONG
    assert box.vnetctl_json("plan") == []
    assert not box.run("systemctl", "--failed", "--quiet", "--plain", "--no-legend")
    assert "192.0.2.1/24" in box.run("ip", "-br", "address", "show", "dev", "brhost")
    for bridge, prefix in (("vblab", "10.77.0"), ("vbown", "10.78.0")):
        guest = box.guest(bridge, f"{prefix}.50/24", gateway=f"{prefix}.1")
        box.wait_until(partial(box.pings, guest, WAN), what=f"NAT of {bridge}")
    return took


@contextlib.contextmanager
def boot_under(box: Host, condition: Condition) -> Iterator[None]:
    """The host is off before."""
    units = box.disk("/etc/systemd/system")
    wants = units / "multi-user.target.wants"
    for name, text in condition.units:
        (units / f"{name}.service").write_text(text)
        (wants / f"{name}.service").symlink_to(f"../{name}.service")
    for name in condition.masked:
        (units / name).symlink_to("/dev/null")
    links = [path for path in units.glob(f"*.wants/{condition.disabled}") if condition.disabled]
    targets = {path: path.readlink() for path in links}
    for path in targets:
        path.unlink()
    box.disk(MORE_DROP_IN).write_text(condition.more)
    try:
        box.boot(uplink=condition.uplink)
        yield
    finally:
        for name, _ in condition.units:
            (units / f"{name}.service").unlink()
            (wants / f"{name}.service").unlink()
        for name in condition.masked:
            (units / name).unlink(missing_ok=True)
        for path, target in targets.items():
            path.symlink_to(target)


def back_to_the_usual(box: Host) -> None:
    box.write(MORE_DROP_IN, "")
    box.wait_until(lambda: running(box) == NETWORKS, what="no other networks")
    box.wait_for_state("converged")


@pytest.mark.parametrize("number", range(REBOOTS))
@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.name)
def test_reboot(box: Host, good: list[str], condition: Condition, number: int) -> None:
    box.shut_down("reboot")
    with boot_under(box, condition):
        for text in condition.says:
            box.wait_until(partial(says, box, text), what=text)
        time.sleep(condition.lasts)
        # What it has waited for, as it says, is nobody's delay but the condition's.
        since = time.monotonic() if condition.says else 0.0
        condition.end(box)
        took = settle(box, good, condition.more, since)
        if condition.more:
            assert "uplink1" in box.run("ls", "/sys/class/net/brfar/brif")
            back_to_the_usual(box)
        assert took <= SECONDS or not LONG


@pytest.mark.parametrize("number", range(POWER_CUTS))
def test_power_cut_in_the_middle_of_an_apply(box: Host, good: list[str], number: int) -> None:
    """A further network comes or goes, or rules are flushed, when the power goes."""
    moments = random.Random(f"{box.release} {number}")
    more = MORE if number % 3 == 0 else ""
    if not more:
        box.write(MORE_DROP_IN, MORE)
        box.wait_until(lambda: "more" in running(box), what="the policy")
        box.wait_for_state("converged")
    box.spawn("actions", "journalctl", "-fu", "vnetd", "-o", "cat", "-n", "1")
    box.wait_until(lambda: bool(box.log("actions")), what="the journal")
    said = len(box.log("actions"))
    if number % 3 == 2:
        box.run("nft", "flush", "ruleset")
    box.write(MORE_DROP_IN, more)
    box.wait_until(lambda: "network more (" in box.log("actions")[said:], what="an action")
    time.sleep(moments.uniform(0, 0.4))  # the moment, not a wait
    box.cut_power()
    box.boot()
    took = settle(box, good, more)
    back_to_the_usual(box)
    assert took <= SECONDS or not LONG
    assert box.history()
    assert box.run("systemctl", "is-system-running").strip() == "running"


def test_a_boot_without_a_policy_leaves_all_to_libvirt(box: Host) -> None:
    """What libvirt starts is protected; what was there is neither defined anew nor removed."""
    definitions = {name: box.run("virsh", "net-dumpxml", "--inactive", name) for name in NETWORKS}
    history = box.history()
    box.shut_down("reboot")
    policies = {path: box.disk(path).read_text() for path in (POLICY_FILE, DROP_IN, MORE_DROP_IN)}
    for path in policies:
        box.disk(path).unlink()
    box.boot()
    box.wait_for_state("converged")
    kept = {item["Name"]: item["Kept"] for item in box.vnetctl_json("status")["Networks"]}
    assert kept == dict.fromkeys(("default", *NETWORKS), "protected")
    assert running(box) == ["lab", "lan", "own"]
    assert box.history() == history
    for name, definition in definitions.items():
        assert box.run("virsh", "net-dumpxml", "--inactive", name) == definition
    for path, text in policies.items():
        box.write(path, text)
    box.wait_until(lambda: running(box) == NETWORKS, what="the policy")


def says(box: Host, text: str) -> bool:
    return text in box.vnetctl("--json", "status").stdout
