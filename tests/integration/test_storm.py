"""libvirt rewrites its rules while somebody flushes them, again and again: in the end they are
there, each once. In all three firewalls. ./dev test --long makes it longer, and has libvirt 11.3
with iptables, too.
"""

from __future__ import annotations

import re
import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.integration.conftest import FIVE_NETWORKS
from tests.lab.hypervisor import WORLDS, WORLDS_IN_SHORT, Hypervisor
from tests.long import LONG

pytestmark = pytest.mark.usefixtures("_trespassers")

SECONDS = 60.0 if LONG else 15.0
UPDATES = 50 if SECONDS >= 60 else 20
RESTARTS = {UPDATES // 3: signal.SIGTERM, UPDATES * 2 // 3: signal.SIGKILL}
OF_IPTABLES = "; ".join(
    f"{tool} -t nat -F; {tool} -F; {tool} -X" for tool in ("iptables", "ip6tables")
)
FLUSH = {"iptables": OF_IPTABLES, "nft": "nft flush ruleset"}
# nft names the index of an interface that is gone
OF_A_NETWORK = re.compile(r"vblab|vbrouted|vbquiet|10\.7\d\.|fd7\d::|[io]if \d")


@pytest.fixture(params=WORLDS if LONG else WORLDS_IN_SHORT, scope="module")
def world(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tool(world: str) -> str:
    return "nft" if world.endswith("nftables") else "iptables"


@pytest.fixture(scope="module")
def box(world: str) -> Iterator[Hypervisor]:
    with Hypervisor.of_world(world) as hypervisor:
        hypervisor.sh("ip link add br0 type bridge; ip link set br0 up")
        hypervisor.start_vnetd(FIVE_NETWORKS)
        yield hypervisor


def rules(box: Hypervisor) -> Counter[str]:
    """The order between networks is libvirt's affair, and another after its restart."""
    return Counter((box.tables() or box.rules()).splitlines())


def host(number: int) -> str:
    mac = f"52:54:00:00:02:{number:02x}"
    return f"<host mac='{mac}' name='storm{number}' ip='10.77.0.{30 + number}'/>"


def test_libvirt_that_failed_to_make_its_chains_makes_them_when_told(
    box: Hypervisor, tool: str
) -> None:
    """Somebody flushed, or held the lock, while libvirtd started: it would refuse for ever."""
    good = rules(box)
    box.kill("libvirtd")
    path = box.run("sh", "-c", f"command -v {tool}").strip()
    box.sh(f"mv {path} /run/box/tool; printf '#!/bin/sh\\nexit 4\\n' >{path}; chmod +x {path}")
    box.start_libvirtd()
    box.sh(f"mv /run/box/tool {path}")
    box.write("/etc/vnetd/vnetd.toml", FIVE_NETWORKS.replace('"10.77.0.20"', '"10.77.0.21"'))
    box.wait_until(lambda: "10.77.0.21" in box.run("virsh", "net-dumpxml", "lab"), seconds=60)
    box.wait_until(lambda: box.state() == "converged", seconds=60, what="converged")
    box.wait_until(lambda: rules(box) == good)
    mended = [record for record in box.history() if "failed to make its chains" in str(record)]
    assert [record["outcome"] for record in mended] == ["repaired"]
    box.write("/etc/vnetd/vnetd.toml", FIVE_NETWORKS)
    box.wait_until(lambda: "10.77.0.20" in box.run("virsh", "net-dumpxml", "lab"))
    box.wait_for_state("converged")


@pytest.mark.timeout(SECONDS + 300)  # vnetd takes it for a fight, and waits up to a minute
def test_after_a_storm_the_rules_are_libvirts_each_once(box: Hypervisor, tool: str) -> None:
    good = rules(box)
    box.spawn("flusher", "sh", "-c", f"while :; do {FLUSH[tool]}; echo flushed; sleep 0.2; done")
    deadline = time.monotonic() + SECONDS
    done: Counter[str] = Counter()
    while time.monotonic() < deadline or done["update"] < UPDATES or done["hup"] < 20:
        number = done["update"] % 10
        verb = "delete" if done["update"] % 20 >= 10 else "add"
        # libvirt refuses an update while its chains are gone; what it does then belongs to it
        update = ("net-update", "lab", verb, "ip-dhcp-host", host(number), "--live")
        done["refused"] += not box.succeeds("virsh", *update)
        done["update"] += 1
        if done["hup"] < 20:
            box.signal("libvirtd", signal.SIGHUP)
            done["hup"] += 1
        if done["update"] in RESTARTS:
            box.kill("libvirtd", RESTARTS[done["update"]])
            box.start_libvirtd()
    box.kill("flusher", signal.SIGKILL)
    print(f"{dict(done)}, {box.log('flusher').count('flushed')} flushes")
    box.wait_until(lambda: rules(box) == good, seconds=80, what="libvirt's rules, each once")
    box.wait_until(lambda: box.state() == "converged", seconds=80, what="converged")
    box.wait_until_quiet("vnetd")  # libvirt may have written a moment ago
    assert rules(box) == good
    for network in ("lab", "routed", "quiet"):
        box.vnetctl("pause", "600")
        box.run("virsh", "net-destroy", network)
    assert [rule for rule in rules(box) if OF_A_NETWORK.search(rule)] == []
