"""libvirt's networks follow the policy, whatever others do to them."""

from __future__ import annotations

import signal
import xml.etree.ElementTree as ET

import pytest

from tests.integration.conftest import FIVE_NETWORKS
from tests.lab.hypervisor import Hypervisor

BY_HAND = """
<network>
  <name>byhand</name>
  <forward mode="nat"/>
  <bridge name="vbhand" stp="off"/>
  <ip address="10.90.0.1" netmask="255.255.255.0"/>
</network>
"""


def xml(box: Hypervisor, network: str, *, inactive: bool = False) -> ET.Element:
    flags = ["--inactive"] if inactive else []
    return ET.fromstring(box.run("virsh", "net-dumpxml", network, *flags))


def networks(box: Hypervisor, *flags: str) -> set[str]:
    return set(box.run("virsh", "net-list", "--name", *flags).split())


def define(box: Hypervisor, text: str) -> None:
    box.run("virsh", "net-define", "/dev/stdin", stdin=text)


def redefine(box: Hypervisor, network: str, old: str, new: str) -> None:
    text = box.run("virsh", "net-dumpxml", "--inactive", network)
    assert old in text
    define(box, text.replace(old, new))


def snapshot(box: Hypervisor) -> dict[str, str]:
    """All that a restart of vnetd must leave alone."""
    files = "/etc/libvirt/qemu/networks /run/libvirt/network"
    return {
        "files": box.run("sh", "-c", f"find {files} -printf '%p %T@ %i\\n' | sort"),
        "rules": box.rules(),
        "links": box.run("ip", "-o", "link"),
        "addresses": box.run("ip", "-o", "addr"),
    }


def test_five_networks_are_defined_active_and_autostarted_as_written(box: Hypervisor) -> None:
    assert networks(box) == {"lab", "routed", "quiet", "free", "lan"}
    assert networks(box, "--autostart") == {"lab", "routed", "free", "lan"}
    assert box.state() == "converged"
    lab = xml(box, "lab", inactive=True)
    assert [ip.get("address") for ip in lab.findall("ip")] == ["10.77.0.1", "fd77::1"]
    assert lab.find("ip/dhcp/host[@ip='10.77.0.20']") is not None
    assert xml(box, "quiet").find("forward") is None


def test_second_plan_is_empty(box: Hypervisor) -> None:
    done = box.vnetctl("--json", "plan")
    assert (done.returncode, done.stdout.strip()) == (0, "[]")


def test_restarting_vnetd_changes_nothing(box: Hypervisor) -> None:
    box.spawn("ip-monitor", "ip", "monitor", "link", "address", "route")
    already = box.wait_until_quiet("ip-monitor")  # a bridge's carrier, IPv6's address detection
    before = snapshot(box)
    box.spawn("events", "virsh", "event", "--all", "--loop")
    with box.watching_nftables() as writers:
        box.kill("vnetd")
        box.start_vnetd()
        assert box.vnetctl("reconcile").returncode == 0
        assert writers() == ["vnetd"]  # it takes its guard over again
    box.kill("events")
    box.kill("ip-monitor")
    assert "event '" not in box.log("events")
    assert box.log("ip-monitor") == already
    assert snapshot(box) == before


@pytest.mark.parametrize("network", ["lab", "routed", "quiet", "free", "lan"])
def test_stopped_network_is_started_again(box: Hypervisor, network: str) -> None:
    box.run("virsh", "net-destroy", network)
    box.wait_until(lambda: network in networks(box))
    box.wait_for_state("converged")
    record = box.history()[-1]
    assert record["object"] == f"network/{network}"
    assert record["drift"][0] == "is not active"
    assert record["cause"]["process"] == "libvirtd"


def test_a_network_without_a_definition_survives_its_bridge(box: Hypervisor) -> None:
    xml = """<network><name>passing</name><forward mode='nat'/><bridge name='vbpassing'/>
        <ip address='10.90.0.1' prefix='24'/></network>"""
    box.run("virsh", "net-create", "/dev/stdin", stdin=xml)
    box.wait_for_state("converged")
    good = box.sorted_rules()
    box.sh("ip link del vbpassing")
    box.wait_until(lambda: box.succeeds("ip", "link", "show", "vbpassing"), what="its bridge")
    box.wait_for_state("converged")
    assert box.sorted_rules() == good
    assert "passing" in box.run("virsh", "-q", "net-list", "--transient", "--name").split()
    box.run("virsh", "net-destroy", "passing")
    assert "vbpassing" not in box.rules()
    box.wait_for_state("converged")


@pytest.mark.parametrize("first", ["", "virsh net-destroy lab; "])
def test_undefined_network_comes_back(box: Hypervisor, first: str) -> None:
    box.sh(f"{first}virsh net-undefine lab")
    box.wait_until(lambda: "lab" in networks(box) & networks(box, "--persistent"))
    box.wait_for_state("converged")
    assert xml(box, "lab").find("metadata") is not None


def test_autostart_is_set_back(box: Hypervisor) -> None:
    box.run("virsh", "net-autostart", "--disable", "lab")
    box.wait_until(lambda: "lab" in networks(box, "--autostart"))
    box.run("virsh", "net-autostart", "quiet")
    box.wait_until(lambda: "quiet" not in networks(box, "--autostart"))


def test_changed_definition_is_set_back(box: Hypervisor) -> None:
    redefine(box, "lab", "10.77.0.99", "10.77.0.50")
    box.wait_until(
        lambda: xml(box, "lab", inactive=True).find("ip/dhcp/range[@end='10.77.0.99']") is not None
    )
    redefine(box, "lab", "10.77.0.1'", "10.77.0.2'")
    box.wait_until(
        lambda: xml(box, "lab", inactive=True).find("ip[@address='10.77.0.1']") is not None
    )
    redefine(box, "routed", "mode='route'", "mode='open'")
    box.wait_until(
        lambda: xml(box, "routed", inactive=True).find("forward[@mode='route']") is not None
    )


def test_live_dhcp_is_set_back_without_a_restart(box: Hypervisor) -> None:
    link = box.run("cat", "/sys/class/net/vblab/ifindex")
    host = "<host mac='52:54:00:00:01:01' name='web' ip='10.77.0.20'/>"
    box.run("virsh", "net-update", "lab", "delete", "ip-dhcp-host", host, "--live", "--config")
    box.wait_until(lambda: xml(box, "lab").find("ip/dhcp/host") is not None)
    box.wait_until(lambda: xml(box, "lab", inactive=True).find("ip/dhcp/host") is not None)
    box.wait_for_state("converged")
    assert box.run("cat", "/sys/class/net/vblab/ifindex") == link


def test_policy_change_takes_the_least_disruptive_way(box: Hypervisor) -> None:
    link = box.run("cat", "/sys/class/net/vblab/ifindex")
    changed = FIVE_NETWORKS.replace(
        "dhcp.hosts = [", 'dhcp.hosts = [{ mac = "52:54:00:00:01:02", address = "10.77.0.21" },'
    ).replace('bridge = "vblab"', 'bridge = "vblab"\nmtu = 1400\nmac = "52:54:00:77:77:77"')
    with box.policy(changed):
        live = xml(box, "lab")
        assert live.find("ip/dhcp/host[@ip='10.77.0.21']") is not None
        assert box.run("cat", "/sys/class/net/vblab/mtu") == "1400\n"
        assert box.run("cat", "/sys/class/net/vblab/address") == "52:54:00:77:77:77\n"
        assert box.run("cat", "/sys/class/net/vblab/ifindex") == link
        assert box.state() == "converged"


def test_new_address_restarts_the_network_and_replugs_guests(box: Hypervisor) -> None:
    guest = box.domain_guest("lab", "10.77.0.51/24", gateway="10.77.0.1")
    changed = FIVE_NETWORKS.replace('"fd77::1/64"', '"fd77::1/64", "10.177.0.1/24"')
    with box.policy(changed):
        assert box.succeeds("ping", "-qc1", "-W2", "10.77.0.1", guest=guest)
        assert "10.177.0.1/24" in box.run("ip", "-o", "addr", "show", "vblab")
        assert box.state() == "converged"
    box.run("virsh", "destroy", guest)


def test_what_the_policy_does_not_speak_of_stays(box: Hypervisor) -> None:
    record = "<host ip='10.77.0.1'><hostname>gateway</hostname></host>"
    box.run("virsh", "net-update", "lab", "add", "dns-host", record, "--live", "--config")
    redefine(box, "lab", "10.77.0.99", "10.77.0.50")
    box.wait_until(
        lambda: xml(box, "lab", inactive=True).find("ip/dhcp/range[@end='10.77.0.99']") is not None
    )
    assert xml(box, "lab", inactive=True).findtext("dns/host/hostname") == "gateway"
    box.run("virsh", "net-update", "lab", "delete", "dns-host", record, "--live", "--config")


def test_only_networks_that_vnetd_made_are_removed(box: Hypervisor) -> None:
    define(box, BY_HAND)
    box.run("virsh", "net-start", "byhand")
    adopted = FIVE_NETWORKS + '[networks.byhand]\nmode = "nat"\naddresses = ["10.90.0.1/24"]\n'
    with box.policy(adopted):
        assert box.vnetctl_json("status", "byhand")["Networks"][0]["Kept"] == "managed"
    with box.policy(FIVE_NETWORKS.partition("[networks.free]")[0]):
        box.wait_until(lambda: "free" not in networks(box, "--all"))
        assert networks(box, "--all") == {"lab", "routed", "quiet", "byhand"}
    assert "byhand" in networks(box)
    assert box.vnetctl_json("status", "byhand")["Networks"][0]["Kept"] == "protected"
    box.sh("virsh net-destroy byhand; virsh net-undefine byhand")


def test_network_with_a_guest_on_it_is_not_removed(box: Hypervisor) -> None:
    guest = box.domain_guest("quiet", "10.79.0.50/24")
    without = FIVE_NETWORKS.replace(
        FIVE_NETWORKS[
            FIVE_NETWORKS.index("[networks.quiet]") : FIVE_NETWORKS.index("[networks.free]")
        ],
        "",
    )
    with box.policy(without):
        status = box.vnetctl_json("status", "quiet")["Networks"][0]
        assert status["State"] == "degraded"
        assert guest in status["Reasons"][0]
        assert "quiet" in networks(box)
        box.run("virsh", "destroy", guest)
        box.wait_until(lambda: "quiet" not in networks(box, "--all"))


def test_an_empty_or_missing_policy_removes_nothing(box: Hypervisor) -> None:
    for script in (": >/etc/vnetd/vnetd.toml", "rm /etc/vnetd/vnetd.toml"):
        box.sh(script)
        box.vnetctl("reload")
        box.vnetctl("reconcile")
        assert networks(box) == {"lab", "routed", "quiet", "free", "lan"}
    assert "is gone" in " ".join(box.vnetctl_json("status")["Reasons"])
    box.kill("vnetd", signal.SIGTERM)
    box.start_vnetd()
    assert networks(box) == {"lab", "routed", "quiet", "free", "lan"}
    assert {n["Kept"] for n in box.vnetctl_json("status")["Networks"]} == {"protected"}
    box.write("/etc/vnetd/vnetd.toml", FIVE_NETWORKS)
    box.wait_until(lambda: box.vnetctl_json("status")["Networks"][0]["Kept"] == "managed")


def test_a_foreign_bridge_of_that_name_is_a_conflict_and_is_left_alone(box: Hypervisor) -> None:
    box.sh("ip link add vbforeign type bridge; ip addr add 192.0.2.77/32 dev vbforeign")
    taken = (
        '[networks.taken]\nmode = "isolated"\nbridge = "vbforeign"\naddresses = ["10.91.0.1/24"]\n'
    )
    with box.policy(FIVE_NETWORKS + taken):
        status = box.vnetctl_json("status", "taken")["Networks"][0]
        assert (status["State"], status["Active"]) == ("degraded", False)
        assert "vbforeign" in status["Reasons"][0]
        assert "192.0.2.77/32" in box.run("ip", "-o", "addr", "show", "vbforeign")
        box.run("ip", "link", "del", "vbforeign")
        box.wait_until(lambda: "taken" in networks(box))
        box.wait_for_state("converged")
    assert box.history()


def test_a_bridge_that_libvirt_left_behind_is_no_obstacle(box: Hypervisor) -> None:
    """libvirt 9.0 does not start a network over a bridge that is its own."""
    mac = box.run("cat", "/sys/class/net/vbquiet/address").strip()
    box.vnetctl("pause", "60")
    box.run("virsh", "net-destroy", "quiet")
    box.sh(f"ip link add vbquiet address {mac} type bridge")
    box.vnetctl("resume")
    box.wait_until(lambda: "quiet" in box.run("virsh", "net-list", "--name"), what="it is active")
    box.wait_for_state("converged")
