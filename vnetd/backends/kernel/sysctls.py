"""The kernel's forwarding: read and written below /proc/sys, told of by rtnetlink."""

from __future__ import annotations

import asyncio
import errno
import socket
from dataclasses import replace
from pathlib import Path

from vnetd.backends import netlink
from vnetd.backends.base import CHECK_SECONDS, Poke
from vnetd.backends.kernel.raised import Memory
from vnetd.core.actions import Action
from vnetd.core.keep import sysctls
from vnetd.core.keep.sysctls import SetSysctl
from vnetd.core.model import Observed, Source
from vnetd.errors import BackendError

_ROOT = Path("/proc/sys")
_TRACKED, _MOST_TRACKED = (f"net/netfilter/nf_conntrack_{name}" for name in ("count", "max"))
# New connections take the places of those without an answer: of a full table some are free.
_FULL = 0.98
_FULL_SECONDS = 5.0
_IPV6_ROUTES = Path("/proc/net/ipv6_route")
# linux/ipv6_route.h: a default route that a router advertisement made
_RTF_DEFAULT, _RTF_ADDRCONF = 0x00010000, 0x00040000
# net/ipv6/addrconf.c sends no netconf message for these.
_UNTOLD = ("accept_ra", "disable_ipv6")


class Sysctls:
    source = Source.SYSCTLS
    actions: tuple[type[Action], ...] = (SetSysctl,)

    def __init__(self, state: Path) -> None:
        self._events = netlink.open_netconf_events()
        self._memory = Memory(state / "sysctls.json")
        self._first: dict[str, str] = {}
        """The value in which each was first found: what had it already, others may rely on."""
        self._poke: Poke | None = None
        self._look_again: asyncio.TimerHandle | None = None
        self._devices: frozenset[str] = frozenset()
        self._untold: dict[str, str] = {}
        self._is_untold = asyncio.Event()

    async def observe(self, observed: Observed) -> Observed:
        observed = replace(observed, raised=self._memory.raised)
        names = sysctls.of_interest(observed)
        names += [f"net/ipv6/conf/{dev}/accept_ra" for dev in _advertised()]
        read = {name: _read(name) for name in names}
        values = {name: value for name, value in read.items() if value is not None}
        self._devices = frozenset(name.split("/")[3] for name in values if "/conf/" in name)
        self._untold = {n: value for n, value in values.items() if n.endswith(_UNTOLD)}
        if self._untold:
            self._is_untold.set()
        else:
            self._is_untold.clear()
        for name, value in values.items():
            self._first.setdefault(name, value)
        changed = [n for n, item in observed.raised.items() if values.get(n) != item.value]
        self._memory.forget(*changed)  # theirs now, who changed it
        return replace(
            observed,
            sysctls=values,
            raised=self._memory.raised,
            connections_full=self._connections_full(),
        )

    def _connections_full(self) -> int | None:
        """Nobody tells when it is over, either."""
        tracked, most = int(_read(_TRACKED) or 0), int(_read(_MOST_TRACKED) or 0)
        if not most or tracked < _FULL * most:  # 0 is no limit: nf_conntrack_core.c
            return None
        if self._look_again is None:
            loop = asyncio.get_running_loop()
            self._look_again = loop.call_later(_FULL_SECONDS, self._on_time)
        return most

    def _on_time(self) -> None:
        self._look_again = None
        if self._poke is not None:
            self._poke(self.source, reason="there was no room for connections")

    async def apply(self, action: Action) -> None:
        assert isinstance(action, SetSysctl), action
        wanted = [(action.name, action.value)]
        if action.name == sysctls.IPV6_FORWARDING and not action.back:
            # Looked up anew: a route that has come since the plan was made would be lost.
            fed = [f"net/ipv6/conf/{device}/accept_ra" for device in _advertised()]
            wanted[:0] = [(name, "2") for name in fed if _read(name) == "1"]
        try:
            for name, value in wanted:
                before = _read(name)
                if not action.back and before is not None and self._first.get(name) != value:
                    self._memory.note(name, before, value)
                (_ROOT / name).write_text(value)
                if action.back:
                    self._memory.forget(name)
        except OSError as error:
            refused = error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
            hint = "; vnetd's unit must have ReadWritePaths=/proc/sys/net" if refused else ""
            raise BackendError(f"sysctl {action.name}: {error.strerror}{hint}") from error

    async def watch(self, poke: Poke) -> None:
        self._poke = poke

        def on_data(data: bytes | None) -> None:
            if data is None:
                poke(self.source, reason="netconf events were lost")
            elif any(self._concerns(index) for index in netlink.netconf(data)):
                poke(self.source, reason="forwarding changed")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(netlink.listen(self._events, on_data))
            while True:
                await self._is_untold.wait()
                await asyncio.sleep(CHECK_SECONDS)
                if any(_read(name) != value for name, value in self._untold.items()):
                    poke(self.source, reason="sysctls changed")

    def _concerns(self, index: int) -> bool:
        """Each link that comes up has settings; whether one is a network's, its name tells."""
        if index < 0:
            return index == netlink.ALL_LINKS
        try:
            return socket.if_indextoname(index) in self._devices
        except OSError:
            return False  # it has gone since


def _read(name: str) -> str | None:
    """None: the kernel has no such thing (no IPv6), or the link has just gone."""
    try:
        return (_ROOT / name).read_text().strip()
    except OSError:
        return None


def _advertised() -> list[str]:
    """Links with a default route that came by router advertisement."""
    try:
        lines = _IPV6_ROUTES.read_text().splitlines()
    except OSError:
        return []
    wanted = _RTF_DEFAULT | _RTF_ADDRCONF
    routes = [line.split() for line in lines]
    return sorted({words[9] for words in routes if int(words[8], 16) & wanted == wanted})
