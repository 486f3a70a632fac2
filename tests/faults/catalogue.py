"""What breaks guests' networks while libvirt says that all is well, and what becomes of it.

Scripts run in the box, under a guest on the network "lab" (bridge vblab, tap $TAP) whose new flows
to the outside are counted meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    HEALED = "healed"
    """All is as before, without anybody doing anything."""
    NAMED = "conflict, named"
    """Left alone and told; over when its cause is."""
    UNTOUCHED = "nothing to do"
    """Nobody loses anything, and nothing is written."""


@dataclass(frozen=True, slots=True)
class Fault:
    """told: a part of what status says of it. undo: what ends it, where vnetd must not."""

    id: str
    what: str
    inject: str
    outcome: Outcome = Outcome.HEALED
    told: str = ""
    undo: str = ""


_DESTROY = "virsh -q net-destroy lab"

CATALOGUE = (
    # -- firewall
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
    # -- links
    Fault("bridge-down", "ip link set BRIDGE down", "ip link set vblab down"),
    Fault("bridge-deleted", "ip link del BRIDGE", "ip link del vblab"),
    Fault("bridge-mtu", "the bridge's MTU is changed", "ip link set vblab mtu 1400"),
    Fault(
        "bridge-stp", "the bridge's STP is turned on", "ip link set vblab type bridge stp_state 1"
    ),
    Fault(
        "bridge-mac", "the bridge's MAC is changed", "ip link set vblab address 52:54:00:de:ad:01"
    ),
    Fault("bridge-renamed", "the bridge is renamed", "ip link set vblab down name foo0 up"),
    Fault("tap-unplugged", "ip link set TAP nomaster", "ip link set $TAP nomaster"),
    Fault("tap-down", "ip link set TAP down", "ip link set $TAP down"),
    Fault(
        "tap-elsewhere",
        "a script plugs the tap into another bridge",
        "ip link add other0 type bridge; ip link set other0 up; ip link set $TAP master other0",
        undo="ip link del other0",
    ),
    Fault("tap-mtu", "the tap's MTU is changed", "ip link set $TAP mtu 1400"),
    Fault(
        "restarted",
        "net-destroy and net-start under a guest",
        f"{_DESTROY}; virsh -q net-start lab || true",
    ),
    Fault("destroyed", "net-destroy under a guest", _DESTROY),
    Fault(
        "foreign-bridge",
        "a bridge of that name is made while the network is stopped",
        f"vnetctl pause 60; {_DESTROY}; ip link add vblab type bridge; vnetctl resume",
        Outcome.NAMED,
        told="vblab",
        undo="ip link del vblab",
    ),
    Fault(
        "flapping",
        "another port of the bridge goes up and down 100 times",
        """
        ip link add flap0 type veth peer name flap1; ip link set flap0 master vblab
        for n in $(seq 50); do ip link set flap0 up; ip link set flap0 down; done; ip link del flap0
        """,
        Outcome.UNTOUCHED,
    ),
    # -- addresses, routes, forwarding
    Fault("address-gone", "ip addr flush dev BRIDGE", "ip addr flush dev vblab"),
    Fault(
        "forwarding-off",
        "ip_forward=0",
        "echo 0 >/proc/sys/net/ipv4/ip_forward",
    ),
    Fault(
        "uplink-down",
        "the uplink goes down and comes back",
        """
        ip link set uplink0 down; ip link set uplink0 up
        ip route replace default via 198.51.100.2
        ip addr replace 2001:db8:1::1/64 dev uplink0 nodad
        ip -6 route replace default via 2001:db8:1::2
        """,
        Outcome.UNTOUCHED,
    ),
    # -- services
    Fault("dnsmasq-killed", "dnsmasq is killed", "kill -9 $(cat /run/libvirt/network/lab.pid)"),
    Fault(
        "reservations-gone",
        "dnsmasq's file of reservations is emptied",
        ": >/var/lib/libvirt/dnsmasq/lab.hostsfile",
    ),
    # -- libvirt
    Fault("undefined", "virsh net-undefine", "virsh -q net-undefine lab"),
    Fault("autostart-off", "virsh net-autostart --disable", "virsh -q net-autostart lab --disable"),
    # -- policy
    Fault(
        "policy-broken",
        "the policy gets a mistake",
        "cp /etc/vnetd/vnetd.toml /run/box/good; echo 'nonsense =' >>/etc/vnetd/vnetd.toml",
        Outcome.NAMED,
        told="vnetd.toml",
        undo="cat /run/box/good >/etc/vnetd/vnetd.toml",
    ),
    Fault(
        "policy-open",
        "anybody may write the policy",
        "chmod o+w /etc/vnetd/vnetd.toml; echo >>/etc/vnetd/vnetd.toml",
        Outcome.NAMED,
        told="written by anybody",
        undo="chmod o-w /etc/vnetd/vnetd.toml; echo >>/etc/vnetd/vnetd.toml",
    ),
    Fault(
        "policy-gone",
        "the policy is deleted",
        "mv /etc/vnetd/vnetd.toml /run/box/good",
        Outcome.NAMED,
        told="is gone",
        undo="cat /run/box/good >/etc/vnetd/vnetd.toml",
    ),
)
