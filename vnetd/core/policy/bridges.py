"""[bridges.NAME]: the bridges of the host that vnetd makes and keeps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

from vnetd.core.model import Address, HostAddress, IfName, Mode
from vnetd.core.model.link import Vlan
from vnetd.core.policy import values
from vnetd.core.policy.toml_table import Table

# udev's ID_PATH of a network card.
_PCI = re.compile(r"pci-[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_LIKE_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
# linux/if_link.h lets a name have 15 letters, an altname 127.
_ALTNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,126}")
# net/bridge/br_private.h, br_if.c; IEEE 802.1D-1998 table 8-3
_SECONDS = {"forward_delay": (2, 30), "hello_time": (1, 10), "max_age": (6, 40)}
# net/bridge/br_private.h, BR_GROUPFWD_RESTRICTED: STP, pause frames and LACP are never forwarded.
_NEVER_FORWARDED = 0x0007
WIRELESS = (
    "is wireless: an access point takes no frames of guests' MAC addresses, for want of 4-address "
    "frames"
)
INSTEAD = 'use a network with mode = "nat", or with mode = "route" and proxy ARP'
_A_PORT = '{ uplink = "eth0", isolated = true }'


@dataclass(frozen=True, slots=True)
class BridgePort:
    """uplink: a link's name, altname, permanent MAC address or PCI path. None: free."""

    uplink: str
    isolated: bool | None = None
    vlans: frozenset[Vlan] | None = None


@dataclass(frozen=True, slots=True)
class BridgePolicy:
    """One [bridges.NAME]. None: the policy does not say, so it cannot drift. Times in seconds."""

    name: IfName
    ports: tuple[BridgePort, ...] = ()
    mac: str | None = None
    mtu: int | None = None
    stp: bool | None = None
    forward_delay: int | None = None
    hello_time: int | None = None
    max_age: int | None = None
    priority: int | None = None
    vlan_filtering: bool | None = None
    group_fwd_mask: int | None = None
    multicast_snooping: bool | None = None
    addresses: tuple[Address, ...] = ()
    gateways: tuple[HostAddress, ...] = ()

    @property
    def uplinks(self) -> tuple[str, ...]:
        return tuple(port.uplink for port in self.ports)

    @property
    def links(self) -> frozenset[IfName]:
        """Every link by which it may be known."""
        return frozenset((self.name, *map(IfName, self.uplinks)))


def read(sections: Table, is_wireless: Callable[[str], bool]) -> dict[str, BridgePolicy]:
    """is_wireless: of an uplink as it is written here."""
    bridges = {}
    for name, section in sections.each_table("write a table: [bridges.NAME]"):
        bridge = _bridge(name, section)
        if bridge is None:
            continue
        bridges[name] = bridge
        for at, uplink in enumerate(bridge.uplinks):
            if is_wireless(uplink):
                section.at("ports").wrong(at, f'"{uplink}" {WIRELESS}', INSTEAD)
    _check_together(bridges, sections)
    return bridges


def _bridge(name: str, section: Table) -> BridgePolicy | None:
    ifname = section.parse(None, name, values.ifname, "take at most 15 letters and digits")
    right = 'write a unicast address such as "52:54:00:12:34:56"'
    flag = "write true or false"
    ports = dict(_ports(section))
    seconds = {key: _number(section, key, *edges, "s") for key, edges in _SECONDS.items()}
    bridge = BridgePolicy(
        name=ifname or IfName(name),
        ports=tuple(ports.values()),
        mac=section.parsed("mac", values.mac, right),
        mtu=_number(section, "mtu", 68, 65535, "bytes"),
        stp=section.get("stp", bool, flag),
        **seconds,
        priority=_number(section, "priority", 0, 65535),
        vlan_filtering=section.get("vlan_filtering", bool, flag),
        group_fwd_mask=_number(section, "group_fwd_mask", 0, 65535),
        multicast_snooping=section.get("multicast_snooping", bool, flag),
        addresses=section.list("addresses", values.own_address, '"ADDRESS/PREFIX"'),
        gateways=section.list("gateways", values.host_address, '"ADDRESS"'),
    )
    section.close()
    _check_ports(bridge, ports, section.at("ports"))
    _check(bridge, section)
    return None if ifname is None else bridge


def _ports(section: Table) -> Iterator[tuple[int, BridgePort]]:
    """(place in the list, port)"""
    right = f'write "NAME", "MAC", "pci-…" or {_A_PORT}'
    for at, item in section.texts_or_tables("ports", right):
        if isinstance(item, str):
            uplink = section.at("ports").parse(at, item, uplink_name, right)
            port = BridgePort(uplink) if uplink is not None else None
        else:
            port = _port(item, right)
        if port is not None:
            yield at, port


def _port(entry: Table, right: str) -> BridgePort | None:
    uplink = entry.parsed("uplink", uplink_name, right)
    isolated = entry.get("isolated", bool, "write true or false")
    vlan = entry.table("vlan", 'write { pvid = 1, untagged = [1], tagged = ["10-19"] }')
    pvid = _number(vlan, "pvid", 1, 4094)
    tagged, untagged = (frozenset(_ids(vlan, key)) for key in ("tagged", "untagged"))
    vlan.close()
    entry.close()
    if both := sorted(tagged & untagged):
        wrong = f"VLAN {both[0]} is untagged as well"
        vlan.wrong("tagged", wrong, "write each VLAN in one of the two")
    if pvid is not None and pvid not in tagged | untagged:
        right = f"write untagged = [{pvid}]: its answers must leave too"
        vlan.wrong("pvid", f"VLAN {pvid} is neither untagged nor tagged", right)
    if uplink is None:
        if "uplink" not in entry:
            entry.wrong("uplink", "is missing", right)
        return None
    vlans = frozenset(
        Vlan(number, number == pvid, number in untagged) for number in tagged | untagged
    )
    return BridgePort(uplink, isolated, vlans if "vlan" in entry else None)


def _ids(table: Table, key: str) -> Iterator[int]:
    for first, last in table.list(key, values.vlan_ids, '10 or "10-19"', numbers=True):
        yield from range(first, last + 1)


def _check_ports(bridge: BridgePolicy, ports: Mapping[int, BridgePort], place: Table) -> None:
    for at, port in ports.items():
        if port.vlans is not None and not bridge.vlan_filtering:
            right = f"write vlan_filtering = true in [bridges.{bridge.name}]"
            place.wrong(at, "vlan has no effect without VLAN filtering", right)
        if port.uplink == bridge.name:
            place.wrong(at, "is the bridge itself", "name the link behind it")
        if any(port.uplink == ports[before].uplink for before in ports if before < at):
            place.wrong(at, f'"{port.uplink}" is named twice', "name each once")


def _check(bridge: BridgePolicy, section: Table) -> None:
    """What can only be judged with the whole bridge at hand."""
    if bridge.group_fwd_mask is not None and bridge.group_fwd_mask & _NEVER_FORWARDED:
        wrong = f"{bridge.group_fwd_mask} asks for STP, pause or LACP frames to be forwarded"
        right = "leave bits 0 to 2 out: the kernel never does it; 16384 is LLDP"
        section.wrong("group_fwd_mask", wrong, right)
    if any(address.version == 6 for address in bridge.addresses) and (bridge.mtu or 1280) < 1280:
        right = "write at least 1280, which IPv6 needs (RFC 8200)"
        section.wrong("mtu", f"{bridge.mtu} is out of range", right)
    delay, age, hello = bridge.forward_delay, bridge.max_age, bridge.hello_time
    if delay is not None and age is not None and 2 * (delay - 1) < age:
        right = f"write at most {2 * (delay - 1)}: 2 × (forward_delay - 1) (IEEE 802.1D)"
        section.wrong("max_age", f"{age} is too long for forward_delay = {delay}", right)
    if hello is not None and age is not None and age < 2 * (hello + 1):
        right = f"write at least {2 * (hello + 1)}: 2 × (hello_time + 1) (IEEE 802.1D)"
        section.wrong("max_age", f"{age} is too short for hello_time = {hello}", right)
    _check_gateways(bridge, section.at("gateways"))


def _check_gateways(bridge: BridgePolicy, place: Table) -> None:
    own = {address.ip for address in bridge.addresses}
    for at, gateway in enumerate(bridge.gateways):
        if any(gateway.version == before.version for before in bridge.gateways[:at]):
            wrong = f'"{gateway}" is a second one for IPv{gateway.version}'
            place.wrong(at, wrong, "keep one for each family")
        elif gateway in own:
            place.wrong(at, f'"{gateway}" is the bridge\'s own address', "name the router's")
        elif not gateway.is_link_local and not any(gateway in a.network for a in bridge.addresses):
            known = ", ".join(str(a.network) for a in bridge.addresses)
            right = f"take one of {known}" if known else "write the bridge's addresses as well"
            place.wrong(at, f'"{gateway}" is in no subnet of the bridge', right)


def _check_together(bridges: Mapping[str, BridgePolicy], sections: Table) -> None:
    for one, two in combinations(bridges.values(), 2):
        uplinks = {port.uplink for port in one.ports}
        for at, port in enumerate(two.ports):
            if port.uplink in uplinks:
                wrong = f'"{port.uplink}" is a port of bridges.{one.name} already'
                right = "a link can be on one bridge only"
                sections.at(two.name).at("ports").wrong(at, wrong, right)
        if one.mac is not None and one.mac == two.mac:
            wrong = f'"{two.mac}" is the MAC address of bridges.{one.name} already'
            sections.at(two.name).wrong("mac", wrong, "give each bridge its own")
        for address in two.addresses:
            if address.ip in {other.ip for other in one.addresses}:
                wrong = f'"{address.ip}" is an address of bridges.{one.name} already'
                sections.at(two.name).wrong("addresses", wrong, "give each its own")


def check_beside(
    networks: Iterable[tuple[str, IfName | None, Sequence[Address]]],
    bridges: Mapping[str, BridgePolicy],
    sections: Table,
) -> None:
    """networks: (name, bridge, addresses) of those that libvirt makes a bridge for."""
    for name, own, addresses in networks:
        place = sections.at(name)
        if own in bridges:
            wrong = f'"{own}" is a bridge of the host, [bridges.{own}]'
            place.wrong(
                "bridge", wrong, 'write mode = "bridge", or another name for libvirt to make'
            )
        for bridge in bridges.values():
            for one, two in product(addresses, bridge.addresses):
                if one.version == two.version and one.network.overlaps(two.network):
                    wrong = f'"{one}" overlaps "{two}" of bridges.{bridge.name}'
                    place.wrong("addresses", wrong, "take a subnet of its own")


def network_uplink(section: Table, mode: Mode | None) -> str | None:
    """The only link over which guests of a network reach others, named as a bridge's ports are."""
    uplink = section.parsed("uplink", uplink_name, 'write "NAME", "MAC" or "pci-…"')
    if uplink is not None and mode not in (None, Mode.NAT, Mode.ROUTE):
        right = 'leave it out: only mode = "nat" and "route" are bound to one'
        section.wrong("uplink", f'has no meaning with mode = "{mode}"', right)
    return uplink


def uplink_name(text: str) -> str:
    """Raises ValueError for what names no link in any of the four ways."""
    lower = text.lower()
    if _PCI.fullmatch(lower):
        return lower
    if lower.startswith("pci-"):
        raise ValueError('is not a PCI path; write it as "pci-0000:01:00.0"')
    if _LIKE_MAC.fullmatch(lower):
        return values.mac(text)
    if not _ALTNAME.fullmatch(text):
        raise ValueError("names no link")
    return text


def _number(table: Table, key: str, low: int, high: int, unit: str = "") -> int | None:
    right = f"write a number from {low} to {high}" + (f" ({unit})" if unit else "")
    number = table.get(key, int, right)
    if number is not None and not low <= number <= high:
        table.wrong(key, f"{number} is out of range", right)
        return None
    return number
