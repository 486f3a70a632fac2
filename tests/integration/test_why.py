"""Seeded faults: why names the one that was seeded, and nothing else."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.integration.conftest import FIVE_NETWORKS
from tests.lab.hypervisor import WAN, Hypervisor

RESTORE = "iptables-restore </run/good4; ip6tables-restore </run/good6"


@dataclass(frozen=True)
class Fault:
    """says: what each blocked step must hold; at: where on the way the first one is."""

    name: str
    seed: str
    undo: str
    at: str
    says: str
    network: str = "lab"


BAD = """set bad {
    type ipv4_addr
    flags interval
    elements = { 10.0.0.0/8 }
}"""


def nft(family: str, hook: str, rules: str, more: str = "") -> str:
    return f"""nft -f - <<'END'
table {family} fw {{
    {more}
    chain f {{
        type filter hook {hook}; policy accept;
        {rules}
    }}
}}
END
"""


def table_gone(family: str) -> str:
    return f"nft delete table {family} fw"


FAULTS = [
    Fault(
        "forward policy in inet",
        nft("inet", "forward priority 5", "").replace("policy accept", "policy drop"),
        table_gone("inet"),
        "firewall",
        "inet fw f: policy drop",
    ),
    Fault(
        "drop by interface in inet",
        nft("inet", "forward priority -5", 'iifname "vb*" counter drop'),
        table_gone("inet"),
        "firewall",
        "inet fw f: iifname vb* drop",
    ),
    Fault(
        "reject by a set of addresses",
        nft("ip", "forward priority 0", "ip saddr @bad reject", BAD),
        table_gone("ip"),
        "firewall",
        "rejected by ip fw f: ip saddr @bad reject",
    ),
    Fault(
        "drop by a verdict map",
        nft("inet", "forward priority 0", 'oifname vmap { "vblab" : drop }'),
        table_gone("inet"),
        "firewall",
        "inet fw f: oifname vmap { vblab : drop }",
    ),
    Fault(
        "drop on the device itself",
        nft("netdev", "ingress device vblab priority 0", "udp dport 67 drop"),
        table_gone("netdev"),
        "firewall",
        "netdev fw f: udp dport 67 drop",
    ),
    Fault(
        "drop between ports of the bridge",
        nft("bridge", "forward priority 0", "ip saddr 10.77.0.0/24 drop"),
        table_gone("bridge"),
        "firewall",
        "bridge fw f: ip saddr 10.77.0.0/24 drop",
    ),
    Fault(
        "drop before the routing",
        "iptables -t raw -A PREROUTING -i vblab -p tcp -j DROP",
        "iptables -t raw -D PREROUTING -i vblab -p tcp -j DROP",
        "firewall",
        "raw PREROUTING: -i vblab -p tcp -j DROP",
    ),
    Fault(
        "drop in FORWARD",
        "iptables -I FORWARD -i vblab ! -o vblab -j DROP",
        RESTORE,
        "firewall",
        "filter FORWARD: -i vblab ! -o vblab -j DROP",
    ),
    Fault(
        "drop of answers",
        "iptables -I FORWARD -o vblab -m conntrack --ctstate ESTABLISHED -j DROP",
        RESTORE,
        "firewall",
        "answers from outside (IPv4): dropped by filter FORWARD",
    ),
    Fault(
        "DHCP drop in INPUT",
        "iptables -I INPUT -i vblab -p udp --dport 67 -j DROP",
        RESTORE,
        "firewall",
        "DHCP (IPv4): dropped by filter INPUT",
    ),
    Fault(
        "DNS drop in INPUT",
        "iptables -I INPUT -p udp --dport 53 -j DROP",
        RESTORE,
        "firewall",
        "DNS (IPv4): dropped by filter INPUT",
    ),
    Fault(
        "DNS drop in ip6 INPUT",
        "ip6tables -I INPUT -p tcp --dport 53 -j REJECT",
        RESTORE,
        "firewall",
        "DNS (IPv6): rejected by IPv6 filter INPUT",
    ),
    Fault(
        "drop of the host's own DNS answers",
        "iptables -I OUTPUT -o vblab -p udp --sport 53 -j DROP",
        RESTORE,
        "firewall",
        "DNS (IPv4): dropped by filter OUTPUT",
    ),
    Fault(
        "ufw's jump to a drop",
        """
        iptables -N ufw-user-forward
        iptables -A ufw-user-forward -i vblab -o uplink0 -j DROP
        iptables -I FORWARD -j ufw-user-forward
        """,
        RESTORE,
        "firewall",
        "filter ufw-user-forward: -i vblab -o uplink0 -j DROP (ufw)",
    ),
    Fault(
        "docker's FORWARD policy beside libvirt's tables",
        """
        iptables-legacy -N DOCKER-USER
        iptables-legacy -A FORWARD -j DOCKER-USER
        iptables-legacy -P FORWARD DROP
        """,
        "iptables-legacy -P FORWARD ACCEPT; iptables-legacy -F; iptables-legacy -X",
        "firewall",
        "filter FORWARD (iptables-legacy): policy drop (docker)",
    ),
    Fault(
        "a FORWARD policy and br_netfilter",
        "iptables -P FORWARD DROP",
        "iptables -P FORWARD ACCEPT",
        "firewall",
        "traffic between guests (IPv4): dropped by filter FORWARD: policy drop",
        network="lan",
    ),
    Fault(
        "new connections to a routed network",
        "iptables -I FORWARD -o vbrouted -m conntrack --ctstate NEW ! -i vbrouted -j DROP",
        RESTORE,
        "firewall",
        "new connections from outside (IPv4): dropped by filter FORWARD",
        network="routed",
    ),
    Fault(
        "masquerade missing",
        "iptables -t nat -F LIBVIRT_PRT",
        RESTORE,
        "libvirt's rules",
        "nat LIBVIRT_PRT: 5 rules missing",
    ),
    Fault(
        "jump to the translation missing",
        "iptables -t nat -D POSTROUTING -j LIBVIRT_PRT",
        RESTORE,
        "libvirt's rules",
        "nat POSTROUTING: missing -j LIBVIRT_PRT",
    ),
    Fault(
        "libvirt's chains in the wrong order",
        "iptables -D FORWARD -j LIBVIRT_FWX; iptables -A FORWARD -j LIBVIRT_FWX",
        RESTORE,
        "libvirt's rules",
        "filter FORWARD: out of order -j LIBVIRT_FWX",
    ),
    Fault(
        "dead interface index",
        """
        ip link add gone type bridge
        nft add table ip libvirt_network
        nft add chain ip libvirt_network guest_output
        nft add chain ip libvirt_network forward '{ type filter hook forward priority 0; }'
        nft add rule ip libvirt_network forward jump guest_output
        nft add rule ip libvirt_network guest_output ip saddr 10.77.0.0/24 iif gone counter accept
        nft add rule ip libvirt_network guest_output iif gone counter reject
        ip link del gone
        """,
        "nft delete table ip libvirt_network",
        "libvirt's rules",
        "bound to an interface that is gone",
    ),
    Fault(
        "strict rp_filter",
        "sysctl -qw net.ipv4.conf.vblab.rp_filter=1; ip route add 10.77.0.0/25 dev uplink0",
        "sysctl -qw net.ipv4.conf.vblab.rp_filter=0; ip route del 10.77.0.0/25 dev uplink0",
        "way back",
        "rp_filter of vblab is strict",
    ),
    Fault(
        "another way back",
        "sysctl -qw net.ipv4.conf.all.rp_filter=0; ip route add 10.77.0.128/25 dev uplink0",
        "ip route del 10.77.0.128/25 dev uplink0",
        "way back",
        "answers to 10.77.0.128/25 leave by uplink0",
    ),
    Fault(
        "forwarding off",
        "sysctl -qw net.ipv4.ip_forward=0",
        "sysctl -qw net.ipv4.ip_forward=1",
        "forwarding",
        "ip_forward is 0",
    ),
    Fault(
        "forwarding off on the bridge",
        "sysctl -qw net.ipv4.conf.vblab.forwarding=0",
        "sysctl -qw net.ipv4.conf.vblab.forwarding=1",
        "forwarding",
        "conf/vblab/forwarding is 0",
    ),
    Fault(
        "dnsmasq dead",
        "kill -9 $(cat /run/libvirt/network/lab.pid)",
        "kill -HUP $(cat /run/libvirtd.pid)",
        "dnsmasq",
        "dnsmasq of lab is dead",
    ),
    Fault(
        "tap unplugged",
        "ip link set $tap nomaster",
        "ip link set $tap master vblab",
        "tap",
        "is not on bridge vblab",
    ),
    Fault("tap down", "ip link set $tap down", "ip link set $tap up", "tap", "is down"),
    Fault(
        "bridge down",
        "ip link set vblab down",
        "ip link set vblab up; ip addr add fd77::1/64 dev vblab nodad || true",
        "bridge",
        "vblab is down",
    ),
    Fault(
        "bridge deleted",
        "ip link del vbfree",
        "virsh net-destroy free; virsh net-start free",
        "bridge",
        "vbfree does not exist",
        network="free",
    ),
    Fault(
        "network stopped",
        "virsh net-destroy free",
        "virsh net-start free",
        "network",
        "free is not active",
        network="free",
    ),
    Fault(
        "address gone",
        "ip addr del 10.77.0.1/24 dev vblab",
        "ip addr add 10.77.0.1/24 brd + dev vblab",
        "address",
        "10.77.0.1/24 is missing",
    ),
    Fault(
        "no route",
        f"ip route del default via {WAN}",
        f"ip route add default via {WAN}",
        "route",
        "the host has no route to the outside",
    ),
    Fault(
        "uplink without carrier",
        "ip -n wan link set eth0 down",
        f"ip -n wan link set eth0 up; ip link set uplink0 up; ip route replace default via {WAN}",
        "uplink",
        "uplink0 has no carrier",
    ),
]


@pytest.fixture(scope="module")
def box() -> Iterator[Hypervisor]:
    """vnetd looks on and repairs nothing."""
    with Hypervisor() as hypervisor:
        hypervisor.sh("ip link add br0 type bridge; ip link set br0 up")
        hypervisor.start_vnetd(FIVE_NETWORKS)
        hypervisor.kill("vnetd")
        hypervisor.start_vnetd(None, "--observe")
        hypervisor.sh("iptables-save >/run/good4; ip6tables-save >/run/good6")
        yield hypervisor


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
