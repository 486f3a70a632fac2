"""The dnsmasq processes that libvirt runs: whether they live, and the moment when one dies.

libvirt itself never looks. It must also be libvirt that starts one: it signals the process that it
remembers.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from vnetd.backends import hostsfile, listeners, process
from vnetd.backends.base import Poke
from vnetd.core.actions import Action
from vnetd.core.model import Definition, HostAddress, Intruder, Observed, Source

_FILES = Path("/var/lib/libvirt/dnsmasq")


class Dnsmasq:
    source = Source.DNSMASQ
    actions: tuple[type[Action], ...] = ()

    def __init__(self) -> None:
        self._watched: dict[str, tuple[int, int]] = {}
        """Network → pid, and a descriptor that is readable when the process has ended."""
        self._poke: Poke | None = None

    async def observe(self, observed: Observed) -> Observed:
        if not os.access(process.DNSMASQ_PID_FILES, os.X_OK):
            return replace(observed, dnsmasq=None)  # "cannot tell" is not "dead"
        networks = observed.libvirt.networks if observed.libvirt else {}
        alive = {name: pid for name in networks if (pid := process.dnsmasq(name)) is not None}
        self._follow(alive)
        served = {name: n.live for name, n in networks.items() if n.live and name in self._watched}
        reserving = [name for name, live in served.items() if live.hosts]
        return replace(
            observed,
            dnsmasq=frozenset(self._watched),
            reserved=await asyncio.to_thread(_reserved, reserving) if reserving else {},
            intruders=tuple(
                item
                for live in served.values()
                if live.name in self._watched  # it may have ended while reservations were read
                for item in _intruders(live, self._watched[live.name][0])
            ),
        )

    async def apply(self, action: Action) -> None:
        raise AssertionError(action)

    async def watch(self, poke: Poke) -> None:
        self._poke = poke
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._follow({})

    def _follow(self, alive: dict[str, int]) -> None:
        loop = asyncio.get_running_loop()
        for name, (pid, descriptor) in list(self._watched.items()):
            if alive.get(name) != pid:
                del self._watched[name]
                loop.remove_reader(descriptor)
                os.close(descriptor)
        for name, pid in alive.items():
            if name in self._watched:
                continue
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            self._watched[name] = (pid, descriptor)
            loop.add_reader(descriptor, self._ended, name)

    def _ended(self, name: str) -> None:
        _, descriptor = self._watched.pop(name)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        if self._poke is not None:
            # libvirt also ends it, to start it with another configuration: it gets the time to.
            reason = f"dnsmasq of network {name} ended"
            self._poke(self.source, Source.LIBVIRT, reason=reason, writing=True)


def _reserved(networks: Iterable[str]) -> dict[str, frozenset[HostAddress]]:
    """Beside the loop: there may be tens of thousands."""
    texts = {name: _text(_FILES / f"{name}.hostsfile") for name in networks}
    return {name: hostsfile.addresses(text) for name, text in texts.items() if text is not None}


def _intruders(network: Definition, pid: int) -> Iterator[Intruder]:
    """dnsmasq has one socket for each of its addresses and protocols; a second one shares the
    packets with it.
    """
    own = {address.ip for address in network.addresses}
    sockets = [item for item in listeners.read() if item.address in own]
    several = [
        item
        for item in sockets
        if sum(str(item) == str(other) for other in sockets) > 1 or not network.dns
    ]
    for item, who in listeners.holders(several).items():
        if not who.endswith(f"[{pid}]") and who not in listeners.LIBVIRTS:
            yield Intruder(network.name, str(item), who)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None
