"""Drops in other people's chains are named, with who made them, and forgotten when they go."""

from __future__ import annotations

import pytest

from tests.lab.hypervisor import Hypervisor

POLICY_DROP = """nft -f - <<END
table inet fw {
    chain f {
        type filter hook forward priority 5; policy drop;
    }
}
END
"""


OTHERS = """\
table inet others {
    chain f {
        type filter hook forward priority 5; policy accept;
        iifname "docker0" drop
        ct state invalid drop
        meta mark 0x8000 drop
        ip daddr 192.0.2.0/24 reject
    }
}
"""


def reasons(box: Hypervisor, network: str = "lab") -> list[str]:
    found = box.vnetctl_json("status", network)["Networks"][0]["Reasons"]
    return [str(reason) for reason in found]


def accused(box: Hypervisor, *words: str, network: str = "lab") -> bool:
    return any(all(word in reason for word in words) for reason in reasons(box, network))


@pytest.mark.parametrize(
    ("make", "undo", "words", "process"),
    [
        (
            POLICY_DROP,
            "nft delete table inet fw",
            ("new connections to outside", "forward", "inet fw f: policy drop", "hand-written"),
            "nft",
        ),
        (
            "iptables -I INPUT -i vblab -p udp --dport 67 -j DROP",
            "iptables -D INPUT -i vblab -p udp --dport 67 -j DROP",
            ("DHCP", "input", "filter INPUT: -i vblab -p udp", "hand-written"),
            "iptables",
        ),
        (
            "ip6tables -I FORWARD -i vblab -j DROP",
            "ip6tables -D FORWARD -i vblab -j DROP",
            ("new connections to outside (IPv6)", "IPv6 filter FORWARD", "hand-written"),
            "ip6tables",
        ),
    ],
)
def test_a_foreign_drop_is_a_conflict_until_it_goes(
    box: Hypervisor, make: str, undo: str, words: tuple[str, ...], process: str
) -> None:
    known = len(box.history())
    box.sh(make)
    box.wait_until(lambda: accused(box, *words), what="the drop named")
    assert box.state() == "degraded"
    (record,) = [item for item in box.history()[known:] if item["object"] == "network/lab"]
    assert record["outcome"] == "conflict"
    assert record["cause"]["process"] == process
    box.sh(undo)
    box.wait_for_state("converged")
    assert reasons(box) == []


def test_drops_of_others_traffic_are_nobodys_business(box: Hypervisor) -> None:
    box.write("/etc/nft-others", OTHERS)
    box.sh("""
        iptables -A FORWARD -i docker0 -j DROP
        nft -f /etc/nft-others
        iptables -A INPUT -p tcp --dport 22 -j DROP
    """)
    assert box.vnetctl("reconcile").stdout == "converged\n"
    box.sh("""
        iptables -D FORWARD -i docker0 -j DROP
        nft delete table inet others
        iptables -D INPUT -p tcp --dport 22 -j DROP
    """)


def test_legacy_tables_are_seen(box: Hypervisor) -> None:
    box.kill("vnetd")
    box.start_vnetd(legacy=True)
    box.sh("iptables-legacy -P FORWARD DROP")
    assert box.vnetctl("reconcile").returncode == 1
    assert accused(box, "filter FORWARD (iptables-legacy): policy drop")
    box.sh("iptables-legacy -P FORWARD ACCEPT")
    assert box.vnetctl("reconcile").stdout == "converged\n"
    box.kill("vnetd")
    box.start_vnetd()


def test_a_storm_of_foreign_changes_costs_few_looks(box: Hypervisor) -> None:
    box.sh("nft add table inet storm; nft add chain inet storm c")
    before = box.log("vnetd").count("the host's firewall changed")
    box.sh("for i in $(seq 200); do nft add rule inet storm c counter; done")
    box.sh("nft delete table inet storm")
    assert box.vnetctl("reconcile").returncode == 0
    looks = box.log("vnetd").count("the host's firewall changed") - before
    assert 1 <= looks < 60
