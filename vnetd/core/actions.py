"""Actions: what vnetd can do, each with its reason and with what running guests lose by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from vnetd.core.model import (
    Address,
    Chain,
    DhcpHost,
    DhcpRange,
    Family,
    HostAddress,
    IfName,
)
from vnetd.core.packets.firewall import Place
from vnetd.core.policy import NetworkPolicy
from vnetd.core.rules import repair
from vnetd.core.rules.guard import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class _Action:
    """objects: whose drift it ends. impact: what running guests lose by it."""

    objects: tuple[str, ...]
    reason: str
    impact: str = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainEdits:
    """new: the chain does not exist yet."""

    chain: Chain
    new: bool
    edits: tuple[repair.Edit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreRules(_Action):
    """All of one family at once: a transaction for each table."""

    family: Family
    chains: tuple[ChainEdits, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteGuard(_Action):
    """All of it in one transaction. chains: those that change. Without rules the table goes."""

    table: tuple[tuple[str, tuple[Rule, ...]], ...]
    chains: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAccepts(_Action):
    """position: from 1, of the first to add, once those to remove are gone."""

    place: Place
    add: tuple[str, ...]
    remove: tuple[str, ...]
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetZone(_Action):
    """zone: "" takes the bridge out of any."""

    network: str
    bridge: IfName
    zone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EditNftables(_Action):
    """For nft -f: one transaction in libvirt's own tables."""

    what: str
    script: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinstallRules(_Action):
    """libvirt deletes the rules of all its networks and installs them again. scaffold: for nft -f,
    what stands in front of them meanwhile.
    """

    scaffold: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveNetwork(_Action):
    network: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DefineNetwork(_Action):
    policy: NetworkPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAutostart(_Action):
    network: str
    on: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateDhcp(_Action):
    network: str
    add: tuple[DhcpRange | DhcpHost, ...]
    remove: tuple[DhcpRange | DhcpHost, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartNetwork(_Action):
    network: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartNetwork(_Action):
    network: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetBridge(_Action):
    """None leaves as it is."""

    bridge: IfName
    mac: str | None = None
    mtu: int | None = None
    stp: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AddAddress(_Action):
    bridge: IfName
    address: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class PlugTap(_Action):
    """pause_stp: turn the bridge's STP off for the moment, so that the port need not wait."""

    tap: IfName
    bridge: IfName
    isolated: bool
    pause_stp: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordPort(_Action):
    network: str
    domain: str
    port: str
    bridge: IfName


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSysctl(_Action):
    """name: below /proc/sys."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartDnsmasq(_Action):
    """dns: it answers names, so that libvirt can be asked for it by way of one; otherwise by way of
    a reservation of address, which is the host's own.
    """

    network: str
    dns: bool
    address: HostAddress


Action = (
    RestoreRules
    | WriteGuard
    | SetAccepts
    | SetZone
    | EditNftables
    | ReinstallRules
    | RemoveNetwork
    | DefineNetwork
    | SetAutostart
    | UpdateDhcp
    | StartNetwork
    | RestartNetwork
    | SetBridge
    | AddAddress
    | PlugTap
    | RecordPort
    | SetSysctl
    | StartDnsmasq
)


def text(action: Action) -> str:
    """What the action does, as one line."""
    match action:
        case RestoreRules(family=family, chains=chains):
            count = sum(1 for chain in chains for edit in chain.edits if edit.position)
            version = "IPv4" if family is Family.IPV4 else "IPv6"
            return f"restore {count} {version} rules in {len(chains)} chains"
        case WriteGuard(table=table):
            count = sum(len(rules) for _, rules in table)
            return f"write the guard: {count} rules" if count else "remove the guard"
        case SetAccepts(place=place, add=add, remove=remove):
            parts = [f"add {len(add)}"] if add else []
            parts += [f"remove {len(remove)}"] if remove else []
            return f"{', '.join(parts)} accepts of vnetd in {place}"
        case SetZone(bridge=bridge, zone=zone):
            return f"put bridge {bridge} into firewalld's zone {zone or 'by default'}"
        case EditNftables(what=what):
            return what
        case ReinstallRules():
            return "let libvirt install the rules of all its networks again"
        case RemoveNetwork(network=network):
            return f"stop and undefine network {network}"
        case DefineNetwork(policy=policy):
            return f"define network {policy.name}"
        case SetAutostart(network=network, on=on):
            return f"turn autostart of network {network} {'on' if on else 'off'}"
        case UpdateDhcp(network=network, add=add, remove=remove):
            return f"update DHCP of network {network}: {len(add)} added, {len(remove)} removed"
        case StartNetwork(network=network):
            return f"start network {network}"
        case RestartNetwork(network=network):
            return f"stop and start network {network}"
        case SetBridge(bridge=bridge, mac=mac, mtu=mtu, stp=stp):
            parts = ["up"]
            parts += [f"MAC {mac}"] if mac is not None else []
            parts += [f"MTU {mtu}"] if mtu is not None else []
            parts += [f"STP {'on' if stp else 'off'}"] if stp is not None else []
            return f"set bridge {bridge} {', '.join(parts)}"
        case AddAddress(bridge=bridge, address=address):
            return f"add address {address} to bridge {bridge}"
        case PlugTap(tap=tap, bridge=bridge):
            return f"plug tap {tap} into bridge {bridge}"
        case RecordPort(domain=domain, network=network):
            return f"let libvirt know guest {domain} on network {network} again"
        case SetSysctl(name=name, value=value):
            return f"set sysctl {name} to {value}"
        case StartDnsmasq(network=network):
            return f"let libvirt start dnsmasq of network {network}"
        case _:
            assert_never(action)
