"""Whoever dies, at whatever moment: afterwards everything is as it must be, once."""

from __future__ import annotations

import random
import signal
import time

import pytest

from tests.lab.hypervisor import Hypervisor
from tests.long import LONG

pytestmark = pytest.mark.usefixtures("_trespassers")

REPAIRS = 100 if LONG else 30
DAMAGE = (
    "iptables -t nat -F",
    "iptables -F; iptables -X || true",
    "nft flush ruleset",
    "ip6tables -F",
    "iptables -t nat -F LIBVIRT_PRT",
    "iptables -D LIBVIRT_FWO -i vblab -j REJECT",
    "iptables -I LIBVIRT_FWX -i vblab -o vblab -j ACCEPT",
    "ip link set vblab down",
    "ip addr flush dev vbrouted",
)


def sorted_rules(box: Hypervisor) -> list[str]:
    """Without the order between networks, which a vnetd that saw no whole ruleset cannot know."""
    return sorted(line for line in box.rules().splitlines() if line.startswith("-A "))


def test_libvirtd_killed_and_started_again(box: Hypervisor) -> None:
    good = sorted_rules(box)
    box.kill("libvirtd", signal.SIGKILL)
    box.wait_for_state("degraded")
    assert "libvirt" in box.vnetctl_json("status")["Reasons"][0]
    with box.watching_nftables() as writers:
        box.start_libvirtd()
        box.wait_for_state("converged")
        # libvirtd takes its rules out and puts them back, one by one: vnetd keeps out of it
        assert "iptables" in writers()
        assert "iptables-restor" not in writers()
    assert sorted_rules(box) == good


def test_rules_are_repaired_while_libvirtd_is_down(box: Hypervisor) -> None:
    good = box.rules()
    box.kill("libvirtd", signal.SIGKILL)
    box.wait_for_state("degraded")
    box.sh("nft flush ruleset")
    box.wait_until(lambda: box.rules() == good)
    box.start_libvirtd()
    box.wait_for_state("converged")
    assert sorted_rules(box) == sorted(line for line in good.splitlines() if line[:3] == "-A ")


def test_network_starts_after_libvirts_chains_were_deleted(box: Hypervisor) -> None:
    """libvirt makes its chains once per process; without them it cannot start a network."""
    good = sorted_rules(box)
    box.kill("vnetd", signal.SIGKILL)
    for network in ("lab", "routed", "quiet"):
        box.run("virsh", "net-destroy", network)
    box.sh("nft flush ruleset")
    assert not box.succeeds("virsh", "net-start", "lab")
    box.start_vnetd()
    box.wait_for_state("converged")
    assert sorted_rules(box) == good


@pytest.mark.timeout(REPAIRS * 10)
def test_vnetd_killed_at_random_moments(box: Hypervisor) -> None:
    good = sorted_rules(box)
    moments = random.Random(20230)
    for number in range(REPAIRS):
        box.sh(moments.choice(DAMAGE))
        time.sleep(moments.uniform(0, 0.08))  # the moment to die at, not a wait
        box.kill("vnetd", signal.SIGKILL)
        box.sh("rm /run/vnetd/vnetd.lock")  # else it would wait with the next start
        box.start_vnetd()
        box.wait_for_state("converged")
        assert sorted_rules(box) == good, f"after {number} kills"
    assert box.vnetctl_json("plan") == []
    assert len(box.history()) >= REPAIRS / 4


def test_history_survives_a_kill(box: Hypervisor) -> None:
    before = box.history()
    assert before
    box.kill("vnetd", signal.SIGKILL)
    box.start_vnetd()
    assert box.history()[: len(before)] == before


def test_the_bus_dies_and_comes_back(box: Hypervisor) -> None:
    good = box.rules()
    pid = box.pid("vnetd")
    box.kill("bus", signal.SIGKILL)
    box.sh("iptables -t nat -F")
    box.wait_until(lambda: box.rules() == good)
    box.start_bus()
    box.start_libvirtd()  # ends with its bus
    box.wait_for_state("converged")
    assert box.pid("vnetd") == pid


def test_stopped_vnetd_leaves_networks_as_they_are(box: Hypervisor) -> None:
    good = box.rules()
    assert box.kill("vnetd", signal.SIGTERM) == 0
    assert box.rules() == good
    assert len(box.run("virsh", "net-list", "--name").split()) == 5
    box.start_vnetd()


def test_second_vnetd_ends_and_leaves_the_first_alone(box: Hypervisor) -> None:
    done = box.attempt(*box.as_service(box.tool("vnetd")))
    assert done.returncode == 1
    assert "already running" in done.stderr
    assert box.state() == "converged"
