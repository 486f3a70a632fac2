"""It boots, protects what is there, and has what other kernels lack."""

from __future__ import annotations

from tests.lab.machine import UPLINK
from tests.system.vm import Vm


def test_protects_at_boot_and_heals_without_a_packet_lost(box: Vm) -> None:
    box.converge()
    before = box.rules()
    assert "LIBVIRT_PRT" in before
    guest = box.guest("virbr0", "192.168.122.50/24", gateway="192.168.122.1")
    with box.probing(guest) as outage:
        box.healed("nft flush ruleset")
    assert (outage.lost, outage.sources) == (0, [UPLINK])
    assert box.rules() == before


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


def test_vlans_mac_table_and_bandwidth_of_taps_come_back(box: Vm) -> None:
    """vnet0 is on a network whose MAC table libvirt keeps, vnet1 on a bridge with VLANs."""
    box.sh("ip link add br0 type bridge vlan_filtering 1; ip link set br0 up")
    for network in (OF_LIBVIRT, OF_HOST):
        box.run("virsh", "net-create", "/dev/stdin", stdin=network)
    box.run("virsh", "create", "/dev/stdin", stdin=GUEST)
    box.converge()
    right = taps(box)
    assert "42 PVID Egress Untagged" in right
    assert "52:54:00:00:09:01 dev vnet0 master vbmt static" in right
    assert "learning off flood off" in right
    for script in (
        "ip link set vnet0 nomaster; ip link set vnet1 nomaster",
        "bridge vlan add dev vnet1 vid 7; bridge vlan del dev vnet1 vid 43",
        "bridge link set dev vnet0 learning on; bridge fdb del 52:54:00:00:09:01 dev vnet0 master",
        "ip link set vbmt type bridge vlan_filtering 0",
        "tc qdisc del dev vnet0 root; tc qdisc del dev vnet0 ingress",
        "ip link del vbmt",
    ):
        box.sh(script)
        box.wait_until(lambda: taps(box) == right, seconds=120, what=f"all as before: {script}")
    box.sh("virsh destroy vlans; virsh net-destroy mt; virsh net-destroy lan; ip link delete br0")


def taps(box: Vm) -> str:
    return box.sh("""
        bridge vlan show dev vnet0 || true
        bridge vlan show dev vnet1 || true
        for tap in vnet0 vnet1; do
            ip -d link show $tap | grep -o "master vbmt\\|master br0\\|learning [a-z]* flood [a-z]*"
        done || true
        bridge fdb show | grep " static" | sort || true
        tc qdisc show dev vnet0 | cut -d " " -f 1-3
        ip -d link show vbmt 2>/dev/null | grep -o "vlan_filtering [01]" || true
    """)


OF_LIBVIRT = """
<network>
  <name>mt</name>
  <forward mode="open"/>
  <bridge name="vbmt" stp="off" macTableManager="libvirt"/>
  <ip address="10.99.0.1" netmask="255.255.255.0"/>
</network>
"""
OF_HOST = """
<network>
  <name>lan</name>
  <forward mode="bridge"/>
  <bridge name="br0"/>
</network>
"""
GUEST = """
<domain type="qemu">
  <name>vlans</name>
  <memory unit="MiB">16</memory>
  <os><type arch="x86_64" machine="pc">hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <interface type="network">
      <mac address="52:54:00:00:09:01"/>
      <source network="mt"/>
      <bandwidth><inbound average="1000"/><outbound average="500"/></bandwidth>
      <model type="virtio"/>
    </interface>
    <interface type="bridge">
      <mac address="52:54:00:00:09:02"/>
      <source bridge="br0"/>
      <vlan trunk="yes"><tag id="42" nativeMode="untagged"/><tag id="43"/></vlan>
      <model type="virtio"/>
    </interface>
  </devices>
</domain>
"""
