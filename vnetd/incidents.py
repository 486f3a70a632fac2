"""Incidents: what broke, from the pass that finds it to the record of how it ended, and when to
try again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vnetd.core.actions import Action
from vnetd.core.diff import Diff
from vnetd.core.drift import Conflict, Drift
from vnetd.core.model import Cause, Source
from vnetd.core.pacing import Failure, Fight
from vnetd.core.record import Outcome, Record
from vnetd.trigger import Clock

# libvirt with hundreds of networks; one who writes for ever must not keep failures untold.
_MOST_UNSETTLED = 120.0

Due = frozenset[tuple[str, Source]]
"""Objects, and the systems in which something would have to be done for them."""


class Recorder(Protocol):
    def drift_detected(self, object_: str, drift: Sequence[str], cause: Cause | None) -> None: ...

    def recorded(self, record: Record) -> None: ...


@dataclass(slots=True)
class _Incident:
    """Drift of one object within one pass."""

    drift: tuple[str, ...] = ()
    cause: Cause | None = None
    weighed: bool = False
    """Whether it is one more of the same fight."""
    actions: list[str] = field(default_factory=list)
    error: str = ""
    tried: set[Source] = field(default_factory=set)
    failed: set[Source] = field(default_factory=set)
    """Systems whose actions were tried for it, and those of them that refused one."""
    gave_up: bool = False
    """The last action was refused: drift that is gone all the same was given up, not mended."""
    ended: float | None = None
    """When it was first seen to be right again, until it is not."""
    notice: float | None = None
    """When it was noticed, if that was in a pass before."""


class Incidents:
    """begin(), then what the pass sees and does, then conclude()."""

    def __init__(self, recorder: Recorder, clock: Clock) -> None:
        self.contested: dict[str, str] = {}
        """Objects that somebody keeps breaking, and what to say of it."""
        self._recorder = recorder
        self._clock = clock
        self._of_pass: dict[str, _Incident] = {}
        self._unsettled: dict[str, _Incident] = {}
        """What the next pass goes on with."""
        self._failures: dict[tuple[str, Source], Failure] = {}
        """By object, and system that its action is for: the others go on."""
        self._fights: dict[str, Fight] = {}
        self._told: set[str] = set()
        """Objects whose drift was told and is not gone yet."""
        self._conflicts: frozenset[Conflict] = frozenset()

    @property
    def failures(self) -> dict[str, str]:
        """Objects whose repair fails, and why."""
        return {object_: failure.why for (object_, _), failure in self._failures.items()}

    def times(self) -> list[float]:
        """When something is to be tried again (monotonic)."""
        failures = [failure.not_before for failure in self._failures.values()]
        return failures + [self._fights[object_].not_before for object_ in self.contested]

    def wait_no_more(self) -> None:
        """For what failed; who fights is still waited for."""
        for failure in self._failures.values():
            failure.not_before = 0.0

    def may(self, action: Action, source: Source) -> bool:
        """Whether one of its objects need not wait. source: the system that it is for."""
        now = self._clock.monotonic()

        def waits(object_: str) -> bool:
            failure, fight = self._failures.get((object_, source)), self._fights.get(object_)
            return bool(
                (failure and now < failure.not_before) or (fight and now < fight.not_before)
            )

        return not action.objects or not all(waits(object_) for object_ in action.objects)

    # -- in the order of a pass

    def begin(self) -> None:
        now = self._clock.monotonic()
        self._of_pass, self._unsettled = self._unsettled, {}
        # Also where it is right at the moment: what comes and goes is not told each time.
        self.contested = {
            object_: why
            for object_, why in self.contested.items()
            if now < self._fights[object_].not_before
        }

    def note(self, found: Iterable[Drift], causes: Mapping[Source, Cause]) -> None:
        """Open an incident for each object with drift that has none yet in this pass."""
        now = self._clock.monotonic()
        for object_, items in _by_object(found).items():
            drift = tuple(str(item) for item in items)
            incident = self._note_early(object_, items, causes)
            if incident.weighed:
                continue
            incident.weighed = True
            # First what made the rest: a network that is stopped before its bridge that is down.
            incident.drift = tuple(dict.fromkeys((*drift, *incident.drift)))
            fight = self._fights.setdefault(object_, Fight())
            if fight.must_wait(drift, now):
                self._contest(object_, fight, incident)

    def note_early(self, found: Iterable[Drift], causes: Mapping[Source, Cause]) -> None:
        """The same of a part of the drift, seen before all sources were looked at: who fights
        vnetd is not to be told by it, for the next time it may be another part.
        """
        for object_, items in _by_object(found).items():
            self._note_early(object_, items, causes)

    def _note_early(
        self, object_: str, items: Sequence[Drift], causes: Mapping[Source, Cause]
    ) -> _Incident:
        incident = self._of_pass.setdefault(object_, _Incident())
        incident.drift = tuple(dict.fromkeys((*incident.drift, *(str(item) for item in items))))
        if incident.cause is None:
            named = [causes.get(item.source) for item in items]
            incident.cause = next((cause for cause in named if cause is not None), None)
        return incident

    def _contest(self, object_: str, fight: Fight, incident: _Incident) -> None:
        if object_ in self.contested:
            return
        who = str(incident.cause) if incident.cause else "somebody"
        wait = fight.not_before - self._clock.monotonic()
        why = f"{who} undoes the same repair again and again; the next has to wait {wait:.0f} s"
        self.contested[object_] = why
        if not fight.told:
            fight.told = True
            self._record(object_, incident, Outcome.CONFLICT, 0, why)

    def announce(self) -> None:
        """Tell of drift that nobody was told of."""
        for object_, incident in self._of_pass.items():
            if object_ not in self._told:
                self._told.add(object_)
                self._recorder.drift_detected(object_, incident.drift, incident.cause)

    def done(self, action: Action, source: Source) -> None:
        for incident in self._incidents_of(action):
            incident.gave_up = False
            incident.actions.append(str(action))
            incident.tried.add(source)

    def refused(self, action: Action, source: Source, why: str) -> None:
        for incident in self._incidents_of(action):
            incident.error = why
            incident.failed.add(source)
            incident.gave_up = True

    def _incidents_of(self, action: Action) -> list[_Incident]:
        return [self._of_pass[x] for x in action.objects if x in self._of_pass]

    def mark_ended(self, found: Diff) -> None:
        """The pass may go on with others for long."""
        left = _by_object(found.drift)
        for object_, incident in self._of_pass.items():
            if object_ in left:
                incident.ended = None
            elif incident.ended is None:
                incident.ended = self._clock.monotonic()

    def conclude(self, found: Diff, due: Due, first: float, *, writing: bool) -> None:
        """due: what would have to be done now. first: when the pass was first asked for. writing:
        libvirt was writing its rules meanwhile, and the next pass looks at what it made of them.
        """
        now = self._clock.monotonic()
        left = _by_object(found.drift)
        for object_, incident in self._of_pass.items():
            notice = first if incident.notice is None else incident.notice
            ms = round((now - notice) * 1000)
            if writing and incident.failed <= {Source.FIREWALL}:
                incident.gave_up = False  # refused as it came in between
            if object_ not in left:
                if incident.gave_up:
                    self._record(object_, incident, Outcome.FAILED, ms, incident.error)
                elif incident.actions:
                    self._fights.setdefault(object_, Fight()).healed(now)
                    took = round(((incident.ended or now) - notice) * 1000)
                    self._record(object_, incident, Outcome.REPAIRED, took)
            elif incident.actions or incident.error:
                rules_only = all(item.source is Source.FIREWALL for item in left[object_])
                if writing and rules_only and now - notice < _MOST_UNSETTLED:
                    incident.error, incident.notice = "", notice
                    incident.failed.clear()
                    self._unsettled[object_] = incident
                else:
                    self._fail(object_, incident, now, ms)
        self._told &= {*left, *self.contested}
        self._failures = {key: it for key, it in self._failures.items() if key in due}
        given_up = {object_ for object_, incident in self._of_pass.items() if incident.gave_up}
        for conflict in sorted(set(found.conflicts) - self._conflicts, key=str):
            if conflict.object in given_up:
                continue  # told as a failure
            incident = _Incident((conflict.text,), conflict.cause)
            ms = round((now - first) * 1000)
            self._record(conflict.object, incident, Outcome.CONFLICT, ms)
        self._conflicts = frozenset(found.conflicts)

    def _fail(self, object_: str, incident: _Incident, now: float, ms: int) -> None:
        why = incident.error or "the repair did not hold"
        # What was done well may have been undone by what failed behind it.
        keys = [(object_, source) for source in incident.failed or incident.tried]
        failures = [self._failures.setdefault(key, Failure("")) for key in keys]
        if all(failure.why != why for failure in failures):
            self._record(object_, incident, Outcome.FAILED, ms, why)
        for failure in failures:
            failure.again(why, now)

    def _record(
        self, object_: str, incident: _Incident, outcome: Outcome, ms: int, why: str = ""
    ) -> None:
        record = Record(
            time=self._clock.utcnow().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            object=object_,
            drift=incident.drift,
            cause=incident.cause,
            actions=(*incident.actions, *((why,) if why else ())),
            ms=ms,
            outcome=outcome,
            sources=frozenset(incident.tried),
        )
        self._recorder.recorded(record)


def _by_object(drift: Iterable[Drift]) -> dict[str, list[Drift]]:
    found: dict[str, list[Drift]] = {}
    for item in drift:
        found.setdefault(item.object, []).append(item)
    return found
