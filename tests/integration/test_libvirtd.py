"""The daemon behind the networks: hanging, slow, gone, or not willing."""

from __future__ import annotations

import signal

import pytest

from tests.lab.hypervisor import WAN, Hypervisor
from tests.long import LONG

SLOW_HOOK = "#!/bin/sh\n[ \"$1 $2\" != 'slow started' ] || sleep 8\n"
SLOW = """
<network><name>slow</name><bridge name='vbslow'/><ip address='10.91.0.1' prefix='24'/></network>
"""


@pytest.fixture(scope="module")
def guest(box: Hypervisor) -> str:
    return box.domain_guest("lab", "10.77.0.51/24", gateway="10.77.0.1")


def tap_of(box: Hypervisor, guest: str) -> str:
    return box.run("virsh", "-q", "domiflist", guest).split()[0]


def test_rules_and_taps_are_healed_while_libvirtd_hangs(box: Hypervisor, guest: str) -> None:
    tap, good = tap_of(box, guest), box.rules()
    box.signal("libvirtd", signal.SIGSTOP)
    try:
        # something to ask it about, which it will not answer
        box.sh("touch /run/libvirt/network/touched")
        for _ in range(3):
            box.sh("iptables -t nat -F; iptables -F")
            box.wait_until(lambda: box.rules() == good, what="rules while libvirtd hangs")
            box.sh(f"ip link set {tap} nomaster")
            box.wait_until(lambda: box.pings(guest, WAN), what="the guest while libvirtd hangs")
        box.wait_for_state("degraded")
        assert "no answer" in box.vnetctl_json("status")["Reasons"][0]
    finally:
        box.signal("libvirtd", signal.SIGCONT)
    box.sh("rm -f /run/libvirt/network/touched")
    box.wait_until(lambda: box.state() == "converged", seconds=60, what="state converged")
    assert box.rules() == good


@pytest.mark.skipif(not LONG, reason="minutes")
def test_vnetd_outlives_a_daemon_that_hangs_until_its_connections_are_given_up(
    box: Hypervisor,
) -> None:
    """Calls wait for answers, libvirt's client gives up meanwhile, and then answers come."""
    for _ in range(4):
        box.signal("libvirtd", signal.SIGSTOP)
        try:
            box.sh("for _ in $(seq 25); do touch /run/libvirt/network/touched; sleep 1; done")
        finally:
            box.signal("libvirtd", signal.SIGCONT)
        box.sh("rm -f /run/libvirt/network/touched")
        box.wait_for_state("converged")


def test_a_network_that_is_long_in_starting_is_no_fault(box: Hypervisor) -> None:
    """libvirt answers nobody about its networks meanwhile; other faults are healed all the same."""
    good = box.sorted_rules()
    box.write("/etc/libvirt/hooks/network", SLOW_HOOK)
    box.sh("chmod +x /etc/libvirt/hooks/network")
    box.kill("libvirtd", signal.SIGKILL)
    box.start_libvirtd()  # it looks for hooks once
    box.wait_for_state("converged")
    starting = box.spawn("slow", "sh", "-c", f'echo "{SLOW}" | virsh net-create /dev/stdin')
    box.wait_until(lambda: box.succeeds("ip", "link", "show", "vbslow"), what="a bridge")
    box.sh("ip link set vblab down")
    box.wait_until(lambda: "vblab: <" in box.run("ip", "-o", "link", "show", "up"))
    assert starting.poll() is None, "the start has ended already: nothing was seen"
    box.wait_until(lambda: starting.poll() is not None, seconds=30, what="the end of the start")
    box.wait_for_state("converged")
    box.run("virsh", "net-destroy", "slow")
    box.sh("rm /etc/libvirt/hooks/network")
    box.wait_until(lambda: box.sorted_rules() == good, what="no rules of slow")


def test_the_domains_daemon_is_not_the_networks(box: Hypervisor, guest: str) -> None:
    """One of the two connections is cut, as when virtqemud is restarted and virtnetworkd is not."""
    clients = box.run("virt-admin", "-q", "client-list", "libvirtd").split("\n")
    ours = [line.split()[0] for line in clients if line.strip()]
    assert len(ours) >= 2
    box.run("virt-admin", "client-disconnect", "libvirtd", ours[-1])
    box.sh(f"ip link set {tap_of(box, guest)} nomaster")
    box.wait_until(lambda: box.pings(guest, WAN), what="the guest is plugged in again")
    box.wait_for_state("converged")


def connections(box: Hypervisor) -> list[str]:
    """Of other clients there are none."""
    lines = box.run("virt-admin", "-q", "client-list", "libvirtd").splitlines()
    return [line for line in lines if line.strip()]


AS_NOBODY = (
    "setpriv", "--reuid=64056", "--regid=64056", "--clear-groups",
    "--inh-caps=+net_admin", "--ambient-caps=+net_admin",
    "env", "STATE_DIRECTORY=/run/box/nobody", "RUNTIME_DIRECTORY=/run/box/nobody",
)  # fmt: skip


def test_a_libvirt_that_may_only_be_read_is_still_watched(box: Hypervisor) -> None:
    """polkit, which would have to allow more, is not even there; root is not asked."""
    conf = box.run("cat", "/etc/libvirt/libvirtd.conf")
    box.write(
        "/etc/libvirt/libvirtd.conf",
        conf.replace('rw = "none"', 'rw = "polkit"').replace("0770", "0777"),
    )
    box.kill("vnetd")
    box.kill("libvirtd", signal.SIGKILL)
    box.start_libvirtd()
    box.sh("install -d -o 64056 /run/box/nobody")
    box.spawn("vnetd", *AS_NOBODY, box.tool("vnetd"), "--log-level", "debug")
    box.wait_until(lambda: "may look but change nothing" in box.log("vnetd"), what="read only")
    good = box.rules()
    box.sh("iptables -t nat -F")
    box.wait_until(lambda: box.rules() == good, what="rules")
    box.kill("vnetd")
    box.write("/etc/libvirt/libvirtd.conf", conf)
    box.kill("libvirtd", signal.SIGKILL)
    box.start_libvirtd()
    box.start_vnetd()
    box.wait_for_state("converged")


def test_an_idle_libvirtd_is_not_kept_awake(box: Hypervisor) -> None:
    """It may end when nobody is connected. What happens then is not lost."""
    box.kill("vnetd")
    for name in box.run("virsh", "-q", "list", "--name").split():
        box.run("virsh", "destroy", name)
    for name in box.run("virsh", "-q", "net-list", "--name").split():
        box.run("virsh", "net-destroy", name)
    box.start_vnetd("")
    box.wait_until(lambda: not connections(box), seconds=30, what="no connection")
    assert box.state() == "converged"
    assert not connections(box), "asking vnetd wakes nobody"
    box.run("virsh", "net-start", "lab")
    box.wait_until(
        lambda: any(n["Active"] for n in box.vnetctl_json("status")["Networks"]),
        what="vnetd sees the network",
    )
    good = box.rules()
    box.sh("iptables -t nat -F")
    box.wait_until(lambda: box.rules() == good, what="rules")
