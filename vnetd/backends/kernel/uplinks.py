"""Moving what an uplink has to its bridge, and back. A note in the runtime directory says what was
there before: with it the next vnetd puts everything back, should this one be killed in between.
"""

from __future__ import annotations

import errno
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

from vnetd.backends.kernel import rtnetlink as rt
from vnetd.core.model import Address, HostAddress, IfName, Refusal, Taken
from vnetd.errors import BackendError

log = logging.getLogger(__name__)

# The kernel asks three times, one second apart: net/ipv4/arp.c, ucast_probes and retrans_time.
_ANSWER_SECONDS, _FIRST_ANSWER_SECONDS = 4.0, 1.5
_STEP_SECONDS = 0.02
_MOST_WITNESSES = 4
# linux/rtnetlink.h: RTPROT_UNSPEC, _BOOT, _STATIC, _DHCP. Others put theirs back by themselves.
_LASTING = (0, 3, 4, 16)
_GONE = (errno.EEXIST, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENOENT)


class Stage(StrEnum):
    MOVING = "moving"
    TAKEN = "taken"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Note:
    """index: the uplink's. addresses, routes, neighbours: netlink messages, as they were there."""

    bridge: IfName
    uplink: IfName
    index: int
    stage: Stage
    policy: str
    addresses: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    why: str = ""

    def taken(self) -> Taken:
        addresses = (bytes.fromhex(text) for text in self.addresses)
        routes = (bytes.fromhex(text) for text in self.routes)
        return Taken(
            self.bridge,
            self.uplink,
            frozenset(rt.address(body) for body in addresses if rt.is_lasting(body)),
            frozenset(rt.route(body) for body in routes if body[5] in _LASTING),
        )

    def refusal(self) -> Refusal:
        return Refusal(self.bridge, self.uplink, self.why, self.policy)


class Notes:
    """One file for each uplink."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def all(self) -> list[Note]:
        found = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                data = json.loads(path.read_text())
                data["stage"] = Stage(data["stage"])
                data.update({key: tuple(data[key]) for key in _LISTS})
                found.append(Note(**data))
            except (OSError, ValueError, TypeError, KeyError) as error:
                log.warning("%s: %s; left alone", path, error)
        return found

    def of(self, uplink: IfName) -> Note | None:
        return next((note for note in self.all() if note.uplink == uplink), None)

    def write(self, note: Note) -> None:
        """Whole or not at all. Raises OSError."""
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"{note.uplink}.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(note)))
        new.replace(path)

    def drop(self, uplink: IfName) -> None:
        (self._directory / f"{uplink}.json").unlink(missing_ok=True)


_LISTS = ("addresses", "routes", "neighbours")


def look(
    kernel: rt.Rtnetlink, bridge: IfName, uplink: IfName, index: int, policy: str
) -> tuple[Note, dict[HostAddress, bytes]]:
    """What there is to move, and the neighbours. Raises BackendError for what cannot be."""
    addresses = kernel.dump(rt.GETADDR, *rt.FAMILIES)
    found = rt.routes_of(kernel.dump(rt.GETROUTE, *rt.FAMILIES), index)
    if any(rt.has_nexthop_object(body) for body in found):
        wrong = f"{uplink} has routes by nexthop objects, which stay with their link"
        raise BackendError(f"{wrong}; write them as plain routes (ip nexthop show dev {uplink})")
    neighbours = _neighbours(kernel, index)
    note = Note(
        bridge,
        uplink,
        index,
        Stage.MOVING,
        policy,
        tuple(body.hex() for body in rt.addresses_of(addresses, index)),
        tuple(body.hex() for body in found),
        tuple(body.hex() for body in neighbours.values()),
    )
    return note, neighbours


def witnesses(
    kernel: rt.Rtnetlink, note: Note, neighbours: dict[HostAddress, bytes]
) -> list[HostAddress]:
    """Who must answer afterwards: gateways that do now; without any, neighbours in touch. Nobody
    where the host has no address there.
    """
    if all(rt.address(bytes.fromhex(text)).is_link_local for text in note.addresses):
        return []
    routes = (rt.route(bytes.fromhex(text)) for text in note.routes)
    gateways = list(dict.fromkeys(r.gateway for r in routes if r.gateway is not None))
    if not gateways:
        in_touch = (host for host, body in neighbours.items() if rt.state(body) & rt.REACHABLE)
        return list(in_touch)[:_MOST_WITNESSES]
    silent = ask(kernel, note.index, gateways[:_MOST_WITNESSES], _FIRST_ANSWER_SECONDS)
    return [host for host in gateways[:_MOST_WITNESSES] if host not in silent]


def ask(
    kernel: rt.Rtnetlink, index: int, hosts: Sequence[HostAddress], seconds: float = _ANSWER_SECONDS
) -> list[HostAddress]:
    """Those that do not answer in time. The kernel itself asks, by ARP or neighbour discovery."""
    known = _neighbours(kernel, index)
    kernel.run([rt.probe(index, host, known.get(host)) for host in hosts])
    deadline = time.monotonic() + seconds
    silent = list(hosts)
    while silent and time.monotonic() < deadline:
        time.sleep(_STEP_SECONDS)
        now = kernel.dump(rt.GETNEIGH, *rt.FAMILIES)
        states = {host: rt.neighbour_state(now, index, host) for host in silent}
        silent = [host for host, state in states.items() if not state & rt.REACHABLE]
        if silent and all(states[host] & rt.FAILED for host in silent):
            break
    return silent


def move(kernel: rt.Rtnetlink, note: Note, bridge: int, settle: Callable[[], None]) -> None:
    """The bridge has the addresses before the uplink is its port, and the routes once it carries:
    there is no moment without either. settle: waits until it does. Raises OSError.
    """
    addresses, routes, neighbours = _bodies(note)
    requests = [
        rt.Request(rt.NEWADDR, rt.CREATE, rt.address_at(body, bridge)) for body in addresses
    ]
    requests += [
        rt.Request(rt.NEWNEIGH, rt.CREATE | rt.REPLACE, rt.neighbour_at(body, bridge))
        for body in neighbours
    ]
    requests.append(rt.set_master(note.index, bridge))
    rt.check(requests, kernel.run(requests), errno.EEXIST)
    if routes:
        settle()
    over = [rt.route_at(body, note.index, bridge) for body in routes]
    requests = [rt.Request(rt.NEWROUTE, rt.CREATE | rt.APPEND, body) for body in over]
    requests += [rt.Request(rt.DELROUTE, 0, body) for body in routes]
    requests += [rt.Request(rt.DELADDR, 0, body) for body in addresses]
    rt.check(requests, kernel.run(requests), *_GONE)


def undo(
    kernel: rt.Rtnetlink, note: Note, uplink: int, bridge: int | None, stay: Iterable[Address] = ()
) -> None:
    """Everything as it was before; repeating it does no harm. uplink: its index by now. stay: what
    the bridge keeps all the same. Raises OSError.
    """
    kept = set(stay)
    addresses, routes, neighbours = _bodies(note)
    addresses = [body for body in addresses if rt.address(body) not in kept]
    requests = [
        rt.Request(rt.NEWADDR, rt.CREATE, rt.address_at(body, uplink)) for body in addresses
    ]
    requests += [rt.set_master(uplink, 0)]
    requests += [
        rt.Request(rt.NEWNEIGH, rt.CREATE | rt.REPLACE, rt.neighbour_at(body, uplink))
        for body in neighbours
    ]
    back = [rt.route_at(body, note.index, uplink) for body in routes] if not kept else []
    requests += [rt.Request(rt.NEWROUTE, rt.CREATE | rt.APPEND, body) for body in back]
    if bridge is not None:
        gone = [rt.route_at(body, note.index, bridge) for body in routes] if not kept else []
        requests += [rt.Request(rt.DELROUTE, 0, body) for body in gone]
        requests += [rt.Request(rt.DELADDR, 0, rt.address_at(b, bridge)) for b in addresses]
    rt.check(requests, kernel.run(requests), *_GONE)


def merged(old: Note | None, new: Note) -> Note:
    """What came over earlier, and what has come now."""
    if old is None or old.bridge != new.bridge or old.stage is Stage.REFUSED:
        return new
    return replace(
        new,
        addresses=tuple(dict.fromkeys((*old.addresses, *new.addresses))),
        routes=tuple(dict.fromkeys((*old.routes, *new.routes))),
        neighbours=new.neighbours,
    )


def copy_sysctls(uplink: IfName, bridge: IfName) -> None:
    """How the host treats what comes in by the uplink; where the kernel has no such thing, not."""
    for family, name in _SYSCTLS:
        conf = Path("/proc/sys/net") / family / "conf"
        with suppress(OSError):
            (conf / bridge / name).write_text((conf / uplink / name).read_text())


_SYSCTLS = (
    ("ipv4", "rp_filter"),
    ("ipv6", "accept_ra"),
    ("ipv6", "autoconf"),
    ("ipv6", "use_tempaddr"),
)


def _neighbours(kernel: rt.Rtnetlink, index: int) -> dict[HostAddress, bytes]:
    return rt.neighbours_of(kernel.dump(rt.GETNEIGH, *rt.FAMILIES), index)


def _bodies(note: Note) -> tuple[list[bytes], list[bytes], list[bytes]]:
    texts = (note.addresses, note.routes, note.neighbours)
    addresses, routes, neighbours = ([bytes.fromhex(text) for text in some] for some in texts)
    return addresses, routes, neighbours
