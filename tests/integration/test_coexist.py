"""Beside Docker, ufw and firewalld guests keep what libvirt allows them, and no more, whoever
starts first; and the tools keep what is theirs.

The rulesets of Docker and ufw are recorded from the real ones; firewalld itself runs.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.integration import conftest
from tests.lab.hypervisor import TREE, WAN, Hypervisor

FOREIGN = TREE / "tests/cases/foreign"
TOOLS = {"docker": "docker-20.10.24", "ufw": "ufw-0.36.2"}
# With STP a guest waits 4 s before its first word.
FIVE_NETWORKS = conftest.FIVE_NETWORKS.replace('"vbquiet"', '"vbquiet"\nstp = false')
GUEST, ISOLATED = "10.77.0.50", "10.79.0.50"


def load(box: Hypervisor, tool: str, flavour: str, *, on_top: bool = False) -> None:
    """As the tool does when it starts or reloads: its chains are made, or emptied, and filled.

    on_top: docker puts its jumps before all others, ufw behind them.
    """
    for command, version in (("iptables", "v4"), ("ip6tables", "v6")):
        text = (FOREIGN / f"{TOOLS[tool]}.{version}").read_text()
        lines = text.splitlines()
        if on_top and tool == "docker" and lines:
            jumps = [line for line in lines if line.startswith("-A FORWARD")]
            lines = [line for line in lines if line not in jumps]
            at = lines.index("COMMIT")
            lines[at:at] = [line.replace("-A", "-I", 1) for line in reversed(jumps)]
        text = "".join(f"{line}\n" for line in lines)
        if text:
            box.run(f"{command}-{flavour}-restore", "--noflush", stdin=text)


def marked(box: Hypervisor, flavour: str) -> list[str]:
    text = box.run(f"iptables-{flavour}-save") + box.run(f"ip6tables-{flavour}-save")
    return [line for line in text.splitlines() if "vnetd:" in line]


def settle(box: Hypervisor) -> None:
    """Legacy tables tell nobody: a pass is what sees them."""
    box.vnetctl("reconcile")
    box.wait_for_state("converged")


def works(box: Hypervisor, guest: str) -> None:
    assert box.pings(guest, WAN)
    with box.probing(guest) as outage:
        pass
    assert outage.sources == ["198.51.100.1"]
    assert box.asks(guest, "dns", "10.77.0.1")
    assert box.asks(guest, "dhcp", "eth0")


@pytest.fixture(params=["tool first", "networks first"])
def order(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("flavour", ["nft", "legacy"])
@pytest.mark.parametrize("tool", list(TOOLS))
def test_guests_get_through_beside(tool: str, flavour: str, order: str) -> None:
    with Hypervisor() as box:
        box.sh("ip link add br0 type bridge; ip link set br0 up")
        if order == "tool first":
            load(box, tool, flavour)
        box.start_vnetd(FIVE_NETWORKS, legacy=flavour == "legacy")
        if order == "networks first":
            load(box, tool, flavour, on_top=True)
        settle(box)
        guest = box.guest("vblab", f"{GUEST}/24", gateway="10.77.0.1")
        isolated = box.guest("vbquiet", f"{ISOLATED}/24", gateway="10.79.0.1")
        works(box, guest)
        rules = marked(box, flavour)
        assert all(" -j ACCEPT" in rule for rule in rules)

        # what libvirt keeps apart stays apart
        assert not box.pings(isolated, WAN)
        assert not box.pings(guest, ISOLATED)
        assert not box.succeeds("ping", "-qc1", "-W1", GUEST, guest="wan")
        if tool == "ufw" and flavour == "legacy":
            assert box.vnetctl_json("why", "lab")["verdict"] != "blocked"

        load(box, tool, flavour)
        settle(box)
        works(box, guest)
        assert sorted(marked(box, flavour)) == sorted(rules)

        box.write("/etc/vnetd/vnetd.toml", "[vnetd]\ncoexist = []\n" + FIVE_NETWORKS)
        assert box.vnetctl("reload").returncode == 0
        box.wait_until(lambda: not marked(box, flavour), what="no accept left over")


def test_a_network_that_goes_takes_its_accepts_along() -> None:
    with Hypervisor() as box:
        box.sh("ip link add br0 type bridge; ip link set br0 up")
        box.start_vnetd(FIVE_NETWORKS, legacy=True)
        load(box, "docker", "legacy")
        settle(box)
        assert any("vnetd:routed" in rule for rule in marked(box, "legacy"))
        before, _, after = FIVE_NETWORKS.partition("[networks.routed]")
        box.write("/etc/vnetd/vnetd.toml", before + after[after.index("[networks") :])
        gone = "vnetd:routed"
        box.wait_until(lambda: not any(gone in rule for rule in marked(box, "legacy")))
        settle(box)
        assert any("vnetd:lab" in rule for rule in marked(box, "legacy"))
        # libvirt's bridge mode has no rules of libvirt's own in the way
        assert any("-i br0 -o br0 -m physdev" in rule for rule in marked(box, "legacy"))


def test_a_denial_by_hand_stays_one() -> None:
    with Hypervisor() as box:
        box.start_vnetd(FIVE_NETWORKS, legacy=True)
        load(box, "docker", "legacy")
        box.sh("iptables-legacy -I DOCKER-USER -i vblab -j DROP")
        box.vnetctl("reconcile")
        guest = box.guest("vblab", f"{GUEST}/24", gateway="10.77.0.1")
        assert not box.pings(guest, WAN)
        why = box.vnetctl("status", "lab").stdout
        assert "filter DOCKER-USER (iptables-legacy): -i vblab -j DROP" in why


# -- firewalld

# br_netfilter shows it the frames of the host's own bridge as well: that is for the admin to allow.
TRUSTED = """<?xml version="1.0"?>
<zone target="ACCEPT"><short>Trusted</short><interface name="br0"/></zone>
"""


@pytest.fixture(scope="module")
def box() -> Iterator[Hypervisor]:
    """With firewalld on its bus."""
    with Hypervisor() as hypervisor:
        hypervisor.write("/etc/firewalld/zones/trusted.xml", TRUSTED)
        hypervisor.sh("ip link add br0 type bridge; ip link set br0 up")
        hypervisor.start_polkit()  # it allows the service to set zones
        hypervisor.start_firewalld()
        hypervisor.start_vnetd(FIVE_NETWORKS)
        hypervisor.wait_for_state("converged")
        yield hypervisor


def zone(box: Hypervisor, bridge: str) -> str:
    return box.attempt("firewall-cmd", f"--get-zone-of-interface={bridge}").stdout.strip()


@pytest.fixture(scope="module")
def guest(box: Hypervisor) -> str:
    return box.guest("vblab", f"{GUEST}/24", gateway="10.77.0.1")


@pytest.mark.parametrize(
    "script",
    [
        "true",
        "firewall-cmd -q --reload",
        "firewall-cmd -q --complete-reload",
        "firewall-cmd -q --zone=drop --change-interface=vblab",
        "firewall-cmd -q --zone=public --change-interface=vblab",
        "firewall-cmd -q --zone=libvirt --remove-interface=vblab",
    ],
)
def test_guests_get_through_beside_firewalld(box: Hypervisor, guest: str, script: str) -> None:
    box.sh(script)
    box.wait_until(lambda: zone(box, "vblab") == "libvirt", what="the bridge in its zone")
    box.wait_until(lambda: box.pings(guest, WAN), what="the guest out again")
    box.wait_until_quiet("vnetd", seconds=1)  # libvirt rewrites its rules after a reload
    box.wait_for_state("converged")
    works(box, guest)


def test_a_zone_is_taken_back_by_the_next_vnetd(box: Hypervisor) -> None:
    network = """<network><name>passing</name><bridge name='vbpassing'/>
        <ip address='10.90.0.1' prefix='24'/></network>"""
    box.run("virsh", "net-create", "/dev/stdin", stdin=network)
    box.sh("firewall-cmd -q --zone=drop --change-interface=vbpassing")
    box.wait_until(lambda: zone(box, "vbpassing") == "libvirt", what="the bridge in its zone")
    box.wait_for_state("converged")
    box.kill("vnetd", signal.SIGKILL)
    box.run("virsh", "net-destroy", "passing")
    box.start_vnetd()
    box.wait_until(lambda: zone(box, "vbpassing") == "drop", what="the zone of before")
    box.sh("firewall-cmd -q --zone=drop --remove-interface=vbpassing")


def test_firewalld_stops_and_starts_again(box: Hypervisor, guest: str) -> None:
    box.kill("firewalld")
    box.wait_until(lambda: box.pings(guest, WAN), what="the guest out without firewalld")
    box.wait_for_state("converged")
    works(box, guest)
    box.start_firewalld()
    box.wait_until(lambda: zone(box, "vblab") == "libvirt", what="the bridge in its zone")
    box.wait_until(lambda: box.pings(guest, WAN), what="the guest out beside firewalld")
    # libvirt takes all its rules out and puts them in again when it hears of firewalld's start
    box.wait_until_quiet("vnetd")
    box.wait_for_state("converged")
    works(box, guest)
