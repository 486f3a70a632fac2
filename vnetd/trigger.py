"""Trigger: when to look again, and where. Told by whoever watches a system."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from vnetd.core.model import Cause, Source


@dataclass(frozen=True, slots=True)
class Clock:
    """monotonic: seconds, for waiting and measuring; utcnow: for records."""

    monotonic: Callable[[], float]
    utcnow: Callable[[], datetime]


@dataclass(slots=True)
class Pokes:
    """What came in since the last pass. first, writing: monotonic times. at_once: sources that wait
    for no writer.
    """

    first: float
    sources: set[Source] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)
    causes: dict[Source, Cause] = field(default_factory=dict)
    writing: float | None = None
    at_once: set[Source] = field(default_factory=set)

    def take_at_once(self) -> Pokes:
        """What waits for no writer, which is taken out of it."""
        reasons, causes = list(self.reasons), dict(self.causes)
        taken = replace(self, sources=self.at_once, reasons=reasons, causes=causes)
        self.sources -= self.at_once
        self.at_once = set()
        return taken


class Trigger:
    """Collects pokes: a storm of them costs one pass, not a queue."""

    # libvirt runs one iptables process for each rule, some 10 to 30 ms apart.
    QUIET = 0.3
    LONGEST = 5.0

    def __init__(self, clock: Clock) -> None:
        self.written = float("-inf")
        """When libvirt was last seen to write (monotonic)."""
        self._clock = clock
        self._pokes: Pokes | None = None
        self._poked = asyncio.Event()
        self._counts: Counter[Source] = Counter()
        self._counted = asyncio.Event()

    def poke(
        self,
        *sources: Source,
        reason: str,
        cause: Cause | None = None,
        writing: bool | None = None,
        at_once: bool = False,
    ) -> None:
        now = self._clock.monotonic()
        self._counts.update(sources)
        self._counted.set()
        if self._pokes is None:
            self._pokes = Pokes(first=now)
        self._pokes.sources.update(sources)
        if at_once:
            self._pokes.at_once.update(sources)
        if reason not in self._pokes.reasons:
            self._pokes.reasons.append(reason)
        if cause is not None:
            self._pokes.causes.update(dict.fromkeys(sources, cause))
        if writing is not None:
            self._pokes.writing = now if writing else None
        if writing:
            self.written = now
        self._poked.set()

    def count(self, source: Source) -> int:
        """How often it was poked so far."""
        return self._counts[source]

    async def beyond(self, source: Source, count: int) -> None:
        """Until it has been poked more often than that. For one at a time."""
        while self._counts[source] <= count:
            self._counted.clear()
            await self._counted.wait()

    async def wait(self, seconds: float) -> Pokes | None:
        """The pokes so far, after the writer has settled, but for those that must not wait; None if
        there were none in time.
        """
        if self._pokes is None and not await self._next(seconds):
            return None
        while (left := self._unsettled()) > 0:
            if self._pokes is not None and self._pokes.at_once:
                return self._pokes.take_at_once()
            await self._next(left)
        pokes, self._pokes = self._pokes, None
        self._poked.clear()
        return pokes

    async def _next(self, seconds: float) -> bool:
        """Whether there was a poke in time."""
        self._poked.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._poked.wait()
        except TimeoutError:
            return False
        return True

    def _unsettled(self) -> float:
        pokes = self._pokes
        if pokes is None or pokes.writing is None:
            return 0.0
        until = min(pokes.writing + self.QUIET, pokes.first + self.LONGEST)
        return until - self._clock.monotonic()
