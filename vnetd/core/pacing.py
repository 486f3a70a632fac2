"""When to try again: after failures, and against somebody who keeps undoing the same repair."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

_FIGHT_HEALS = 5
_FIGHT_WINDOW = 30.0
_LONGEST = 60.0
_LONGEST_FIGHT = 10.0
_SHORT_LIFE = 10.0
_MOST_SHORT_LIVES = 5
_LONGEST_START = 10.0


def backoff(attempt: int) -> float:
    """Seconds to wait after the attempt-th failure in a row: 1, 2, 4 … 60."""
    return float(min(_LONGEST, 2 ** (min(attempt, 10) - 1)))


@dataclass(frozen=True, slots=True)
class Lives:
    """short: how often in a row the program has come to an end soon. began: when it did the last
    time, in seconds of a clock that a crash does not set back.
    """

    short: int = 0
    began: float = 0.0

    def next(self, now: float) -> Lives:
        """began may lie ahead: so long it should wait."""
        short = self.short + 1 if now - self.began < _SHORT_LIFE else 0
        attempt = short - _MOST_SHORT_LIVES + 1
        return Lives(short, now + (min(_LONGEST_START, backoff(attempt)) if attempt > 0 else 0.0))


@dataclass(slots=True)
class Failure:
    """Failures of one object in a row."""

    why: str
    attempts: int = 0
    not_before: float = 0.0

    def again(self, why: str, now: float) -> None:
        self.why = why
        self.attempts += 1
        self.not_before = now + backoff(self.attempts)


@dataclass(slots=True)
class Fight:
    """The same drift of one object, healed and undone again and again."""

    drift: Hashable = None
    heals: deque[float] = field(default_factory=lambda: deque(maxlen=_FIGHT_HEALS))
    rounds: int = 0
    not_before: float = 0.0
    told: bool = False
    """The admin knows of this fight."""

    def must_wait(self, drift: Hashable, now: float) -> bool:
        """Note drift. True after 5 heals of the same in 30 s, then after each, for 1 to 10 s."""
        last = self.heals[-1] if self.heals else now
        if drift != self.drift or now > max(last, self.not_before) + _FIGHT_WINDOW:
            self.drift, self.rounds, self.not_before, self.told = drift, 0, 0.0, False
            self.heals.clear()
        if now < self.not_before:
            return True
        if self.rounds:
            undone = bool(self.heals) and self.heals[-1] > self.not_before
        else:
            undone = len(self.heals) == _FIGHT_HEALS and now - self.heals[0] <= _FIGHT_WINDOW
        if undone:
            self.rounds += 1
            self.not_before = now + min(_LONGEST_FIGHT, backoff(self.rounds))
        return undone

    def healed(self, now: float) -> None:
        self.heals.append(now)
