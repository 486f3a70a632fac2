"""One fault, and what is expected to become of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from tests.faults.host import Host, Kind, System, plain

Step = str | Callable[[Host], None]
"""A shell script that runs on the host, or what a script cannot do."""


class Outcome(StrEnum):
    HEALED = "healed"
    """All is as before, without anybody doing anything."""
    NAMED = "conflict, named"
    """Left alone and told; over when its cause is."""
    REFUSED = "refused"
    """Whoever asks for it gets a clear error, and nothing changes: its script proves it."""
    UNTOUCHED = "nothing to do"
    """For vnetd: nothing is written."""


@dataclass(frozen=True, slots=True)
class Fault:
    """told: a part of what status says of it. undo: what ends it, where vnetd must not; it may
    first look at what has become of it. check: more that must hold when all is as it was.
    heals_itself: libvirt does it, if it is faster than vnetd.
    restarts: which of Host.processes are not the same afterwards.
    long: CI has no time for it, or sees it in another test.
    seconds: after so many a test of it hangs.
    """

    id: str
    what: str
    inject: Step
    outcome: Outcome = Outcome.HEALED
    told: str = ""
    undo: Step = ""
    check: Callable[[Host], None] | None = None
    heals_itself: bool = False
    host: Kind = plain
    systems: tuple[System, ...] = tuple(System)
    restarts: tuple[str, ...] = ()
    long: bool = False
    seconds: float = 300
