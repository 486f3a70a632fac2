"""Who listens on the ports of DHCP and DNS, as /proc/net tells."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from pathlib import Path

from vnetd.backends import process
from vnetd.core.model import HostAddress

_PORTS = (53, 67)
_TABLES = (("udp", "udp"), ("udp6", "udp"), ("tcp", "tcp"), ("tcp6", "tcp"))
# include/net/tcp_states.h: TCP_LISTEN; a UDP socket without a peer is in TCP_CLOSE
_LISTENING = {"tcp": 0x0A, "udp": 0x07}


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
    """ "NAME[PID]" of the process behind each; "" of those of other users, unless vnetd is root."""
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
    return found


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
    return {item: who for item, who in found if port == 53 or not who.startswith("dnsmasq[")}


def _address(text: str) -> HostAddress:
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    if len(words) == 1:
        return IPv4Address(packed)
    address = IPv6Address(packed)
    return address.ipv4_mapped or address
