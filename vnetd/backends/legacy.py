"""Notices changes of iptables-legacy, of which the kernel tells nobody: a fingerprint of its
tables, taken by getsockopt and compared every so often.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import hashlib
import os
import socket
import struct
from pathlib import Path

from vnetd.errors import BackendError

# With the settling together: a change that is complete is noticed within a second.
INTERVAL_SECONDS = 0.8
# libvirt writes rule by rule; whoever writes is let finish, as far as it does not take for ever.
_SETTLE_SECONDS, _MOST_SETTLES = 0.2, 10
# Each rule that libvirt deletes or inserts stands for some 10 ms at least.
_POLL_SECONDS = 0.01

# linux/netfilter_ipv4/ip_tables.h, and the same numbers in ip6_tables.h
_GET_INFO, _GET_ENTRIES = 64, 65
_INFO = struct.Struct("=32s13I")
_HEADER_SIZE = 40
_NAME_SIZE = 32

# address family, level, list of tables, offsets in struct ipt_entry and ip6t_entry of next_offset
# and of the two counters
_FAMILIES = (
    (socket.AF_INET, socket.IPPROTO_IP, "/proc/net/ip_tables_names", 90, 96),
    (socket.AF_INET6, socket.IPPROTO_IPV6, "/proc/net/ip6_tables_names", 142, 152),
)
_libc = ctypes.CDLL(None, use_errno=True)


def tables() -> bool:
    """Some legacy table exists in this network namespace; asking for one would make it."""
    return any(_names(path) for _, _, path, _, _ in _FAMILIES)


def fingerprint() -> bytes:
    """Differs when a rule, a chain, a policy or an order does; counters do not count.

    Raises BackendError, where vnetd may not ask.
    """
    digest = hashlib.blake2b()
    for family, level, path, next_offset, counters in _FAMILIES:
        names = _names(path)
        if not names:
            continue
        with socket.socket(family, socket.SOCK_DGRAM) as asked:
            for name in names:
                digest.update(name.encode() + b"\0")
                digest.update(_entries(asked.fileno(), level, name, next_offset, counters))
    return digest.digest()


async def changed(before: bytes) -> None:
    while fingerprint() == before:  # noqa: ASYNC110 - there is nothing to wait for
        await asyncio.sleep(_POLL_SECONDS)


async def settled() -> bytes:
    """The fingerprint once it stays the same for a while."""
    now = fingerprint()
    for _ in range(_MOST_SETTLES):
        await asyncio.sleep(_SETTLE_SECONDS)
        before, now = now, fingerprint()
        if now == before:
            break
    return now


def _names(path: str) -> list[str]:
    try:
        return sorted(Path(path).read_text().split())
    except OSError:
        return []  # a kernel without it


def _entries(fd: int, level: int, table: str, next_offset: int, counters: int) -> bytes:
    """A table's entries without counters; empty where the kernel no longer has them."""
    try:
        info = _getsockopt(fd, level, _GET_INFO, table, _INFO.size)
        size = _INFO.unpack(info)[-1]
        data = bytearray(_getsockopt(fd, level, _GET_ENTRIES, table, _HEADER_SIZE + size, size))
    except OSError as error:
        # EAGAIN: changed between the two. ENOPROTOOPT: a kernel without iptables-legacy.
        if error.errno in (errno.EAGAIN, errno.ENOPROTOOPT, errno.ENOENT):
            return b""
        raise BackendError(f"iptables-legacy, table {table}: {error.strerror}") from error
    at = _HEADER_SIZE
    while at + counters + 16 <= len(data):
        data[at + counters : at + counters + 16] = bytes(16)
        (step,) = struct.unpack_from("=H", data, at + next_offset)
        if not step:
            break
        at += step
    return bytes(data[_HEADER_SIZE:])


def _getsockopt(fd: int, level: int, option: int, table: str, length: int, size: int = 0) -> bytes:
    """With the name of the table handed in, which Python's own cannot do."""
    buffer = ctypes.create_string_buffer(length)
    struct.pack_into("=32sI", buffer, 0, table.encode()[: _NAME_SIZE - 1], size)
    actual = ctypes.c_uint32(length)
    if _libc.getsockopt(fd, level, option, buffer, ctypes.byref(actual)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return buffer.raw[: actual.value]
