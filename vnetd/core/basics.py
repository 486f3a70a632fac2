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
    """Of tables, as nft names them."""

    IPV4 = "ip"
    IPV6 = "ip6"

    @classmethod
    def of(cls, item: Address | HostAddress | Subnet) -> Family:
        return cls.IPV4 if item.version == 4 else cls.IPV6

    @property
    def version(self) -> int:
        return 4 if self is Family.IPV4 else 6


def overlap(one: Subnet, two: Subnet) -> bool:
    return one.version == two.version and one.overlaps(two)


@dataclass(frozen=True, slots=True)
class Cause:
    """The process that did it, as the kernel named it. parents: its ancestors, nearest first."""

    process: str
    pid: int
    parents: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " < ".join((f"{self.process}[{self.pid}]", *self.parents))
