"""libvirt itself, and what it remembers."""

from __future__ import annotations

import signal
import time

from tests.faults.fault import Fault, Outcome
from tests.faults.host import Host

_DOWN_SECONDS = 60
_MANY = 300
_LEASES = 40_000


def killed(host: Host) -> None:
    host.hypervisor.kill("libvirtd", signal.SIGKILL)
    host.wait_until_said("libvirt")
    host.hypervisor.start_libvirtd()


def restarted(host: Host) -> None:
    host.hypervisor.kill("libvirtd")
    host.hypervisor.start_libvirtd()


def stopped(host: Host) -> None:
    host.box.signal("libvirtd", signal.SIGSTOP)


def healed_while_stopped(host: Host) -> None:
    until = time.monotonic() + _DOWN_SECONDS
    rules = host.box.rules()
    host.run("iptables -t nat -F; ip link set $TAP nomaster")
    host.box.wait_until(lambda: host.box.rules() == rules, what="rules")
    host.box.wait_until(lambda: host.is_plugged(), what="the tap")
    host.box.wait_until(lambda: time.monotonic() > until, seconds=2 * _DOWN_SECONDS)
    host.box.signal("libvirtd", signal.SIGCONT)


def down(host: Host) -> None:
    host.box.write("/run/box/rules", "\n".join(host.box.sorted_rules()))
    for _ in range(6):
        restarted(host)
    host.hypervisor.kill("libvirtd", signal.SIGKILL)


def healed_while_down(host: Host) -> None:
    rules = host.box.run("cat", "/run/box/rules").splitlines()
    host.run("nft flush ruleset")
    host.box.wait_until(lambda: host.box.sorted_rules() == rules, what="rules")
    until = time.monotonic() + _DOWN_SECONDS
    host.box.wait_until(lambda: time.monotonic() > until, seconds=2 * _DOWN_SECONDS)
    assert not host.box.succeeds("pgrep", "-x", "libvirtd"), "somebody has started it"
    host.hypervisor.start_libvirtd()


def vnetd_stopped_beside_a_hung_libvirtd(host: Host) -> None:
    host.box.signal("libvirtd", signal.SIGSTOP)
    began = time.monotonic()
    assert host.box.kill("vnetd") == 0
    took = time.monotonic() - began
    host.box.signal("libvirtd", signal.SIGCONT)
    host.hypervisor.start_vnetd()
    assert took < 10, "it waits for libvirtd"


def absent_at_start(host: Host) -> None:
    host.box.kill("vnetd")
    host.hypervisor.kill("libvirtd", signal.SIGKILL)
    host.run("iptables -t nat -F")
    host.hypervisor.start_vnetd()


def start_again(host: Host) -> None:
    host.hypervisor.start_libvirtd()


def definition_damaged(host: Host) -> None:
    host.run("""
        file=/etc/libvirt/qemu/networks/lab.xml
        head -c 100 $file >/run/box/part; cat /run/box/part >$file
    """)
    host.hypervisor.kill("libvirtd", signal.SIGKILL)
    host.hypervisor.start_libvirtd()
    host.box.wait_until(lambda: "Persistent:     yes" in host.box.run("virsh", "net-info", "lab"))


def of_two_connections_one_cut(host: Host) -> None:
    clients = host.box.run("virt-admin", "-q", "client-list", "libvirtd").splitlines()
    last = [line.split()[0] for line in clients if line.strip()][-1]
    host.run(f"virt-admin client-disconnect libvirtd {last}; ip link set $TAP nomaster")


def many_definitions(host: Host) -> None:
    host.run(f"""
        for n in $(seq {_MANY}); do
            echo "<network><name>n$n</name></network>" >/run/box/n$n.xml
            echo "net-define /run/box/n$n.xml"
            echo "net-undefine n$n"
        done >/run/box/many
        virsh -q </run/box/many >/dev/null
    """)


def many_reservations(host: Host) -> None:
    hosts = "".join(
        f"<host mac='52:54:01:{n >> 16:02x}:{n >> 8 & 255:02x}:{n & 255:02x}'"
        f" ip='10.100.{n >> 8}.{n & 255}'/>"
        for n in range(256, 256 + _LEASES)
    )
    head = "<network><name>big</name><bridge name='vbbig'/><ip address='10.100.0.1' prefix='16'>"
    host.box.write("/run/box/big.xml", f"{head}<dhcp>{hosts}</dhcp></ip></network>")
    host.run("virsh -q net-create /run/box/big.xml")
    host.box.wait_until(
        lambda: any(n["Name"] == "big" for n in host.box.vnetctl_json("status")["Networks"]),
        what="vnetd sees it",
    )
    host.run("virsh -q net-destroy big")


_ERRORS = """
import random, sys
import libvirt
from vnetd.__main__ import main

def at_random(name, method):
    often = 0.01 if name.startswith(("get", "list", "lookup", "XML", "is")) else 0.1
    def call(self, *arguments):
        if chance.random() < often:
            raise libvirt.libvirtError("tested")
        return method(self, *arguments)
    return call

chance = random.Random(54)
libvirt.libvirtError.get_error_message = lambda self: str(self)
for kind in (libvirt.virConnect, libvirt.virNetwork, libvirt.virDomain):
    for name, member in list(vars(kind).items()):
        if name.startswith(
            ("get", "list", "lookup", "XML", "is", "networkDefine", "create", "destroy", "undefine")
            + ("setAutostart", "update", "portCreate", "setInterface")
        ):
            setattr(kind, name, at_random(name, member))
sys.exit(main())
"""


def errors_at_random(host: Host) -> None:
    box = host.hypervisor
    box.kill("vnetd")
    box.serve(*box.python("-c", _ERRORS, "--log-level", "debug"))
    box.wait_until(lambda: box.state() == "converged", seconds=60, what="state converged")
    for damage in ("iptables -F", "virsh -q net-destroy lab", "virsh -q net-undefine routed"):
        host.run(damage)
        box.wait_until(lambda: box.vnetctl_json("plan") == [], seconds=60, what="nothing to do")
    assert "tested" in box.log("vnetd")
    box.kill("vnetd")
    box.start_vnetd()


_TENANT = """
cat >/run/box/tenant.xml <<XML
<domain type='qemu'><name>tenant</name><memory>16384</memory><os><type>hvm</type></os>
<features><acpi/></features><devices><interface type='network'>
<source network='quiet'/></interface></devices></domain>
XML
"""

FAULTS = (
    Fault(
        "libvirtd-killed",
        "libvirtd is killed, and started again",
        killed,
        Outcome.UNTOUCHED,
        restarts=("libvirtd",),
        long=True,
    ),
    Fault(
        "libvirtd-restarted",
        "libvirtd is restarted",
        restarted,
        Outcome.UNTOUCHED,
        restarts=("libvirtd",),
        long=True,
    ),
    Fault(
        "libvirtd-stopped",
        "libvirtd hangs for a minute, in which rules are flushed and the tap is unplugged",
        stopped,
        Outcome.NAMED,
        told="libvirt",
        undo=healed_while_stopped,
        long=True,
    ),
    Fault(
        "libvirtd-down",
        "libvirtd is restarted 6 times, and then stays down while rules are flushed",
        down,
        Outcome.NAMED,
        told="libvirt",
        undo=healed_while_down,
        restarts=("libvirtd",),
        long=True,
    ),
    Fault(
        "vnetd-stopped",
        "vnetd is stopped while libvirtd hangs: it ends at once",
        vnetd_stopped_beside_a_hung_libvirtd,
        Outcome.UNTOUCHED,
        restarts=("vnetd",),
        long=True,
    ),
    Fault(
        "libvirtd-absent",
        "vnetd starts without libvirtd",
        absent_at_start,
        Outcome.NAMED,
        told="libvirt",
        undo=start_again,
        restarts=("vnetd", "libvirtd"),
        long=True,
    ),
    Fault(
        "definition-damaged",
        "a network's file is damaged, and libvirtd restarted",
        definition_damaged,
        restarts=("libvirtd",),
    ),
    Fault("undefined", "virsh net-undefine", "virsh -q net-undefine lab"),
    Fault("autostart-off", "virsh net-autostart --disable", "virsh -q net-autostart lab --disable"),
    Fault(
        "edited",
        "virsh net-edit",
        """
        virsh net-dumpxml --inactive lab | sed s/10.77.0.99/10.77.0.88/ >/run/box/edited.xml
        virsh -q net-define /run/box/edited.xml
        """,
        long=True,
    ),
    Fault(
        "guest-too-early",
        "a guest starts on a network that is just not active",
        f"""{_TENANT}
        virsh -q 'net-destroy quiet; create /run/box/tenant.xml' 2>/dev/null || true
        until virsh -q domstate tenant 2>/dev/null | grep -q running; do
            virsh -q create /run/box/tenant.xml 2>/dev/null || true
        done
        virsh -q destroy tenant
        """,
        long=True,
    ),
    Fault(
        "guest-plugged",
        "another guest gets a second NIC while a tap is plugged in again, and goes",
        f"""{_TENANT}
        virsh -q create /run/box/tenant.xml
        ip link set $TAP nomaster; virsh -q attach-interface tenant network lab --live
        until [ "$(ip -o link show master vblab | grep -c vnet)" = 2 ]; do :; done
        virsh -q destroy tenant
        """,
        long=True,
    ),
    Fault(
        "connection-cut",
        "of vnetd's two connections to libvirt one is cut, and the tap is unplugged",
        of_two_connections_one_cut,
        long=True,
    ),
    Fault(
        "many-definitions",
        f"another client defines and undefines {_MANY} networks",
        many_definitions,
        Outcome.UNTOUCHED,
        long=True,
    ),
    Fault(
        "many-reservations",
        f"a network with {_LEASES} reservations comes and goes",
        many_reservations,
        Outcome.UNTOUCHED,
        long=True,
    ),
    Fault(
        "errors-at-random",
        "one in ten changes in libvirt and one in a hundred answers fails, and rules, a network"
        " and a definition are lost",
        errors_at_random,
        restarts=("vnetd",),
        long=True,
    ),
)
