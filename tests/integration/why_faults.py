"""Faults that why must name: each with where on the way it is, and what must be said of it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.lab.hypervisor import WAN

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
