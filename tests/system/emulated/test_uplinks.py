"""Network cards of their own as uplinks of the host's bridges: by all their names, with and without
a cable; VLANs of their ports; wireless ones, which cannot be.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.system.vm import NICS, Vm

POLICY = "/etc/vnetd/vnetd.toml"
# A policy that names nothing at all removes nothing.
OTHER = '[networks.other]\nmode = "isolated"\nbridge = "vbother"\n'
INSTEAD = 'use a network with mode = "nat", or with mode = "route" and proxy ARP'


def load(box: Vm, policy: str) -> None:
    box.write(POLICY, policy)
    box.ask("Reload")
    box.ask("Reconcile")


@pytest.fixture(scope="module", autouse=True)
def _other_network(vm: Vm) -> Iterator[None]:
    vm.converge()
    load(vm, OTHER)
    yield
    vm.sh(f"""
        systemctl stop vnetd
        rm {POLICY}
        virsh net-destroy other
        virsh net-undefine other
        systemctl start vnetd
    """)
    vm.converge()


@contextmanager
def in_force(box: Vm, policy: str) -> Iterator[None]:
    """All bridges of the policy go with it."""
    records = len(box.history())
    load(box, policy)
    try:
        yield
    finally:
        load(box, OTHER)
        box.wait_until(
            lambda: not box.succeeds("ip", "link", "show", "br0"), seconds=60, what="br0 is gone"
        )
        box.converge()
        failed = [x for x in box.history()[records:] if x["outcome"] == "failed"]
        assert failed == []


def name_of(box: Vm, nic: str) -> str:
    links = json.loads(box.run("ip", "-j", "link"))
    return next(str(link["ifname"]) for link in links if link["address"] == NICS[nic])


def pci_path(box: Vm, nic: str) -> str:
    said = box.run("udevadm", "info", "-q", "property", f"/sys/class/net/{name_of(box, nic)}")
    return next(ln.partition("=")[2] for ln in said.splitlines() if ln.startswith("ID_PATH="))


def master(box: Vm, nic: str) -> str:
    (link,) = json.loads(box.run("ip", "-j", "link", "show", name_of(box, nic)))
    return str(link.get("master", ""))


def said(box: Vm) -> str:
    """What the status says of the bridge."""
    names = ("Drift", "Reasons")
    found = [box.fact("/org/vnetd1/bridge/br0", "Bridge", name, missing=[]) for name in names]
    return "; ".join(text for texts in found for text in texts)


@pytest.mark.parametrize("nic", NICS)
def test_a_card_is_found_by_its_place_and_by_its_own_mac_whatever_its_name(
    box: Vm, nic: str
) -> None:
    box.converge()
    for uplink in (pci_path(box, nic), NICS[nic]):
        with in_force(box, f'[bridges.br0]\nports = ["{uplink}"]\n'):
            box.wait_until(lambda: master(box, nic) == "br0", seconds=60, what=uplink)
            name = name_of(box, nic)
            box.converge()
            # Under another name and another MAC address.
            box.healed(f"""
                ip link set {name} nomaster
                ip link set {name} down
                ip link set {name} name lan9 address 02:00:00:00:00:99
                ip link set lan9 up
            """)
            (link,) = json.loads(box.run("ip", "-j", "link", "show", "lan9"))
            assert link["master"] == "br0"
            box.sh(f"ip link set lan9 name {name} address {NICS[nic]}")


def test_a_cable_that_is_out_is_waited_for_and_nothing_is_written(box: Vm) -> None:
    with in_force(box, f'[bridges.br0]\nports = ["{NICS["virtio"]}"]\n'):
        box.converge()
        name, records = name_of(box, "virtio"), len(box.history())
        waits = f"waits for a carrier on uplink {name}"
        box.plug("virtio", plugged=False)
        try:
            box.wait_until(lambda: waits in said(box), seconds=120, what=waits)
        finally:
            box.plug("virtio", plugged=True)
        box.converge()
        assert said(box) == ""
        assert len(box.history()) == records


def test_vlans_of_a_port_are_kept(box: Vm) -> None:
    name = name_of(box, "virtio")
    port = f'{{ uplink = "{name}", vlan = {{ pvid = 7, untagged = [7], tagged = ["10-12"] }} }}'
    with in_force(box, f"[bridges.br0]\nports = [{port}]\nvlan_filtering = true\n"):
        box.converge()
        right = box.run("bridge", "vlan", "show", "dev", name)
        assert right.split()[-7:] == ["7", "PVID", "Egress", "Untagged", "10", "11", "12"]
        for damage in (
            f"bridge vlan del dev {name} vid 7; bridge vlan add dev {name} vid 99",
            f"bridge vlan add dev {name} vid 7",
            f"ip link set {name} nomaster",
            "ip link set br0 type bridge vlan_filtering 0",
            "ip link del br0",
        ):
            box.healed(damage)
            assert box.run("bridge", "vlan", "show", "dev", name) == right, damage
            assert "vlan_filtering 1" in box.run("ip", "-d", "link", "show", "br0"), damage


@pytest.mark.parametrize(
    "made",
    [
        "ip link add lan8 type dummy",
        "ip link add lan8 type bond; ip link set {nic} down; ip link set {nic} master lan8",
        "ip link add link {nic} name lan8 type vlan id 8",
    ],
)
def test_dummies_bonds_and_vlans_are_uplinks_too(box: Vm, made: str) -> None:
    nic = name_of(box, "intel")
    box.sh(f"ip link set {nic} up; {made.format(nic=nic)}; ip link set {nic} up")
    with in_force(box, '[bridges.br0]\nports = ["lan8"]\n'):
        box.converge()
        assert "master br0" in box.run("ip", "link", "show", "lan8")
        box.healed("ip link set lan8 nomaster")
        assert "master br0" in box.run("ip", "link", "show", "lan8")
    box.sh("ip link del lan8")


def test_a_wireless_card_is_refused_with_the_reason_and_what_works(box: Vm) -> None:
    box.run("modprobe", "mac80211_hwsim", "radios=1")
    box.wait_until(lambda: box.succeeds("ip", "link", "show", "wlan0"), what="wlan0")
    (link,) = json.loads(box.run("ip", "-j", "link", "show", "wlan0"))
    for uplink in ("wlan0", link["address"]):
        box.write("/root/t.toml", f'[bridges.br0]\nports = ["{uplink}"]\n')
        done = box.vnetctl("check", "/root/t.toml")
        assert done.returncode == 1
        assert "/root/t.toml:2" in done.stdout + done.stderr
        assert "is wireless" in done.stdout + done.stderr
        assert "4-address frames" in done.stdout + done.stderr
        assert INSTEAD in done.stdout + done.stderr
    with in_force(box, '[bridges.br0]\nports = ["wlan0"]\n'):
        assert "is wireless" in said(box)
        assert "master" not in box.run("ip", "link", "show", "wlan0")
    box.run("modprobe", "-r", "mac80211_hwsim")
