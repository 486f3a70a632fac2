"""libvirt rewrites its rules while somebody flushes them, again and again: in the end they are
there, each once. In all three firewalls. VNETD_STORM_SECONDS makes it longer.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.integration.conftest import FIVE_NETWORKS
from tests.lab.hypervisor import TRIXIE, Hypervisor

SECONDS = float(os.environ.get("VNETD_STORM_SECONDS", "15"))
UPDATES = 50 if SECONDS >= 60 else 20
FLUSH = {
    "iptables": "iptables -t nat -F; iptables -F; iptables -X 2>/dev/null || true",
    "legacy": "iptables -t nat -F; iptables -F; iptables -X 2>/dev/null || true",
    "nftables": "nft flush ruleset",
}


@pytest.fixture(params=FLUSH, scope="module")
def world(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def box(world: str) -> Iterator[Hypervisor]:
    nftables = world == "nftables"
    with Hypervisor(
        root=TRIXIE if nftables else None,
        backend="nftables" if nftables else "",
        variant="legacy" if world == "legacy" else "nft",
    ) as hypervisor:
        hypervisor.sh("ip link add br0 type bridge; ip link set br0 up")
        hypervisor.start_vnetd(FIVE_NETWORKS)
        yield hypervisor


def rules(box: Hypervisor) -> Counter[str]:
    """The order between networks is libvirt's affair, and another after its restart."""
    return Counter((box.tables() or box.rules()).splitlines())


def host(number: int) -> str:
    mac = f"52:54:00:00:02:{number:02x}"
    return f"<host mac='{mac}' name='storm{number}' ip='10.77.0.{30 + number}'/>"


@pytest.mark.timeout(SECONDS + 300)  # vnetd takes it for a fight, and waits up to a minute
def test_after_a_storm_the_rules_are_libvirts_each_once(box: Hypervisor, world: str) -> None:
    good = rules(box)
    box.spawn("flusher", "sh", "-c", f"while :; do {FLUSH[world]}; sleep 0.2; done")
    deadline = time.monotonic() + SECONDS
    done: Counter[str] = Counter()
    while time.monotonic() < deadline or done["update"] < UPDATES or done["hup"] < 20:
        number = done["update"] % 10
        verb = "delete" if done["update"] % 20 >= 10 else "add"
        # libvirt refuses an update while its chains are gone; what it does then belongs to it
        box.attempt("virsh", "net-update", "lab", verb, "ip-dhcp-host", host(number), "--live")
        done["update"] += 1
        if done["hup"] < 20:
            box.signal("libvirtd", signal.SIGHUP)
            done["hup"] += 1
        if done["update"] == UPDATES // 2:
            box.kill("libvirtd", signal.SIGKILL)
            box.start_libvirtd()
    box.kill("flusher", signal.SIGKILL)
    box.wait_until(lambda: rules(box) == good, seconds=80, what="libvirt's rules, each once")
    box.wait_until(lambda: box.state() == "converged", seconds=80, what="converged")
    assert rules(box) == good
    for network in ("lab", "routed", "quiet"):
        box.vnetctl("pause", "600")
        box.run("virsh", "net-destroy", network)
    left = "\n".join(rules(box))
    assert not [bridge for bridge in ("vblab", "vbrouted", "vbquiet", "10.7") if bridge in left]
