"""What guests get back while libvirt is not through with their network: never less than it had."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_interface

import pytest

from vnetd.core.actions import Action
from vnetd.core.diff import diff
from vnetd.core.keep.bridges import SetBridge
from vnetd.core.keep.taps import PlugTap
from vnetd.core.model import (
    Definition,
    GuardTable,
    Held,
    IfName,
    Libvirt,
    Link,
    Mode,
    Network,
    Observed,
    Source,
    Tap,
)
from vnetd.core.model.link import Bridge, Port, Vlan
from vnetd.core.plan import plan
from vnetd.core.policy.networks import NetworkPolicy
from vnetd.core.policy.policy import Policy

BRIDGE_MAC = "52:54:00:00:00:aa"
LAB = Definition(
    "lab",
    Mode.NAT,
    bridge=IfName("vblab"),
    mac=BRIDGE_MAC,
    stp=False,
    addresses=(ip_interface("10.77.0.1/24"),),
)
TAP = Tap("web", IfName("vnet0"), "lab", mac="52:54:00:00:00:01", isolated=True)
MADE = Link(7, IfName("vblab"), "bridge", BRIDGE_MAC, 1500, up=False, bridge=Bridge())
LOOSE = Link(2, IfName("vnet0"), "tun", "fe:54:00:00:00:01", 1500, up=True)
PLUGGED = replace(LOOSE, master=IfName("vblab"), port=Port(isolated=True))
MANAGED = Policy(
    networks={
        "lab": NetworkPolicy(
            "lab", Mode.NAT, IfName("vblab"), addresses=LAB.addresses, mac=BRIDGE_MAC, stp=False
        )
    }
)
PROTECTED = Policy(present=False)


def mended(
    bridge: Link,
    tap: Link,
    *,
    policy: Policy = MANAGED,
    live: Definition | None = None,
    config: Definition = LAB,
    guest: Tap = TAP,
    held: Held | None = Held.PERSISTENT,
) -> list[Action]:
    """Of links. With live, libvirt takes the network down; without, it has not started it yet."""
    libvirt = Libvirt("9.0.0", 1, {"lab": Network("lab", config, live, True)}, taps=(guest,))
    observed = Observed(
        libvirt=libvirt,
        links={link.name: link for link in (bridge, tap)},
        leaving=frozenset({"lab"} if live else ()),
        guard=GuardTable(held, mine=True),
    )
    found = diff(policy, observed)
    drift = tuple(item for item in found.drift if item.source is Source.LINKS)
    actions = plan(policy, observed, replace(found, drift=drift))
    return [action for action in actions if isinstance(action, PlugTap | SetBridge)]


@pytest.mark.parametrize("policy", [MANAGED, PROTECTED])
def test_a_tap_goes_onto_a_bridge_that_libvirt_has_just_made(policy: Policy) -> None:
    (plug,) = mended(MADE, LOOSE, policy=policy)
    assert isinstance(plug, PlugTap)
    assert (plug.tap, plug.bridge, plug.settings.isolated) == ("vnet0", "vblab", True)
    assert mended(MADE, PLUGGED, policy=policy) == []


def test_not_onto_one_that_is_not_libvirts() -> None:
    assert mended(replace(MADE, mac="52:54:00:99:99:99"), LOOSE) == []
    assert mended(replace(MADE, kind="veth", bridge=None), LOOSE) == []


@pytest.mark.parametrize(
    ("config", "guest"),
    [
        (replace(LAB, mac_table=True), TAP),
        (LAB, replace(TAP, vlans=frozenset({Vlan(42, pvid=True, untagged=True)}))),
    ],
    ids=["MAC table", "VLAN"],
)
def test_what_libvirt_sets_up_later_is_waited_for(config: Definition, guest: Tap) -> None:
    """Without VLAN filter the port would be in everybody's VLAN."""
    assert mended(MADE, LOOSE, config=config, guest=guest) == []
    assert len(mended(replace(MADE, up=True), LOOSE, config=config, guest=guest)) == 1


def test_with_stp_the_bridge_must_be_up() -> None:
    """It would turn STP on behind the port, which then waits."""
    (policy,) = MANAGED.networks.values()
    with_stp = replace(MANAGED, networks={"lab": replace(policy, stp=True)})
    config = replace(LAB, stp=True)
    assert mended(MADE, LOOSE, policy=with_stp, config=config) == []
    up = replace(MADE, up=True, bridge=Bridge(stp=True))
    (plug,) = mended(up, LOOSE, policy=with_stp, config=config)
    assert isinstance(plug, PlugTap)
    assert plug.pause_stp


def test_a_managed_network_goes_on_until_its_bridge_is_deleted() -> None:
    (up,) = mended(MADE, PLUGGED, live=LAB)
    assert isinstance(up, SetBridge)
    assert up.bridge == "vblab"
    assert mended(replace(MADE, up=True), PLUGGED, live=LAB) == []


def test_one_that_an_admin_may_stop_does_not() -> None:
    assert mended(MADE, PLUGGED, live=LAB, policy=PROTECTED) == []


def test_nor_one_without_a_guard_in_place_of_its_rules() -> None:
    (policy,) = MANAGED.networks.values()
    unguarded = replace(MANAGED, networks={"lab": replace(policy, guard=False)})
    assert mended(MADE, PLUGGED, live=LAB, policy=unguarded) == []
    assert mended(MADE, PLUGGED, live=LAB, held=None) == []
    routed = replace(MANAGED, networks={"lab": replace(policy, mode=Mode.ROUTE)})
    live = replace(LAB, mode=Mode.ROUTE)
    assert mended(MADE, PLUGGED, live=live, config=live, policy=routed) == []


def test_the_guard_stands_before_a_network_is_started() -> None:
    libvirt = Libvirt("9.0.0", 1, {"lab": Network("lab", LAB, None, True)})
    observed = Observed(libvirt=libvirt, links={}, guard=GuardTable(None, mine=True))
    assert diff(MANAGED, observed).guard
    in_the_way = {MADE.name: replace(MADE, mac="52:54:00:99:99:99")}
    assert not diff(MANAGED, replace(observed, links=in_the_way)).guard
    assert not diff(PROTECTED, observed).guard
