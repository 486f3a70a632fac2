"""Rules that are lost, doubled, hidden behind others, or cannot be written."""

from __future__ import annotations

from tests.faults.fault import Fault, Outcome

FAULTS = (
    Fault("flush-all", "nft flush ruleset", "nft flush ruleset"),
    Fault("flush-filter", "iptables -F; iptables -X", "iptables -F; iptables -X || true"),
    Fault("flush-nat", "iptables -t nat -F", "iptables -t nat -F"),
    Fault("flush-chain", "a chain of libvirt's is flushed", "iptables -t nat -F LIBVIRT_PRT"),
    Fault(
        "masquerade-gone",
        "the masquerade rules are deleted one by one",
        "for n in 5 4 3; do iptables -t nat -D LIBVIRT_PRT $n; done",
    ),
    Fault("hidden", "a chain that old flows do not need is flushed", "iptables -F LIBVIRT_FWI"),
    Fault(
        "duplicates",
        "a rule three times more",
        "for n in 1 2 3; do iptables -A LIBVIRT_FWX -i vblab -o vblab -j ACCEPT; done",
    ),
    Fault(
        "busy-writers",
        "a flush among 100 transactions of others",
        """
        for n in $(seq 50); do nft add table inet other$n; iptables -N OTHER$n; done &
        iptables -t nat -F
        wait
        test "$(nft list tables | grep -c other)" = 50
        for n in $(seq 50); do nft delete table inet other$n; iptables -X OTHER$n; done
        """,
    ),
    Fault(
        "foreign-table",
        "a table of somebody else's drops all that is forwarded",
        "nft 'table inet evil { chain c { type filter hook forward priority 0; policy drop; }; }'",
        Outcome.NAMED,
        told="evil",
        undo="nft delete table inet evil",
    ),
    Fault(
        "reject-on-top",
        "iptables -I FORWARD -j REJECT",
        "iptables -I FORWARD -j REJECT",
        Outcome.NAMED,
        told="FORWARD",
        undo="iptables -D FORWARD -j REJECT",
    ),
    Fault(
        "no-tool",
        "iptables-restore fails, and the rules are flushed",
        "ln -sf /bin/false /usr/sbin/iptables-nft-restore; iptables -t nat -F",
        Outcome.NAMED,
        told="iptables-nft-restore",
        undo="ln -sf xtables-nft-multi /usr/sbin/iptables-nft-restore",
    ),
)
