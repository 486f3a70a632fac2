"""Beside Docker, ufw and firewalld guests keep what libvirt allows them, and no more, whoever
starts first; and the tools keep what is theirs.

The rulesets of Docker and ufw are recorded from the real ones; firewalld itself runs. ./dev test
--long has every order of all of them.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations

import pytest

from tests.integration import conftest
from tests.lab.canary import NAME
from tests.lab.hypervisor import TREE, UPLINK, WAN, Hypervisor
from tests.long import LONG

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
        # Docker sets no policy but FORWARD's.
        others = (":INPUT ", ":OUTPUT ") if tool == "docker" else ()
        lines = [line for line in text.splitlines() if not line.startswith(others)]
        if on_top and tool == "docker" and lines:
            jumps = [line for line in lines if line.startswith("-A FORWARD")]
            lines = [line for line in lines if line not in jumps]
            at = lines.index("COMMIT")
            lines[at:at] = [line.replace("-A", "-I", 1) for line in reversed(jumps)]
        text = "".join(f"{line}\n" for line in lines)
        if text:
            restore = f"{command}-{flavour}-restore"
            box.run(restore, "--noflush", "--wait", "30", stdin=text)


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


# -- traffic that is none of the guests'

CONTAINER, BYSTANDER = "172.17.0.2", "10.88.0.2"
_OTHERS = {"docker0": ("172.17.0.1/16", CONTAINER), "other0": ("10.88.0.1/24", BYSTANDER)}
ALL_PASSES = {
    "a container out": True,
    "outside to a container": True,
    "a bystander out": True,
    "outside to a bystander": True,
    "outside to the host, port 22": True,
    "outside to the host, port 8022": True,
}


def allowed(tools: Sequence[str]) -> dict[str, bool]:
    """Both drop what is forwarded and that they do not know; ufw, too, what comes to the host."""
    return dict.fromkeys(ALL_PASSES, False) | {
        "a container out": "docker" in tools,
        "outside to the host, port 22": True,
        "outside to the host, port 8022": "ufw" not in tools,
    }


def settle_others(box: Hypervisor) -> None:
    """A container and a bystander, behind bridges of their own on the host, to which the wan host
    knows the ways.
    """
    box.sh("sysctl -qw net.ipv4.ip_forward=1")
    for bridge, (host, address) in _OTHERS.items():
        gateway, _, prefix = host.partition("/")
        box.sh(f"ip link add {bridge} type bridge; ip link set {bridge} up")
        box.sh(f"ip addr add {host} dev {bridge}; ip -n wan route add {address} via {UPLINK}")
        box.sh(f"ip netns add {bridge}")
        box.sh(f"ip link add up-{bridge} master {bridge} up type veth peer eth0 netns {bridge}")
        box.sh(f"ip -n {bridge} addr add {address}/{prefix} dev eth0")
        box.sh(f"ip -n {bridge} link set eth0 up; ip -n {bridge} route add default via {gateway}")


def verdicts(box: Hypervisor) -> dict[str, bool]:
    questions = {
        "a container out": ("docker0", WAN, "7000"),
        "outside to a container": ("wan", CONTAINER, "80"),
        "a bystander out": ("other0", WAN, "7000"),
        "outside to a bystander": ("wan", BYSTANDER, "80"),
        "outside to the host, port 22": ("wan", UPLINK, "22"),
        "outside to the host, port 8022": ("wan", UPLINK, "8022"),
    }
    with ThreadPoolExecutor(len(questions)) as askers:
        asked = {
            name: askers.submit(box.asks, source, "tcp", address, port)
            for name, (source, address, port) in questions.items()
        }
    return {name: answer.result() for name, answer in asked.items()}


def own(box: Hypervisor, flavour: str) -> list[str]:
    """The rules of all others."""
    text = box.run(f"iptables-{flavour}-save") + box.run(f"ip6tables-{flavour}-save")
    return [
        line
        for line in text.splitlines()
        if line[:3] == "-A " and not any(mark in line for mark in ("vnetd:", "LIBVIRT_", NAME))
    ]


# -- who starts first

Order = tuple[str, ...]
_OF_ONE = [
    order
    for tool in TOOLS
    for order in (
        (tool, "networks", "vnetd"),
        ("networks", tool, "vnetd"),
        ("networks", "vnetd", tool),
    )
]
_OF_BOTH: list[Order] = [
    order
    for order in permutations((*TOOLS, "networks", "vnetd"))
    if order.index("networks") < order.index("vnetd")
]
ORDERS: list[tuple[Order, str]] = [
    (order, flavour) for order in [*_OF_ONE, *_OF_BOTH] for flavour in ("nft", "legacy")
]
SHORT = [
    (("docker", "networks", "vnetd"), "legacy"),
    (("networks", "docker", "vnetd"), "nft"),
    (("networks", "vnetd", "docker"), "nft"),
    (("networks", "vnetd", "docker"), "legacy"),
    (("ufw", "networks", "vnetd"), "legacy"),
    (("networks", "ufw", "vnetd"), "nft"),
    (("networks", "vnetd", "ufw"), "nft"),
    (("docker", "networks", "ufw", "vnetd"), "legacy"),
]
CHOSEN = ORDERS if LONG else SHORT


@pytest.mark.parametrize(
    ("order", "flavour"), CHOSEN, ids=[f"{'-'.join(order)}-{flavour}" for order, flavour in CHOSEN]
)
def test_guests_get_through_beside(order: Order, flavour: str) -> None:
    tools = [tool for tool in order if tool in TOOLS]
    legacy = flavour == "legacy"
    with Hypervisor() as box:
        box.sh("ip link add br0 type bridge; ip link set br0 up")
        settle_others(box)
        assert verdicts(box) == ALL_PASSES
        for step, who in enumerate(order):
            match who:
                case "networks":
                    box.start_vnetd(FIVE_NETWORKS, legacy=legacy)
                    box.kill("vnetd")
                case "vnetd":
                    box.start_vnetd(legacy=legacy)
                case _:
                    load(box, who, flavour, on_top="networks" in order[:step])
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
        if "ufw" in tools and legacy:  # libvirt accepts first where all are in one table
            assert not box.asks(guest, "tcp", WAN, "25")  # denied by ufw
        if tools == ["ufw"] and flavour == "legacy":
            assert box.vnetctl_json("why", "lab")["verdict"] != "blocked"

        # and what is not libvirt's is left to the tools
        expected = allowed(tools)
        assert verdicts(box) == expected

        for tool in tools:
            load(box, tool, flavour)
        loaded = own(box, flavour)
        settle(box)
        works(box, guest)
        assert sorted(marked(box, flavour)) == sorted(rules)
        assert verdicts(box) == expected
        assert own(box, flavour) == loaded

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
        settle_others(hypervisor)
        hypervisor.start_polkit()  # it allows the service to set zones
        hypervisor.start_firewalld()
        assert verdicts(hypervisor) == BESIDE_FIREWALLD
        hypervisor.start_vnetd(FIVE_NETWORKS)
        hypervisor.wait_for_state("converged")
        yield hypervisor


BESIDE_FIREWALLD = dict.fromkeys(ALL_PASSES, False) | {"outside to the host, port 22": True}


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
    assert verdicts(box) == BESIDE_FIREWALLD
    assert not any("policy_drop" in str(record) for record in box.history()), "it was over at once"


def test_guests_have_their_zones_before_libvirt_is_through(box: Hypervisor, guest: str) -> None:
    """Or while it hangs; the guard translates meanwhile."""
    good, records = box.sorted_rules(), len(box.history())
    box.signal("libvirtd", signal.SIGSTOP)
    try:
        box.sh("firewall-cmd -q --reload")
        box.wait_until(lambda: box.pings(guest, WAN), what="the guest out again")
        assert zone(box, "vblab") == "libvirt"
    finally:
        box.signal("libvirtd", signal.SIGCONT)
    box.wait_until(lambda: box.sorted_rules() == good, what="libvirt's rules")
    box.wait_until_quiet("vnetd", seconds=1)
    box.wait_for_state("converged")
    done = [action for record in box.history()[records:] for action in record["actions"]]
    assert "put bridge vblab into firewalld's zone libvirt" in done


def test_a_zone_is_taken_back_by_the_next_vnetd(box: Hypervisor) -> None:
    network = """<network><name>passing</name><bridge name='vbpassing'/>
        <ip address='10.90.0.1' prefix='24'/></network>"""
    box.vnetctl("pause", "60")  # it would be faster, and the zone of before none
    box.run("virsh", "net-create", "/dev/stdin", stdin=network)
    box.sh("firewall-cmd -q --zone=drop --change-interface=vbpassing")
    box.vnetctl("resume")
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
    assert verdicts(box) == ALL_PASSES
    box.start_firewalld()
    box.wait_until(lambda: zone(box, "vblab") == "libvirt", what="the bridge in its zone")
    box.wait_until(lambda: box.pings(guest, WAN), what="the guest out beside firewalld")
    # libvirt takes all its rules out and puts them in again when it hears of firewalld's start
    box.wait_until_quiet("vnetd")
    box.wait_for_state("converged")
    works(box, guest)
    assert verdicts(box) == BESIDE_FIREWALLD
