"""The unit of systemd behind a socket, by its control group: the kernel tells it to anybody, also
of processes of others.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Collection
from pathlib import Path

from vnetd.backends import netlink

# linux/sock_diag.h, linux/inet_diag.h
_SOCK_DIAG_BY_FAMILY = 20
_CGROUP_ID = 21
# struct inet_diag_req_v2: family, protocol, extensions, states; of any socket
_REQUEST = struct.Struct("=BBBxI48x")
# struct inet_diag_msg: its inode, at the end
_INODE, _MESSAGE_SIZE = struct.Struct("=I"), 72
_REQUEST_DUMP = 0x301
_ALL_STATES = 0xFFFFFFFF

_PROTOCOLS = {"udp": socket.IPPROTO_UDP, "tcp": socket.IPPROTO_TCP}
# Where systemd has mounted control groups of version 2, alone or beside the old ones.
_ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
_UNITS = (".service", ".scope", ".socket")


def units(protocol: str, inodes: Collection[int]) -> dict[int, str]:
    """Inode of a socket → name of the unit; only of those that can be told (Linux 5.9)."""
    try:
        groups = _control_groups(_PROTOCOLS[protocol])
    except OSError:
        return {}
    wanted = {inode: groups[inode] for inode in inodes if inode in groups}
    names = _names(set(wanted.values()))
    return {inode: names[group] for inode, group in wanted.items() if group in names}


def _control_groups(protocol: int) -> dict[int, int]:
    """Inode of each socket in this network namespace → id of its control group."""
    found = {}
    with netlink.open_sock_diag() as asking:
        for family in (socket.AF_INET, socket.AF_INET6):
            asked = _REQUEST.pack(family, protocol, 0, _ALL_STATES)
            question = netlink.message(_SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, asked)
            for body in netlink.dump(asking, question):
                (inode,) = _INODE.unpack_from(body, _MESSAGE_SIZE - _INODE.size)
                told = netlink.attributes(body[_MESSAGE_SIZE:])
                if group := told.get(_CGROUP_ID):
                    (found[inode],) = struct.unpack("=Q", group)
    return found


def _names(groups: Collection[int]) -> dict[int, str]:
    """Of those that are units: a control group's id is the inode of its directory."""
    found: dict[int, str] = {}
    root = next((root for root in _ROOTS if (root / "cgroup.controllers").exists()), None)
    for directory, _, _ in os.walk(root) if root and groups else ():
        try:
            number = os.stat(directory).st_ino
        except FileNotFoundError:
            continue
        if number not in groups:
            continue
        parts = reversed(Path(directory).parts)
        if unit := next((part for part in parts if part.endswith(_UNITS)), ""):
            found[number] = unit
    return found
