"""The kernel's main routing table, the guests that it has heard of and those that it answers for,
over rtnetlink; and the host's DNS servers.

Raw messages: a router's table may hold a million routes, of which only a few concern a network.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from vnetd.backends import netlink
from vnetd.backends.base import CHECK_SECONDS, Poke
from vnetd.backends.kernel import route_messages as messages
from vnetd.backends.kernel import rtnetlink
from vnetd.backends.kernel.rtnetlink import Rtnetlink
from vnetd.core.actions import Action
from vnetd.core.basics import overlap
from vnetd.core.keep import announce
from vnetd.core.keep.announce import SetProxy
from vnetd.core.keep.routes import SetRoute
from vnetd.core.model import HostAddress, HostRoute, IfName, Observed, Proxy, Source, Subnet
from vnetd.errors import BackendError

_RESOLVERS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
# A routing daemon may write without end: looking takes no more than this share of the time.
_REST = 9


class Routes:
    source = Source.ROUTES
    actions: tuple[type[Action], ...] = (SetRoute, SetProxy)

    def __init__(self) -> None:
        self._events = netlink.open_way_events()
        self._rtnetlink = Rtnetlink()
        self._changed = asyncio.Event()
        self._subnets: frozenset[Subnet] = frozenset()
        self._names: dict[int, IfName | None] = {}
        """Of the links that the routes lead out of."""
        self._gone: set[int] = set()
        """Links that went while the routes were read."""
        self._guests: dict[int, frozenset[HostAddress]] = {}
        """Of bridges whose guests the uplink's neighbours may ask for, by index."""
        self._rest_until = 0.0
        self._checking = Rtnetlink()
        self._proxies: frozenset[Proxy] = frozenset()
        self._answers = asyncio.Event()
        """The kernel does, for guests."""

    async def observe(self, observed: Observed) -> Observed:
        began = time.monotonic()
        self._subnets = frozenset(_of_interest(observed))
        self._gone.clear()
        try:
            routes, self._names = await asyncio.to_thread(self._read, self._subnets)
            self._proxies = _proxies(self._rtnetlink)
            if self._proxies:
                self._answers.set()
            else:
                self._answers.clear()
            self._listen_for_guests(_bridges(replace(observed, routes=routes)))
        except OSError as error:
            raise BackendError(f"routes: {error}") from error
        finally:
            now = time.monotonic()
            self._rest_until = now + _REST * (now - began)
        if not self._gone.isdisjoint(self._names):
            self._changed.set()
        return replace(
            observed,
            routes=routes,
            nameservers=frozenset(_nameservers()),
            proxies=self._proxies,
            neighbours={name: self._guests[i] for i in self._guests if (name := _name(i))},
        )

    def _listen_for_guests(self, bridges: frozenset[int]) -> None:
        if bool(bridges) is not bool(self._guests):
            netlink.follow_neighbours(self._events, on=bool(bridges))
        dump = self._rtnetlink.dump(rtnetlink.GETNEIGH, socket.AF_INET6) if bridges else []
        self._guests = {i: frozenset(rtnetlink.neighbours_of(dump, i)) for i in bridges}

    async def apply(self, action: Action) -> None:
        try:
            match action:
                case SetRoute(bridge=bridge, route=route, there=there):
                    order = messages.order(route, socket.if_nametoindex(bridge), there=there)
                    done = errno.EEXIST if there else errno.ESRCH
                case SetProxy(uplink=uplink, address=address, there=there):
                    index = socket.if_nametoindex(uplink)
                    order = messages.proxy_order(address, index, there=there)
                    done = errno.EEXIST if there else errno.ENOENT
                case _:
                    raise AssertionError(action)
            rtnetlink.check([order], self._rtnetlink.run([order]), done)
        except OSError as error:
            raise BackendError(f"{action}: {error.strerror}") from error

    async def watch(self, poke: Poke) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(netlink.listen(self._events, self._on_data))
            tasks.create_task(self._check())
            while True:
                await self._changed.wait()
                await asyncio.sleep(max(0.0, self._rest_until - time.monotonic()))
                self._changed.clear()
                # Another uplink needs other sysctls.
                poke(self.source, Source.SYSCTLS, reason="routes changed")

    async def _check(self) -> None:
        """The kernel tells nobody when it is not to answer for a guest any more."""
        while True:
            await self._answers.wait()
            await asyncio.sleep(CHECK_SECONDS)
            with suppress(OSError):
                if _proxies(self._checking) != self._proxies:
                    self._changed.set()

    def _on_data(self, data: bytes | None) -> None:
        if data is None or any(_touches(to, self._subnets) for to in messages.destinations(data)):
            self._changed.set()
            return
        for index, gone in netlink.links(data):
            if gone:
                self._gone.add(index)
            if index in self._names:
                self._changed.set()  # gone, or renamed, or answering for others
        for index, address in messages.neighbours(data):
            if index in self._guests and address not in self._guests[index]:
                self._changed.set()

    def _read(
        self, subnets: frozenset[Subnet]
    ) -> tuple[tuple[HostRoute, ...], dict[int, IfName | None]]:
        """The routes that concern these, and the names of their links."""
        names: dict[int, IfName | None] = {}
        found: list[HostRoute] = []

        def name(index: int) -> IfName | None:
            if index not in names:
                names[index] = _name(index)
            return names[index]

        for body in self._rtnetlink.dump(rtnetlink.GETROUTE, *rtnetlink.FAMILIES):
            to = messages.destination(body)
            if to is not None and _touches(to, subnets):
                found += messages.routes(body, to, name)
        return tuple(found), names


def _of_interest(observed: Observed) -> Iterator[Subnet]:
    yield from observed.asked.subnets
    networks = observed.libvirt.networks.values() if observed.libvirt else ()
    for network in networks:
        for definition in (network.config, network.live):
            if definition is not None:
                yield from (address.network for address in definition.addresses)
                yield from (route.to for route in definition.routes)


def _bridges(observed: Observed) -> frozenset[int]:
    """Indexes of those whose IPv6 subnet is a part of a LAN's."""
    networks = observed.libvirt.networks.values() if observed.libvirt else ()
    lives = [n.live for n in networks if n.live and n.live.mode.is_routed]
    found = [
        (observed.links or {}).get(live.bridge)
        for live in lives
        for address in live.addresses
        if live.bridge is not None
        and address.version == 6
        and announce.uplink(address.network, (live.bridge,), observed) is not None
    ]
    return frozenset(link.index for link in found if link is not None)


def _touches(to: Subnet, subnets: Iterable[Subnet]) -> bool:
    """A default route touches all."""
    return any(overlap(to, subnet) for subnet in subnets)


def _proxies(asked: Rtnetlink) -> frozenset[Proxy]:
    return frozenset(messages.proxies(asked.dump_proxies(), _name))


def _name(index: int) -> IfName | None:
    try:
        return IfName(socket.if_indextoname(index))
    except OSError:
        return None  # it has gone since


def _nameservers() -> Iterator[HostAddress]:
    """resolv.conf(5); systemd-resolved keeps those behind its own address in a second file."""
    for path in _RESOLVERS:
        with suppress(OSError, UnicodeDecodeError):
            for line in path.read_text().splitlines():
                words = line.split()
                if words[:1] == ["nameserver"] and len(words) > 1:
                    with suppress(ValueError):
                        yield ip_address(words[1].partition("%")[0])
