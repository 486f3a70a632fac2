"""libvirt's rules in iptables-legacy: of their changes the kernel tells nobody."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.conftest import FIVE_NETWORKS
from tests.lab.hypervisor import Hypervisor

pytestmark = pytest.mark.usefixtures("_trespassers")


@pytest.fixture(scope="module")
def box() -> Iterator[Hypervisor]:
    with Hypervisor(variant="legacy") as hypervisor:
        hypervisor.sh("ip link add br0 type bridge; ip link set br0 up")
        hypervisor.start_vnetd(FIVE_NETWORKS, legacy=True)
        yield hypervisor


def heal(box: Hypervisor, script: str) -> None:
    good, records = box.rules(), len(box.history())
    box.sh(script)
    box.wait_until(lambda: len(box.history()) > records, what=f"a record of {script}")
    box.wait_for_state("converged")
    assert box.rules() == good


def test_this_is_iptables_legacy_and_nothing_is_in_the_other_variant(box: Hypervisor) -> None:
    assert box.vnetctl_json("status")["Firewall"] == "iptables-legacy"
    assert "LIBVIRT_PRT" in box.run("iptables-legacy-save")
    assert "LIBVIRT" not in box.run("nft", "list", "ruleset")


@pytest.mark.parametrize(
    "script",
    [
        "iptables -t nat -F",
        "iptables -F; iptables -X",
        "iptables -t nat -F LIBVIRT_PRT; ip6tables -F",
        # as many rules as before, in another order
        "iptables -D FORWARD -j LIBVIRT_FWX; iptables -A FORWARD -j LIBVIRT_FWX",
        "iptables -t nat -I LIBVIRT_PRT -s 10.77.0.0/24 -d 224.0.0.0/24 -j RETURN",
    ],
)
def test_damage_is_repaired(box: Hypervisor, script: str) -> None:
    heal(box, script)


def test_libvirt_removes_and_makes_what_vnetd_has_restored(box: Hypervisor) -> None:
    heal(box, "iptables -F; iptables -t nat -F; ip6tables -F; ip6tables -t nat -F")
    good = box.sorted_rules()
    box.vnetctl("pause", "60")
    box.run("virsh", "net-destroy", "lab")
    assert "vblab" not in box.rules()
    assert "10.77.0.0" not in box.rules()
    box.run("virsh", "net-start", "lab")
    assert box.sorted_rules() == good
    box.vnetctl("resume")
    box.wait_for_state("converged")


def test_what_others_put_back_first_is_not_put_back_twice(box: Hypervisor) -> None:
    """As libvirt does, which writes rule by rule; vnetd cannot be told, so it has to look."""
    good = box.rules()
    chain = box.run("iptables", "-t", "nat", "-S", "LIBVIRT_PRT").splitlines()
    rule = "-s 10.77.0.0/24 -d 224.0.0.0/24 -j RETURN"
    place = chain.index(f"-A LIBVIRT_PRT {rule}")  # behind -N
    without_lock = "export XTABLES_LOCKFILE=/run/box/nobodys.lock"
    box.spawn("holder", "flock", "--no-fork", "/run/xtables.lock", "sleep", "infinity")
    box.wait_until(lambda: not box.succeeds("flock", "-n", "/run/xtables.lock", "true"))
    try:
        before = box.log("vnetd")
        box.sh(f"{without_lock}; iptables -t nat -D LIBVIRT_PRT {rule}")
        box.wait_until(
            lambda: "restore 1 IPv4 rules" in box.log("vnetd")[len(before) :],
            what="vnetd about to write",
        )
        box.sh(f"{without_lock}; iptables -t nat -I LIBVIRT_PRT {place} {rule}")
    finally:
        box.kill("holder")
    box.wait_until(
        lambda: "somebody has written" in box.log("vnetd")[len(before) :],
        what="vnetd through with it",
    )
    box.wait_for_state("converged")
    assert box.rules() == good
    assert "duplicate" not in box.log("vnetd")[len(before) :]


def test_counters_are_no_change(box: Hypervisor) -> None:
    guest = box.guest("vblab", "10.77.0.50/24", gateway="10.77.0.1")
    said = box.wait_until_quiet("vnetd")
    with box.probing(guest):
        assert box.wait_until_quiet("vnetd") == said


def test_a_changed_alternative_is_trouble_and_not_fought_over(box: Hypervisor) -> None:
    good = box.run("iptables-legacy-save", "-t", "nat")
    box.set_variant("nft")
    try:
        assert box.vnetctl("reconcile").stdout == "degraded\n"
        (trouble,) = box.vnetctl_json("status", "lab")["Networks"][0]["Reasons"]
        assert "iptables-legacy" in trouble
        assert "LIBVIRT" not in box.run("nft", "list", "ruleset")
        # from here on libvirt itself writes to nf_tables; what it wrote before it leaves behind
        box.kill("libvirtd")
        box.start_libvirtd()
        box.wait_until(lambda: "LIBVIRT_PRT" in box.run("iptables-nft-save"))
        assert box.vnetctl("reconcile").stdout == "degraded\n"
        box.sh("iptables-nft -t nat -F")
        box.wait_until(lambda: "10.77.0.0/24" in box.run("iptables-nft-save", "-t", "nat"))
        (trouble,) = box.vnetctl_json("status", "lab")["Networks"][0]["Reasons"]
        assert "left in iptables-legacy" in trouble
    finally:
        box.set_variant("legacy")
    assert box.run("iptables-legacy-save", "-t", "nat").count("\n") == good.count("\n")
    box.kill("vnetd")
    box.start_vnetd()
