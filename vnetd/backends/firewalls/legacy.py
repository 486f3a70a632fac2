"""Notices changes of iptables-legacy, of which the kernel tells nobody: a fingerprint of its
tables, taken by getsockopt and compared every so often.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import hashlib
import os
import shutil
import socket
import struct
from pathlib import Path

from vnetd.core.model import Family
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

# address family, level, offsets in struct ipt_entry and ip6t_entry of next_offset and of the two
# counters
_FAMILIES = {
    Family.IPV4: (socket.AF_INET, socket.IPPROTO_IP, 90, 96),
    Family.IPV6: (socket.AF_INET6, socket.IPPROTO_IPV6, 142, 152),
}
_NAMES = {
    Family.IPV4: Path("/proc/net/ip_tables_names"),
    Family.IPV6: Path("/proc/net/ip6_tables_names"),
}
_MODULES = {Family.IPV4: "iptable", Family.IPV6: "ip6table"}
_ALL_TABLES = ("filter", "mangle", "nat", "raw", "security")
_LIBVIRTS_TABLES = ["filter", "mangle", "nat"]
_libc = ctypes.CDLL(None, use_errno=True)


def tables(family: Family) -> list[str]:
    """Those that exist in this network namespace; asking for another would make it.

    Only root may read their names. To others a loaded module is a table, and where iptables itself
    is the legacy one, so are those that libvirt writes to.
    """
    try:
        return sorted(_NAMES[family].read_text().split())
    except PermissionError:
        loaded = Path("/sys/module")
        found = [t for t in _ALL_TABLES if (loaded / f"{_MODULES[family]}_{t}").is_dir()]
        return found or (_LIBVIRTS_TABLES if _is_default() else [])
    except OSError:
        return []  # a kernel without it


def may_read() -> bool:
    """Whether vnetd's sandbox lets it ask for tables: systemd/iptables-legacy.conf does."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).close()
    except OSError:
        return False
    return True


def fingerprint() -> bytes:
    """Differs when a rule, a chain, a policy or an order does; counters do not count.

    Raises BackendError, where vnetd may not ask.
    """
    digest = hashlib.blake2b()
    for family, (address_family, level, next_offset, counters) in _FAMILIES.items():
        names = tables(family)
        if not names:
            continue
        with _socket(address_family) as asked:
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


def _is_default() -> bool:
    return "legacy" in os.path.realpath(shutil.which("iptables") or "")


def _socket(address_family: int) -> socket.socket:
    try:
        return socket.socket(address_family, socket.SOCK_DGRAM)
    except OSError as error:
        hint = "vnetd's unit needs the drop-in iptables-legacy.conf, see vnetd(8)"
        raise BackendError(f"iptables-legacy: {error.strerror}; {hint}") from error


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
