"""Words that the models of a network, a link and a firewall share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import NewType

IfName = NewType("IfName", str)
Address = IPv4Interface | IPv6Interface
HostAddress = IPv4Address | IPv6Address
Subnet = IPv4Network | IPv6Network


class Family(StrEnum):
    IPV4 = "ip"
    IPV6 = "ip6"


@dataclass(frozen=True, slots=True)
class Cause:
    """The process that did it, as the kernel named it. parents: its ancestors, nearest first."""

    process: str
    pid: int
    parents: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " < ".join((f"{self.process}[{self.pid}]", *self.parents))
