"""The tc filter with which libvirt's nftables backend completes the checksums of DHCP answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.vm import Vm

BRIDGES = ("virbr0", "vbroute", "vbquiet")
NETWORK = """
<network>
  <name>{name}</name>
  {forward}
  <bridge name="{bridge}" stp="off"/>
  <ip address="{address}" netmask="255.255.255.0"/>
</network>
"""
OTHERS = (
    NETWORK.format(
        name="routed", forward="<forward mode='route'/>", bridge="vbroute", address="10.81.0.1"
    ),
    NETWORK.format(name="quiet", forward="", bridge="vbquiet", address="10.82.0.1"),
    NETWORK.format(
        name="open", forward="<forward mode='open'/>", bridge="vbopen", address="10.83.0.1"
    ),
)


@pytest.fixture(scope="module")
def on_nftables(vm: Vm) -> Iterator[Vm]:
    vm.move("nftables", """echo 'firewall_backend = "nftables"' >/etc/libvirt/network.conf""")
    for network in OTHERS:
        vm.run("virsh", "net-create", "/dev/stdin", stdin=network)
    vm.converge()
    yield vm
    vm.sh("for name in routed quiet open; do virsh net-destroy $name; done")
    vm.move("iptables (nf_tables)", "rm /etc/libvirt/network.conf")


def shown(box: Vm, *bridges: str) -> str:
    """As tc tells it, but for the numbers that actions get, and for packets counted."""
    return box.sh(f"""
        for bridge in {" ".join(bridges or BRIDGES)}; do
            tc qdisc show dev $bridge
            tc filter show dev $bridge
        done | sed -E 's/(index|direct_packets_stat) [0-9]+/\\1/'
    """)


def test_the_filter_for_checksums_comes_back_as_libvirt_made_it(box: Vm, on_nftables: Vm) -> None:
    right = shown(box)
    assert right.count("csum (iph, udp)") == len(BRIDGES)
    assert "csum" not in shown(box, "vbopen")
    for damage in (
        "tc filter del dev virbr0",
        "tc qdisc del dev virbr0 root",
        "for bridge in virbr0 vbroute vbquiet; do tc qdisc del dev $bridge root; done",
        "tc filter del dev vbquiet parent 1: prio 2",
        "ip link del vbroute",
    ):
        box.healed(damage)
        assert shown(box) == right, damage


def test_libvirt_goes_on_with_it(box: Vm, on_nftables: Vm) -> None:
    right = shown(box)
    box.healed("tc qdisc del dev virbr0 root")
    box.sh("systemctl reload libvirtd; virsh net-destroy default")
    assert "virbr0" not in box.sh("tc qdisc show; nft list table ip libvirt_network")
    box.run("virsh", "net-start", "default")
    box.converge()
    assert shown(box) == right


def test_another_queueing_discipline_is_left_and_named(box: Vm, on_nftables: Vm) -> None:
    right = shown(box)
    box.sh("tc qdisc replace dev virbr0 root fq_codel")
    box.wait_until(lambda: box.state() == "degraded", seconds=120)
    (said,) = box.fact("/org/vnetd1/network/default", "Network", "Reasons")
    assert "has the queueing discipline fq_codel" in said
    assert "tc qdisc del dev virbr0 root" in said
    assert "fq_codel" in shown(box, "virbr0")
    box.sh("tc qdisc del dev virbr0 root")
    box.wait_until(lambda: shown(box) == right, seconds=120, what="all as before")
    box.converge()
