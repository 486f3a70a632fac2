"""The bridges that libvirt makes for its networks, and their addresses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vnetd.core.actions import Action
from vnetd.core.drift import Difference, Drift, NetworkDrift, joined, unequal
from vnetd.core.keep.networks import LINK_KEYS, BridgeMissing
from vnetd.core.model import Address, Definition, IfName, Libvirt, Link, Network, Source
from vnetd.core.policy import NetworkPolicy, Policy

_NEW_MAC = "guests reach the host again when they have looked up its new MAC, up to 60 s"


@dataclass(frozen=True, slots=True)
class BridgeDiffers(NetworkDrift):
    bridge: IfName
    differences: tuple[Difference, ...]
    source = Source.LINKS

    def __str__(self) -> str:
        return f"bridge {self.bridge}: " + joined(self.differences)


@dataclass(frozen=True, slots=True)
class AddressMissing(NetworkDrift):
    bridge: IfName
    address: Address
    source = Source.LINKS

    def __str__(self) -> str:
        return f"bridge {self.bridge}: address {self.address} is missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetBridge(Action):
    """None leaves as it is."""

    bridge: IfName
    mac: str | None = None
    mtu: int | None = None
    stp: bool | None = None

    def __str__(self) -> str:
        parts = ["up"]
        parts += [f"MAC {self.mac}"] if self.mac is not None else []
        parts += [f"MTU {self.mtu}"] if self.mtu is not None else []
        parts += [f"STP {'on' if self.stp else 'off'}"] if self.stp is not None else []
        return f"set bridge {self.bridge} {', '.join(parts)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AddAddress(Action):
    bridge: IfName
    address: Address

    def __str__(self) -> str:
        return f"add address {self.address} to bridge {self.bridge}"


def diff(
    policy: Policy, libvirt: Libvirt, kept: Sequence[Definition], links: Mapping[IfName, Link]
) -> Iterator[Drift]:
    for live in kept:
        if live.bridge is None or not live.mode.has_own_bridge:
            continue
        link = links.get(live.bridge)
        if link is None:
            yield BridgeMissing(live.name, live.bridge)
            continue
        network, want = libvirt.networks[live.name], policy.networks.get(live.name)
        if found := _differences(network, want, link):
            yield BridgeDiffers(live.name, live.bridge, found)
        for address in live.addresses:
            if address not in link.addresses:
                yield AddressMissing(live.name, live.bridge, address)


def plan(drift: Iterable[Drift]) -> Iterator[Action]:
    for item in drift:
        objects, reason = (item.object,), str(item)
        match item:
            case BridgeDiffers(bridge=bridge, differences=differences):
                values = {difference.key: difference.want for difference in differences}
                yield SetBridge(
                    objects=objects,
                    reason=reason,
                    impact=_NEW_MAC if "mac" in values else "none",
                    bridge=bridge,
                    mac=values.get("mac"),
                    mtu=int(values["mtu"]) if "mtu" in values else None,
                    stp=values["stp"] == "on" if "stp" in values else None,
                )
            case AddressMissing(bridge=bridge, address=address):
                yield AddAddress(objects=objects, reason=reason, bridge=bridge, address=address)
            case _:
                pass


def _differences(
    network: Network, want: NetworkPolicy | None, link: Link
) -> tuple[Difference, ...]:
    """Where the policy leaves a key out, a managed network's bridge is as it will start next time:
    else the next restart would change it under the guests.
    """
    base = network.config if want and network.config else network.definition
    have = {"mac": link.mac, "mtu": link.mtu, "stp": link.bridge.stp if link.bridge else None}
    pairs: list[tuple[str, object, object]] = [("state", "up", "up" if link.up else "down")]
    for key in LINK_KEYS:
        wanted = getattr(want, key, None)
        wanted = getattr(base, key) if wanted is None else wanted
        if wanted is not None:
            pairs.append((key, wanted, have[key]))
    return unequal(pairs)
