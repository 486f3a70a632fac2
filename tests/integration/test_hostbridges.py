"""Bridges of the host: their uplink's addresses, routes, connections go over to them, and back."""

from __future__ import annotations

import json
import signal
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.hypervisor import WAN, Hypervisor

BRIDGE = '[bridges.br0]\nports = ["uplink0"]\n'
NOTHING = '[networks.other]\nmode = "isolated"\nbridge = "vbother"\n'
# Frames of a port meet the bridge's own rules; those of a link that is none do not.
DEAF = "nft 'add table bridge deaf { chain input { type filter hook input priority 0; drop; }; }'"

NM_DEVICE = "[device]\nmanaged=true\nconnection-uuid=7f\n"
NETWORKD_LINK = "ADMIN_STATE=configured\nNETWORK_FILE=/etc/lan.network\n"
NETPLAN = "network:\n  bridges:\n    br0:\n      interfaces: [uplink0]\n"
IFUPDOWN = "iface br0 inet manual\n    bridge_ports uplink0\n"


@pytest.fixture(scope="module")
def box() -> Iterator[Hypervisor]:
    with Hypervisor() as hypervisor:
        hypervisor.start_vnetd(NOTHING)
        yield hypervisor


@pytest.fixture(autouse=True)
def _everything_goes_back(box: Hypervisor) -> Iterator[None]:
    before = facts(box, "uplink0")
    yield
    box.load(NOTHING)
    box.wait_until(lambda: not exists(box, "br0"), what="br0 is gone")
    box.wait_until(lambda: facts(box, "uplink0") == before, what="uplink0 is as before")


def facts(box: Hypervisor, link: str) -> dict[str, Any]:
    """What a link has of addresses and routes, but for what every link has; {} if there is none."""
    if not exists(box, link):
        return {}
    (found,) = json.loads(box.run("ip", "-j", "addr", "show", link))
    routes = box.run("ip", "route", "show", "table", "all", "dev", link)
    routes += box.run("ip", "-6", "route", "show", "table", "all", "dev", link)
    by_kernel = ("multicast", "local", "broadcast", "anycast")
    keys = ("family", "local", "prefixlen", "scope", "valid_life_time")
    return {
        "mac": found["address"],
        "addresses": sorted(
            str({key: a.get(key) for key in keys})
            for a in found["addr_info"]
            if a["scope"] == "global"
        ),
        "routes": sorted(
            line.strip().replace(" linkdown", "")
            for line in routes.splitlines()
            if not line.startswith(by_kernel) and "fe80::/64" not in line
        ),
    }


def exists(box: Hypervisor, link: str) -> bool:
    return box.succeeds("ip", "link", "show", link)


def last(box: Hypervisor, object_: str = "bridge/br0") -> dict[str, Any]:
    return next(record for record in reversed(box.history()) if record["object"] == object_)


def reasons(box: Hypervisor) -> str:
    return " ".join(x for b in box.vnetctl_json("status")["Bridges"] for x in b["Reasons"])


def goes_on(box: Hypervisor, answers: Callable[[], int]) -> None:
    so_far = answers()
    box.wait_until(lambda: answers() > so_far, what="the connection goes on")


def test_uplink_moves_with_all_that_it_has_and_gets_it_back(box: Hypervisor) -> None:
    box.sh("ip route add 203.0.113.0/24 via 198.51.100.2 metric 50 mtu 1400")
    box.sh("ip route add 203.0.114.0/24 dev uplink0 scope link table 77")
    before = facts(box, "uplink0")
    box.load(BRIDGE)
    assert facts(box, "br0") == before
    assert facts(box, "uplink0")["addresses"] == facts(box, "uplink0")["routes"] == []
    assert box.state() == "converged"
    box.run("ping", "-qc1", "-W1", WAN)
    box.load(NOTHING)
    assert facts(box, "uplink0") == before
    assert not exists(box, "br0")
    box.sh("ip route del 203.0.113.0/24; ip route del 203.0.114.0/24 table 77")


def test_an_open_connection_of_the_host_lives_on(box: Hypervisor) -> None:
    with box.talking() as answers:
        for policy in (BRIDGE, NOTHING):
            with box.probing(None) as outage:
                box.load(policy)
            print(f"{outage.lost} of {outage.sent} new flows lost, {outage.ms} ms")
            assert not outage.still_out
            goes_on(box, answers)


@pytest.mark.parametrize(
    "damage",
    [
        "ip link del br0",
        "ip link set uplink0 nomaster",
        "ip addr del 198.51.100.1/24 dev br0",
        "ip addr flush dev br0",
        "ip route del default dev br0",
        "ip link set br0 down",
        "ip link set uplink0 down",
        "ip link set br0 address 02:00:00:00:00:99",
    ],
)
def test_what_somebody_breaks_is_mended(box: Hypervisor, damage: str) -> None:
    box.load(BRIDGE)
    right = facts(box, "br0")
    records = len(box.history())
    box.sh(damage)
    box.wait_until(lambda: len(box.history()) > records, what="a record")
    box.wait_for_state("converged")
    box.wait_until(lambda: facts(box, "br0") == right, what=f"{right}")
    box.wait_until(lambda: box.succeeds("ping", "-qc1", "-W1", WAN), what="the wan answers")
    record = last(box)
    print(f"{damage}: {record['ms']} ms: {record['actions']}")
    assert record["outcome"] == "repaired"


def test_uplink_whose_gateway_falls_silent_is_put_back_for_good(box: Hypervisor) -> None:
    before = facts(box, "uplink0")
    box.sh(DEAF)
    box.load(BRIDGE)
    assert facts(box, "uplink0") == before
    assert not exists(box, "br0")
    assert box.state() == "degraded"
    assert "198.51.100.2" in reasons(box)
    record = last(box)
    assert record["outcome"] == "failed"
    assert record["ms"] < 10_000
    box.sh("nft delete table bridge deaf")
    box.vnetctl("reload")
    assert not exists(box, "br0"), "tried again without being asked"
    box.vnetctl("reconcile")
    assert facts(box, "br0") == before
    assert box.state() == "converged"


def test_vnetd_killed_while_it_takes_an_uplink_in(box: Hypervisor) -> None:
    before = facts(box, "uplink0")
    box.sh(DEAF)
    box.write("/etc/vnetd/vnetd.toml", BRIDGE)
    box.wait_until(lambda: "br0" in box.run("ip", "link", "show", "uplink0"))
    box.kill("vnetd", signal.SIGKILL)
    assert facts(box, "uplink0") != before
    box.spawn_vnetd("--log-level", "debug")
    box.wait_until(lambda: facts(box, "uplink0") == before, seconds=8, what="put back")
    box.wait_for_state("degraded")
    assert "vnetd ended" in reasons(box)
    assert not exists(box, "br0")
    box.sh("nft delete table bridge deaf")


@pytest.mark.parametrize(
    ("path", "text", "owner"),
    [
        ("/run/NetworkManager/devices/{uplink}", NM_DEVICE, "NetworkManager (profile 7f)"),
        ("/run/systemd/netif/links/{bridge}", NETWORKD_LINK, "systemd-networkd (/etc/lan.network)"),
        ("/etc/netplan/01-lan.yaml", NETPLAN, "netplan (/etc/netplan/01-lan.yaml:3)"),
        ("/etc/network/interfaces", IFUPDOWN, "ifupdown (/etc/network/interfaces:1)"),
    ],
)
def test_nothing_is_written_where_another_tool_leads(
    box: Hypervisor, path: str, text: str, owner: str
) -> None:
    box.run("ip", "link", "add", "br0", "type", "bridge")
    links = json.loads(box.run("ip", "-j", "link"))
    indexes = {link["ifname"]: link["ifindex"] for link in links}
    path = path.format(uplink=indexes["uplink0"], bridge=indexes["br0"])
    box.write(path, text)
    box.wait_until_quiet("vnetd", seconds=0.5)
    box.spawn("ip-monitor", "ip", "monitor", "link", "address", "route")
    box.load(BRIDGE)
    assert box.state() == "degraded"
    assert owner in reasons(box)
    box.kill("ip-monitor")
    assert box.log("ip-monitor") == ""
    box.sh(f"rm {path}")
    box.vnetctl("reconcile")
    assert box.state() == "converged"
    assert "br0" in box.run("ip", "link", "show", "uplink0")
    box.load(NOTHING)
    assert "br0" in box.run("ip", "link", "show", "uplink0"), "vnetd did not make it"
    box.load(BRIDGE)
    box.sh("ip link set br0 alias 'made by vnetd'; rm /run/box/ip-monitor.log")


def test_late_uplink_completes_the_bridge(box: Hypervisor) -> None:
    policy = """
        [bridges.br0]
        ports = ["lan-card"]
        addresses = ["192.0.2.1/24"]
        [networks.lan]
        mode = "bridge"
        bridge = "br1"
        [networks.later]
        mode = "bridge"
        bridge = "br0"
    """
    box.load(policy)
    (lan,) = box.vnetctl_json("status", "lan")["Networks"]
    assert (lan["State"], lan["Active"]) == ("drifted", False)
    assert lan["Drift"][-1:] == ["waits for bridge br1: no such link"]
    assert box.vnetctl_json("status", "later")["Networks"][0]["Active"]
    box.sh("""
        ip link add late0 address 02:00:00:00:07:07 type veth peer name late1
        ip link set late1 up
        ip link property add dev late0 altname lan-card
    """)
    box.wait_until(lambda: "br0" in box.run("ip", "link", "show", "late0"))
    box.wait_until(lambda: facts(box, "br0")["mac"] == "02:00:00:00:07:07")
    box.wait_until(lambda: "192.0.2.1/24" in box.run("ip", "-o", "addr", "show", "br0"))
    box.sh("ip link set late0 down; ip link set late0 name again0; ip link set again0 up")
    box.sh("ip link add br1 type bridge")
    box.wait_until(lambda: box.vnetctl_json("status", "lan")["Networks"][0]["Active"])
    box.wait_for_state("converged")
    assert "br0" in box.run("ip", "link", "show", "again0")
    box.sh("ip link del again0; ip link del br1")


def test_a_bound_network_follows_its_uplink_into_the_bridge_and_back(box: Hypervisor) -> None:
    box.run("ip", "link", "property", "add", "dev", "uplink0", "altname", "wan-card")
    bound = '[networks.bound]\nmode = "nat"\nbridge = "vbbound"\naddresses = ["10.77.0.1/24"]\n'
    bound += 'stp = false\nuplink = "wan-card"\n'
    box.load(bound)
    guest = box.guest("vbbound", "10.77.0.50/24", gateway="10.77.0.1")

    def device(*flags: str) -> str | None:
        forward = ET.fromstring(box.run("virsh", "net-dumpxml", "bound", *flags)).find("forward")
        return None if forward is None else forward.get("dev")

    for policy, uplink in ((bound, "uplink0"), (bound + BRIDGE, "br0"), (bound, "uplink0")):
        box.load(policy)
        assert box.state() == "converged"
        assert device() == device("--inactive") == uplink
        assert f"-s 10.77.0.0/24 -i vbbound -o {uplink} -j ACCEPT" in box.rules()
        assert box.pings(guest, WAN)
    box.run("ip", "link", "property", "del", "dev", "uplink0", "altname", "wan-card")
    box.load(bound.replace("wan-card", "missing0"))
    (status,) = box.vnetctl_json("status", "bound")["Networks"]
    assert status["Drift"] == ["waits for uplink missing0: no such link"]


def test_vlans_of_a_port_or_what_the_kernel_lacks_for_them(box: Hypervisor) -> None:
    port = "{ uplink = 'uplink0', vlan = { pvid = 7, untagged = [7], tagged = [9] } }"
    has = box.succeeds("ip", "link", "add", "probe0", "type", "bridge", "vlan_filtering", "1")
    box.run("sh", "-c", "ip link del probe0 2>/dev/null || true")
    if has:
        box.load(BRIDGE + "vlan_filtering = true\n")
        assert box.state() == "converged"
        box.load(f"[bridges.br0]\nports = [{port}]\nvlan_filtering = true\n")
        (shown,) = json.loads(box.run("bridge", "-j", "vlan", "show", "dev", "uplink0"))
        assert [vlan["vlan"] for vlan in shown["vlans"]] == [7, 9]
    else:
        box.load(BRIDGE + "vlan_filtering = true\n")
        assert box.state() == "degraded"
        assert "this kernel lacks it (CONFIG_BRIDGE_VLAN_FILTERING)" in reasons(box)
        box.run("ping", "-qc1", "-W1", WAN)
