"""A policy for the networks that a host has already, as TOML: what libvirt says, in a policy's
words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from vnetd.core.model import Definition, DhcpHost, Network
from vnetd.core.model.route import StaticRoute
from vnetd.core.policy.networks import SUPPORTED_MODES

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_HEAD = """\
# The networks of this host, as libvirt has them. What a policy has no word for (DNS records,
# bandwidth, port groups) stays as it is. A network that is taken out here is protected then.
"""


def render(networks: Iterable[Network]) -> str:
    parts = [_HEAD]
    for network in sorted(networks, key=lambda network: network.name):
        lines = _lines(network.config or network.definition, autostart=network.autostart)
        parts.append("".join(f"{line}\n" for line in lines))
    return "\n".join(parts)


def _lines(network: Definition, *, autostart: bool) -> Iterator[str]:
    name = network.name if _BARE.fullmatch(network.name) else _text(network.name)
    if network.mode not in SUPPORTED_MODES:
        yield f"# {name} is of mode {network.mode}, which a policy cannot have: it stays protected."
        return
    yield f"[networks.{name}]"
    yield f"mode = {_text(network.mode)}"
    texts = {"bridge": network.bridge, "mac": network.mac, "domain": network.domain}
    if network.mode.has_own_bridge:
        texts["uplink"] = network.forward_dev
    for key, value in texts.items():
        if value is not None:
            yield f"{key} = {_text(value)}"
    if network.mtu is not None:
        yield f"mtu = {network.mtu}"
    if network.stp is not None:
        yield f"stp = {_bool(network.stp)}"
    if not autostart:
        yield "autostart = false"
    if network.addresses:
        yield f"addresses = {_list(map(str, network.addresses))}"
    if network.ranges:
        yield f"dhcp.ranges = {_list(map(str, network.ranges))}"
    if network.hosts:
        yield "dhcp.hosts = ["
        yield from (f"  {_host(host)}," for host in network.hosts)
        yield "]"
    if network.routes:
        yield "routes = ["
        yield from (f"  {_route(route)}," for route in network.routes)
        yield "]"


def _host(host: DhcpHost) -> str:
    keys = {"mac": host.mac, "id": host.id, "name": host.name, "address": str(host.address)}
    pairs = [f"{key} = {_text(value)}" for key, value in keys.items() if value is not None]
    return "{ " + ", ".join(pairs) + " }"


def _route(route: StaticRoute) -> str:
    return f"{{ to = {_text(route.to)}, via = {_text(route.via)}, metric = {route.metric} }}"


def _list(items: Iterable[str]) -> str:
    return "[" + ", ".join(_text(item) for item in items) + "]"


def _text(value: object) -> str:
    """A basic string of TOML escapes as one of JSON does, but for DEL, which no name here has."""
    return json.dumps(str(value), ensure_ascii=False)


def _bool(value: bool) -> str:
    return "true" if value else "false"
