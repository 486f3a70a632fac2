"""Words that the model of a network and the model of a firewall share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

IfName = NewType("IfName", str)


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
