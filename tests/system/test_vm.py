"""What needs a kernel of its own. Only with ./dev test --vm: it takes minutes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.machine import UPLINK
from tests.system.host import Host
from tests.system.vm import Vm

pytestmark = [
    pytest.mark.skipif("VNETD_VM" not in os.environ, reason="only with ./dev test --vm"),
    pytest.mark.timeout(1200),
]


@pytest.fixture(scope="module")
def vm(package: Path) -> Iterator[Vm]:
    with Host("trixie") as host:
        host.boot()
        host.install(package)
        host.run("virsh", "-q", "net-autostart", "default")
        host.shut_down()
        with Vm(host) as machine:
            yield machine


@pytest.fixture
def box(vm: Vm) -> Vm:
    """Under this name a failed test shows its logs."""
    return vm


def test_protects_at_boot_and_heals_without_a_packet_lost(box: Vm) -> None:
    box.wait_until(lambda: box.state() == "converged", seconds=300)
    before = box.rules()
    assert "LIBVIRT_PRT" in before
    guest = box.guest("virbr0", "192.168.122.50/24", gateway="192.168.122.1")
    with box.probing(guest) as outage:
        box.run("nft", "flush", "ruleset")
        box.wait_until(lambda: box.rules() == before, seconds=120, what="libvirt's rules")
    assert (outage.lost, outage.sources) == (0, [UPLINK])
    assert box.history()[-1]["outcome"] == "repaired"


def test_kernel_has_what_hypervisors_have(box: Vm) -> None:
    box.sh("""
        ip link add link uplink0 name uplink0.7 type vlan id 7
        ip link add dummy7 type dummy
        ip link add vlans type bridge vlan_filtering 1
        ip link set dummy7 master vlans
        bridge vlan add dev dummy7 vid 7 pvid untagged
        tc qdisc add dev dummy7 root sfq
    """)
    assert "7 PVID Egress Untagged" in box.run("bridge", "vlan", "show", "dev", "dummy7")
    box.sh("ip link delete vlans; ip link delete dummy7; ip link delete uplink0.7")
