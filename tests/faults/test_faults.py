"""Each fault of the catalogue, under a guest that opens new flows all the time.

Afterwards rules, bridge, tap and libvirt's record are what they were, whatever vnetd itself says of
them, and guest and vnetd are the same processes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import pytest

from tests.faults.catalogue import CATALOGUE, Fault, Outcome
from tests.integration.conftest import FIVE_NETWORKS
from tests.lab.hypervisor import CACHE, TRIXIE, Hypervisor
from tests.lab.probe import Outage
from tests.long import LONG

ROWS = CACHE / "faults"
SYSTEMS = {"Debian 12": None, "Debian 13": TRIXIE}


class Host:
    """A box with a guest, and what of both must be as it was."""

    def __init__(self, name: str, box: Hypervisor) -> None:
        self.name = name
        self.box = box
        self.libvirt = box.run("virsh", "-v").strip()
        self.guest = box.domain_guest("lab", "10.77.0.51/24", gateway="10.77.0.1")
        self.tap = box.run("virsh", "-q", "domiflist", self.guest).split()[0]
        box.wait_for_state("converged")

    def facts(self) -> dict[str, object]:
        box = self.box
        links = json.loads(box.run("ip", "-d", "-j", "addr", "show"))
        kept = [link for link in links if link["ifname"] in ("vblab", self.tap)]
        return {
            "rules": sorted(box.rules().splitlines()),
            "links": {
                link["ifname"]: (
                    link.get("master"),
                    link["mtu"],
                    link["address"],
                    "UP" in link["flags"],
                    link["linkinfo"].get("info_slave_data", {}).get("isolated"),
                    link["linkinfo"].get("info_data", {}).get("stp_state"),
                    sorted(a["local"] for a in link["addr_info"] if a["scope"] == "global"),
                )
                for link in kept
            },
            "ports": box.attempt("virsh", "-q", "net-port-list", "lab").stdout.split(),
            "forwarding": box.run("cat", "/proc/sys/net/ipv4/ip_forward"),
            "config": box.attempt("virsh", "net-dumpxml", "lab", "--inactive").stdout,
            "info": box.attempt("virsh", "net-info", "lab").stdout,
            "processes": (box.pid("vnetd"), self._qemu()),
        }

    def _qemu(self) -> str:
        return self.box.run("cat", f"/run/libvirt/qemu/{self.guest}.pid").strip()

    def inject(self, script: str) -> None:
        vnetctl = f'vnetctl() {{ {self.box.tool("vnetctl")} "$@" >/dev/null; }}'
        self.box.sh(f"TAP={self.tap}; {vnetctl}\n{script}")

    def said(self) -> str:
        status = self.box.vnetctl_json("status")
        words = [*status["Reasons"]]
        for network in status["Networks"]:
            words += [*network["Reasons"], *network["Drift"]]
        return "; ".join(words)


class Hosts:
    """One for all faults, until one is not healed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stack = ExitStack()
        self._host: Host | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._host = None

    @contextmanager
    def host(self) -> Iterator[Host]:
        if self._host is None:
            box = self._stack.enter_context(Hypervisor(root=SYSTEMS[self._name]))
            box.sh("ip link add br0 type bridge; ip link set br0 up")
            box.start_vnetd(FIVE_NETWORKS)
            self._host = Host(self._name, box)
        try:
            yield self._host
        except BaseException:
            self.__exit__()
            raise


@pytest.fixture(scope="module", params=SYSTEMS if LONG else ["Debian 12"])
def hosts(request: pytest.FixtureRequest) -> Iterator[Hosts]:
    with Hosts(request.param) as found:
        yield found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", CATALOGUE, ids=lambda fault: fault.id)
def test_fault(hosts: Hosts, fault: Fault) -> None:
    with hosts.host() as host:
        _play(host, fault)


def _play(host: Host, fault: Fault) -> None:
    box = host.box
    before, records = host.facts(), len(box.history())
    with box.probing(host.guest) as outage:
        host.inject(fault.inject)
        if fault.outcome is Outcome.NAMED:
            box.wait_until(lambda: fault.told in host.said(), seconds=30, what="it is told")
        if fault.undo:
            host.inject(fault.undo)
        box.wait_until(
            lambda: box.state() == "converged" and host.facts() == before,
            seconds=60,
            what="everything as it was",
        )
    new = box.history()[records:]
    repaired = [record for record in new if record["outcome"] == "repaired"]
    if fault.outcome is Outcome.HEALED:
        assert repaired
    if fault.outcome is Outcome.UNTOUCHED:
        assert not new
    assert box.pings(host.guest, "198.51.100.2")
    _write(host, fault, outage, repaired)


def _write(host: Host, fault: Fault, outage: Outage, repaired: list[dict[str, object]]) -> None:
    ROWS.mkdir(exist_ok=True)
    row = {
        "id": fault.id,
        "what": fault.what,
        "system": f"{host.name}, libvirt {host.libvirt}",
        "outcome": fault.outcome,
        "healed_ms": max((int(str(record["ms"])) for record in repaired), default=None),
        "lost": outage.lost,
        "sent": outage.sent,
        "gap_ms": round(outage.ms),
    }
    path: Path = ROWS / f"{host.name.replace(' ', '-')}-{fault.id}.json"
    path.write_text(json.dumps(row))
