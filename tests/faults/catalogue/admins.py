"""People and tools that want it otherwise."""

from __future__ import annotations

import os
import time

from tests.faults.fault import Fault, Outcome
from tests.faults.host import Host, System
from tests.lab.machine import CACHE

_FIGHT_SECONDS = 20.0


def cpu_seconds(host: Host) -> float:
    stat = host.box.path(f"/proc/{host.box.pid('vnetd')}/stat").read_text().rpartition(")")[2]
    return sum(int(word) for word in stat.split()[11:13]) / os.sysconf("SC_CLK_TCK")


def fight(host: Host) -> None:
    box, before, began = host.box, len(host.box.history()), cpu_seconds(host)
    loop = "while :; do iptables -t nat -F LIBVIRT_PRT; sleep 0.1; done"
    box.spawn("other-admin", "sh", "-c", loop)
    host.wait_until_said("again and again")
    until = time.monotonic() + _FIGHT_SECONDS
    box.wait_until(lambda: time.monotonic() > until, seconds=_FIGHT_SECONDS + 1)
    records = box.history()[before:]
    told = [record for record in records if record["outcome"] == "conflict"]
    assert [record["cause"]["process"] for record in told] == ["iptables"]
    assert sum(record["outcome"] == "repaired" for record in records) < 15
    print(f"{cpu_seconds(host) - began:.1f} s of CPU")


def end_of_fight(host: Host) -> None:
    host.box.kill("other-admin")


def paused(host: Host) -> None:
    """What is broken stays so until the pause is over."""
    box = host.box
    host.run("vnetctl pause 5; iptables -t nat -F; ip addr flush dev vbrouted")
    broken = box.rules(), box.run("ip", "-br", "addr")
    while (seen := (box.rules(), box.run("ip", "-br", "addr"))) == broken:
        pass
    assert box.state() != "paused", seen


# Unpacked only, and run from there: a machine that had it installed would be led by it. With /sys
# read-only it takes this for a container, and does not wait for udev's word of each link.
_NETWORK_MANAGER = f"""
nm={CACHE}/network-manager
export LD_LIBRARY_PATH=$(echo $nm/lib/*-linux-gnu $nm/usr/lib/*-linux-gnu | tr ' ' :)
nmcli=$nm/usr/bin/nmcli
"""


def network_manager(host: Host) -> None:
    """It only watches libvirt's bridges, until somebody makes a profile for one."""
    host.run(f"""{_NETWORK_MANAGER}
        cp $nm/usr/share/dbus-1/system.d/*NetworkManager.conf /etc/dbus-1/system.d/
        busctl call org.freedesktop.DBus / org.freedesktop.DBus ReloadConfig
        mkdir -p /etc/NetworkManager/conf.d
        printf '[keyfile]\nunmanaged-devices=type:ethernet;type:veth;type:tun\n' \
            >/etc/NetworkManager/NetworkManager.conf
        unshare -m sh -c "mount -o remount,bind,ro /sys; exec $nm/usr/sbin/NetworkManager" """)
    watched = f"{_NETWORK_MANAGER} $nmcli -t -f device,state device | grep '^vblab:.*externally'"
    host.box.wait_until(lambda: host.box.succeeds("sh", "-c", watched), what="a look at vblab")
    assert host.box.state() == "converged"
    host.run(f"""{_NETWORK_MANAGER}
        $nmcli connection add type bridge ifname vblab con-name mine autoconnect no \
            ipv4.method manual ipv4.addresses 192.0.2.1/25
        $nmcli connection up mine""")


def no_network_manager(host: Host) -> None:
    host.run(f"""{_NETWORK_MANAGER}
        printf '[keyfile]\nunmanaged-devices+=interface-name:vblab\n' \
            >/etc/NetworkManager/conf.d/vnetd-unmanaged.conf
        $nmcli general reload
        kill $(cat /run/NetworkManager/NetworkManager.pid)""")


FAULTS = (
    Fault(
        "network-manager",
        "somebody activates a profile of NetworkManager for the bridge",
        network_manager,
        Outcome.NAMED,
        told="NetworkManager (profile mine) leads its bridge vblab",
        undo=no_network_manager,
        systems=(System.BOOKWORM,),
        long=True,
    ),
    Fault(
        "fight",
        "somebody flushes libvirt's NAT chain ten times a second",
        fight,
        Outcome.NAMED,
        told="again and again",
        undo=end_of_fight,
        long=True,
    ),
    Fault(
        "paused",
        "an admin pauses vnetd for 5 s, and breaks things; then it heals",
        paused,
        long=True,
    ),
    Fault(
        "forward-policy",
        "iptables -P FORWARD DROP, which an open network does not survive",
        "iptables -P FORWARD DROP",
        Outcome.NAMED,
        told="FORWARD",
        undo="iptables -P FORWARD ACCEPT",
        long=True,
    ),
)
