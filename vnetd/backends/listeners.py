"""Who listens on the ports of DHCP and DNS, as /proc/net and the kernel's sock_diag tell."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from pathlib import Path

from vnetd.backends import process, sock_diag
from vnetd.core.model import HostAddress

_PORTS = (53, 67)
_TABLES = (("udp", "udp"), ("udp6", "udp"), ("tcp", "tcp"), ("tcp6", "tcp"))
# include/net/tcp_states.h: TCP_LISTEN; a UDP socket without a peer is in TCP_CLOSE
_LISTENING = {"tcp": 0x0A, "udp": 0x07}
LIBVIRTS = ("libvirtd.service", "virtnetworkd.service")
"""The units that libvirt's dnsmasqs are in."""


@dataclass(frozen=True, slots=True)
class Socket:
    protocol: str
    address: HostAddress
    port: int
    inode: int

    def __str__(self) -> str:
        where = "all addresses" if self.address.is_unspecified else str(self.address)
        return f"{self.protocol.upper()} port {self.port} of {where}"


def read() -> tuple[Socket, ...]:
    """Of all processes in this network namespace."""
    found: list[Socket] = []
    for table, protocol in _TABLES:
        try:
            with Path(f"/proc/net/{table}").open() as lines:
                found += parse(lines, protocol)
        except OSError:
            continue  # a kernel without IPv6
    return tuple(found)


def parse(lines: Iterable[str], protocol: str) -> Iterator[Socket]:
    """proc(5), /proc/net/tcp: an address is a row of 32-bit words, each in the host's order."""
    for line in islice(lines, 1, None):
        words = line.split()
        address, _, port = words[1].partition(":")
        listens = int(words[3], 16) == _LISTENING[protocol]
        if protocol == "tcp" and not listens:
            return  # tcp_ipv4.c: those that listen come first; of others there may be thousands
        if int(port, 16) in _PORTS and listens:
            yield Socket(protocol, _address(address), int(port, 16), int(words[9]))


def holders(sockets: Iterable[Socket]) -> dict[Socket, str]:
    """ "NAME[PID]" of the process behind each. Unless vnetd is root, of those of other users the
    unit of systemd, or "".
    """
    wanted = {f"socket:[{item.inode}]": item for item in sockets}
    found = dict.fromkeys(wanted.values(), "")
    for directory in Path("/proc").glob("[0-9]*/fd") if wanted else ():
        try:
            with os.scandir(directory) as entries:
                targets = [os.readlink(entry) for entry in entries]
        except OSError:
            continue  # not ours to look at, or gone
        pid = int(directory.parts[2])
        for target in targets:
            if target in wanted:
                found[wanted[target]] = f"{process.name_of(pid)}[{pid}]"
    return found | _units([item for item, who in found.items() if not who])


def _units(sockets: Iterable[Socket]) -> dict[Socket, str]:
    by_inode: dict[str, dict[int, Socket]] = {}
    for item in sockets:
        by_inode.setdefault(item.protocol, {})[item.inode] = item
    return {
        of_protocol[inode]: unit
        for protocol, of_protocol in by_inode.items()
        for inode, unit in sock_diag.units(protocol, of_protocol).items()
    }


def told(why: str) -> dict[Socket, str]:
    """The sockets on the port that an error of libvirt's speaks of, and who holds each as far as
    vnetd may see that; none where it speaks of none.
    """
    if "Address already in use" not in why:
        return {}
    port = 67 if "DHCP" in why else 53
    blocking = [
        item
        for item in read()
        if item.port == port and (item.address.is_unspecified or str(item.address) in why)
    ]
    found = holders(blocking).items()
    # libvirt's dnsmasqs share the port of DHCP, each bound to its bridge.
    return {item: who for item, who in found if port == 53 or not _is_libvirts(who)}


def _is_libvirts(who: str) -> bool:
    return who.startswith("dnsmasq[") or who in LIBVIRTS


def _address(text: str) -> HostAddress:
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    if len(words) == 1:
        return IPv4Address(packed)
    address = IPv6Address(packed)
    return address.ipv4_mapped or address
