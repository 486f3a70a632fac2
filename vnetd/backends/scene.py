"""What one question of why asks of the host: routes, sysctls, carriers, the network's dnsmasq."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from vnetd.backends import listeners, process
from vnetd.core.model import Family, IfName
from vnetd.core.why import Question, Scene
from vnetd.errors import BackendError


async def look(asked: Question) -> Scene:
    live = asked.live
    if live is None or live.bridge is None:
        return Scene()
    out, gateway, no_route = await _route(asked)
    devices = ["all", live.bridge, *([out] if out else [])]
    names = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"]
    for dev in devices:
        names += [f"net/ipv4/conf/{dev}/forwarding", f"net/ipv4/conf/{dev}/rp_filter"]
    sysctls = {name: _text(Path("/proc/sys") / name) for name in names}
    elsewhere: dict[str, IfName] = {}
    for address in live.addresses:
        flag = _flag(Family.of(address))
        for route in await _routes(flag, "show", "root", str(address.network)):
            if "dev" in route and route["dev"] != live.bridge:
                elsewhere[str(route["dst"])] = IfName(route["dev"])
    carrier = _text(Path(f"/sys/class/net/{out}/carrier")) if out else ""
    return Scene(
        out=out,
        gateway=gateway,
        no_route=no_route,
        elsewhere=elsewhere,
        sysctls=sysctls,
        carriers={out: carrier == "1"} if out and carrier else {},
        dnsmasq=process.dnsmasq(live.name),
        listening=await asyncio.to_thread(_listening),
    )


async def _route(asked: Question) -> tuple[IfName | None, str, str]:
    """(device, gateway, or what the kernel says in their place)"""
    flag = _flag(asked.family)
    try:
        if asked.destination is None:
            routes = await _routes(flag, "show", "default")
            routes.sort(key=lambda route: int(route.get("metric", 0)))
            hops = [hop for route in routes for hop in (route, *route.get("nexthops", ()))]
        else:
            hops = await _routes(flag, "get", str(asked.destination))
    except BackendError as error:
        return None, "", str(error).rpartition("RTNETLINK answers: ")[2]
    for hop in hops:
        if "dev" in hop:
            return IfName(hop["dev"]), str(hop.get("gateway", "")), ""
    return None, "", "there is no default route"


async def _routes(*arguments: str) -> list[Any]:
    text = await process.run(["ip", arguments[0], "-j", "route", *arguments[1:]])
    found: list[Any] = json.loads(text or "[]")
    return found


def _flag(fam: Family) -> str:
    return f"-{fam.version}"


def _listening() -> frozenset[int]:
    """UDP ports of DNS and DHCP that somebody listens on."""
    return frozenset(item.port for item in listeners.read() if item.protocol == "udp")


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
