"""Real taps of real domains: whatever is changed of them or of their bridge is put back as libvirt
had it, and guests that may not reach each other never do meanwhile.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import pytest

from tests.lab.hypervisor import TRIXIE, Hypervisor
from tests.long import LONG

POLICY = """
[networks.lab]
mode = "nat"
bridge = "vblab"
stp = false
mtu = 1400
addresses = ["10.77.0.1/24"]
dhcp.ranges = ["10.77.0.10-10.77.0.99"]

[networks.slow]
mode = "isolated"
bridge = "vbslow"
stp = true
addresses = ["10.78.0.1/24"]
"""
ISOLATED = "<port isolated='yes'/>"
ONE, TWO = "10.77.0.60", "10.77.0.61"


@pytest.fixture(scope="module", params=["libvirt 9", "libvirt 11"])
def box(request: pytest.FixtureRequest) -> Iterator[Hypervisor]:
    with Hypervisor(root=TRIXIE if request.param == "libvirt 11" else None) as hypervisor:
        hypervisor.start_vnetd(POLICY)
        yield hypervisor


@pytest.fixture(scope="module")
def guests(box: Hypervisor) -> tuple[str, str]:
    """Two, isolated from each other."""
    one, two = (
        box.domain_guest("lab", f"{address}/24", gateway="10.77.0.1", xml=ISOLATED)
        for address in (ONE, TWO)
    )
    box.answer_in(two)
    box.wait_until(lambda: box.state() == "converged")
    return one, two


def tap_of(box: Hypervisor, domain: str) -> str:
    return box.run("virsh", "-q", "domiflist", domain).split()[0]


def link(box: Hypervisor, name: str) -> dict[str, Any]:
    """All that ip knows of it but what counts, ages, or is another after each start."""
    (found,) = json.loads(box.run("ip", "-d", "-j", "link", "show", name))
    info = found["linkinfo"]
    port = info.get("info_slave_data", {})
    data = info.get("info_data", {})
    port_keys = ("state", "isolated", "learning", "flood", "mcast_flood", "bcast_flood", "hairpin")
    data_keys = ("stp_state", "forward_delay", "ageing_time", "vlan_filtering", "mcast_snooping")
    return {
        "mtu": found["mtu"],
        "up": "UP" in found["flags"],
        "mac": found["address"],
        "master": found.get("master"),
        **{key: port.get(key) for key in port_keys},
        **{key: data.get(key) for key in data_keys},
    }


def host(box: Hypervisor) -> dict[str, Any]:
    """Bridges and taps, what the bridge knows of MACs, addresses, and libvirt's own record."""
    names = ["vblab", *sorted(box.run("virsh", "-q", "domiflist", g).split()[0] for g in _all(box))]
    macs = box.run("bridge", "fdb", "show", "br", "vblab").splitlines()
    return {
        "links": {name: link(box, name) for name in names},
        "addresses": sorted(box.run("ip", "-br", "addr", "show", "vblab").split()[2:3]),
        "macs": sorted(entry for entry in macs if "permanent" in entry and "vnet" in entry),
        "ports": sorted(box.run("virsh", "-q", "net-port-list", "lab").split()),
        "connections": "connections='2'" in box.run("virsh", "net-dumpxml", "lab"),
    }


def _all(box: Hypervisor) -> list[str]:
    return box.run("virsh", "-q", "list", "--name").split()


def heal(box: Hypervisor, script: str) -> dict[str, Any]:
    """Break it; the record of the repair, once all is as before."""
    return heal_timed(box, script)[0]


def heal_timed(box: Hypervisor, script: str) -> tuple[dict[str, Any], float]:
    """With how long the breaking took, in ms."""
    before, records = host(box), len(box.history())
    began = time.monotonic()
    box.sh(script)
    took = (time.monotonic() - began) * 1000
    box.wait_until(lambda: len(box.history()) > records, what="a record")
    box.wait_for_state("converged")
    assert host(box) == before
    return box.history()[records], took


RESTART = "virsh net-destroy lab; virsh net-start lab || true"


@pytest.mark.parametrize(
    "script",
    [
        RESTART,
        "ip link del vblab",
        "for tap in $taps; do ip link set $tap nomaster; done",
    ],
    ids=["destroyed and started", "bridge deleted", "unplugged"],
)
def test_isolated_guests_come_back_isolated(
    box: Hypervisor, guests: tuple[str, str], script: str, request: pytest.FixtureRequest
) -> None:
    one = guests[0]
    taps = " ".join(tap_of(box, guest) for guest in guests)
    with box.probing(one, TWO, in_vain=True) as other, box.probing(one) as outage:
        record, took = heal_timed(box, f"taps='{taps}'; {script}")
        box.wait_until(lambda: box.pings(one, "198.51.100.2"))
    print(
        f"{request.node.name}: out for {outage.ms} ms, {outage.lost} of {outage.sent} flows lost; "
        f"breaking it took {took:.0f} ms, the record says {record['ms']} ms; "
        f"{other.sent} tries to reach the other guest"
    )
    assert not outage.still_out
    assert other.sent > 0
    assert other.sources == []


@pytest.mark.skipif(not LONG, reason="a measurement")
@pytest.mark.parametrize("script", [RESTART, "virsh net-destroy lab"])
def test_a_restarted_network_is_missed_for_less_than_half_a_second(
    box: Hypervisor, guests: tuple[str, str], script: str, request: pytest.FixtureRequest
) -> None:
    gaps, took = [], []
    for _ in range(5):
        with box.probing(guests[0]) as outage:
            took.append(round(heal_timed(box, script)[1]))
            box.wait_until(lambda: box.pings(guests[0], "198.51.100.2"))
        gaps.append(outage.ms)
        box.wait_until_quiet("vnetd", seconds=1)
    print(f"{request.node.name}: out for {gaps} ms; {script} took {took} ms")
    assert median(gaps) < 500


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("bridge link set dev $tap isolated off", "isolated is off instead of on"),
        ("bridge link set dev $tap learning off", "learning is off instead of on"),
        ("bridge link set dev $tap flood off", "unicast flood is off instead of on"),
        ("ip link set $tap mtu 1300", "mtu is 1300 instead of 1400"),
        ("ip link set $tap down", "state is down instead of up"),
        ("ip link add other0 type bridge; ip link set $tap master other0", "is not on bridge"),
        ("ip link set vblab mtu 1300", "mtu is 1300 instead of 1400"),
        ("ip link set vblab down", "state is down instead of up"),
        ("ip link set vblab address 52:54:00:99:99:99", "mac is 52:54:00:99:99:99 instead of"),
        ("ip link set vblab type bridge stp_state 1", "stp is on instead of off"),
        ("ip addr del 10.77.0.1/24 dev vblab", "address 10.77.0.1/24 is missing"),
        ("ip link set vblab name stray0", "is named stray0 now"),
    ],
)
def test_what_is_changed_in_place_is_set_back(
    box: Hypervisor, guests: tuple[str, str], script: str, told: str
) -> None:
    record = heal(box, f"tap={tap_of(box, guests[0])}; {script}")
    assert told in "; ".join(record["drift"])
    assert box.pings(guests[0], "10.77.0.1")


def test_the_forward_delay_is_kept_where_it_counts(box: Hypervisor) -> None:
    assert link(box, "vbslow")["forward_delay"] == 200
    records = len(box.history())
    box.run("ip", "link", "set", "vbslow", "type", "bridge", "forward_delay", "1500")
    box.wait_until(lambda: len(box.history()) > records)
    assert link(box, "vbslow")["forward_delay"] == 200
    assert "delay is 15 instead of 2" in box.history()[-1]["drift"][0]


@pytest.mark.parametrize(
    ("script", "undo", "told"),
    [
        (
            "ip addr add 10.99.0.1/24 dev vblab",
            "ip addr del 10.99.0.1/24 dev vblab",
            "10.99.0.1/24",
        ),
        (
            "ip link set vblab name stray0; ip link add vblab type bridge",
            "ip link del vblab",
            "is named stray0 now",
        ),
        (
            "ip link del vblab; ip link add vblab type veth peer name stray1",
            "ip link del vblab",
            "a veth, is named vblab",
        ),
    ],
    ids=["address", "name taken by a bridge", "name taken by another kind"],
)
def test_what_others_put_in_the_way_is_named_and_left(
    box: Hypervisor, guests: tuple[str, str], script: str, undo: str, told: str
) -> None:
    before = host(box)
    box.vnetctl("pause", "60")
    box.sh(script)
    box.vnetctl("resume")

    def reasons() -> str:
        return str(box.vnetctl_json("status", "lab")["Networks"][0]["Reasons"])

    box.wait_until(lambda: told in reasons(), what=told)
    box.sh(undo)
    box.wait_for_state("converged")
    assert host(box) == before
    assert box.pings(guests[0], "10.77.0.1")


def test_a_tap_that_the_domain_wants_down_may_be_down(
    box: Hypervisor, guests: tuple[str, str]
) -> None:
    one, _ = guests
    tap = tap_of(box, one)
    records = len(box.history())
    box.run("virsh", "domif-setlink", one, tap, "down")
    box.wait_until(lambda: "a running guest changed" in box.log("vnetd"))
    box.vnetctl("reconcile")
    box.run("ip", "link", "set", tap, "down")
    box.vnetctl("reconcile")
    assert not link(box, tap)["up"]
    assert len(box.history()) == records
    box.run("virsh", "domif-setlink", one, tap, "up")
    box.wait_until(lambda: link(box, tap)["up"], what="the tap is up")
    box.wait_for_state("converged")


def test_what_libvirt_does_to_taps_is_its_own_affair(box: Hypervisor) -> None:
    """Hot-plug, unplug, and what a guest that migrates in goes through (a restore is one)."""
    guest = box.domain_guest("lab", "10.77.0.62/24", gateway="10.77.0.1", xml=ISOLATED)
    box.wait_for_state("converged")
    records = len(box.history())
    box.run("virsh", "attach-interface", guest, "network", "lab", "--model", "virtio")
    box.run("virsh", "save", guest, "/run/box/saved")
    box.run("virsh", "restore", "/run/box/saved")
    box.run("virsh", "destroy", guest)
    box.wait_for_state("converged")
    assert box.history()[records:] == []


def test_a_guest_that_failed_to_start_without_its_network_is_named(box: Hypervisor) -> None:
    box.run("virsh", "define", "/dev/stdin", stdin=WEB)
    box.vnetctl("pause", "60")
    box.run("virsh", "net-destroy", "slow")
    assert not box.succeeds("virsh", "start", "web")
    box.vnetctl("resume")
    told = "guest web failed to start when network slow was not active"
    box.wait_until(lambda: told in str(box.history()), what=told)
    box.wait_until(lambda: "slow" in box.run("virsh", "-q", "net-list", "--name"))
    box.run("virsh", "start", "web")
    box.wait_for_state("converged")
    box.run("virsh", "destroy", "web")
    box.run("virsh", "undefine", "web")


WEB = """
<domain type="qemu">
  <name>web</name>
  <memory unit="MiB">16</memory>
  <os><type arch="x86_64" machine="pc">hvm</type></os>
  <features><acpi/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <interface type="network"><source network="slow"/><model type="virtio"/></interface>
  </devices>
</domain>
"""
