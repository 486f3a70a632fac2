"""The kernel's audit records of changed firewall tables: in iptables-legacy nothing else tells of a
change, nor who made it.

Only where audit is on anyway: whether it is belongs to the admin. Where it is off, or vnetd may not
listen, nothing comes. The kernel sends the records to the host's own network namespace alone.
"""

from __future__ import annotations

import re
import socket
import struct

from vnetd.core.model import Cause

_NETLINK_AUDIT = 9
# linux/audit.h
_GROUP_READLOG = 1
_NETFILTER_CFG = 1325

# kernel/auditsc.c, __audit_log_nfcfg(); the name is in hex where it could be taken for more.
_CHANGE = re.compile(
    r"\btable=\S+ family=(?:2|10) entries=\d+ op=xt_(?:replace|register|unregister)"
    r' pid=(\d+)(?: subj=\S+)? comm=(?:"([^"]*)"|([0-9A-F]+))'
)


def open_events() -> socket.socket | None:
    """None where the kernel has no audit, or vnetd no CAP_AUDIT_READ."""
    try:
        events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_AUDIT)
    except OSError:
        return None
    events.setblocking(False)
    try:
        events.bind((0, _GROUP_READLOG))
    except OSError:
        events.close()
        return None
    return events


def writer(datagram: bytes) -> Cause | None:
    """Who changed a table of iptables-legacy, if that is what it tells; its pid is one of the
    initial pid namespace. One record comes in one datagram.
    """
    if len(datagram) < 16 or struct.unpack_from("=H", datagram, 4)[0] != _NETFILTER_CFG:
        return None
    found = _CHANGE.search(datagram[16:].decode(errors="replace"))
    if found is None:
        return None
    pid, name, coded = found.groups()
    return Cause(name if coded is None else bytes.fromhex(coded).decode(errors="replace"), int(pid))
