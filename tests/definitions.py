"""Networks of every form that has rules of its own, and of those that have none. Their number keeps
names and addresses apart.
"""

from __future__ import annotations

V4 = '<ip address="10.60.{n}.1" netmask="255.255.255.0">{inside}</ip>'
V4_PREFIX = '<ip address="10.61.{n}.129" prefix="25">{inside}</ip>'
V6 = '<ip family="ipv6" address="fd60:{n}::1" prefix="64"/>'
V6_DHCP = V6.replace("/>", '><dhcp><range start="fd60:{n}::10" end="fd60:{n}::20"/></dhcp></ip>')
DHCP = '<dhcp><range start="10.60.{n}.10" end="10.60.{n}.20"/></dhcp>'
HOST = '<dhcp><host mac="52:54:00:00:00:01" name="web" ip="10.60.{n}.9"/></dhcp>'
TFTP = '<tftp root="/tmp"/>'

DEFINITIONS = {
    "nat": '<forward mode="nat"/>' + V4,
    "nat-dhcp": "<forward/>" + V4.replace("{inside}", DHCP),
    "nat-host": '<forward mode="nat"/>' + V4.replace("{inside}", HOST),
    "nat-tftp": '<forward mode="nat"/>' + V4.replace("{inside}", TFTP + DHCP),
    "nat-tftp-alone": '<forward mode="nat"/>' + V4.replace("{inside}", TFTP),
    "nat-second-dhcp": '<forward mode="nat"/>' + V4_PREFIX + V4.replace("{inside}", DHCP),
    "nat-second-tftp": '<forward mode="nat"/>'
    + V4.replace("{inside}", DHCP)
    + V4_PREFIX.replace("{inside}", TFTP),
    "nat-v6": '<forward mode="nat"/>' + V4 + V6,
    "nat-v6-only": '<forward mode="nat"/>' + V6,
    "nat-nat66": '<forward mode="nat"><nat ipv6="yes"/></forward>' + V4 + V6,
    "nat-ports": '<forward mode="nat"><nat><port start="500" end="1000"/></nat></forward>' + V4,
    "nat-source": '<forward mode="nat"><nat><address start="198.51.100.7" end="198.51.100.9"/>'
    "</nat></forward>" + V4,
    "nat-one-source": '<forward mode="nat"><nat><address start="198.51.100.7" end="198.51.100.7"/>'
    '<port start="2000" end="3000"/></nat></forward>' + V4 + V6,
    "nat-nat66-source": '<forward mode="nat"><nat ipv6="yes"><address start="198.51.100.7" '
    'end="198.51.100.8"/></nat></forward>' + V4 + V6,
    "nat-source-ports": '<forward mode="nat"><nat><address start="198.51.100.7" '
    'end="198.51.100.9"/><port start="2000" end="3000"/></nat></forward>' + V4,
    "nat-route": '<forward mode="nat"/>'
    + V4
    + '<route address="10.99.{n}.0" prefix="24" gateway="10.60.{n}.2"/>',
    "nat-routes": '<forward mode="nat"/>'
    + V4
    + V4_PREFIX
    + V6
    + '<route address="10.99.{n}.0" prefix="24" gateway="10.60.{n}.2"/>'
    '<route address="10.98.{n}.0" prefix="24" gateway="10.61.{n}.130"/>'
    '<route family="ipv6" address="fd99:{n}::" prefix="64" gateway="fd60:{n}::2"/>',
    "nat-dhcp-v6": '<forward mode="nat"/>' + V4.replace("{inside}", DHCP) + V6_DHCP,
    "nat-dev": '<forward mode="nat" dev="uplink0"/>' + V4 + V6,
    "nat-interface": '<forward mode="nat"><interface dev="uplink0"/></forward>' + V4,
    "nat-two-addresses": '<forward mode="nat"/>' + V4 + V4_PREFIX,
    "nat-no-dns": '<forward mode="nat"/><dns enable="no"/>' + V4,
    "route": '<forward mode="route"/>' + V4 + V6,
    "route-dev": '<forward mode="route" dev="uplink0"/>' + V4_PREFIX + V6 + V4,
    "route-dhcp-tftp": '<forward mode="route"/>' + V4.replace("{inside}", TFTP + DHCP),
    "isolated": V4,
    "isolated-dhcp-v6": V4.replace("{inside}", DHCP) + V6,
    "isolated-bare": "",
    "isolated-guest-ipv6": "",
    "isolated-no-dns": '<dns enable="no"/>' + V4 + V6,
    "route-three-addresses": '<forward mode="route"/>' + V4 + V4_PREFIX + V6,
    "open": '<forward mode="open"/>' + V4 + V6,
    "bridge": '<forward mode="bridge"/>',
    "private": '<forward mode="private"><interface dev="uplink0"/><interface dev="lo"/></forward>',
    "vepa": '<forward mode="vepa" dev="uplink0"/>',
    "passthrough": '<forward mode="passthrough"><interface dev="uplink0"/></forward>',
}


_WITHOUT_BRIDGE = ("private", "vepa", "passthrough")


def definition(name: str, number: int) -> str:
    guest_ipv6 = ' ipv6="yes"' if name == "isolated-guest-ipv6" else ""
    body = DEFINITIONS[name].replace("{inside}", "").replace("{n}", str(number))
    bridge = "" if name in _WITHOUT_BRIDGE else f'<bridge name="vbm{number}"/>'
    return f"<network{guest_ipv6}><name>{name}</name>{bridge}{body}</network>"
