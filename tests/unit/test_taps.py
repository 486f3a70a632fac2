"""What a tap must be set to, from a domain's XML; with what this lane's kernels may lack: VLANs, a
MAC table that libvirt keeps, and bandwidth.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_interface

import pytest

from vnetd.backends.libvirt import domain_xml
from vnetd.core.keep import bridges, guests, taps
from vnetd.core.model import Definition, IfName, Libvirt, Link, Mode, Network, Tap
from vnetd.core.model.link import Bridge, Port, PortState, Vlan
from vnetd.core.policy import Policy

MAC, BRIDGE_MAC = "52:54:00:00:00:01", "52:54:00:00:00:aa"
LIVE = Definition(
    "lab",
    Mode.NAT,
    bridge=IfName("vblab"),
    mac=BRIDGE_MAC,
    stp=False,
    addresses=(ip_interface("10.77.0.1/24"),),
)
BRIDGE = Link(
    1,
    IfName("vblab"),
    "bridge",
    BRIDGE_MAC,
    1500,
    up=True,
    bridge=Bridge(vlan_filtering=False),
    addresses=frozenset(LIVE.addresses),
)
TAP = Tap("web", IfName("vnet0"), "lab", mac=MAC, bridge=IfName("vblab"))
PLUG = Link(
    2,
    IfName("vnet0"),
    "tun",
    "fe:54:00:00:00:01",
    1500,
    up=True,
    master=IfName("vblab"),
    port=Port(),
)
FILTER = replace(BRIDGE, bridge=Bridge(vlan_filtering=True, default_pvid=1))


def drift(tap: Tap, plug: Link, bridge: Link = BRIDGE, live: Definition = LIVE) -> list[object]:
    libvirt = Libvirt("11.3.0", 1, {"lab": Network("lab", live, live, True)}, taps=(tap,))
    links = {link.name: link for link in (bridge, plug)}
    return list(taps.diff(Policy(present=False), libvirt, [live], links))


def of_interface(xml: str, kind: str = "network") -> Tap:
    (tap,) = domain_xml.taps(f"""
        <domain><name>web</name><devices><interface type='{kind}'>
            <mac address='52:54:00:00:00:01'/><target dev='vnet0'/>{xml}
        </interface></devices></domain>
    """)
    return tap


def test_a_tap_that_is_right_is_no_drift() -> None:
    assert drift(TAP, PLUG) == []


def test_all_that_a_nic_says_is_read() -> None:
    tap = of_interface("""
        <source network='lab' portid='uuid' bridge='vblab' macTableManager='libvirt'/>
        <port isolated='yes'/><mtu size='1400'/><link state='down'/>
        <bandwidth><inbound average='1000' floor='200'/><outbound average='500'/></bandwidth>
    """)
    assert tap == Tap(
        "web",
        IfName("vnet0"),
        "lab",
        isolated=True,
        mac=MAC,
        port="uuid",
        bridge=IfName("vblab"),
        mtu=1400,
        mac_table=True,
        link_down=True,
        qdiscs=frozenset({"htb", "ingress"}),
        floor=True,
    )


@pytest.mark.parametrize(
    ("xml", "vlans"),
    [
        ("<vlan><tag id='42'/></vlan>", {Vlan(42, pvid=True, untagged=True)}),
        ("<vlan trunk='yes'><tag id='42'/><tag id='43'/></vlan>", {Vlan(42), Vlan(43)}),
        (
            "<vlan trunk='yes'><tag id='42' nativeMode='untagged'/><tag id='43'/></vlan>",
            {Vlan(42, pvid=True, untagged=True), Vlan(43)},
        ),
        (
            "<vlan trunk='yes'><tag id='42' nativeMode='tagged'/><tag id='43'/></vlan>",
            {Vlan(42, pvid=True), Vlan(43)},
        ),
        ("", set()),
    ],
)
def test_vlans_are_those_that_libvirt_sets(xml: str, vlans: set[Vlan]) -> None:
    assert of_interface(f"<source bridge='br0'/>{xml}", kind="bridge").vlans == vlans


def test_a_tap_in_another_vlan_is_set_back() -> None:
    tap = replace(TAP, vlans=frozenset({Vlan(42, pvid=True, untagged=True)}))
    plug = replace(PLUG, port=Port(vlans=frozenset({Vlan(1, pvid=True, untagged=True), Vlan(7)})))
    (found,) = drift(tap, plug, FILTER)
    assert isinstance(found, taps.TapDiffers)
    assert str(found).endswith("vlans is 1 pvid untagged 7 instead of 42 pvid untagged")
    assert found.settings == taps.TapSettings(
        vlans=(Vlan(42, pvid=True, untagged=True),), unwanted_vlans=(1, 7)
    )


def test_a_tap_that_is_plugged_leaves_the_bridges_default_vlan() -> None:
    tap = replace(TAP, vlans=frozenset({Vlan(42, pvid=True, untagged=True)}))
    (found,) = drift(tap, replace(PLUG, master=None, port=None), FILTER)
    assert isinstance(found, taps.Unplugged)
    assert found.settings.unwanted_vlans == (1,)
    assert found.settings.of_port  # it is held down until it has left it


def test_where_libvirt_keeps_the_mac_table_the_port_neither_learns_nor_floods() -> None:
    live, tap = replace(LIVE, mac_table=True), replace(TAP, mac_table=True)
    (found,) = drift(tap, PLUG, FILTER, live)
    assert isinstance(found, taps.TapDiffers)
    assert found.settings == taps.TapSettings(learning=False, unicast_flood=False, macs=(MAC,))
    right = Port(learning=False, unicast_flood=False, macs=frozenset({MAC}))
    assert drift(tap, replace(PLUG, port=right), FILTER, live) == []
    away = replace(PLUG, port=replace(right, macs=frozenset()))
    assert drift(tap, away, FILTER, live)
    assert drift(replace(tap, paused=True), away, FILTER, live) == []


def test_a_bridge_whose_vlan_filter_was_turned_off_gets_it_back() -> None:
    network = Network("lab", None, replace(LIVE, mac_table=True), True)
    assert network.live
    libvirt = Libvirt("11.3.0", 1, {"lab": network})
    policy = Policy(present=False)
    (found,) = bridges.diff(policy, libvirt, [network.live], {BRIDGE.name: BRIDGE})
    assert str(found) == "bridge vblab: vlan filtering is off instead of on"
    assert isinstance(found, bridges.BridgeDiffers)
    (action,) = bridges.plan([found], policy, libvirt)
    assert str(action) == "set bridge vblab up, VLAN filtering on"


def test_a_flushed_link_local_address_comes_back_where_guests_have_ipv6() -> None:
    live = replace(LIVE, addresses=(*LIVE.addresses, ip_interface("fd77::1/64")))
    flushed = replace(BRIDGE, addresses=frozenset(live.addresses), operational=True)

    def missing(live: Definition, bridge: Link) -> list[str]:
        libvirt = Libvirt("9.0.0", 1, {"lab": Network("lab", live, live, True)})
        found = bridges.diff(Policy(), libvirt, [live], {bridge.name: bridge})
        return [str(item.address) for item in found if isinstance(item, bridges.AddressMissing)]

    assert missing(live, flushed) == ["fe80::5054:ff:fe00:aa/64"]
    assert missing(live, replace(flushed, operational=False)) == []
    another = flushed.addresses | {ip_interface("fe80::1/64")}
    assert missing(live, replace(flushed, addresses=another)) == []
    assert missing(LIVE, replace(flushed, addresses=frozenset(LIVE.addresses))) == []


def test_a_kernel_without_vlan_filter_is_not_asked_for_one() -> None:
    without = replace(BRIDGE, bridge=Bridge(vlan_filtering=None))
    libvirt = Libvirt("9.0.0", 1, {"lab": Network("lab", LIVE, LIVE, True)})
    assert not list(bridges.diff(Policy(), libvirt, [LIVE], {BRIDGE.name: without}))


def test_a_tap_without_its_limits_is_drift_and_only_then() -> None:
    tap = replace(TAP, qdiscs=frozenset({"htb", "ingress"}))
    (found,) = drift(tap, replace(PLUG, qdiscs=frozenset({"htb"})))
    assert isinstance(found, taps.Unlimited)
    assert drift(tap, replace(PLUG, qdiscs=frozenset({"htb", "ingress", "sfq"}))) == []


def test_what_cannot_be_given_back_is_said() -> None:
    (lost,) = drift(replace(TAP, port="uuid", floor=True), PLUG)
    assert isinstance(lost, taps.Unrecorded)
    (action,) = taps.plan([lost], {})
    assert "floor" in action.impact


def test_a_tap_of_the_bridge_itself_belongs_to_the_network_on_it() -> None:
    tap = replace(TAP, network="")
    (found,) = drift(tap, replace(PLUG, master=None, port=None))
    assert isinstance(found, taps.Unplugged)
    assert found.network == "lab"


def test_only_a_network_that_was_not_there_is_to_blame() -> None:
    up = Network("lab", LIVE, LIVE, True)
    down = replace(up, live=None)
    failed = {"web": frozenset({"lab"})}
    now, before = Libvirt("", 1, {"lab": up}), Libvirt("", 1, {"lab": down})
    assert guests.refused(failed, before, None) == failed
    assert guests.refused(failed, now, before) == failed
    assert guests.refused(failed, now, now) == {"web": frozenset()}
    known = replace(now, refused=failed)
    assert guests.refused(failed, now, known) == failed
    assert guests.refused({}, now, known) == {}
    (conflict,) = guests.diff(Policy(), known)
    assert "guest web failed to start when network lab was not active" in conflict.text


@pytest.mark.parametrize(
    ("own", "state", "paused"),
    [
        (True, PortState.FORWARDING, True),
        (True, PortState.BLOCKING, False),
        (False, PortState.FORWARDING, False),
    ],
    ids=["libvirt's own bridge", "it has a loop", "the host's bridge"],
)
def test_stp_is_paused_only_where_no_loop_can_come_of_it(
    own: bool, state: PortState, paused: bool
) -> None:
    bridge = replace(BRIDGE, bridge=Bridge(stp=True))
    other = replace(PLUG, name=IfName("vnet7"), port=Port(state=state))
    settings = taps.TapSettings()
    item = taps.Unplugged("lab", IfName("vblab"), "web", IfName("vnet0"), settings, own)
    (action,) = taps.plan([item], {bridge.name: bridge, other.name: other})
    assert isinstance(action, taps.PlugTap)
    assert action.pause_stp is paused
    assert ("STP holds the port back" in action.impact) is not paused
