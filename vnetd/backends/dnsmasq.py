"""The dnsmasq processes that libvirt runs: whether they live, and the moment when one dies.

libvirt itself never looks. It must also be libvirt that starts one: it signals the process that it
remembers.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

from vnetd.backends import process
from vnetd.backends.base import Poke
from vnetd.core.actions import Action
from vnetd.core.model import Observed, Source

PID_FILES = Path("/run/libvirt/network")


class Dnsmasq:
    source = Source.DNSMASQ
    actions: tuple[type[Action], ...] = ()

    def __init__(self) -> None:
        self._watched: dict[str, tuple[int, int]] = {}
        """Network → pid, and a descriptor that is readable when the process has ended."""
        self._poke: Poke | None = None

    async def observe(self, observed: Observed) -> Observed:
        if not os.access(PID_FILES, os.X_OK):
            return replace(observed, dnsmasq=None)  # "cannot tell" is not "dead"
        networks = observed.libvirt.networks if observed.libvirt else {}
        alive = {name: pid for name in networks if (pid := _pid(name)) is not None}
        self._follow(alive)
        return replace(observed, dnsmasq=frozenset(self._watched))

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


def _pid(network: str) -> int | None:
    """libvirt leaves the file behind when it stops a network: another process may have the pid."""
    try:
        pid = int((PID_FILES / f"{network}.pid").read_text())
    except (OSError, ValueError):
        return None
    return pid if process.name_of(pid) == "dnsmasq" else None
