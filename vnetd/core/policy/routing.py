"""What a policy says of a network's ways to others: its routes, who is told of it, and what it may
overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import combinations

from vnetd.core.basics import overlap
from vnetd.core.model import Address, Mode, StaticRoute, Subnet
from vnetd.core.policy import values
from vnetd.core.policy.toml_table import Table, nearest


class Announce(StrEnum):
    """How the uplink's neighbours learn that a network's guests are behind this host."""

    PROXY_ARP = "proxy-arp"
    PROXY_NDP = "proxy-ndp"

    @property
    def version(self) -> int:
        return 4 if self is Announce.PROXY_ARP else 6


_A_ROUTE = '{ to = "10.90.0.0/24", via = "10.77.0.5" }'
_BOTH = " or ".join(f'"{item}"' for item in Announce)


def routes(section: Table, addresses: Sequence[Address]) -> tuple[StaticRoute, ...] | None:
    """None: the policy does not say."""
    found: list[StaticRoute] = []
    for entry in section.tables("routes", _A_ROUTE):
        route = _route(entry)
        if route is None:
            continue
        _check_route(entry, route, addresses)
        if (route.to, route.metric) in {(other.to, other.metric) for other in found}:
            entry.wrong("to", f'"{route.to}" is routed twice', "give one of the two another metric")
        found.append(route)
    return tuple(found) if "routes" in section else None


def announce(section: Table) -> frozenset[Announce]:
    return frozenset(section.one_or_list("announce", _announce, _BOTH))


def overlaps(section: Table) -> tuple[Subnet, ...]:
    return section.list("overlaps", values.subnet, '"10.0.0.0/8"')


def check(
    section: Table,
    mode: Mode,
    addresses: Sequence[Address],
    announced: Iterable[Announce],
) -> None:
    """What can only be judged with the whole network at hand."""
    if not mode.has_own_bridge:
        for key in ("routes", "announce", "overlaps"):
            if key in section:
                right = "the bridge belongs to the host: set it there"
                section.wrong(key, f'has no meaning with mode = "{mode}"', right)
        return
    for item in announced:
        if not mode.is_routed:
            right = 'leave it out: it is for mode = "route" and "open"'
            section.wrong("announce", f'has no meaning with mode = "{mode}"', right)
        elif not any(address.version == item.version for address in addresses):
            right = "leave it out, or give the network such an address"
            section.wrong("announce", f'"{item}" needs an IPv{item.version} address', right)


def _announce(text: str) -> Announce:
    try:
        return Announce(text)
    except ValueError:
        near = nearest(text, list(Announce))
        raise ValueError(
            f'is not known; do you mean "{near}"?' if near else "is not known"
        ) from None


def _route(entry: Table) -> StaticRoute | None:
    to = entry.parsed("to", values.subnet, 'write a subnet such as "10.90.0.0/24"')
    via = entry.parsed("via", values.host_address, "write the address of a guest that routes")
    metric = entry.get("metric", int, "write a number from 1 to 4294967295")
    entry.close()
    for key in ("to", "via"):
        if key not in entry:
            entry.wrong(key, "is missing", f"write {_A_ROUTE}")
    if metric is not None and not 1 <= metric < 1 << 32:
        entry.wrong("metric", f"{metric} is out of range", "write a number from 1 to 4294967295")
    if to is None or via is None:
        return None
    if to.prefixlen == 0:
        right = "name the subnets that the guest routes to"
        entry.wrong("to", "would take the host's own default route", right)
        return None
    if to.version != via.version:
        entry.wrong("via", f'"{to}" and "{via}" are of two families', "write one")
        return None
    return StaticRoute(to, via, metric or 1)


def _check_route(entry: Table, route: StaticRoute, addresses: Sequence[Address]) -> None:
    known = ", ".join(str(address.network) for address in addresses) or "addresses"
    if not any(route.via in address.network for address in addresses):
        wrong = f'"{route.via}" is not in a subnet of the network'
        entry.wrong("via", wrong, f"take a guest's address from {known}")
    elif any(route.via == address.ip for address in addresses):
        entry.wrong("via", f'"{route.via}" is the host\'s own', "take a guest's address")
    for address in addresses:
        if overlap(route.to, address.network):
            wrong = f'"{route.to}" overlaps "{address}" of this network'
            entry.wrong("to", wrong, "leave it out: the bridge leads there")


def check_together(
    sections: Table,
    networks: Iterable[tuple[str, Sequence[Address], Sequence[StaticRoute]]],
) -> None:
    """No two networks may overlap, by their addresses or by their routes."""
    taken = [
        (name, key, str(item), subnet)
        for name, addresses, static in networks
        for key, item, subnet in (
            *(("addresses", address, address.network) for address in addresses),
            *(("routes", route, route.to) for route in static),
        )
    ]
    for (one, key, first, before), (two, other, second, after) in combinations(taken, 2):
        if one == two and "routes" in (key, other):
            continue  # within a network a route may be narrower than another
        if overlap(before, after):
            whose = "this network" if one == two else f"networks.{one}"
            wrong = f'"{second}" overlaps "{first}" of {whose}'
            sections.at(two).wrong(other, wrong, "take a subnet of its own")
