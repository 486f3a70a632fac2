"""What dnsmasq serves, and what stands in its way."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from vnetd.backends import dnsmasq as processes
from vnetd.backends import hostsfile, listeners, process
from vnetd.backends.libvirt import domain_xml, taken_ports
from vnetd.backends.libvirt.taken_ports import TakenPorts
from vnetd.core.desired import desired
from vnetd.core.drift import Conflict
from vnetd.core.keep import dnsmasq, networks
from vnetd.core.model import (
    Definition,
    DhcpHost,
    IfName,
    Lease,
    Libvirt,
    Mode,
    Network,
    Nic,
    Observed,
    Tap,
)
from vnetd.core.policy import NetworkPolicy, Policy

# recorded: dnsmasq on 10.77.0.1, another process on all addresses, a connected socket
UDP = """\
   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
  241: 01004D0A:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2
  242: 00000000:0043 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4712 2
  243: 0100007F:0035 0200007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4713 2
  244: 00000000:14E9 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4714 2
"""
V6 = (
    "  sl header\n"
    "   0: 000077FD000000000000000001000000:0035 00000000000000000000000000000000:0000 0A "
    "00000000:00000000 00:00000000 00000000     0        0 4715 1\n"
)


def test_sockets_on_the_ports_of_dhcp_and_dns() -> None:
    assert [(str(item), item.inode) for item in listeners.parse(UDP.splitlines(), "udp")] == [
        ("UDP port 53 of 10.77.0.1", 4711),
        ("UDP port 67 of all addresses", 4712),
    ]
    found = listeners.parse(V6.splitlines(), "tcp")
    assert [str(item) for item in found] == ["TCP port 53 of fd77::1"]


def test_a_network_waits_for_the_ports_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = tuple(listeners.parse(UDP.splitlines(), "udp"))
    monkeypatch.setattr(listeners, "read", lambda: sockets)
    monkeypatch.setattr(taken_ports, "_LOOK_SECONDS", 0.01)
    port = "UDP port 53 of 10.77.0.1"

    async def waits() -> None:
        ports, told = TakenPorts(), asyncio.Event()
        assert ports.refused("lab", "some other error of 10.77.0.1") == ""
        why = "failed to create listening socket for 10.77.0.1: Address already in use"
        assert ports.refused("lab", why) == port
        assert ports.of(LIBVIRT.networks) == {"lab": port}
        for without in (replace(LIVE, dns=False), replace(LIVE, addresses=())):
            assert ports.of({"lab": Network("lab", without, None, autostart=True)}) == {}
        assert ports.of({}) == {}
        watch = asyncio.create_task(ports.watch(told.set))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await told.wait()
        monkeypatch.setattr(listeners, "read", lambda: sockets[1:])
        async with asyncio.timeout(10):
            await told.wait()
        assert ports.of(LIBVIRT.networks) == {}
        watch.cancel()

    asyncio.run(waits())


def test_what_waits_for_a_port_is_not_tried() -> None:
    port = "UDP port 53 of all addresses: named[7]"
    waits = replace(LIBVIRT, taken_ports={"lab": port})
    wrong = f"its dnsmasq cannot start while others have {port}: no DHCP, no DNS"
    assert found(waits, replace(SEEN, dnsmasq=frozenset())) == [wrong]
    policy = Policy(networks={"lab": NetworkPolicy("lab", Mode.NAT)})
    stopped = replace(waits, networks={"lab": Network("lab", LIVE, None, autostart=True)})
    conflict = Conflict("network/lab", f"cannot start while others have {port}")
    assert conflict in list(networks.diff(policy, stopped, {}, {}, {}))
    free = replace(stopped, taken_ports={})
    assert networks.Stopped("lab") in list(networks.diff(policy, free, {}, {}, {}))


def test_reservations_in_dnsmasqs_file() -> None:
    text = "52:54:00:00:00:01,10.77.0.20,web\nid:00:01,[fd77::20],six\n52:54:00:00:00:02,nameonly\n"
    assert hostsfile.addresses(text) == {ip_address("10.77.0.20"), ip_address("fd77::20")}


HOST = DhcpHost(ip_address("10.77.0.20"), mac="52:54:00:00:00:01", name="web")
LIVE = Definition("lab", Mode.NAT, addresses=(ip_interface("10.77.0.1/24"),), hosts=(HOST,))
LIBVIRT = Libvirt("9.0.0", 1, {"lab": Network("lab", LIVE, LIVE, autostart=True)})
SEEN = Observed(dnsmasq=frozenset({"lab"}))


def found(libvirt: Libvirt, seen: Observed) -> list[str]:
    return [getattr(item, "text", str(item)) for item in dnsmasq.diff(libvirt, [LIVE], seen)]


def test_nothing_is_wrong_with_what_is_served() -> None:
    assert found(LIBVIRT, replace(SEEN, reserved={"lab": frozenset({HOST.address})})) == []
    assert found(LIBVIRT, SEEN) == [], "a file that cannot be read tells nothing"


@pytest.mark.parametrize(("name", "dead"), [("lab", 1), ("`l'a;b`", 1), ('l"ab', 0)])
def test_a_dnsmasq_whose_pid_nobody_knows_is_not_dead(name: str, dead: int) -> None:
    seen = replace(Observed(), dnsmasq=frozenset())
    found = list(dnsmasq.diff(LIBVIRT, [replace(LIVE, name=name)], seen))
    assert len(found) == dead


def test_a_reservation_that_dnsmasq_does_not_know() -> None:
    assert found(LIBVIRT, replace(SEEN, reserved={"lab": frozenset()})) == [
        "its dnsmasq is not told to reserve 10.77.0.20"
    ]


def test_a_reserved_address_that_another_guest_has() -> None:
    lease = Lease("lab", "52:54:00:00:00:99", HOST.address)
    tap = Tap("old", IfName("vnet0"), "lab", mac=lease.mac)
    libvirt = replace(LIBVIRT, leases=(lease,), taps=(tap,))
    told = "10.77.0.20 is reserved for web, but still leased to 52:54:00:00:00:99 of guest old"
    assert found(libvirt, SEEN) == [told]
    own = replace(LIBVIRT, leases=(replace(lease, mac="52:54:00:00:00:01"),))
    assert found(own, SEEN) == []


def test_a_reservation_for_a_domain_is_one_for_its_mac() -> None:
    host = DhcpHost(ip_address("10.77.0.20"), domain="web")
    network = NetworkPolicy("lab", Mode.NAT, hosts=(host,))
    policy = Policy(networks={"lab": network})
    assert policy.asked.domains == {"web"}
    absent = desired(policy, LIBVIRT).networks["lab"]
    assert (absent.hosts, absent.waiting) == ((), (host,))
    elsewhere = Nic("web", "other", "52:54:00:00:00:07")
    there = Nic("web", "lab", "52:54:00:00:00:08")
    known = desired(policy, replace(LIBVIRT, nics=(elsewhere, there))).networks["lab"]
    assert known.waiting == ()
    assert known.hosts == (DhcpHost(ip_address("10.77.0.20"), mac="52:54:00:00:00:08"),)


def test_interfaces_of_a_domain_that_does_not_run() -> None:
    text = """<domain><name>web</name><devices>
      <interface type='network'>
        <mac address='52:54:00:AA:00:08'/><source network='lab'/>
      </interface>
      <interface type='bridge'><mac address='52:54:00:aa:00:09'/><source bridge='br0'/></interface>
    </devices></domain>"""
    assert domain_xml.nics(text) == [Nic("web", "lab", "52:54:00:aa:00:08")]


def test_one_that_ends_while_reservations_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = threading.Event()

    async def look() -> Observed:
        backend = processes.Dnsmasq()
        watch = asyncio.create_task(backend.watch(lambda *_, **__: told.set()))
        await asyncio.sleep(0)
        seen = await backend.observe(Observed(libvirt=LIBVIRT))
        watch.cancel()
        return seen

    with subprocess.Popen(["sleep", "60"]) as child:

        def ends(_: object) -> dict[str, frozenset[object]]:
            child.kill()
            assert told.wait(20)
            return {}

        monkeypatch.setattr(process, "DNSMASQ_PID_FILES", tmp_path)
        monkeypatch.setattr(process, "dnsmasq", lambda _: child.pid)
        monkeypatch.setattr(processes, "_reserved", ends)
        assert asyncio.run(look()).intruders == ()
