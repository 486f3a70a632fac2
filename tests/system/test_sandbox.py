"""vnetd.service as its own user: it gets out of its sandbox nowhere, and does its work in there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.system.escape import ATTEMPTS, NEEDED
from tests.system.host import Host

POLICY = """
[networks.lab]
mode = "nat"
bridge = "vblab"
stp = false
addresses = ["10.77.0.1/24", "fd77::1/64"]
dhcp.ranges = ["10.77.0.10-10.77.0.99"]
"""
NEW_HOST = "<host mac='52:54:00:00:00:05' ip='10.77.0.11'/>"
DAMAGE = (
    "nft flush ruleset",
    "echo 0 >/proc/sys/net/ipv4/ip_forward",
    "kill -9 $(cat /run/libvirt/network/lab.pid)",
    "ip addr flush dev vblab",
    "ip link del vblab",
    "virsh -q net-destroy lab",
    f'virsh -q net-update lab add ip-dhcp-host "{NEW_HOST}" --live',
)
_ESCAPE = Path(__file__).with_name("escape.py")
_CAP_NET_ADMIN = 1 << 12


@pytest.fixture(scope="module")
def service(box: Host, package: Path) -> Host:
    box.install(package)
    box.write("/etc/vnetd/vnetd.toml", POLICY)
    box.wait_until(lambda: "lab" in box.run("virsh", "net-list", "--name").split())
    box.wait_for_state("converged")
    return box


def show(box: Host, name: str) -> str:
    return box.run("systemctl", "show", "--value", "-p", name, "vnetd").strip()


def heals(box: Host, script: str) -> None:
    records = len(box.history())
    box.sh(script)
    box.wait_until(lambda: len(box.history()) > records, what=f"a record of {script}")
    box.wait_for_state("converged")
    assert {record["outcome"] for record in box.history()[records:]} == {"repaired"}


def restart(box: Host) -> None:
    box.run("systemctl", "restart", "vnetd")
    box.wait_for_state("converged")


def escaped(box: Host, unit: str, lines: list[str]) -> dict[str, str]:
    box.write("/opt/escape.py", _ESCAPE.read_text())
    box.write(f"/run/systemd/system/{unit}", "\n".join(lines))
    box.run("systemctl", "daemon-reload")
    box.run("systemctl", "start", unit)
    (said,) = re.findall(r"^\{.*\}$", box.run("journalctl", "-o", "cat", "-u", unit), re.MULTILINE)
    found: dict[str, str] = json.loads(said)
    return found


def test_no_attempt_gets_out_of_the_sandbox(service: Host) -> None:
    """In a unit that has all of vnetd.service but what it starts."""
    replaced = ("ExecStart=", "Type=", "Restart", "WatchdogSec=", "Alias=", "WantedBy=")
    unit = service.run("systemctl", "cat", "vnetd").splitlines()
    lines = [line for line in unit if not line.startswith(replaced)]
    at = lines.index("[Service]") + 1
    lines[at:at] = ["Type=oneshot", "ExecStart=/usr/bin/python3 /opt/escape.py"]
    found = escaped(service, "escape.service", lines)
    assert [name for name in ATTEMPTS if not found[name]] == []
    assert {name: found[name] for name in NEEDED} == dict.fromkeys(NEEDED, "")


def test_without_a_sandbox_such_attempts_succeed(service: Host) -> None:
    """So the test before can fail; modules and disks a container refuses to everybody."""
    lines = ["[Service]", "Type=oneshot", "ExecStart=/usr/bin/python3 /opt/escape.py"]
    found = escaped(service, "free.service", lines)
    free = {name for name in ATTEMPTS if not found[name]}
    assert {"write /etc", "read /etc/shadow", "open a raw socket", "mount"} <= free
    assert len(free) >= 12


def test_the_service_has_its_user_one_capability_and_a_filter(service: Host) -> None:
    pid = show(service, "MainPID")
    status = dict(re.findall(r"^(\w+):\s*(.*)$", service.run("cat", f"/proc/{pid}/status"), re.M))
    user = service.run("id", "-u", "vnetd").strip()
    assert status["Uid"].split() == [user] * 4
    capabilities = {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert {int(text, 16) for text in capabilities} == {_CAP_NET_ADMIN}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    said = service.run("systemd-analyze", "security", "--no-pager", "vnetd")
    found = re.search(r"Overall exposure level for vnetd.service: ([0-9.]+)", said)
    assert found is not None, said
    assert float(found[1]) <= 1.5


@pytest.mark.parametrize("script", DAMAGE)
def test_it_repairs_what_root_would(service: Host, script: str) -> None:
    heals(service, script)


@pytest.mark.parametrize("box", ["bookworm"], indirect=True)
def test_iptables_legacy_with_its_drop_in(service: Host) -> None:
    def use(variant: str) -> None:
        for name in ("iptables", "ip6tables"):
            service.run("update-alternatives", "--set", name, f"/usr/sbin/{name}-{variant}")
        service.run("systemctl", "restart", "libvirtd")

    service.sh("systemctl stop vnetd; nft flush ruleset")
    use("legacy")
    service.run("systemctl", "restart", "vnetd")
    service.wait_until(
        lambda: "iptables-legacy.conf" in str(service.vnetctl_json("status")["Reasons"]),
        what="a word on the drop-in",
    )
    drop_in = "/etc/systemd/system/vnetd.service.d/iptables-legacy.conf"
    service.run("install", "-D", "-m644", "/usr/share/doc/vnetd/iptables-legacy.conf", drop_in)
    service.run("systemctl", "daemon-reload")
    restart(service)
    assert service.vnetctl_json("status")["Firewall"] == "iptables-legacy"
    heals(service, "iptables -t nat -F")
    service.run("rm", drop_in)
    service.run("systemctl", "stop", "vnetd")
    service.sh("for t in nat filter mangle; do iptables -t $t -F; ip6tables -t $t -F; done")
    use("nft")
    service.run("systemctl", "daemon-reload")
    restart(service)


@pytest.mark.parametrize("box", ["trixie"], indirect=True)
def test_libvirts_nftables_backend_whose_files_are_roots(service: Host) -> None:
    configuration = "/etc/libvirt/network.conf"
    service.run("cp", configuration, "/root")
    service.write(configuration, 'firewall_backend = "nftables"\n')
    service.run("systemctl", "restart", "libvirtd")
    restart(service)
    assert service.vnetctl_json("status")["Firewall"] == "nftables"
    heals(service, "nft flush ruleset")
    asked = service.run("systemctl", "show", "--value", "-p", "NAccepted", STATUS_SOCKET).strip()
    assert int(asked) > 0
    alice = ("setpriv", "--reuid=65534", "--clear-groups")
    assert not service.succeeds(*alice, "python3", "-c", CONNECT)
    service.run("cp", "/root/network.conf", configuration)
    service.run("systemctl", "restart", "libvirtd")
    restart(service)


STATUS_SOCKET = "vnetd-libvirt-status.socket"
CONNECT = "import socket; socket.socket(1, 1).connect('/run/vnetd-libvirt-status.socket')"


@pytest.mark.parametrize("box", ["trixie"], indirect=True)
def test_the_hardened_recipe_leaves_it_networks_and_nothing_else(service: Host) -> None:
    rules = "/etc/polkit-1/rules.d/10-vnetd.rules"
    service.run("install", "-m644", "/usr/share/doc/vnetd/libvirt-hardened.rules", rules)
    service.sh("""
        cp /etc/libvirt/libvirtd.conf /root
        echo 'access_drivers = [ "polkit" ]' >>/etc/libvirt/libvirtd.conf
        systemctl restart libvirtd
    """)
    restart(service)
    as_vnetd = ("setpriv", "--reuid=vnetd", "--regid=vnetd", "--init-groups", "virsh", "-c")
    allowed = service.attempt(*as_vnetd, "qemu:///system", "net-list")
    assert allowed.returncode == 0, allowed.stderr
    domain = (
        "<domain type='qemu'><name>x</name><memory>1</memory><os><type>hvm</type></os></domain>"
    )
    service.write("/run/x.xml", domain)
    refused = service.attempt(*as_vnetd, "qemu:///system", "define", "/run/x.xml")
    assert "access denied" in refused.stderr
    for script in ("virsh -q net-destroy lab", DAMAGE[2], DAMAGE[-1], "virsh -q net-undefine lab"):
        heals(service, script)
    service.run("rm", rules)
    service.run("cp", "/root/libvirtd.conf", "/etc/libvirt/libvirtd.conf")
    service.run("systemctl", "restart", "libvirtd")
    restart(service)
