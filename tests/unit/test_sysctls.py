"""Which settings of the kernel networks need, and which vnetd sets back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from vnetd.backends.kernel.raised import Memory
from vnetd.core.drift import Conflict, Drift
from vnetd.core.keep import sysctls
from vnetd.core.keep.sysctls import SetSysctl
from vnetd.core.model import (
    Definition,
    HostRoute,
    IfName,
    Libvirt,
    Mode,
    Network,
    Observed,
    Raised,
)
from vnetd.core.policy import NetworkPolicy, Policy

FORWARDING, FILTER = "net/ipv4/ip_forward", "net/ipv4/conf/eth1/rp_filter"
ALL = "net/ipv4/conf/all/rp_filter"
BRIDGE = IfName("vblab")


def planned(
    have: Mapping[str, str],
    *,
    address: str = "10.77.0.1/24",
    forward_dev: str | None = None,
    raised: Mapping[str, Raised] | None = None,
    running: bool = True,
    managed: bool = True,
) -> list[str]:
    definition = Definition(
        "lab",
        Mode.ROUTE,
        bridge=BRIDGE,
        addresses=(ip_interface(address),),
        forward_dev=IfName(forward_dev) if forward_dev else None,
    )
    lab = Network("lab", definition, definition if running else None, autostart=True)
    default = HostRoute(ip_network("0.0.0.0/0"), IfName("eth0"), ip_address("192.0.2.1"))
    observed = Observed(
        libvirt=Libvirt("9.0.0", 1, {"lab": lab}),
        sysctls=have,
        routes=(default,),
        raised=raised or {},
    )
    want = NetworkPolicy("lab", Mode.ROUTE, BRIDGE, addresses=definition.addresses)
    policy = Policy(networks={"lab": want} if managed else {})
    kept = [definition] if running else []
    drift = [item for item in sysctls.diff(policy, kept, observed) if isinstance(item, Drift)]
    actions = sysctls.plan(drift)
    return [f"{a.name}={a.value}" for a in actions if isinstance(a, SetSysctl)]


def test_forwarding_is_set_and_kept_while_it_is_needed() -> None:
    raised = {FORWARDING: Raised("0", "1")}
    assert planned({FORWARDING: "0"}) == [f"{FORWARDING}=1"]
    assert planned({FORWARDING: "1"}, raised=raised) == []
    assert planned({FORWARDING: "1"}, raised=raised, running=False) == [], "it is to run"


def test_a_kernel_without_room_for_connections_is_told_of() -> None:
    observed = Observed(libvirt=Libvirt("9.0.0", 1, {}), sysctls={}, connections_full=64)
    (found,) = sysctls.diff(Policy(), [], observed)
    assert isinstance(found, Conflict)
    assert "nf_conntrack_max" in found.text


def test_it_is_set_back_when_nobody_needs_it_unless_somebody_changed_it() -> None:
    raised = {FORWARDING: Raised("0", "1")}
    back = [f"{FORWARDING}=0"]
    assert planned({FORWARDING: "1"}, raised=raised, running=False, managed=False) == back
    assert planned({FORWARDING: "2"}, raised=raised, running=False, managed=False) == []
    assert planned({FORWARDING: "1"}, running=False, managed=False) == [], "others set it"


def test_router_advertisements_are_taken_last_again() -> None:
    fed = "net/ipv6/conf/eth0/accept_ra"
    raised = {fed: Raised("1", "2"), sysctls.IPV6_FORWARDING: Raised("0", "1")}
    have = {name: item.value for name, item in raised.items()}
    assert planned(have, address="fd77::1/64", raised=raised) == []
    back = planned(have, raised=raised)
    assert back == [f"{sysctls.IPV6_FORWARDING}=0", f"{fed}=1"]


def test_a_bridge_takes_no_router_advertisements_of_guests() -> None:
    own = "net/ipv6/conf/vblab/accept_ra"
    assert planned({own: "1"}, address="fd77::1/64") == [f"{own}=0"]
    assert planned({own: "2"}, address="fd77::1/64") == [f"{own}=0"]
    assert planned({own: "1"}) == []


def test_a_bridge_with_an_ipv6_address_has_ipv6() -> None:
    off = "net/ipv6/conf/vblab/disable_ipv6"
    assert planned({off: "1"}, address="fd77::1/64") == [f"{off}=0"]
    assert planned({off: "1"}) == []


@pytest.mark.parametrize(
    ("have", "actions"),
    [
        ({FILTER: "1", ALL: "0"}, [f"{FILTER}=2"]),
        ({FILTER: "0", ALL: "1"}, [f"{FILTER}=2"]),
        ({FILTER: "0", ALL: "0"}, []),
        ({FILTER: "2", ALL: "1"}, []),
    ],
)
def test_a_strict_filter_is_loosened_only_where_answers_leave_by_another_link(
    have: Mapping[str, str], actions: list[str]
) -> None:
    assert planned(have, forward_dev="eth1") == actions
    assert planned(have, forward_dev="eth0") == []
    assert planned(have) == []
    assert planned(have, forward_dev="eth1", managed=False) == []


def test_a_loosened_filter_stays_so() -> None:
    raised = {FILTER: Raised("1", "2")}
    assert planned({FILTER: "2", ALL: "0"}, forward_dev="eth1", raised=raised) == []
    assert planned({FILTER: "2", ALL: "0"}, raised=raised) == [f"{FILTER}=1"]


def test_memory_outlives_a_restart_but_not_a_reboot(tmp_path: Path) -> None:
    path = tmp_path / "sysctls.json"
    memory = Memory(path)
    memory.note(FORWARDING, "0", "1")
    memory.note(FORWARDING, "1", "1")  # set again: what counts is what was there before vnetd
    memory.note(FILTER, "1", "2")
    memory.forget(FILTER)
    assert Memory(path).raised == {FORWARDING: Raised("0", "1")}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"boot": "another"}))
    assert Memory(path).raised == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"boot": 1}'])
def test_a_broken_memory_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sysctls.json"
    path.write_text(text)
    memory = Memory(path)
    assert memory.raised == {}
    memory.note(FORWARDING, "0", "1")
    assert Memory(path).raised


def test_without_a_disk_it_remembers_as_long_as_it_runs(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "nowhere" / "sysctls.json")
    memory.note(FORWARDING, "0", "1")
    assert memory.raised == {FORWARDING: Raised("0", "1")}
