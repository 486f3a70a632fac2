"""Rules that are lost, doubled, hidden behind others, or cannot be written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.fault import Fault, Outcome
from tests.faults.host import POLICY, Host, System, furnish
from tests.lab.hypervisor import TREE, Hypervisor
from tests.lab.machine import Machine

# -- kinds of hosts


@contextmanager
def on_nftables(system: System) -> Iterator[Machine]:
    """With libvirt's nftables backend."""
    with Hypervisor(root=system.root, backend="nftables") as box:
        furnish(box)
        box.start_vnetd(POLICY)
        yield box


_ZONES = TREE / "tests/cases/foreign/firewalld"
# br_netfilter shows firewalld the frames of the host's own bridge as well.
_TRUSTED = '<zone target="ACCEPT"><short>Trusted</short><interface name="br0"/></zone>'


@contextmanager
def beside_firewalld(system: System) -> Iterator[Machine]:
    """With the zones that libvirt brings for it."""
    with Hypervisor(root=system.root) as box:
        for path in sorted(_ZONES.rglob("*.xml")):
            box.write(f"/etc/firewalld/{path.parent.name}/{path.name}", path.read_text())
        box.write("/etc/firewalld/zones/trusted.xml", _TRUSTED)
        furnish(box)
        box.start_polkit()  # it allows the service to set zones
        _start_firewalld(box)
        box.start_vnetd(POLICY)
        yield box


def _start_firewalld(box: Machine) -> None:
    box.spawn("firewalld", "firewalld", "--nofork", "--nopid")
    box.wait_until(lambda: box.succeeds("firewall-cmd", "--state"), what="firewalld")


# -- steps


def _restart_firewalld(host: Host) -> None:
    host.box.kill("firewalld")
    _start_firewalld(host.box)


def _in_its_zone(host: Host) -> None:
    zone = host.box.run("firewall-cmd", "--get-zone-of-interface=vblab").strip()
    assert zone == "libvirt"


def _handle(host: Host, family: str) -> str:
    lines = host.box.run("nft", "-a", "list", "tables").splitlines()
    return next(line for line in lines if line.startswith(f"table {family} libvirt_network"))


def _delete_one_table(host: Host) -> None:
    other = _handle(host, "ip6")
    host.run("nft delete table ip libvirt_network")
    host.box.wait_until(lambda: host.box.succeeds(*_LIST_TABLE), what="the table again")
    assert _handle(host, "ip6") == other


_LIST_TABLE = ("nft", "list", "table", "ip", "libvirt_network")


def _switch_backend(host: Host) -> None:
    """libvirt moves its rules from one to the other by itself when it starts."""
    _restart_with(host, "nftables")
    host.box.wait_until(lambda: "masquerade" in host.box.tables(), what="libvirt's own rules")
    host.box.wait_for_state("converged")
    assert host.box.vnetctl_json("status")["Firewall"] == "nftables"
    assert "MASQUERADE" not in host.box.rules()


def _switch_back(host: Host) -> None:
    _restart_with(host, "iptables")
    host.box.wait_until(lambda: "MASQUERADE" in host.box.rules(), what="libvirt's own rules")
    known = "iptables (nf_tables)"
    host.box.wait_until(lambda: host.box.vnetctl_json("status")["Firewall"] == known, what=known)
    # libvirt leaves its empty chains behind, in both directions.
    host.run("nft delete table ip libvirt_network; nft delete table ip6 libvirt_network")


def _restart_with(host: Host, backend: str) -> None:
    box = host.box
    assert isinstance(box, Hypervisor)
    box.set_backend(backend)
    box.kill("libvirtd")
    box.start_libvirtd()


def _flood(host: Host) -> None:
    host.box.run("/usr/bin/python3", "-c", _FLOOD)
    host.run("vnetctl reconcile || true")


def _forget_connections(host: Host) -> None:
    flush = "from pyroute2 import NFCTSocket as S; s = S(); s.flush(); s.close()"
    host.box.run("/usr/bin/python3", "-c", flush)


# A flow for each two ports; there is no host of that address, and so no answer.
_FLOOD = """
import socket
most = int(open("/proc/sys/net/netfilter/nf_conntrack_max").read())
for _ in range(most // 60_000 + 1):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flows:
        for port in range(1, 60_001):
            try:
                flows.sendto(b"", ("203.0.113.1", port))
            except OSError:
                pass  # no room
"""


# -- the faults

_MANY = """
{ echo "table inet many {"
  for n in $(seq 100); do
    echo "chain c$n {"
    for m in $(seq 200); do
      echo "ip saddr 192.0.$n.$m tcp dport $m counter accept"
    done
    echo "}"
  done
  echo "}"
} | nft -f -
"""
_MASQUERADES = """
nft -a list chain ip nat LIBVIRT_PRT | sed -n 's/.* masquerade.*# handle //p' | while read handle
do nft delete rule ip nat LIBVIRT_PRT handle $handle; done
"""

FAULTS = (
    Fault("flush-all", "nft flush ruleset", "nft flush ruleset"),
    Fault(
        "flush-all-nftables",
        "nft flush ruleset, with libvirt's nftables backend",
        "nft flush ruleset",
        host=on_nftables,
        systems=(System.TRIXIE,),
        long=True,
    ),
    Fault(
        "flush-filter", "iptables -F; iptables -X", "iptables -F; iptables -X || true", long=True
    ),
    Fault("flush-nat", "iptables -t nat -F", "iptables -t nat -F"),
    Fault(
        "flush-chain",
        "a chain of libvirt's is flushed",
        "iptables -t nat -F LIBVIRT_PRT",
        long=True,
    ),
    Fault(
        "table-deleted",
        "one of the two tables of libvirt's nftables backend is deleted",
        _delete_one_table,
        host=on_nftables,
        systems=(System.TRIXIE,),
        long=True,
    ),
    Fault(
        "masquerade-gone",
        "the masquerade rules are deleted by their handles",
        _MASQUERADES,
        long=True,
    ),
    Fault(
        "hidden",
        "a chain that old flows do not need is flushed",
        "iptables -F LIBVIRT_FWI",
        long=True,
    ),
    Fault(
        "hidden-nftables",
        "a chain that old flows do not need is flushed, with libvirt's nftables backend",
        "nft flush chain ip libvirt_network guest_input",
        host=on_nftables,
        systems=(System.TRIXIE,),
        long=True,
    ),
    Fault(
        "foreign-table",
        "a table of somebody else's drops all that is forwarded",
        """
        nft add table inet evil
        nft 'add chain inet evil c { type filter hook forward priority -10; policy drop; }'
        """,
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
        "firewalld-reload",
        "firewall-cmd --reload",
        "firewall-cmd -q --reload",
        check=_in_its_zone,
        heals_itself=True,
        host=beside_firewalld,
        long=True,
    ),
    Fault(
        "firewalld-complete-reload",
        "firewall-cmd --complete-reload",
        "firewall-cmd -q --complete-reload",
        check=_in_its_zone,
        heals_itself=True,
        host=beside_firewalld,
        long=True,
    ),
    Fault(
        "firewalld-restart",
        "firewalld is stopped and started",
        _restart_firewalld,
        check=_in_its_zone,
        heals_itself=True,
        host=beside_firewalld,
        long=True,
    ),
    Fault(
        "zone-lost",
        "firewalld's zone libvirt loses the bridge",
        "firewall-cmd -q --zone=libvirt --remove-interface=vblab",
        check=_in_its_zone,
        host=beside_firewalld,
        long=True,
    ),
    Fault(
        "duplicates",
        "a rule three times more",
        "for n in 1 2 3; do iptables -A LIBVIRT_FWX -i vblab -o vblab -j ACCEPT; done",
    ),
    Fault(
        "busy-writers",
        "a flush among 200 transactions of others",
        """
        for n in $(seq 100); do nft add table inet other$n; iptables -N OTHER$n; done &
        iptables -t nat -F
        wait
        test "$(nft list tables | grep -c other)" = 100
        test "$(iptables -S | grep -c 'N OTHER')" = 100
        for n in $(seq 100); do echo delete table inet other$n; done | nft -f -
        { echo '*filter'; for n in $(seq 100); do echo "-X OTHER$n"; done; echo COMMIT; } |
            iptables-restore --noflush
        """,
    ),
    Fault(
        "no-tool",
        "iptables does not run, and rules are deleted",
        f"mount --bind /bin/false /usr/sbin/xtables-nft-multi; {_MASQUERADES}",
        Outcome.NAMED,
        told="iptables --version",
        undo="umount /usr/sbin/xtables-nft-multi",
    ),
    Fault(
        "tool-hangs",
        "iptables never ends, and rules are deleted",
        "printf '#!/bin/sh\\nexec sleep 600\\n' >/run/box/hang; chmod +x /run/box/hang; "
        f"mount --bind /run/box/hang /usr/sbin/xtables-nft-multi; {_MASQUERADES}",
        Outcome.NAMED,
        told="no end after",
        undo="umount /usr/sbin/xtables-nft-multi",
        long=True,
    ),
    Fault(
        "no-nft",
        "nft does not run, and rules are deleted, with libvirt's nftables backend",
        "cp /usr/sbin/nft /run/box/nft; mount --bind /bin/false /usr/sbin/nft; "
        "/run/box/nft flush chain ip libvirt_network guest_nat",
        Outcome.NAMED,
        told="nft",
        undo="umount /usr/sbin/nft",
        host=on_nftables,
        systems=(System.TRIXIE,),
        long=True,
    ),
    Fault(
        "backend-switched",
        "firewall_backend is changed, and libvirtd restarted",
        _switch_backend,
        Outcome.UNTOUCHED,
        undo=_switch_back,
        restarts=("libvirtd",),
        systems=(System.TRIXIE,),
        long=True,
    ),
    Fault(
        "many-rules",
        "a flush beside 20,000 rules of somebody else's",
        f"{_MANY}\niptables -t nat -F",
        undo="nft delete table inet many",
        long=True,
    ),
    Fault(
        "connections-full",
        "no room for more connections in the kernel (the next resync, asked for here, sees it)",
        _flood,
        Outcome.NAMED,
        told="nf_conntrack_max",
        undo=_forget_connections,
        long=True,
    ),
)
