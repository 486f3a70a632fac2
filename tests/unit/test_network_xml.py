"""libvirt's network XML is read as libvirt means it, and edited without loss."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest

from vnetd.backends.libvirt.network_xml import definition, dhcp_parent, parse, render
from vnetd.core.keep.networks import differences
from vnetd.core.model import DhcpHost, DhcpRange, IfName, Mode
from vnetd.core.policy import NetworkPolicy
from vnetd.errors import BackendError

RICH = """
<network connections='1' ipv6='yes' xmlns:dnsmasq='http://libvirt.org/schemas/network/dnsmasq/1.0'>
  <name>lab</name>
  <uuid>3f6f0f4e-0d0e-4b0e-8a5b-6f6c3f3a5d11</uuid>
  <metadata><other:thing xmlns:other='urn:other'>kept</other:thing></metadata>
  <forward mode='nat' dev='eth0'>
    <nat ipv6='yes'>
      <address start='198.51.100.7' end='198.51.100.9'/><port start='500' end='600'/>
    </nat>
    <interface dev='eth0'/>
  </forward>
  <bridge name='vblab' stp='on' delay='0'/>
  <mtu size='9000'/>
  <mac address='52:54:00:aa:bb:cc'/>
  <domain name='lab.example' localOnly='yes'/>
  <dns><host ip='10.77.0.1'><hostname>gateway</hostname></host></dns>
  <bandwidth><inbound average='1000'/></bandwidth>
  <ip address='10.77.0.1' netmask='255.255.255.0'>
    <tftp root='/srv/tftp'/>
    <dhcp>
      <range start='10.77.0.10' end='10.77.0.99'><lease expiry='1' unit='hours'/></range>
      <host mac='52:54:00:00:00:01' name='web' ip='10.77.0.20'/>
      <bootp file='pxelinux.0'/>
    </dhcp>
  </ip>
  <ip family='ipv6' address='fd77::1' prefix='64'/>
  <route address='192.168.222.0' prefix='24' gateway='10.77.0.2'/>
  <dnsmasq:options><dnsmasq:option value='foo=bar'/></dnsmasq:options>
</network>
"""
AS_RICH = NetworkPolicy(
    name="lab",
    mode=Mode.NAT,
    bridge=IfName("vblab"),
    addresses=(ip_interface("10.77.0.1/24"), ip_interface("fd77::1/64")),
    ranges=(DhcpRange(ip_address("10.77.0.10"), ip_address("10.77.0.99")),),
    hosts=(DhcpHost(ip_address("10.77.0.20"), mac="52:54:00:00:00:01", name="web"),),
    domain="lab.example",
    mac="52:54:00:aa:bb:cc",
    mtu=9000,
    stp=True,
)


def tree(element: ET.Element) -> object:
    text = (element.text or "").strip()
    return element.tag, sorted(element.attrib.items()), text, [tree(child) for child in element]


def test_all_of_it_is_understood() -> None:
    found = parse(RICH)
    assert differences(AS_RICH, found) == ()
    assert (found.forward_dev, found.nat_ipv6, found.guest_ipv6) == ("eth0", True, True)
    assert found.nat_source == ("198.51.100.7", "198.51.100.9")
    assert found.nat_ports == (500, 600)
    assert found.tftp
    assert not found.made_by_vnetd


@pytest.mark.parametrize(
    ("xml", "mode"),
    [
        ("<network><name>n</name></network>", Mode.ISOLATED),
        ("<network><name>n</name><forward/></network>", Mode.NAT),
        ("<network><name>n</name><forward mode='none'/></network>", Mode.ISOLATED),
        ("<network><name>n</name><forward mode='bridge'/></network>", Mode.BRIDGE),
    ],
)
def test_mode(xml: str, mode: Mode) -> None:
    assert parse(xml).mode is mode


@pytest.mark.parametrize(
    ("address", "prefix"),
    [("10.0.0.1", 8), ("172.16.0.1", 16), ("192.168.0.1", 24), ("fd00::1", 64)],
)
def test_left_out_prefix_is_libvirts_default(address: str, prefix: int) -> None:
    xml = f"<network><name>n</name><ip address='{address}'/></network>"
    assert parse(xml).addresses == (ip_interface(f"{address}/{prefix}"),)


def test_an_unchanged_policy_leaves_the_xml_as_it_is() -> None:
    same = RICH.replace(" connections='1'", "")
    assert tree(ET.fromstring(render(AS_RICH, RICH))) == tree(ET.fromstring(same))


def test_what_is_rendered_is_what_the_policy_says() -> None:
    changed = replace(
        AS_RICH,
        addresses=(ip_interface("10.78.0.1/24"), ip_interface("fd77::1/64")),
        ranges=(DhcpRange(ip_address("10.78.0.10"), ip_address("10.78.0.99")),),
        hosts=(),
        mtu=1400,
        stp=False,
    )
    text = render(changed, RICH)
    assert differences(changed, parse(text)) == ()
    root = ET.fromstring(text)
    assert root.findtext("dns/host/hostname") == "gateway"
    assert root.findtext("metadata/{urn:other}thing") == "kept"
    assert root.find("bandwidth/inbound") is not None


def test_a_new_network_carries_the_mark_and_an_adopted_one_does_not() -> None:
    assert parse(render(AS_RICH, None)).made_by_vnetd
    assert not parse(render(AS_RICH, RICH)).made_by_vnetd


def test_on_a_bridge_of_the_host_nothing_stays_that_libvirt_refuses() -> None:
    lan = NetworkPolicy("lab", Mode.BRIDGE, bridge=IfName("br0"))
    root = ET.fromstring(render(lan, RICH))
    assert root.find("bridge").attrib == {"name": "br0"}  # type: ignore[union-attr]
    for tag in ("ip", "mac", "mtu", "domain", "dns", "route"):
        assert root.find(tag) is None


def test_the_parent_of_a_range_is_the_address_that_holds_it() -> None:
    v6 = DhcpHost(ip_address("fd77::20"), name="web")
    assert [dhcp_parent(RICH, item) for item in (AS_RICH.ranges[0], v6)] == [0, 1]


@pytest.mark.parametrize(
    "text",
    [
        "<network>",
        '<!DOCTYPE n [<!ENTITY a "b">]><network><name>&a;</name></network>',
        "<network>" + " " * 9_000_000 + "</network>",
    ],
    ids=["broken", "with a DTD", "too large"],
)
def test_xml_that_could_hurt_is_refused(text: str) -> None:
    with pytest.raises(BackendError):
        parse(text)


def test_the_definition_behind_a_running_network() -> None:
    live = """<network connections='2'><name>lab</name>
    <forward mode='nat'><nat><port start='1024' end='65535'/></nat></forward></network>"""
    assert "nat>" not in definition(live)
    assert "connections" not in definition(live)
    own = live.replace("1024", "2000")
    assert "<port start='2000' end='65535'" in definition(own).replace('"', "'")
