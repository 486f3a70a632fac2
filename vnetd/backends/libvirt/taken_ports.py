"""Ports that a network's dnsmasq did not get, and the moment when they are free."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from vnetd.backends import listeners
from vnetd.backends.listeners import Socket
from vnetd.core.model import Definition, Network

_LOOK_SECONDS = 1.0
# Among the sockets that were found there may be some that are in nobody's way.
_TRY_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class _Refusal:
    """sockets: on the port, and who holds each. until: when to try again, come what may."""

    sockets: Mapping[Socket, str]
    until: float


class TakenPorts:
    def __init__(self) -> None:
        self._refusals: dict[str, _Refusal] = {}
        """By network."""
        self._any = asyncio.Event()

    def refused(self, network: str, why: str) -> str:
        """libvirt could not start the network's dnsmasq; what ports have to do with it, or ""."""
        if not (sockets := listeners.told(why)):
            return ""
        until = asyncio.get_running_loop().time() + _TRY_SECONDS
        self._refusals[network] = _Refusal(sockets, until)
        self._any.set()
        return _text(sockets.items())

    def forget(self) -> None:
        """Try, whatever was in the way."""
        self._refusals = {}

    def of(self, networks: Mapping[str, Network]) -> dict[str, str]:
        """Network → what is in its way, of the ports that it needs by now."""
        found = {}
        for name, refusal in self._refusals.items():
            if network := networks.get(name):
                needed = [
                    (item, who)
                    for item, who in refusal.sockets.items()
                    if _needs(network.definition, item)
                ]
                if needed:
                    found[name] = _text(needed)
        return found

    async def watch(self, tell: Callable[[], None]) -> None:
        """Nobody says when a port is free: look, as long as a network waits for one."""
        while True:
            await self._any.wait()
            await asyncio.sleep(_LOOK_SECONDS)
            there, now = set(listeners.read()), asyncio.get_running_loop().time()
            left = {
                name: refusal
                for name, refusal in self._refusals.items()
                if refusal.sockets.keys() <= there and now < refusal.until
            }
            if left != self._refusals:
                self._refusals = left
                tell()
            if not left:
                self._any.clear()


def _needs(network: Definition, item: Socket) -> bool:
    served = network.dns if item.port == 53 else bool(network.ranges or network.hosts)
    own = {address.ip for address in network.addresses}
    return served and (item.address.is_unspecified or item.address in own)


def _text(sockets: Iterable[tuple[Socket, str]]) -> str:
    return "; ".join(sorted({f"{item}: {who}" if who else str(item) for item, who in sockets}))
