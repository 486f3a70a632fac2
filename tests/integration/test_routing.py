"""Ways to guests beyond the bridge: networks' own routes, and subnets that others have. The
long form has both libvirts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.lab.hypervisor import TRIXIE, Hypervisor
from tests.long import LONG

ROUTED = """
[networks.lab]
mode = "route"
bridge = "vblab"
stp = false
addresses = ["10.77.0.1/24", "fd77::1/64"]
routes = [
    { to = "10.90.0.0/24", via = "10.77.0.5" },
    { to = "fd90::/64", via = "fd77::5", metric = 300 },
]
"""


@pytest.fixture(scope="module", params=["libvirt 9", *(["libvirt 11"] if LONG else [])])
def box(request: pytest.FixtureRequest) -> Iterator[Hypervisor]:
    with Hypervisor(root=TRIXIE if request.param == "libvirt 11" else None) as hypervisor:
        hypervisor.start_vnetd(ROUTED)
        yield hypervisor


def routes(box: Hypervisor) -> str:
    """Without the mark of vnetd's own."""
    shown = box.sh("ip route show dev vblab; ip -6 route show dev vblab")
    return shown.replace(" proto 118", "")


def network(box: Hypervisor, name: str) -> Any:
    return box.vnetctl_json("status", name)["Networks"][0]


def reasons(box: Hypervisor, name: str) -> list[str]:
    return list(network(box, name)["Reasons"])


@contextmanager
def vpn(box: Hypervisor, *addresses: str) -> Iterator[None]:
    """A tunnel that comes up, with routes to these subnets."""
    box.sh("ip tuntap add dev vpn0 mode tun; ip link set vpn0 up")
    for address in addresses:
        box.run("ip", "-6" if ":" in address else "-4", "route", "add", address, "dev", "vpn0")
    try:
        yield
    finally:
        box.attempt("ip", "link", "del", "vpn0")


def test_a_networks_own_routes_come_back(box: Hypervisor) -> None:
    before = routes(box)
    assert "10.90.0.0/24 via 10.77.0.5" in before
    assert "fd90::/64 via fd77::5 metric 300" in before
    records = len(box.history())
    box.sh("ip route del 10.90.0.0/24; ip -6 route del fd90::/64")
    box.wait_until(lambda: routes(box) == before, what="both routes as libvirt had set them")
    box.wait_until(lambda: len(box.history()) > records, what="a record")
    box.wait_for_state("converged")
    actions = [action for item in box.history()[records:] for action in item["actions"]]
    assert "add route 10.90.0.0/24 via 10.77.0.5 dev vblab" in actions
    assert "add route fd90::/64 via fd77::5 metric 300 dev vblab" in actions


def test_routes_follow_the_policy_without_a_restart(box: Hypervisor) -> None:
    index = box.run("cat", "/sys/class/net/vblab/ifindex")
    box.run("ip", "route", "add", "10.92.0.0/24", "via", "10.77.0.9")
    with box.policy(ROUTED.replace("10.90.0.0/24", "10.91.0.0/24")):
        assert "10.91.0.0/24 via 10.77.0.5 metric 1" in routes(box)
        assert "10.90.0.0/24" not in routes(box)
        assert "10.92.0.0/24" in routes(box), "nobody but the admin may remove the admin's"
        assert "10.91.0.0" in box.run("virsh", "net-dumpxml", "--inactive", "lab")
        assert box.state() == "converged"
    assert box.run("cat", "/sys/class/net/vblab/ifindex") == index
    box.run("ip", "route", "del", "10.92.0.0/24")


@pytest.mark.parametrize("wide", ["10.0.0.0/8", "fd00::/8"])
def test_a_vpn_that_comes_up_is_named_and_both_stay(box: Hypervisor, wide: str) -> None:
    before = routes(box)
    with vpn(box, wide):
        box.wait_for_state("degraded")
        assert f"overlaps route {wide} dev vpn0" in reasons(box, "lab")[0]
        assert wide in box.sh("ip route; ip -6 route")
        assert routes(box) == before
    box.wait_for_state("converged")
    last = box.history()[-1]
    assert (last["object"], last["outcome"]) == ("network/lab", "conflict")
    assert wide in last["drift"][0]


@pytest.mark.parametrize(
    ("others", "address"),
    [
        ("10.93.5.8/30", "10.93.5.1/24"),
        ("fd93::/16", "fd93::1/64"),
    ],
)
def test_no_network_starts_where_others_are(box: Hypervisor, others: str, address: str) -> None:
    new = f'[networks.new]\nmode = "isolated"\nbridge = "vbnew"\naddresses = ["{address}"]\n'
    with vpn(box, others), box.policy(ROUTED + new):
        assert "cannot start: subnet" in reasons(box, "new")[0]
        assert f"overlaps route {others} dev vpn0" in reasons(box, "new")[0]
        assert not network(box, "new")["Active"]
        assert box.vnetctl_json("plan") == []
        box.run("ip", "link", "del", "vpn0")
        box.wait_until(lambda: bool(network(box, "new")["Active"]), what="the network to start")
        box.wait_for_state("converged")


def test_the_gateway_is_never_shadowed(box: Hypervisor) -> None:
    new = '[networks.new]\nmode = "nat"\nbridge = "vbnew"\naddresses = ["198.51.100.3/29"]\n'
    allowed = 'overlaps = ["198.51.100.0/24"]\n'
    with box.policy(ROUTED + new + allowed):
        told = " ".join(reasons(box, "new"))
        assert "contains the host's gateway 198.51.100.2 dev uplink0" in told
        assert "contains address 198.51.100.1" not in told, "allowed"
        assert not network(box, "new")["Active"]
    assert box.succeeds("ping", "-qc1", "-W1", "198.51.100.2")
