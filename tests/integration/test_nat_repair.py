"""Whatever is done to libvirt's rules in iptables-nft is undone, exactly, and nothing else."""

from __future__ import annotations

import pytest

from tests.lab.hypervisor import Hypervisor

pytestmark = pytest.mark.usefixtures("_trespassers")

FOREIGN = """
    iptables -I FORWARD 2 -s 192.0.2.1 -j DROP
    iptables -A LIBVIRT_FWI -d 192.0.2.2 -j ACCEPT
    iptables -t nat -A POSTROUTING -s 192.0.2.3 -j ACCEPT
    iptables -t nat -N OTHERS
    iptables -t nat -A OTHERS -j RETURN
    ip6tables -A INPUT -s 2001:db8::3 -j DROP
"""
NOT_FOREIGN = """
    iptables -D FORWARD -s 192.0.2.1 -j DROP
    iptables -D LIBVIRT_FWI -d 192.0.2.2 -j ACCEPT
    iptables -t nat -D POSTROUTING -s 192.0.2.3 -j ACCEPT
    iptables -t nat -F OTHERS
    iptables -t nat -X OTHERS
    ip6tables -D INPUT -s 2001:db8::3 -j DROP
"""


def heal(box: Hypervisor, script: str, good: str) -> None:
    """Break it and see it come back."""
    records = len(box.history())
    box.sh(script)
    box.wait_until(lambda: box.rules() == good, what=f"the rules back after {script}")
    box.wait_until(lambda: len(box.history()) > records, what="a record")
    box.wait_for_state("converged")
    assert box.rules() == good


@pytest.mark.parametrize(
    "script",
    [
        "iptables -F",
        "iptables -t nat -F",
        "iptables -t mangle -F",
        "iptables -F FORWARD",
        "iptables -t nat -F LIBVIRT_PRT",
        # vnetd may be faster than -X: then that finds the chains in use, and leaves them
        "iptables -F; iptables -X || true",
        "iptables -t nat -F; iptables -t nat -X || true; iptables -F; iptables -X || true",
        "iptables-restore </dev/null; printf '*filter\\nCOMMIT\\n' | iptables-restore",
        "nft flush ruleset",
        "nft delete table ip nat",
        "ip6tables -F",
        "ip6tables -t nat -F",
    ],
)
def test_flush_is_repaired(box: Hypervisor, script: str) -> None:
    heal(box, script, box.rules())


@pytest.mark.parametrize(
    ("script", "lost"),
    [
        ("iptables -t mangle -F", []),
        ("iptables -t nat -F LIBVIRT_PRT", []),
        ("iptables -D FORWARD -j LIBVIRT_FWX", []),
        ("iptables -D LIBVIRT_FWO -i vblab -j REJECT", []),
        ("iptables -F FORWARD", ["-A FORWARD -s 192.0.2.1/32 -j DROP"]),
        (
            "iptables -F",
            ["-A FORWARD -s 192.0.2.1/32 -j DROP", "-A LIBVIRT_FWI -d 192.0.2.2/32 -j ACCEPT"],
        ),
    ],
)
def test_other_peoples_rules_stay(box: Hypervisor, script: str, lost: list[str]) -> None:
    box.sh(FOREIGN)
    try:
        before = box.rules().splitlines()
        heal(box, script, "\n".join(line for line in before if line not in lost))
        box.sh(FOREIGN_AGAIN.get(script, ""))
    finally:
        box.sh(NOT_FOREIGN)


# What the injected command itself took away, for NOT_FOREIGN to find.
FOREIGN_AGAIN = {
    "iptables -F FORWARD": "iptables -A FORWARD -s 192.0.2.1 -j DROP",
    "iptables -F": (
        "iptables -A FORWARD -s 192.0.2.1 -j DROP; iptables -A LIBVIRT_FWI -d 192.0.2.2 -j ACCEPT"
    ),
}


def test_history_names_the_process(box: Hypervisor) -> None:
    # what others have written just now, the canary among them, is behind vnetd
    box.wait_until_quiet("vnetd", seconds=1)
    assert box.vnetctl("reconcile").returncode == 0
    for script, process in (
        ("iptables -t nat -F", "iptables"),
        ("nft flush ruleset", "nft"),
        ("ip6tables -F", "ip6tables"),
    ):
        heal(box, script, box.rules())
        record = box.history()[-1]
        assert record["cause"]["process"] == process
        assert record["cause"]["pid"] > 0
        assert record["outcome"] == "repaired"
        assert set(record) == {"time", "object", "drift", "cause", "actions", "ms", "outcome"}


def test_a_repair_causes_no_further_write(box: Hypervisor) -> None:
    # a full pass: what others have written just now is behind vnetd, and its guard knows of it
    assert box.vnetctl("reconcile").returncode == 0
    with box.watching_nftables() as writers:
        heal(box, "iptables -t nat -F", box.rules())
        # a full pass behind it: whatever the repair set off has run by then
        assert box.vnetctl("reconcile").returncode == 0
        assert writers() == ["iptables", "vnetd"]


def test_guests_get_out_again_and_the_outage_is_short(box: Hypervisor) -> None:
    guest = box.guest("vblab", "10.77.0.50/24", gateway="10.77.0.1")
    for script in ("iptables -t nat -F", "nft flush ruleset"):
        with box.probing(guest) as outage:
            heal(box, script, box.rules())
        assert not outage.still_out
        assert outage.sources == ["198.51.100.1"]
        assert outage.sent > outage.lost
