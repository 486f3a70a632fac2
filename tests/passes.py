"""A reconciler over the fakes, led pass by pass."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from tests.fakes import FakeHost, Published, nat
from vnetd.core.model import Cause, Source, State
from vnetd.core.policy import Policy
from vnetd.reconcile import Reconciler
from vnetd.trigger import Clock, Pokes

CULPRIT = Cause("iptables", 4711)


class World:
    def __init__(self) -> None:
        self.now = 1000.0
        self.host = FakeHost()
        self.published = Published()
        clock = Clock(lambda: self.now, lambda: datetime(2026, 1, 1, tzinfo=UTC))
        self.reconciler = Reconciler(
            self.host.backends, self.published, clock, lambda: frozenset(self.host.leaving)
        )
        self.reconciler.policy = Policy(networks={n: nat(n, i) for i, n in enumerate(("a", "b"))})

    async def look(self, *sources: Source, cause: Cause | None = None) -> State:
        """One pass, poked for these sources."""
        pokes = Pokes(self.now, set(sources or Source), ["test"])
        if cause:
            pokes.causes = dict.fromkeys(pokes.sources, cause)
        return (await self.reconciler._pass(pokes)).state


def world(test: Callable[[World], Awaitable[None]]) -> Callable[[], None]:
    """Run in an event loop, with both networks in place."""

    async def run() -> None:
        fresh = World()
        assert await fresh.look() is State.CONVERGED
        fresh.published.records.clear()
        fresh.host.applied.clear()
        await test(fresh)

    def start() -> None:
        asyncio.run(run())

    start.__name__ = test.__name__
    return start
