"""The kernel's events about links: which of them concern vnetd, and when to look.

A host with busy containers has thousands of others a second. They cost a walk over a message each,
and no look; and looks at links that flap take up a fifth of the time at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from vnetd.backends import netlink
from vnetd.backends.kernel import link_messages as messages
from vnetd.core.model import IfName, Link

_REST = 4
"""Times as long as the last look took."""


class LinkEvents:
    def __init__(self) -> None:
        self._socket = netlink.open_link_events()
        self._names: frozenset[str] = frozenset()
        self._indexes: frozenset[int] = frozenset()
        self._passed_over: set[int] | None = None
        """Indexes of links that were not looked at, while a look is under way."""
        self._look: Callable[[str], None] | None = None
        self._waiting: asyncio.TimerHandle | None = None
        self._began = self._not_before = 0.0

    async def watch(self, look: Callable[[str], None]) -> None:
        """Call look with the reason whenever it is time to. Until cancelled."""
        self._look = look
        try:
            await netlink.listen(self._socket, self._on_data)
        finally:
            self._look = None
            if self._waiting is not None:
                self._waiting.cancel()

    def begin_look(self, names: frozenset[IfName]) -> None:
        """names: the links that concern vnetd; their ports do as well."""
        self._names = names
        self._passed_over = set()
        self._began = asyncio.get_running_loop().time()

    def end_look(self, links: Mapping[IfName, Link]) -> None:
        now = asyncio.get_running_loop().time()
        self._not_before = now + _REST * (now - self._began)
        self._indexes = frozenset(
            link.index
            for link in links.values()
            if link.name in self._names
            or link.master in self._names
            or not self._names.isdisjoint(link.altnames)
        )
        missed, self._passed_over = self._passed_over, None
        if missed and not self._indexes.isdisjoint(missed):
            self._call_soon("links changed")

    def _on_data(self, data: bytes | None) -> None:
        if data is None:
            self._call_soon("link events were lost")
            return
        if self._waiting is not None:
            return
        for kind, message in netlink.messages(data):
            if messages.concerns(kind, message, self._names, self._indexes):
                self._call_soon("links changed")
                return
            if self._passed_over is not None:
                self._passed_over.add(messages.index_of(message))

    def _call_soon(self, reason: str) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() >= self._not_before:
            self._call(reason)
        elif self._waiting is None:
            self._waiting = loop.call_at(self._not_before, self._call, reason)

    def _call(self, reason: str) -> None:
        self._waiting = None
        if self._look is not None:
            self._look(reason)
