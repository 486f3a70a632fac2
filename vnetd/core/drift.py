"""Drift: each kind of difference between what must be and what is, and how it is told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import assert_never

from vnetd.core import coexist
from vnetd.core.model import (
    FIREWALL_OBJECT,
    Address,
    Chain,
    DhcpHost,
    DhcpRange,
    IfName,
    Source,
    network_object,
)
from vnetd.core.rules import nftables, repair
from vnetd.core.wording import few


@dataclass(frozen=True, slots=True)
class Undefined:
    network: str


@dataclass(frozen=True, slots=True)
class Difference:
    """One key of a definition. want and have as a policy writes them."""

    key: str
    want: str
    have: str

    def __str__(self) -> str:
        return f"{self.key} is {self.have or 'none'} instead of {self.want or 'none'}"


@dataclass(frozen=True, slots=True)
class ConfigDiffers:
    """What libvirt will start next time is not what the policy says."""

    network: str
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class LiveDiffers:
    """What runs now is not what the policy says, and only a restart changes it."""

    network: str
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class DhcpDiffers:
    """Ranges or reservations of the running network, which libvirt can change while it runs."""

    network: str
    add: tuple[DhcpRange | DhcpHost, ...]
    remove: tuple[DhcpRange | DhcpHost, ...]


@dataclass(frozen=True, slots=True)
class Stopped:
    network: str


@dataclass(frozen=True, slots=True)
class AutostartDiffers:
    network: str
    want: bool


@dataclass(frozen=True, slots=True)
class Unexpected:
    """Made by vnetd, and no policy names it any more."""

    network: str


@dataclass(frozen=True, slots=True)
class BridgeMissing:
    """libvirt calls the network active, but its bridge is gone."""

    network: str
    bridge: IfName


@dataclass(frozen=True, slots=True)
class BridgeDiffers:
    network: str
    bridge: IfName
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class AddressMissing:
    network: str
    bridge: IfName
    address: Address


@dataclass(frozen=True, slots=True)
class Unplugged:
    """A running guest's tap is not on its network's bridge."""

    network: str
    bridge: IfName
    domain: str
    tap: IfName
    isolated: bool


@dataclass(frozen=True, slots=True)
class Unrecorded:
    """libvirt has forgotten a running guest's tap: it does not count it any more."""

    network: str
    bridge: IfName
    domain: str
    tap: IfName
    port: str


@dataclass(frozen=True, slots=True)
class RulesDiffer:
    """One chain, as far as this network needs it: its own rules and the jumps to them."""

    network: str
    chain: Chain
    flaws: repair.Flaws


@dataclass(frozen=True, slots=True)
class SysctlDiffers:
    """name: below /proc/sys."""

    network: str
    name: str
    want: str
    have: str


@dataclass(frozen=True, slots=True)
class DnsmasqDead:
    network: str


@dataclass(frozen=True, slots=True)
class GuardDiffers:
    """rules: how many of this network's the guard lacks."""

    network: str
    rules: int


@dataclass(frozen=True, slots=True)
class RulesLost:
    """libvirt itself must install them again. Until then vnetd's copies do their work."""

    rules: tuple[tuple[Chain, str], ...]


@dataclass(frozen=True, slots=True)
class RulesLeftOver:
    """Copies, duplicates, and rules of networks that are gone: nobody else will delete them."""

    rules: tuple[nftables.Surplus, ...]


Drift = (
    Undefined
    | ConfigDiffers
    | LiveDiffers
    | DhcpDiffers
    | Stopped
    | AutostartDiffers
    | Unexpected
    | BridgeMissing
    | BridgeDiffers
    | AddressMissing
    | Unplugged
    | Unrecorded
    | RulesDiffer
    | GuardDiffers
    | SysctlDiffers
    | DnsmasqDead
    | coexist.AcceptsDiffer
    | coexist.ZoneDiffers
    | RulesLost
    | RulesLeftOver
)


def text(drift: Drift) -> str:
    """One line for people; the network is named beside it."""
    match drift:
        case Undefined():
            return "is not defined"
        case ConfigDiffers():
            return "definition: " + _joined(drift.differences)
        case LiveDiffers():
            return "running network: " + _joined(drift.differences)
        case DhcpDiffers(add=add, remove=remove):
            missing = [f"{item} is missing" for item in add]
            return "running DHCP: " + few(missing + [f"{item} is not wanted" for item in remove])
        case Stopped():
            return "is not active"
        case AutostartDiffers(want=want):
            return f"autostart is {'off' if want else 'on'}"
        case Unexpected():
            return "is in no policy any more"
        case BridgeMissing(bridge=bridge):
            return f"is active without its bridge {bridge}"
        case BridgeDiffers(bridge=bridge):
            return f"bridge {bridge}: " + _joined(drift.differences)
        case AddressMissing(bridge=bridge, address=address):
            return f"bridge {bridge}: address {address} is missing"
        case Unplugged(bridge=bridge, domain=domain, tap=tap):
            return f"tap {tap} of guest {domain} is not on bridge {bridge}"
        case Unrecorded(domain=domain, tap=tap):
            return f"libvirt has no port for tap {tap} of guest {domain}"
        case RulesDiffer(chain=chain, flaws=flaws):
            return f"{chain}: {_flaws(flaws)}"
        case GuardDiffers(rules=rules):
            return f"guard: {rules} rules missing"
        case SysctlDiffers(name=name, want=want, have=have):
            return f"sysctl {name} is {have} instead of {want}"
        case DnsmasqDead():
            return "its dnsmasq is dead: no DHCP, no DNS"
        case coexist.AcceptsDiffer() | coexist.ZoneDiffers():
            return str(drift)
        case RulesLost(rules=rules):
            return "lost by libvirt: " + few([f"{chain} {rule}" for chain, rule in rules])
        case RulesLeftOver(rules=rules):
            return "left over: " + few([f"{item.chain} {item.rule}" for item in rules])
        case _:
            assert_never(drift)


def object_of(drift: Drift) -> str:
    if isinstance(drift, RulesLost | RulesLeftOver):
        return FIREWALL_OBJECT
    return network_object(drift.network)


def source(drift: Drift) -> Source:
    """The source whose change shows it."""
    match drift:
        case RulesDiffer() | RulesLost() | RulesLeftOver():
            return Source.FIREWALL
        case GuardDiffers():
            return Source.GUARD
        case SysctlDiffers():
            return Source.SYSCTLS
        case DnsmasqDead():
            return Source.DNSMASQ
        case coexist.AcceptsDiffer() | coexist.ZoneDiffers():
            return Source.FILTERS
        case BridgeMissing() | BridgeDiffers() | AddressMissing() | Unplugged():
            return Source.LINKS
        case _:
            return Source.LIBVIRT


def _flaws(flaws: repair.Flaws) -> str:
    parts = []
    for what, rules in (
        ("missing", flaws.missing),
        ("duplicate", flaws.duplicate),
        ("out of order", flaws.misplaced),
    ):
        if len(rules) == 1:
            parts.append(f"{what} {rules[0]}")
        elif rules:
            parts.append(f"{len(rules)} rules {what}")
    return ", ".join(parts)


def _joined(items: Iterable[Difference]) -> str:
    return ", ".join(str(item) for item in items)
