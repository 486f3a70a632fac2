"""Seeded faults: why names the one that was seeded, and nothing else."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.conftest import FIVE_NETWORKS
from tests.integration.why_faults import FAULTS, RESTORE, Fault, nft, table_gone
from tests.lab.hypervisor import WAN, Hypervisor


@pytest.fixture(scope="module")
def box() -> Iterator[Hypervisor]:
    """vnetd looks on and repairs nothing."""
    with Hypervisor() as hypervisor:
        hypervisor.sh("ip link add br0 type bridge; ip link set br0 up")
        hypervisor.start_vnetd(FIVE_NETWORKS)
        start_again(hypervisor)
        hypervisor.sh("iptables-save >/run/good4; ip6tables-save >/run/good6")
        yield hypervisor


def start_again(box: Hypervisor, *, legacy: bool = False) -> None:
    box.kill("vnetd")
    box.start_vnetd(None, "--observe", legacy=legacy)


@pytest.fixture(scope="module")
def guest(box: Hypervisor) -> str:
    return box.domain_guest("lab", "10.77.0.50/24", gateway="10.77.0.1")


def ask(box: Hypervisor, *arguments: str) -> tuple[int, list[Any], list[Any]]:
    """Exit code, blocked steps, all steps."""
    done = box.vnetctl("--json", "why", *arguments)
    assert done.stdout, done.stderr
    steps = json.loads(done.stdout)["steps"]
    return done.returncode, [step for step in steps if step["word"] == "blocked"], steps


def test_enough_faults_are_seeded() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 25


def test_nothing_blocks_a_network_that_is_right(box: Hypervisor, guest: str) -> None:
    for subject in ("lab", "routed", "quiet", "free", "lan", guest):
        code, blocked, steps = ask(box, subject)
        assert (code, blocked) == (0, [])
        said = [step["text"] for step in steps]
        assert len(said) == len(set(said)), "each thing is said once"
        fine = {step["text"].rpartition(": ")[0] for step in steps if step["word"] == "ok"}
        assert not any(s["text"].startswith(f"{flow}: may") for s in steps for flow in fine if flow)
    assert ask(box, guest, WAN)[:2] == (0, [])


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_why_names_what_was_seeded(box: Hypervisor, guest: str, fault: Fault) -> None:
    tap = box.run("virsh", "-q", "domiflist", guest).split()[0]
    legacy = "iptables-legacy" in fault.seed
    if legacy:
        start_again(box, legacy=True)
    box.sh(f"tap={tap}; {fault.seed}")
    try:
        code, blocked, steps = ask(box, fault.network)
    finally:
        box.sh(f"tap={tap}; {fault.undo}")
    assert code == 3, steps
    assert blocked[0]["at"] == fault.at
    assert [step["text"] for step in blocked if fault.says not in step["text"]] == []
    assert all(step["cure"] for step in blocked)
    box.wait_until(lambda: ask(box, fault.network)[:2] == (0, []), what="nothing left of it")
    if legacy:
        start_again(box)


def test_a_blocked_step_names_table_chain_rule_and_process(box: Hypervisor, guest: str) -> None:
    box.sh("iptables -I FORWARD -i vblab ! -o vblab -j DROP")
    box.wait_until(lambda: "FORWARD: -i vblab" in box.vnetctl("status", "lab").stdout)
    out = box.vnetctl("why", guest, WAN)
    _, (step, *_), _ = ask(box, guest, WAN)
    box.sh(RESTORE)
    assert (step["hook"], step["table"], step["chain"]) == ("forward", "ip filter", "FORWARD")
    assert step["rule"] == "-i vblab ! -o vblab -j DROP"
    assert step["process"].startswith("iptables[")
    assert out.returncode == 3
    assert "BLOCKED  firewall: new connections to outside (IPv4): dropped by filter" in out.stdout


def test_an_unknown_match_is_said_to_be_one(box: Hypervisor) -> None:
    box.sh("iptables -I FORWARD -i vblab -m mark --mark 0x1 -j DROP")
    code, blocked, steps = ask(box, "lab")
    box.sh(RESTORE)
    assert (code, blocked) == (0, [])
    assert any("may be dropped by filter FORWARD" in step["text"] for step in steps)


@pytest.mark.parametrize("arguments", [("none",), ("lab", "nowhere")])
def test_questions_without_an_answer_say_so(box: Hypervisor, arguments: tuple[str, ...]) -> None:
    done = box.vnetctl("why", *arguments)
    assert done.returncode == 1
    assert arguments[-1] in done.stderr


# -- by real packets


def probe(box: Hypervisor, *arguments: str) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Exit code, and what became of the DNS query and of the connection to the destination."""
    done = box.vnetctl("--json", "why", "--probe", *arguments)
    assert done.stdout, done.stderr
    dns, tcp = json.loads(done.stdout)["probe"]
    return done.returncode, dns, tcp


def leftovers(box: Hypervisor) -> str:
    """Links, tables and processes of a probe."""
    seen = box.run("ip", "-o", "link") + box.run("nft", "list", "tables") + box.run("ps", "ax")
    marks = ("vnp", "vnetd_probe", "nft monitor", "nft -i")
    return "\n".join(line for line in seen.splitlines() if any(mark in line for mark in marks))


def test_a_probe_gets_through_and_leaves_nothing(box: Hypervisor) -> None:
    code, dns, tcp = probe(box, "lab")
    assert (code, dns["answered"], tcp["answered"]) == (0, True, True)
    assert "ip filter LIBVIRT_FWO" in " ".join(tcp["path"])
    assert leftovers(box) == ""


@pytest.mark.parametrize(
    ("seed", "undo", "question", "dropped", "rule"),
    [
        (
            "iptables -I FORWARD -i vblab -m conntrack --ctstate NEW ! -o vblab -j DROP",
            RESTORE,
            "tcp",
            "ip filter FORWARD",
            'iifname "vblab" oifname != "vblab" ct state new drop',
        ),
        (
            nft("inet", "forward priority 5", 'oifname "vblab" ct state established drop'),
            table_gone("inet"),
            "tcp",
            "inet fw f",
            'oifname "vblab" ct state established drop',
        ),
        (
            "iptables -I INPUT -i vblab -p udp --dport 53 -j DROP",
            RESTORE,
            "dns",
            "ip filter INPUT",
            'iifname "vblab" udp dport 53 drop',
        ),
        (
            nft("inet", "forward priority 5", "").replace("policy accept", "policy drop"),
            table_gone("inet"),
            "tcp",
            "inet fw f",
            "policy drop",
        ),
    ],
)
def test_a_probe_proves_where_packets_end(
    box: Hypervisor, seed: str, undo: str, question: str, dropped: str, rule: str
) -> None:
    box.sh(seed)
    try:
        code, dns, tcp = probe(box, "lab", WAN)
    finally:
        box.sh(undo)
    hit, other = (dns, tcp) if question == "dns" else (tcp, dns)
    assert (code, hit["answered"], other["answered"]) == (3, False, True)
    assert (hit["dropped"], hit["rule"]) == (dropped, rule)
    assert leftovers(box) == ""


def test_nothing_is_left_of_a_probe_that_is_killed(box: Hypervisor) -> None:
    box.sh("iptables -I INPUT -i vblab -j DROP; iptables -I FORWARD -i vblab -j DROP")
    try:
        box.spawn("prober", box.tool("vnetctl"), "why", "--probe", "lab")
        box.wait_until(lambda: "vnetd_probe" in leftovers(box) and "vnp" in leftovers(box))
        box.kill("prober", signal.SIGKILL)
        box.wait_until(lambda: leftovers(box) == "", what="nothing left")
    finally:
        box.sh(RESTORE)
