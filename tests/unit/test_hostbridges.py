"""What is wrong with bridges of the host, what is in the way, and what is done in which order."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from vnetd.core.diff import diff
from vnetd.core.keep.hostbridges import MARK, AddRoutes, MakeBridge, RemoveBridge
from vnetd.core.keep.uplinks import ReleaseUplink, TakeUplink
from vnetd.core.model import IfName, Observed, Owner, Refusal, Route, Taken, Uplinks
from vnetd.core.model.link import Bridge, Link, Port, Vlan
from vnetd.core.plan import plan
from vnetd.core.policy import Policy, PolicyText, parse
from vnetd.core.uplinks import resolve, way_out

BR0, ETH0 = IfName("br0"), IfName("eth0")
ADDRESS, MAC = ip_interface("192.0.2.10/24"), "52:54:00:00:00:01"
DEFAULT = Route(ip_network("0.0.0.0/0"), ip_address("192.0.2.1"))
CARD = Link(2, ETH0, "", MAC, 1500, True, addresses=frozenset({ADDRESS}), permanent_mac=MAC)
PLUGGED = replace(CARD, master=BR0, port=Port(), addresses=frozenset())
BRIDGE = Link(
    3, BR0, "bridge", MAC, 1500, True, bridge=Bridge(), addresses=frozenset({ADDRESS}), alias=MARK
)
TAKEN = Taken(BR0, ETH0, frozenset({ADDRESS}), frozenset({DEFAULT}))


def policy(text: str = 'ports = ["eth0"]') -> Policy:
    return parse([PolicyText("vnetd.toml", f"[bridges.br0]\n{text}\n")])


def seen(wanted: Policy, *links: Link, uplinks: Uplinks | None = None) -> Observed:
    found = replace(uplinks or Uplinks(), asked=wanted.asked.bridges)
    return Observed(links={link.name: link for link in links}, uplinks=found)


RIGHT = Uplinks(taken=(TAKEN,), routes={BR0: frozenset({DEFAULT})})


def wrong(wanted: Policy, observed: Observed) -> list[str]:
    found = diff(wanted, observed)
    texts = [item.text for item in found.conflicts] + [item.text for item in found.waits]
    return [str(item) for item in found.drift] + texts


def test_nothing_is_wrong() -> None:
    assert wrong(policy(), seen(policy(), BRIDGE, PLUGGED, uplinks=RIGHT)) == []


def test_a_new_bridge_takes_its_uplink_in_before_anything_else() -> None:
    """Also while libvirt is not there."""
    wanted = policy('ports = ["eth0"]\naddresses = ["192.0.2.99/24"]\ngateways = ["192.0.2.1"]')
    observed = seen(wanted, CARD)
    actions = plan(wanted, observed, diff(wanted, observed))
    assert [type(action) for action in actions] == [MakeBridge, TakeUplink]
    make, take = actions
    assert isinstance(make, MakeBridge)
    assert make.mac == MAC
    assert "put back" in take.impact


def test_what_a_broken_bridge_has_lost_comes_back_from_what_was_brought() -> None:
    bare = replace(BRIDGE, addresses=frozenset())
    observed = seen(policy(), bare, PLUGGED, uplinks=replace(RIGHT, routes={}))
    assert wrong(policy(), observed) == [
        "address 192.0.2.10/24 is missing",
        "routes are missing: default via 192.0.2.1",
    ]


def test_a_gateway_that_somebody_has_changed_stays_unless_the_policy_names_one() -> None:
    other = replace(DEFAULT, gateway=ip_address("192.0.2.254"))
    now = replace(RIGHT, routes={BR0: frozenset({other})})
    assert wrong(policy(), seen(policy(), BRIDGE, PLUGGED, uplinks=now)) == []
    named = policy('ports = ["eth0"]\naddresses = ["192.0.2.10/24"]\ngateways = ["192.0.2.1"]')
    observed = seen(named, BRIDGE, PLUGGED, uplinks=now)
    (action,) = plan(named, observed, diff(named, observed))
    assert isinstance(action, AddRoutes)
    assert action.routes == (DEFAULT,)


@pytest.mark.parametrize(
    ("links", "uplinks", "text"),
    [
        ((replace(BRIDGE, kind="veth"), CARD), Uplinks(), "a veth"),
        (
            (CARD,),
            Uplinks(owners={"br0": Owner("netplan", "/x:3", "y")}),
            "netplan (/x:3) leads it",
        ),
        ((CARD,), Uplinks(owners={"eth0": Owner("A", "b", "c")}), "A (b) leads uplink eth0"),
        ((CARD,), Uplinks(wireless=frozenset({ETH0})), "4-address frames"),
        ((CARD,), Uplinks(leased=frozenset({ETH0})), "DHCP client"),
        ((replace(CARD, master=IfName("bond0")),), Uplinks(), "is a port of link bond0"),
    ],
)
def test_nothing_is_done_while_something_is_in_the_way(
    links: tuple[Link, ...], uplinks: Uplinks, text: str
) -> None:
    observed = seen(policy(), *links, uplinks=uplinks)
    found = diff(policy(), observed)
    assert text in found.conflicts[0].text
    assert not found.drift
    assert not found.waits


def test_an_uplink_that_was_put_back_is_not_tried_again_by_itself() -> None:
    refusal = Refusal(BR0, ETH0, "uplink eth0 was put back: x", repr(policy().bridges["br0"]))
    observed = seen(policy(), CARD, uplinks=Uplinks(refused=(refusal,)))
    (text,) = wrong(policy(), observed)
    assert text.startswith("uplink eth0 was put back: x; tried again when its policy changes")
    assert plan(policy(), observed, diff(policy(), observed)) == ()
    assert diff(policy(), replace(observed, insist=True)).drift
    changed = policy('ports = ["eth0"]\nstp = true')
    assert diff(changed, replace(observed, insist=False)).drift


def test_a_policy_that_the_look_did_not_know_of_waits_for_the_next() -> None:
    observed = Observed(links={ETH0: CARD}, uplinks=Uplinks())
    assert wrong(policy(), observed) == []


def test_late_uplinks_and_cables_that_are_out_are_waited_for() -> None:
    observed = seen(policy())
    assert wrong(policy(), observed) == ["is not there", "waits for uplink eth0: no such link"]
    dark = replace(PLUGGED, carrier=False)
    observed = seen(policy(), BRIDGE, dark, uplinks=RIGHT)
    assert wrong(policy(), observed) == ["waits for a carrier on uplink eth0"]


def test_vlans_isolation_and_mtu_of_a_port() -> None:
    wanted = policy(
        'ports = [{ uplink = "eth0", isolated = true, vlan = { pvid = 7, untagged = [7] } }]\n'
        "vlan_filtering = true\nmtu = 9000"
    )
    port = Port(vlans=frozenset({Vlan(1, pvid=True, untagged=True)}))
    observed = seen(wanted, BRIDGE, replace(PLUGGED, port=port), uplinks=RIGHT)
    vlan = "vlan is 1 pvid untagged instead of 7 pvid untagged"
    assert wrong(wanted, observed) == [
        "mtu is 1500 instead of 9000, vlan_filtering is none instead of on",
        f"port eth0: mtu is 1500 instead of 9000, isolated is off instead of on, {vlan}",
    ]
    actions = plan(wanted, observed, diff(wanted, observed))
    assert str(actions[0]) == "set bridge br0 up, mtu 9000, vlan_filtering on"
    assert getattr(actions[1], "unwanted", None) == (1,)


def test_what_the_kernel_does_not_have_is_off() -> None:
    wanted = policy('ports = ["eth0"]\nvlan_filtering = false')
    assert wrong(wanted, seen(wanted, BRIDGE, PLUGGED, uplinks=RIGHT)) == []


def test_stp_is_paused_only_for_the_first_way_out() -> None:
    wanted = policy('ports = ["eth0", "eth1"]\nstp = true')
    second = replace(CARD, index=9, name=IfName("eth1"), addresses=frozenset())
    observed = seen(wanted, CARD, second)
    first = plan(wanted, observed, diff(wanted, observed))
    assert [x.pause_stp for x in first if isinstance(x, TakeUplink)] == [True, False]
    on = replace(BRIDGE, bridge=Bridge(stp=True))
    observed = seen(wanted, on, PLUGGED, second, uplinks=RIGHT)
    (take,) = plan(wanted, observed, diff(wanted, observed))
    assert isinstance(take, TakeUplink)
    assert not take.pause_stp
    assert "STP" in take.impact


def test_only_a_bridge_of_its_own_is_removed_and_only_when_it_is_free() -> None:
    other = parse([PolicyText("x", "[bridges.br9]\nports = []\n")])
    observed = seen(other, BRIDGE, PLUGGED, replace(BRIDGE, name=IfName("br9")), uplinks=RIGHT)
    (action,) = plan(other, observed, diff(other, observed))
    assert isinstance(action, RemoveBridge)
    assert action.uplinks == (ETH0,)
    tap = Link(7, IfName("vnet0"), "tun", "", 1500, True, master=BR0, port=Port())
    links = {**(observed.links or {}), tap.name: tap}
    assert "vnet0 is plugged into it" in wrong(other, replace(observed, links=links))[0]
    links = {**(observed.links or {}), BR0: replace(BRIDGE, alias="")}
    assert wrong(other, replace(observed, links=links)) == []
    assert wrong(Policy(), observed) == [], "an empty policy removes nothing"


def test_a_port_that_left_the_policy_gets_back_what_it_gave() -> None:
    wanted = policy("ports = []")
    observed = seen(wanted, BRIDGE, PLUGGED, uplinks=RIGHT)
    actions = plan(wanted, observed, diff(wanted, observed))
    assert [type(action) for action in actions] == [ReleaseUplink]


def test_links_are_found_by_all_their_names() -> None:
    card = replace(CARD, altnames=frozenset({"enp1s0"}))
    links = {BR0: BRIDGE, ETH0: card}
    pci = {ETH0: "pci-0000:01:00.0"}
    for text in ("eth0", "enp1s0", MAC, "pci-0000:01:00.0"):
        assert resolve(text, links, pci) == card
    assert resolve("pci-0000:02:00.0", links, pci) is None
    virtual = replace(card, kind="veth", permanent_mac="")
    assert resolve(MAC, {BR0: BRIDGE, ETH0: virtual}, {}) == virtual, "not the bridge above it"
    assert way_out("eth0", {BR0: BRIDGE, ETH0: PLUGGED}, {}) == BRIDGE
