"""rtnetlink's messages about links, addresses, VLANs and the forwarding table ⇄ the model. Pure.

Flat walks over the attributes: pyroute2 takes ten times as long, which a host with hundreds of
containers would feel at each look.
"""

from __future__ import annotations

import struct
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv6Interface

from vnetd.backends import netlink
from vnetd.core.model import Address, IfName
from vnetd.core.model.link import Bridge, Link, Port, PortState, Vlan

# linux/rtnetlink.h
NEWLINK, DELLINK, _GETLINK = 16, 17, 18
NEWADDR, DELADDR, _GETADDR = 20, 21, 22
_GETNEIGH = 30
_REQUEST, _DUMP = 1, 0x300
_SKIP_STATS, _BRVLAN_COMPRESSED = 1 << 3, 1 << 2
_AF_INET, _AF_BRIDGE = 2, 7

# linux/if_link.h
_IFF_UP = 1
_ADDRESS, _IFNAME, _MTU, _MASTER, _LINKINFO, _IFALIAS = 1, 3, 4, 10, 18, 20
_OPERSTATE, _AF_SPEC, _EXT_MASK = 16, 26, 29
_CARRIER, _PROP_LIST, _ALT_IFNAME, _PERM_ADDRESS = 33, 52, 53, 54
_PARENT_DEV, _PARENT_BUS = 56, 57
_KIND, _DATA, _SLAVE_KIND, _SLAVE_DATA = 1, 2, 4, 5
# IFLA_BR_*: the kernel counts times in 1/100 s
_FORWARD_DELAY, _HELLO_TIME, _MAX_AGE, _AGEING_TIME, _STP_STATE = 1, 2, 3, 4, 5
_PRIORITY, _VLAN_FILTERING, _GROUP_FWD_MASK, _MCAST_SNOOPING, _DEFAULT_PVID = 6, 7, 9, 23, 39
# IFLA_BRPORT_*
_PORT_STATE, _PORT_PRIORITY, _PORT_COST, _HAIRPIN, _GUARD, _PROTECT = 1, 2, 3, 4, 5, 6
_LEARNING, _UNICAST_FLOOD, _MULTICAST_FLOOD, _BROADCAST_FLOOD = 8, 9, 27, 30
_NEIGH_SUPPRESS, _ISOLATED = 32, 33

# linux/if_bridge.h: struct bridge_vlan_info
_VLAN_INFO = 2
_PVID, _UNTAGGED, _RANGE_BEGIN, _RANGE_END = 1 << 1, 1 << 2, 1 << 3, 1 << 4

# linux/if.h
_IF_OPER_UP = b"\6"
# linux/if_addr.h
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_SCOPE_LINK = 253
# linux/neighbour.h: what the bridge shows of a static entry
_NDA_LLADDR, _NUD_NOARP = 2, 0x40

LINKS = netlink.message(
    _GETLINK,
    _REQUEST | _DUMP,
    bytes(16) + netlink.encoded(_EXT_MASK, struct.pack("=I", _SKIP_STATS)),
)
ADDRESSES = netlink.message(_GETADDR, _REQUEST | _DUMP, bytes(8))
VLANS = netlink.message(
    _GETLINK,
    _REQUEST | _DUMP,
    struct.pack("=B15x", _AF_BRIDGE)
    + netlink.encoded(_EXT_MASK, struct.pack("=I", _BRVLAN_COMPRESSED)),
)
FORWARDING_TABLE = netlink.message(_GETNEIGH, _REQUEST | _DUMP, struct.pack("=B11x", _AF_BRIDGE))


class Links:
    """The answer to LINKS, taken apart once."""

    def __init__(self, answer: Iterable[bytes]) -> None:
        self._parts = [_parts(message) for message in answer]

    def has_vlan_filter(self) -> bool:
        """Whether any bridge among them filters by VLAN."""
        bridges = (parts for parts in self._parts if parts.kind == "bridge")
        return any(any(parts.data.get(_VLAN_FILTERING, b"")) for parts in bridges)

    def read(
        self,
        addresses: Iterable[bytes],
        vlans: Mapping[int, frozenset[Vlan]],
        macs: Mapping[int, frozenset[str]],
        qdiscs: Mapping[int, frozenset[str]],
    ) -> dict[IfName, Link]:
        """With the answer to ADDRESSES, what vlans() and static_macs() make of the others, and the
        kinds of queueing disciplines.
        """
        of_link: defaultdict[int, set[Address]] = defaultdict(set)
        for message in addresses:
            of_link[index_of(message)].add(_address(message))
        names = {parts.index: parts.name for parts in self._parts}
        found = {}
        for parts in self._parts:
            port = None
            if parts.port is not None:
                of_port = (vlans.get(parts.index, frozenset()), macs.get(parts.index, frozenset()))
                port = _port(parts.port, *of_port)
            link = _link(parts, names, frozenset(of_link[parts.index]), port)
            if parts.index in qdiscs:
                link = replace(link, qdiscs=qdiscs[parts.index])
            found[link.name] = link
        return found


def vlans(messages: Iterable[bytes]) -> dict[int, frozenset[Vlan]]:
    """Of each port, by its index: the answer to VLANS."""
    found = {}
    for message in messages:
        spec = netlink.attributes(message[16:]).get(_AF_SPEC, b"")
        found[index_of(message)] = frozenset(_ranges(spec))
    return found


def static_macs(messages: Iterable[bytes]) -> dict[int, frozenset[str]]:
    """Of each port, by its index: the answer to FORWARDING_TABLE."""
    found: defaultdict[int, set[str]] = defaultdict(set)
    for message in messages:
        number, state = struct.unpack_from("=iH", message, 4)
        if state & _NUD_NOARP:
            found[number].add(_mac(netlink.attributes(message[12:]).get(_NDA_LLADDR, b"")))
    return {number: frozenset(macs) for number, macs in found.items()}


def vlan_flags(vlan: Vlan) -> int:
    """Of struct bridge_vlan_info."""
    return (_PVID if vlan.pvid else 0) | (_UNTAGGED if vlan.untagged else 0)


def concerns(kind: int, message: bytes, names: frozenset[str], indexes: frozenset[int]) -> bool:
    """Whether an event is about a link that counts: one of these, a port that has come to one of
    these or, since other names may lead to it, a device. Addresses count on any link, for they make
    routes; but not those that each link gives itself.
    """
    if index_of(message) in indexes:
        return True
    if kind in (NEWADDR, DELADDR):
        return message[3] < _SCOPE_LINK
    if kind not in (NEWLINK, DELLINK):
        return False
    found = netlink.attributes(message[16:])
    if not names.isdisjoint(_names(found)) or _number(found.get(_MASTER, b"")) in indexes:
        return True
    return message[0] != _AF_BRIDGE and _LINKINFO not in found


def _names(found: Mapping[int, bytes]) -> Iterator[str]:
    """All by which a policy may call a link that is no device."""
    yield _text(found.get(_IFNAME, b""))
    yield _mac(found.get(_ADDRESS, b""))
    for kind, value in netlink.each_attribute(found.get(_PROP_LIST, b"")):
        if kind == _ALT_IFNAME:
            yield _text(value)


def index_of(message: bytes) -> int:
    """Of the link that a message about a link, an address or a queueing discipline is about."""
    (number,) = struct.unpack_from("=i", message, 4)
    return int(number)


@dataclass(frozen=True, slots=True)
class _Parts:
    """data: of its kind. port: of a bridge's port, None for other links."""

    index: int
    flags: int
    name: str
    kind: str
    found: dict[int, bytes]
    data: dict[int, bytes]
    port: dict[int, bytes] | None


def _parts(message: bytes) -> _Parts:
    index, flags = struct.unpack_from("=iI", message, 4)
    found = netlink.attributes(message[16:])
    info = netlink.attributes(found.get(_LINKINFO, b""))
    kind = _text(info.get(_KIND, b""))
    is_port = info.get(_SLAVE_KIND) == b"bridge\0" and _SLAVE_DATA in info
    return _Parts(
        index=index,
        flags=flags,
        name=_text(found[_IFNAME]),
        kind=kind,
        found=found,
        data=netlink.attributes(info.get(_DATA, b"")) if kind == "bridge" else {},
        port=netlink.attributes(info[_SLAVE_DATA]) if is_port else None,
    )


def _link(
    parts: _Parts, names: Mapping[int, str], addresses: frozenset[Address], port: Port | None
) -> Link:
    found = parts.found
    master = names.get(_number(found.get(_MASTER, b"")))
    parent = (_text(found.get(attribute, b"")) for attribute in (_PARENT_BUS, _PARENT_DEV))
    altnames = netlink.each_attribute(found[_PROP_LIST]) if _PROP_LIST in found else ()
    return Link(
        index=parts.index,
        name=IfName(parts.name),
        kind=parts.kind,
        mac=_mac(found.get(_ADDRESS, b"")),
        mtu=_number(found.get(_MTU, b"")),
        up=bool(parts.flags & _IFF_UP),
        carrier=found.get(_CARRIER) != b"\0",
        operational=found.get(_OPERSTATE) == _IF_OPER_UP,
        master=IfName(master) if master else None,
        bridge=_bridge(parts.data) if parts.kind == "bridge" else None,
        port=port,
        addresses=addresses,
        altnames=frozenset(_text(value) for kind, value in altnames if kind == _ALT_IFNAME),
        permanent_mac=_mac(found.get(_PERM_ADDRESS, b"")),
        parent=" ".join(word for word in parent if word),
        alias=_text(found.get(_IFALIAS, b"")),
    )


def _bridge(data: dict[int, bytes]) -> Bridge:
    def flag(attribute: int) -> bool | None:
        return any(data[attribute]) if attribute in data else None

    def seconds(attribute: int, default: float) -> float:
        return _number(data[attribute]) / 100 if attribute in data else default

    usual = Bridge()
    return Bridge(
        stp=bool(flag(_STP_STATE)),
        forward_delay=seconds(_FORWARD_DELAY, usual.forward_delay),
        hello_time=seconds(_HELLO_TIME, usual.hello_time),
        max_age=seconds(_MAX_AGE, usual.max_age),
        ageing_time=seconds(_AGEING_TIME, usual.ageing_time),
        priority=_number(data.get(_PRIORITY, b"")),
        group_fwd_mask=_number(data.get(_GROUP_FWD_MASK, b"")),
        multicast_snooping=flag(_MCAST_SNOOPING),
        vlan_filtering=flag(_VLAN_FILTERING),
        default_pvid=_number(data[_DEFAULT_PVID]) if _DEFAULT_PVID in data else None,
    )


def _port(data: dict[int, bytes], vlans: frozenset[Vlan], macs: frozenset[str]) -> Port:
    def flag(attribute: int, *, default: bool = False) -> bool:
        return any(data[attribute]) if attribute in data else default

    return Port(
        state=PortState(_number(data.get(_PORT_STATE, b""))),
        isolated=flag(_ISOLATED),
        learning=flag(_LEARNING, default=True),
        unicast_flood=flag(_UNICAST_FLOOD, default=True),
        multicast_flood=flag(_MULTICAST_FLOOD, default=True),
        broadcast_flood=flag(_BROADCAST_FLOOD, default=True),
        hairpin=flag(_HAIRPIN),
        bpdu_guard=flag(_GUARD),
        root_block=flag(_PROTECT),
        neigh_suppress=flag(_NEIGH_SUPPRESS),
        cost=_number(data.get(_PORT_COST, b"")),
        priority=_number(data.get(_PORT_PRIORITY, b"")),
        vlans=vlans,
        macs=macs,
    )


def _ranges(spec: bytes) -> Iterator[Vlan]:
    first = 0
    for attribute, value in netlink.each_attribute(spec):
        if attribute != _VLAN_INFO:
            continue
        flags, vid = struct.unpack_from("=HH", value)
        if flags & _RANGE_BEGIN:
            first = vid
            continue
        for number in range(first if flags & _RANGE_END else vid, vid + 1):
            yield Vlan(number, bool(flags & _PVID), bool(flags & _UNTAGGED))


def _address(message: bytes) -> Address:
    family, prefix = message[0], message[1]
    found = netlink.attributes(message[8:])
    packed = found.get(_IFA_LOCAL) or found[_IFA_ADDRESS]
    kind = IPv4Interface if family == _AF_INET else IPv6Interface
    return kind((packed, prefix))


def _number(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)


def _mac(data: bytes) -> str:
    return data.hex(":")


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")
