"""The bridges that libvirt makes for its networks, and their addresses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Interface
from typing import Any

from vnetd.core.actions import Action
from vnetd.core.drift import Conflict, Difference, Drift, NetworkDrift, joined, shown, unequal
from vnetd.core.keep.networks import LINK_KEYS, BridgeMissing
from vnetd.core.model import (
    Address,
    Definition,
    IfName,
    Libvirt,
    Link,
    Network,
    Owner,
    Source,
    network_object,
)
from vnetd.core.policy import NetworkPolicy, Policy

STP_WAIT = "STP holds the port back for twice the forward delay, 4 s at least"
_DEFAULT_MTU = 1500
_NEW_MAC = "guests reach the host again when they have looked up its new MAC, up to 60 s"
_LEAST_DELAY = 2.0


@dataclass(frozen=True, slots=True)
class BridgeDiffers(NetworkDrift):
    bridge: IfName
    differences: tuple[Difference, ...]
    source = Source.LINKS

    def __str__(self) -> str:
        return f"bridge {self.bridge}: " + joined(self.differences)


@dataclass(frozen=True, slots=True)
class Renamed(NetworkDrift):
    """The network's bridge is there, under another name."""

    bridge: IfName
    now: IfName
    source = Source.LINKS

    def __str__(self) -> str:
        return f"bridge {self.bridge} is named {self.now} now"


@dataclass(frozen=True, slots=True)
class AddressMissing(NetworkDrift):
    bridge: IfName
    address: Address
    source = Source.LINKS

    def __str__(self) -> str:
        return f"bridge {self.bridge}: address {self.address} is missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetBridge(Action):
    """None leaves as it is. delay: seconds."""

    bridge: IfName
    mac: str | None = None
    mtu: int | None = None
    stp: bool | None = None
    delay: float | None = None
    vlan_filtering: bool | None = None

    def __str__(self) -> str:
        values = (
            ("MAC", self.mac),
            ("MTU", self.mtu),
            ("STP", self.stp),
            ("forward delay", self.delay),
            ("VLAN filtering", self.vlan_filtering),
        )
        parts = [f"{name} {shown(value)}" for name, value in values if value is not None]
        return f"set bridge {self.bridge} {', '.join(['up', *parts])}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemakeBridge(Action):
    """As libvirt had made it: settings, and its addresses."""

    settings: SetBridge
    addresses: tuple[Address, ...]

    def __str__(self) -> str:
        return f"make bridge {self.settings.bridge} again"


@dataclass(frozen=True, slots=True, kw_only=True)
class RenameBridge(Action):
    now: IfName
    bridge: IfName

    def __str__(self) -> str:
        return f"rename bridge {self.now} back to {self.bridge}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AddAddress(Action):
    bridge: IfName
    address: Address

    def __str__(self) -> str:
        return f"add address {self.address} to bridge {self.bridge}"


def diff(
    policy: Policy, libvirt: Libvirt, kept: Sequence[Definition], links: Mapping[IfName, Link]
) -> Iterator[Drift | Conflict]:
    for live in kept:
        if live.bridge is None or not live.mode.has_own_bridge:
            continue
        link = links.get(live.bridge)
        now = _renamed(live, libvirt, links)
        if link is None:
            missing = BridgeMissing(live.name, live.bridge)
            yield Renamed(live.name, live.bridge, now) if now else missing
            continue
        if link.bridge is None or now:
            yield _in_the_way(live, link, now)
            continue
        network, want = libvirt.networks[live.name], policy.networks.get(live.name)
        values = wanted(network, want)
        if link.mtu < (least := _least_mtu(link, libvirt, links)):
            values.setdefault("mtu", least)
        if found := _differences(values, link):
            yield BridgeDiffers(live.name, live.bridge, found)
        for address in (*live.addresses, *_link_local(live, link)):
            if address not in link.addresses:
                yield AddressMissing(live.name, live.bridge, address)
        for extra in sorted(link.addresses - set(live.addresses), key=str):
            if not extra.is_link_local:
                yield _foreign_address(live, extra)


def led_by_others(kept: Iterable[Definition], owners: Mapping[str, Owner]) -> Iterator[Conflict]:
    """They are kept all the same: guests cannot wait until an admin has decided."""
    for live in kept:
        if live.mode.has_own_bridge and (owner := owners.get(live.bridge or "")):
            wrong = f"{owner} leads its bridge {live.bridge}, as libvirt does"
            yield Conflict(network_object(live.name), f"{wrong}; to hand it over: {owner.cure}")


def plan(drift: Iterable[Drift], policy: Policy, libvirt: Libvirt) -> Iterator[Action]:
    """drift: without that of networks that libvirt will start anew."""
    for item in drift:
        objects, reason = (item.object,), str(item)
        match item:
            case BridgeMissing(network=name, bridge=bridge):
                network = libvirt.networks[name]
                values = wanted(network, policy.networks.get(name))
                if not values["vlan filtering"]:
                    del values["vlan filtering"]  # as a new one is; not every kernel has the switch
                settings = _settings(objects, reason, bridge, values)
                yield RemakeBridge(
                    objects=objects,
                    reason=reason,
                    settings=settings,
                    addresses=network.definition.addresses,
                )
            case Renamed(bridge=bridge, now=now):
                yield RenameBridge(objects=objects, reason=reason, bridge=bridge, now=now)
            case BridgeDiffers(network=name, bridge=bridge, differences=differences):
                values = wanted(libvirt.networks[name], policy.networks.get(name))
                keys = {difference.key for difference in differences}
                keys |= {"delay"} if "stp" in keys else set()  # the kernel has changed it as well
                values = {key: value for key, value in values.items() if key in keys}
                if "mtu" in keys:  # which need not be in anybody's definition
                    values["mtu"] = next(int(x.want) for x in differences if x.key == "mtu")
                yield _settings(objects, reason, bridge, values)
            case AddressMissing(bridge=bridge, address=address):
                yield AddAddress(objects=objects, reason=reason, bridge=bridge, address=address)
            case _:
                pass


def wanted(network: Network, want: NetworkPolicy | None) -> dict[str, object]:
    """What its bridge must be set to, by the keys of a policy where it has one.

    Where the policy leaves a key out, a managed network's bridge is as it will start next time:
    else the next restart would change it under the guests.
    """
    base = network.config if want and network.config else network.definition
    values: dict[str, object] = {"vlan filtering": base.mac_table}
    for key in LINK_KEYS:
        value = getattr(want, key, None)
        value = getattr(base, key) if value is None else value
        if value is not None:
            values[key] = value
    if base.delay is not None:
        # The kernel takes no less with STP on.
        values["delay"] = max(base.delay, _LEAST_DELAY) if values.get("stp") else base.delay
    return values


def _least_mtu(link: Link, libvirt: Libvirt, links: Mapping[IfName, Link]) -> int:
    """Of a bridge whose network leaves it open: the kernel's default, or that of a port that has
    less and is to. More is somebody's wish.
    """
    of_guests = {tap.device: tap.mtu or _DEFAULT_MTU for tap in libvirt.taps}
    ports = [port for port in links.values() if port.master == link.name]
    return min([_DEFAULT_MTU, *(of_guests.get(port.name, port.mtu) for port in ports)])


def _differences(values: Mapping[str, object], link: Link) -> tuple[Difference, ...]:
    options = link.bridge
    assert options is not None, f"{link.name} is no bridge"
    have: dict[str, object] = {
        "mac": link.mac,
        "mtu": link.mtu,
        "stp": options.stp,
        "delay": options.forward_delay,
        "vlan filtering": options.vlan_filtering,
    }
    ignored = set() if values.get("stp") else {"delay"}  # which does nothing without STP
    if options.vlan_filtering is None:  # the kernel cannot
        ignored.add("vlan filtering")
    pairs: list[tuple[str, object, object]] = [("state", "up", "up" if link.up else "down")]
    pairs += [(key, value, have[key]) for key, value in values.items() if key not in ignored]
    return unequal(pairs)


def _settings(
    objects: tuple[str, ...], reason: str, bridge: IfName, values: Mapping[str, Any]
) -> SetBridge:
    return SetBridge(
        objects=objects,
        reason=reason,
        impact=_NEW_MAC if "mac" in values else "none",
        bridge=bridge,
        mac=values.get("mac"),
        mtu=values.get("mtu"),
        stp=values.get("stp"),
        delay=values.get("delay"),
        vlan_filtering=values.get("vlan filtering"),
    )


def _renamed(live: Definition, libvirt: Libvirt, links: Mapping[IfName, Link]) -> IfName | None:
    """libvirt gives each of its bridges a MAC of its own: a bridge that has it is the network's."""
    own = links.get(live.bridge) if live.bridge else None
    if live.mac is None or (own is not None and own.mac == live.mac):
        return None
    others = {network.definition.bridge for network in libvirt.networks.values()}
    found = [
        link.name
        for link in links.values()
        if link.bridge is not None and link.mac == live.mac and link.name not in others
    ]
    return found[0] if len(found) == 1 else None


def _link_local(live: Definition, link: Link) -> Iterator[Address]:
    """The one that the kernel gives a bridge when it gets carrier, and not again when somebody
    flushes it: without any, dnsmasq can announce no router to guests (RFC 4861, 6.1.2).
    """
    have = any(address.version == 6 and address.is_link_local for address in link.addresses)
    if have or not link.operational or all(address.version == 4 for address in live.addresses):
        return
    mac = bytes.fromhex(link.mac.replace(":", ""))
    eui64 = bytes((mac[0] ^ 2, *mac[1:3], 0xFF, 0xFE, *mac[3:]))
    yield IPv6Interface((b"\xfe\x80" + bytes(6) + eui64, 64))


def _in_the_way(live: Definition, link: Link, now: IfName | None) -> Conflict:
    what = link.kind or "device"
    wrong = f"another link, a {what}, is named {live.bridge}, as the network's bridge should be"
    if now:
        return Conflict(
            network_object(live.name),
            f"its bridge {live.bridge} is named {now} now, and {wrong}; remove or rename that one",
        )
    return Conflict(network_object(live.name), f"{wrong}; remove or rename it")


def _foreign_address(live: Definition, address: Address) -> Conflict:
    wrong = f"bridge {live.bridge} has the address {address}, which is not the network's"
    return Conflict(network_object(live.name), f"{wrong}; remove it, or give it to the network")
