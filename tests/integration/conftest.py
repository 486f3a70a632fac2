"""Other people's things in every box; and the box with five networks, one of each mode, kept by
vnetd, made once for each module.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.lab.hypervisor import Hypervisor
from tests.lab.trespass import open_guest, trespassing

FIVE_NETWORKS = """
[networks.lab]
mode = "nat"
bridge = "vblab"
stp = false
addresses = ["10.77.0.1/24", "fd77::1/64"]
dhcp.ranges = ["10.77.0.10-10.77.0.99"]
dhcp.hosts = [{ mac = "52:54:00:00:01:01", name = "web", address = "10.77.0.20" }]

[networks.routed]
mode = "route"
bridge = "vbrouted"
stp = false
addresses = ["10.78.0.1/24", "fd78::1/64"]

[networks.quiet]
mode = "isolated"
bridge = "vbquiet"
autostart = false
addresses = ["10.79.0.1/24"]
dhcp.ranges = ["10.79.0.10-10.79.0.99"]

[networks.free]
mode = "open"
bridge = "vbfree"
addresses = ["10.80.0.1/24"]

[networks.lan]
mode = "bridge"
bridge = "br0"
"""


Hypervisor.with_canary = True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A lane that cannot run fails in CI, and says so elsewhere."""
    if os.geteuid() != 0 and not os.environ.get("CI"):
        for item in items:
            item.add_marker(pytest.mark.skip(reason="a hypervisor in a box needs root"))


@pytest.fixture(autouse=True)
def _canary() -> Iterator[None]:
    """Nothing of other people's changes in a test, in any box; tests/lab/canary.py."""
    canaries = [box.canary for box in Hypervisor.standing if box.canary is not None]
    for canary in canaries:
        canary.perch()
    yield
    for canary in canaries:
        canary.check()


@pytest.fixture(scope="module")
def box() -> Iterator[Hypervisor]:
    with Hypervisor() as hypervisor:
        hypervisor.sh("ip link add br0 type bridge; ip link set br0 up")
        hypervisor.start_vnetd(FIVE_NETWORKS)
        yield hypervisor


@pytest.fixture(scope="module")
def _trespassers(box: Hypervisor) -> Iterator[None]:
    """From beginning to end of a module somebody tries to get in to its NAT and its isolated
    network, and out of the isolated one. By IPv6, which is not translated there, they may.
    """
    open_guest(box, "vblab", "10.77.0", host="90")
    quiet = open_guest(box, "vbquiet", "10.79.0", host="90")
    with trespassing(box, ("10.77.0.90", "10.79.0.90"), [quiet]):
        yield
