"""The rules that libvirt writes, and vnetd's guard, as the kernel has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from vnetd.core.basics import Family


@dataclass(frozen=True, slots=True, order=True)
class Chain:
    family: Family
    table: str
    name: str

    def __str__(self) -> str:
        v6 = "IPv6 " if self.family is Family.IPV6 else ""
        return f"{v6}{self.table} {self.name}"


class World(StrEnum):
    """The firewall that libvirt writes to."""

    IPTABLES_NFT = "iptables (nf_tables)"
    IPTABLES_LEGACY = "iptables-legacy"
    NFTABLES = "nftables"
    NONE = "none"

    @property
    def is_iptables(self) -> bool:
        return self in (World.IPTABLES_NFT, World.IPTABLES_LEGACY)


Chains = Mapping[Chain, tuple[str, ...]]
"""Rules as the tool that lists them prints them, without their chain."""


@dataclass(frozen=True, slots=True)
class Ruleset:
    """All chains, each rule in iptables-save's form without -A CHAIN.

    elsewhere: the same of worlds that libvirt has left; what it does not remove there stays.
    Of libvirt's nftables backend also each rule's handle, which of them libvirt will delete by
    itself (remembered), and whether libvirt has not written for a while, nor since it was asked for
    its networks (settled).
    """

    world: World
    chains: Chains = field(default_factory=dict)
    elsewhere: tuple[Ruleset, ...] = ()
    handles: Mapping[Chain, tuple[int, ...]] = field(default_factory=dict)
    remembered: frozenset[tuple[Chain, int]] = frozenset()
    settled: bool = True


class Held(StrEnum):
    """How well the kernel keeps others away from the guard."""

    PERSISTENT = "owner, persist"
    OWNED = "owner"
    """It goes when vnetd stops: the kernel is older than 6.9."""
    OPEN = "open"
    """Others can flush it: the kernel is older than 5.12."""


@dataclass(frozen=True, slots=True)
class GuardTable:
    """The guard as the kernel has it. held: None if there is none. mine: this process holds it.
    chains: the digests of the rules in each.
    """

    held: Held | None
    mine: bool
    chains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
