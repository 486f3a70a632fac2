"""Whatever is done to libvirt's rules in iptables-nft is undone, exactly, and nothing else."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.lab.hypervisor import Hypervisor

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


def libvirts_rules(box: Hypervisor) -> list[tuple[str, str, str, str]]:
    """(command, table, chain, rule) of each rule and jump that libvirt made."""
    found = []
    for command in ("iptables", "ip6tables"):
        table = ""
        for line in box.run(f"{command}-save").splitlines():
            if line.startswith("*"):
                table = line[1:]
            elif line.startswith("-A ") and "LIBVIRT_" in line:
                chain, _, rule = line[3:].partition(" ")
                found.append((command, table, chain, rule))
    return found


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


@pytest.mark.timeout(600)  # a hundred repairs
def test_each_single_rule_comes_back(box: Hypervisor) -> None:
    good = box.rules()
    rules = libvirts_rules(box)
    assert len(rules) > 60
    for command, table, chain, rule in rules:
        heal(box, f"{command} -t {table} -D {chain} {rule}", good)


def test_a_copy_of_a_rule_goes(box: Hypervisor) -> None:
    good = box.rules()
    for command, table, chain, rule in libvirts_rules(box)[::5]:
        heal(box, f"{command} -t {table} -I {chain} {rule}", good)
        heal(box, f"{command} -t {table} -A {chain} {rule}", good)


def test_swapped_rules_are_put_in_order(box: Hypervisor) -> None:
    good = box.rules()
    pairs = [(one, two) for one, two in pairwise(libvirts_rules(box)) if one[:3] == two[:3]]
    for (command, table, chain, first), (*_, second) in pairs[::4]:
        # one transaction, so that it is the swap that vnetd sees and not its halves
        place = 1 + [
            r for c, t, n, r in libvirts_rules(box) if (c, t, n) == (command, table, chain)
        ].index(first)
        edit = f"*{table}\\n-D {chain} {second}\\n-I {chain} {place} {second}\\nCOMMIT\\n"
        heal(box, f"printf '{edit}' | {command}-restore --noflush", good)


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


CANARY = """
add table ip canary
add set ip canary s { type ipv4_addr; elements = { 192.0.2.1 }; }
add chain ip canary f { type filter hook forward priority -5; }
add rule ip canary f ip saddr @s drop
add table ip6 canary
add chain ip6 canary i { type filter hook input priority 5; }
add rule ip6 canary i ip6 saddr 2001:db8::9 drop
add table inet canary
add map inet canary m { type ipv4_addr : verdict; elements = { 192.0.2.2 : drop }; }
add chain inet canary f { type filter hook forward priority 20; }
add rule inet canary f ip saddr vmap @m
add chain inet canary empty
add table bridge canary
add chain bridge canary f { type filter hook forward priority 0; }
add rule bridge canary f ether type 0x1234 drop
add table arp canary
add chain arp canary i { type filter hook input priority 0; }
add rule arp canary i arp operation 9 drop
"""


def test_tables_of_others_stay(box: Hypervisor) -> None:
    families = ("ip", "ip6", "inet", "bridge", "arp")

    def canary() -> list[str]:
        return [box.run("nft", "-a", "list", "table", family, "canary") for family in families]

    box.run("nft", "-f", "-", stdin=CANARY)
    before, good = canary(), box.rules()
    for script in (
        "iptables -F; iptables -t nat -F; iptables -t mangle -F; ip6tables -F",
        "nft delete table ip nat; nft delete table ip6 filter",
        "virsh net-destroy lab; virsh net-destroy quiet",
        "ip link del vbrouted",
    ):
        known = len(box.history())
        box.sh(script)
        box.wait_until(lambda: len(box.history()) > known, what="a record")  # noqa: B023
        box.wait_for_state("converged")
    assert canary() == before
    assert sorted(box.rules().splitlines()) == sorted(good.splitlines())
    for family in families:
        box.run("nft", "delete", "table", family, "canary")


def test_history_names_the_process(box: Hypervisor) -> None:
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
    with box.watching_nftables() as writers:
        heal(box, "iptables -t nat -F", box.rules())
        # a full pass behind it: whatever the repair set off has run by then
        assert box.vnetctl("reconcile").returncode == 0
        assert writers() == ["iptables", "iptables-nft-re"]


def test_guests_get_out_again_and_the_outage_is_short(box: Hypervisor) -> None:
    guest = box.guest("vblab", "10.77.0.50/24", gateway="10.77.0.1")
    for script in ("iptables -t nat -F", "nft flush ruleset"):
        with box.probing(guest) as outage:
            heal(box, script, box.rules())
        assert not outage.still_out
        assert outage.sources == ["198.51.100.1"]
        assert outage.sent > outage.lost
