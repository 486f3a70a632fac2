"""rtnetlink's messages about queueing disciplines, and about the filters of libvirt's that complete
the checksums of DHCP answers. Pure.

They are what this makes (src/network/network_nftables.c):

    tc qdisc add dev BRIDGE root handle 1: htb default 2
    tc filter add dev BRIDGE prio 2 protocol ip parent 1: \
        u32 match ip dport 68 ffff action csum ip and udp
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable

from vnetd.backends import netlink
from vnetd.backends.kernel.rtnetlink import (
    CREATE,
    DELACTION,
    EXCL,
    NEWACTION,
    NEWQDISC,
    NEWTFILTER,
    Request,
)

# linux/rtnetlink.h: struct tcmsg
_GETQDISC, _GETTFILTER = 38, 46
_REQUEST, _DUMP = 1, 0x300
_TCMSG = struct.Struct("=BxxxiIII")
_KIND, _OPTIONS = 1, 2
# linux/pkt_sched.h
_AT_ROOT, _HANDLE = 0xFFFFFFFF, 0x00010000
_HTB_INIT, _HTB_VERSION, _RATE2QUANTUM, _DEFAULT_CLASS = 2, 3, 10, 2
# linux/pkt_cls.h: struct tc_u32_sel with one key, of the 4 bytes behind a header without options
_U32_SELECTOR, _U32_ACTION, _TERMINAL = 5, 7, 1
_PRIORITY, _ETH_P_IP = 2, 0x0800
_DPORT_68 = struct.pack(">II", 0x0000FFFF, 68) + struct.pack("=ii", 20, 0)
_SELECTOR = struct.pack("=BxBx12x", _TERMINAL, 1) + _DPORT_68
# linux/pkt_cls.h, linux/tc_act/tc_csum.h: struct tc_csum
_ACTION_KIND, _ACTION_OPTIONS, _ACTION_INDEX, _CSUM_PARAMETERS = 1, 2, 3, 1
_CSUM, _IPV4_HEADER, _UDP = b"csum\0", 1, 16
_ACTIONS = 1  # TCA_ACT_TAB

QDISCS = netlink.message(_GETQDISC, _REQUEST | _DUMP, bytes(_TCMSG.size))


def kinds(messages: Iterable[bytes]) -> dict[int, frozenset[str]]:
    """Of all queueing disciplines of each link, by its index: the answer to QDISCS."""
    found: defaultdict[int, set[str]] = defaultdict(set)
    for message in messages:
        _, index, *_ = _TCMSG.unpack_from(message)
        found[index].add(_kind(message))
    return {number: frozenset(kinds) for number, kinds in found.items()}


def roots(messages: Iterable[bytes]) -> dict[int, str]:
    """The root of each link, by its index, as in "htb 1:": the answer to QDISCS."""
    found = {}
    for message in messages:
        _, index, handle, parent, _ = _TCMSG.unpack_from(message)
        if parent == _AT_ROOT:
            found[index] = f"{_kind(message)} {handle >> 16:x}:"
    return found


def filters(index: int) -> bytes:
    """Asks for those of a link that hang on libvirt's queueing discipline."""
    body = _TCMSG.pack(0, index, 0, _HANDLE, 0)
    return netlink.message(_GETTFILTER, _REQUEST | _DUMP, body)


def completes_checksums(messages: Iterable[bytes]) -> bool:
    """Whether libvirt's filter is among the answer to filters()."""
    return any(_is_libvirts(message) for message in messages)


def add_root(index: int) -> Request:
    settings = struct.pack("=5I", _HTB_VERSION, _RATE2QUANTUM, _DEFAULT_CLASS, 0, 0)
    options = netlink.encoded(_HTB_INIT, settings)
    body = _TCMSG.pack(0, index, _HANDLE, _AT_ROOT, 0) + _of_kind(b"htb\0", options)
    return Request(NEWQDISC, CREATE | EXCL, body)


def add_filter(index: int) -> Request:
    (protocol,) = struct.unpack("=H", struct.pack(">H", _ETH_P_IP))
    action = netlink.encoded(1, _csum(), nested=True)
    options = netlink.encoded(_U32_SELECTOR, _SELECTOR)
    options += netlink.encoded(_U32_ACTION, action, nested=True)
    header = _TCMSG.pack(0, index, 0, _HANDLE, _PRIORITY << 16 | protocol)
    return Request(NEWTFILTER, CREATE | EXCL, header + _of_kind(b"u32\0", options))


def try_action(index: int) -> tuple[Request, Request]:
    """Make an action as the filter's, on no link, and delete it: can the kernel? index: its own."""
    delete = netlink.encoded(_ACTION_KIND, _CSUM)
    delete += netlink.encoded(_ACTION_INDEX, struct.pack("=I", index))
    return (
        Request(NEWACTION, CREATE | EXCL, _action(_csum(index))),
        Request(DELACTION, 0, _action(delete)),
    )


def _action(values: bytes) -> bytes:
    one = netlink.encoded(1, values, nested=True)
    return bytes(4) + netlink.encoded(_ACTIONS, one, nested=True)


def _csum(index: int = 0) -> bytes:
    """It lets the packet go on (TC_ACT_OK)."""
    parameters = struct.pack("=IIiiiI", index, 0, 0, 0, 0, _IPV4_HEADER | _UDP)
    options = netlink.encoded(_CSUM_PARAMETERS, parameters)
    named = netlink.encoded(_ACTION_KIND, _CSUM)
    return named + netlink.encoded(_ACTION_OPTIONS, options, nested=True)


def _of_kind(kind: bytes, options: bytes) -> bytes:
    return netlink.encoded(_KIND, kind) + netlink.encoded(_OPTIONS, options, nested=True)


def _is_libvirts(message: bytes) -> bool:
    found = netlink.attributes(message[_TCMSG.size :])
    if found.get(_KIND) != b"u32\0":
        return False
    options = netlink.attributes(found.get(_OPTIONS, b""))
    actions = netlink.each_attribute(options.get(_U32_ACTION, b""))
    return options.get(_U32_SELECTOR, b"")[-len(_DPORT_68) :] == _DPORT_68 and any(
        netlink.attributes(action).get(_ACTION_KIND) == _CSUM for _, action in actions
    )


def _kind(message: bytes) -> str:
    kind = netlink.attributes(message[_TCMSG.size :]).get(_KIND, b"")
    return kind.rstrip(b"\0").decode(errors="replace")
