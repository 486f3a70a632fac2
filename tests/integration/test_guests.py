"""Guests keep their network: taps, bridges and addresses come back with it."""

from __future__ import annotations

import signal

import pytest

from tests.lab.hypervisor import CACHE, Hypervisor


def port(box: Hypervisor, tap: str) -> str:
    return box.run("bridge", "-d", "link", "show", "dev", tap)


def tap_of(box: Hypervisor, domain: str) -> str:
    return box.run("virsh", "-q", "domiflist", domain).split()[0]


@pytest.mark.parametrize(
    "script",
    [
        "virsh net-destroy lab",
        "virsh net-destroy lab; virsh net-start lab || true",
        "ip link del vblab",
        "ip link set vblab down",
        "ip addr flush dev vblab",
        "ip link set $tap nomaster",
    ],
)
def test_guest_is_back_on_the_network(box: Hypervisor, script: str) -> None:
    guest = box.domain_guest("lab", "10.77.0.60/24", gateway="10.77.0.1")
    records = len(box.history())
    with box.probing(guest) as outage:
        box.sh(f"tap={tap_of(box, guest)}; {script}")
        # first it must fail, then work again
        box.wait_until(
            lambda: any(record["object"] == "network/lab" for record in box.history()[records:])
        )
        box.wait_for_state("converged")
        box.wait_until(lambda: box.pings(guest, "198.51.100.2"))
    box.run("virsh", "destroy", guest)
    assert not outage.still_out
    assert outage.sources == ["198.51.100.1"]


def test_a_guest_that_has_learned_a_wrong_mac_hears_of_the_right_one(box: Hypervisor) -> None:
    guest = box.domain_guest("lab", "10.77.0.65/24", gateway="10.77.0.1")

    def mac() -> str:
        _, _, rest = box.run("ip", "neigh", "show", "10.77.0.1", guest=guest).partition("lladdr ")
        return rest.partition(" ")[0]

    right, wrong, records = mac(), "52:54:00:de:ad:01", len(box.history())
    box.signal("vnetd", signal.SIGSTOP)
    box.run("ip", "link", "set", "vblab", "address", wrong)
    box.wait_until(lambda: box.succeeds("ping", "-qc1", "-W1", "10.77.0.65") and mac() == wrong)
    # from now on it asks nobody, and believes nothing that is no announcement
    believe = (
        "cd /proc/sys/net/ipv4/neigh/eth0; echo 6000 >locktime; echo 60 >delay_first_probe_time"
    )
    box.run("sh", "-ec", believe, guest=guest)
    box.signal("vnetd", signal.SIGCONT)
    box.wait_until(lambda: mac() == right, what="the guest knows the right MAC")
    box.wait_until(lambda: len(box.history()) > records, what="a record")
    box.run("virsh", "destroy", guest)


def test_an_isolated_guest_stays_isolated(box: Hypervisor) -> None:
    isolated = "<port isolated='yes'/>"
    one = box.domain_guest("lab", "10.77.0.61/24", gateway="10.77.0.1", xml=isolated)
    two = box.domain_guest("lab", "10.77.0.62/24", gateway="10.77.0.1", xml=isolated)
    assert not box.pings(one, "10.77.0.62")
    taps = [tap_of(box, guest) for guest in (one, two)]
    box.run("virsh", "net-destroy", "lab")
    for tap in taps:
        box.wait_until(lambda tap=tap: "isolated on" in port(box, tap))  # type: ignore[misc]
    box.wait_for_state("converged")
    box.wait_until(lambda: box.pings(one, "10.77.0.1"))
    assert not box.pings(one, "10.77.0.62")
    for guest in (one, two):
        box.run("virsh", "destroy", guest)


def test_libvirt_knows_the_guest_again(box: Hypervisor) -> None:
    guest = box.domain_guest(
        "lab", "10.77.0.64/24", gateway="10.77.0.1", xml="<port isolated='yes'/>"
    )
    (before,) = box.run("virsh", "-q", "net-port-list", "lab").split()
    record = box.run("virsh", "net-port-dumpxml", "lab", before)
    box.run("virsh", "net-destroy", "lab")
    box.wait_until(lambda: before in box.attempt("virsh", "net-port-list", "lab").stdout)
    box.wait_for_state("converged")
    assert box.run("virsh", "net-port-dumpxml", "lab", before) == record
    assert "connections='1'" in box.run("virsh", "net-dumpxml", "lab")
    box.run("virsh", "destroy", guest)
    assert box.run("virsh", "-q", "net-port-list", "lab").strip() == ""


def test_a_replugged_tap_need_not_wait_for_stp(box: Hypervisor) -> None:
    guest = box.domain_guest("free", "10.80.0.65/24", gateway="10.80.0.1")
    tap = tap_of(box, guest)
    assert box.run("cat", "/sys/class/net/vbfree/bridge/stp_state") == "1\n"
    records = len(box.history())
    box.sh(f"ip link set {tap} nomaster")
    box.wait_until(lambda: len(box.history()) > records, what="a record")
    assert "state forwarding" in port(box, tap)
    assert box.run("cat", "/sys/class/net/vbfree/bridge/stp_state") == "1\n"
    assert box.pings(guest, "10.80.0.1")
    box.run("virsh", "destroy", guest)


def test_a_tap_that_is_not_libvirts_is_left_alone(box: Hypervisor) -> None:
    guest = box.guest("vblab", "10.77.0.63/24", gateway="10.77.0.1", tap="foreign0")
    box.run("ip", "link", "set", "foreign0", "nomaster")
    assert box.vnetctl("reconcile").returncode == 0
    assert "master" not in box.run("ip", "link", "show", "foreign0")
    assert not box.pings(guest, "10.77.0.1")


def test_a_whole_guest_gets_its_lease_and_keeps_its_way_out(box: Hypervisor) -> None:
    if not (CACHE / "guest/initrd").exists():
        pytest.fail("there is no guest system: run ./dev test, which makes it")
    vm = box.vm("lab")
    box.wait_until(lambda: "guest: reached" in box.console(vm), seconds=90)
    box.sh("nft flush ruleset; virsh net-destroy lab")
    box.wait_until(lambda: "guest: lost" in box.console(vm), seconds=30)
    box.wait_until(lambda: box.console(vm).rstrip().endswith("reached 198.51.100.2"), seconds=30)
    box.run("virsh", "destroy", vm)
