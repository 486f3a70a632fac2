"""Reconciler: observe → diff → plan → apply → verify → publish, one pass at a time.

An event only says where to look again. What to do is decided from desired and observed state.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from vnetd.backends.base import Backend
from vnetd.core.actions import Action
from vnetd.core.desired import desired
from vnetd.core.diff import Diff, diff
from vnetd.core.drift import Conflict, Drift
from vnetd.core.model import Cause, Observed, Ruleset, Source, World
from vnetd.core.pacing import Failure, Fight
from vnetd.core.plan import plan
from vnetd.core.policy import Enforcement, Policy
from vnetd.core.record import Outcome, Record
from vnetd.core.status import Circumstances, Status, status
from vnetd.errors import BackendError, Busy, NotConnected
from vnetd.trigger import Clock, Pokes, Trigger

log = logging.getLogger(__name__)

ALL_SOURCES = frozenset(Source)
# Actions whose result shows only in the next look (a restarted network's taps) need a further
# round; a plan that comes out the same again made no progress. After a flush libvirt's nftables
# backend deletes rules that it has just installed: it may take several turns until all stand.
_MOST_ROUNDS = 12
# libvirt pokes when it answers; but the writer may have been somebody else.
_REWRITE_SECONDS = 3.0
_MOST_TRIES = 2


Progress = Callable[[int, int, str], None]
"""Actions done, actions known so far, the one under way; a first time when the pass begins."""


def _untold(_done: int, _total: int, _step: str) -> None:
    pass


class Publisher(Protocol):
    def publish(self, status: Status) -> None: ...

    def drift_detected(self, object_: str, drift: Sequence[str], cause: Cause | None) -> None: ...

    def recorded(self, record: Record) -> None: ...


@dataclass(slots=True)
class _Incident:
    """Drift of one object within one pass."""

    drift: tuple[str, ...]
    cause: Cause | None
    actions: list[str] = field(default_factory=list)
    error: str = ""
    tried: set[Source] = field(default_factory=set)
    failed: set[Source] = field(default_factory=set)
    """Systems whose actions were tried for it, and those of them that refused one."""
    gave_up: bool = False
    """The last action was refused: drift that is gone all the same was given up, not mended."""
    ended: float | None = None
    """When it was first seen to be right again, until it is not."""


class Reconciler:
    def __init__(
        self,
        backends: Iterable[Backend],
        publisher: Publisher,
        clock: Clock,
        leaving: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        """leaving: the networks that libvirt has begun to take down since it was looked at."""
        self.trigger = Trigger(clock)
        self.policy = Policy(present=False)
        self.observe_only = False
        self.passes = 0
        self._backends = tuple(backends)
        self._leaving = leaving
        self._publisher = publisher
        self._clock = clock
        self._observed = Observed()
        self._remembered: Ruleset | None = None
        self._passing = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._paused_until = 0.0
        self._troubles: dict[str, tuple[str, ...]] = {}
        self._unread: dict[Source, Failure] = {}
        self._failures: dict[tuple[str, Source], Failure] = {}
        """By object, and system that its action is for: the others go on."""
        self._fights: dict[str, Fight] = {}
        self._contested: dict[str, str] = {}
        self._drifting: set[str] = set()
        self._conflicts: frozenset[Conflict] = frozenset()
        self._rewriting = False
        """libvirt, which does not answer, writes rules: at its start it takes all out and in."""
        self._look_again_at = 0.0
        self._pass_started: float | None = None
        self._resync_at = 0.0

    # -- asked from outside

    async def run(self) -> None:
        """Pass after pass, until stop() is called."""
        self.trigger.poke(*ALL_SOURCES, reason="start")
        while not self._stopping.is_set():
            pokes = await self.trigger.wait(self._idle_seconds())
            if self._stopping.is_set():
                return
            await self._pass(pokes or self._due())

    def stop(self) -> None:
        """Finish the action under way and return from run()."""
        self._stopping.set()
        self.trigger.poke(reason="stop")

    def load(self, policy: Policy) -> None:
        self.policy = policy
        self.trigger.poke(*ALL_SOURCES, reason="policy loaded")

    def trouble(self, topic: str, texts: Sequence[str]) -> None:
        """Something beside drift that an admin must know, until it is called without texts."""
        if self._troubles.get(topic, ()) != tuple(texts):
            self._troubles[topic] = tuple(texts)
            self.trigger.poke(reason=topic)

    def pause(self, seconds: float) -> None:
        self._paused_until = self._clock.monotonic() + seconds
        self.trigger.poke(reason="pause")

    def resume(self) -> None:
        self._paused_until = 0.0
        self.trigger.poke(*ALL_SOURCES, reason="resume")

    async def reconcile(self, progress: Progress = _untold) -> Status:
        """One full pass, now, whatever was to be waited for."""
        for failure in (*self._failures.values(), *self._unread.values()):
            failure.not_before = 0.0
        pokes = Pokes(self._clock.monotonic(), set(ALL_SOURCES), ["asked to"])
        return await self._pass(pokes, progress, insist=True)

    async def plan(self) -> tuple[Action, ...]:
        """What a full pass would do. Changes nothing."""
        await self._look_around()
        async with self._passing:
            return self._think()[1]

    async def look(self) -> tuple[Observed, Diff]:
        """Everything as it is now, and what is wrong with it. Changes nothing."""
        await self._look_around()
        async with self._passing:
            return self._observed, self._think()[0]

    async def _look_around(self) -> None:
        """At one source after the other, so that a repair waits for one of them at most."""
        for backend in self._backends:
            async with self._passing:
                await self._observe([backend.source])

    def busy_since(self) -> float | None:
        """When the pass under way began (monotonic); None while idle."""
        return self._pass_started

    # -- a pass

    async def _pass(
        self, pokes: Pokes, progress: Progress = _untold, *, insist: bool = False
    ) -> Status:
        async with self._passing:
            self._pass_started = self._clock.monotonic()
            self.passes += 1
            self._observed = replace(self._observed, insist=insist)
            progress(0, 0, "")
            try:
                return await self._pass_through(pokes, progress)
            finally:
                self._pass_started = None

    async def _pass_through(self, pokes: Pokes, progress: Progress) -> Status:
        log.debug("pass: %s", ", ".join(pokes.reasons))
        incidents: dict[str, _Incident] = {}
        failed: Counter[Action] = Counter()
        self._contested = {}
        await self._observe(pokes.sources)
        self._rewriting = Source.LIBVIRT in self._unread and pokes.writing is not None
        self._look_again_at = self._clock.monotonic() + _REWRITE_SECONDS if self._rewriting else 0.0
        found, planned = self._think()
        tried: tuple[Action, ...] = ()
        done = 0
        for _ in range(_MOST_ROUNDS):
            self._note(found, pokes, incidents)
            actions = tuple(x for x in planned if failed[x] < _MOST_TRIES and self._may(x))
            if not actions or actions == tried or self._stopping.is_set():
                break
            if not all(action.quick for action in actions):
                self._announce(incidents)
                self._publish(found, healing=True)
            self._observed = replace(self._observed, insist=False)
            failed.update(await self._apply(actions, incidents, done, progress))
            done += len(actions)
            await self._observe(self._touched(actions))
            tried = actions
            found, planned = self._think()
            self._mark_ended(found, incidents)
        self._announce(incidents)
        self._conclude(found, planned, incidents, pokes.first)
        return self._publish(found, healing=False)

    async def _observe(self, sources: Iterable[Source]) -> None:
        wanted = set(sources)
        if Source.LIBVIRT in wanted and self._is_legacy:
            wanted.add(Source.FIREWALL)  # a network may have started with rules nobody told of
        self._observed = replace(self._observed, asked=self.policy.asked)
        if wanted >= ALL_SOURCES:
            self._resync_at = self._clock.monotonic() + self.policy.resync
        for backend in self._backends:
            source = backend.source
            if source not in wanted:
                continue
            try:
                self._observed = await backend.observe(self._observed)
                self._unread.pop(source, None)
            except BackendError as error:
                failure = self._unread.setdefault(source, Failure(""))
                if failure.why != str(error):
                    log.warning("%s: %s", source, error)
                failure.why = str(error)
                if not isinstance(error, NotConnected | Busy):  # its watcher pokes when it is back
                    failure.again(str(error), self._clock.monotonic())
        # Last: whatever was seen to be missing, of these it may be libvirt that has removed it.
        self._observed = replace(self._observed, leaving=self._leaving())

    def _think(self) -> tuple[Diff, tuple[Action, ...]]:
        policy = desired(self.policy, self._observed.libvirt)
        found = diff(policy, self._observed, self._remembered)
        chains = self._remembered.chains if self._remembered else None
        # What could not be looked at may have changed since: it is no ground to do anything.
        sure = tuple(item for item in found.drift if item.source not in self._unread)
        actions = plan(policy, self._observed, replace(found, drift=sure), chains)
        if found.rules_stand:
            self._remembered = self._observed.firewall
        return found, actions

    def _note(self, found: Diff, pokes: Pokes, incidents: dict[str, _Incident]) -> None:
        """Open an incident for each object with drift that has none yet in this pass."""
        now = self._clock.monotonic()
        for object_, items in _by_object(found.drift).items():
            drift = tuple(str(item) for item in items)
            if object_ in incidents:
                incident = incidents[object_]
                incident.drift = tuple(dict.fromkeys((*incident.drift, *drift)))
                continue
            causes = [pokes.causes.get(item.source) for item in items]
            cause = next((cause for cause in causes if cause is not None), None)
            incidents[object_] = _Incident(drift, cause)
            fight = self._fights.setdefault(object_, Fight())
            if fight.must_wait(drift, now):
                self._contest(object_, fight, incidents[object_])

    def _contest(self, object_: str, fight: Fight, incident: _Incident) -> None:
        who = str(incident.cause) if incident.cause else "somebody"
        wait = fight.not_before - self._clock.monotonic()
        why = f"{who} undoes the same repair again and again; next repair in {wait:.0f} s"
        self._contested[object_] = why
        if not fight.told:
            fight.told = True
            self._record(object_, incident, Outcome.CONFLICT, 0, why)

    def _announce(self, incidents: Mapping[str, _Incident]) -> None:
        for object_, incident in incidents.items():
            if object_ not in self._drifting:
                self._drifting.add(object_)
                self._publisher.drift_detected(object_, incident.drift, incident.cause)

    def _may(self, action: Action) -> bool:
        if self._observing or self._paused or self._backend(action).source in self._unread:
            return False
        now, source = self._clock.monotonic(), self._backend(action).source
        if self._rewriting and source is Source.FIREWALL:
            return False

        def waits(object_: str) -> bool:
            failure, fight = self._failures.get((object_, source)), self._fights.get(object_)
            return bool(
                (failure and now < failure.not_before) or (fight and now < fight.not_before)
            )

        return not action.objects or not all(waits(object_) for object_ in action.objects)

    def _backend(self, action: Action) -> Backend:
        return next(b for b in self._backends if isinstance(action, b.actions))

    async def _apply(
        self,
        actions: Sequence[Action],
        incidents: Mapping[str, _Incident],
        before: int,
        progress: Progress,
    ) -> list[Action]:
        """Run the actions in order; returns those that failed. before: done in rounds before."""
        failed = []
        for done, action in enumerate(actions, before):
            if self._stopping.is_set():
                break
            progress(done, before + len(actions), str(action))
            of_action = [incidents[o] for o in action.objects if o in incidents]
            backend = self._backend(action)
            log.info("%s (%s)", str(action), action.reason)
            try:
                await backend.apply(action)
            except BackendError as error:
                log.warning("%s: %s", str(action), error)
                failed.append(action)
                for incident in of_action:
                    incident.error = str(error)
                    incident.failed.add(backend.source)
                    incident.gave_up = True
            else:
                for incident in of_action:
                    incident.gave_up = False
                    incident.actions.append(str(action))
                    incident.tried.add(backend.source)
        return failed

    def _mark_ended(self, found: Diff, incidents: Mapping[str, _Incident]) -> None:
        """The pass may go on with others for long."""
        left = _by_object(found.drift)
        for object_, incident in incidents.items():
            if object_ in left:
                incident.ended = None
            elif incident.ended is None:
                incident.ended = self._clock.monotonic()

    def _touched(self, actions: Iterable[Action]) -> set[Source]:
        """A network that starts or stops changes links and rules as well; a bridge is a link."""
        touched = {self._backend(action).source for action in actions}
        if Source.UPLINKS in touched:
            touched.add(Source.LINKS)
        return set(ALL_SOURCES) if Source.LIBVIRT in touched else touched

    def _conclude(
        self,
        found: Diff,
        planned: Iterable[Action],
        incidents: Mapping[str, _Incident],
        notice: float,
    ) -> None:
        """planned: what would have to be done now."""
        now = self._clock.monotonic()
        ms = round((now - notice) * 1000)
        left = _by_object(found.drift)
        for object_, incident in incidents.items():
            if object_ not in left:
                self._drifting.discard(object_)
                if incident.gave_up:
                    self._record(object_, incident, Outcome.FAILED, ms, incident.error)
                elif incident.actions:
                    self._fights[object_].healed(now)
                    took = round(((incident.ended or now) - notice) * 1000)
                    self._record(object_, incident, Outcome.REPAIRED, took)
            elif incident.actions or incident.error:
                why = incident.error or "the repair did not hold"
                # What was done well may have been undone by what failed behind it.
                keys = [(object_, source) for source in incident.failed or incident.tried]
                failures = [self._failures.setdefault(key, Failure("")) for key in keys]
                if all(failure.why != why for failure in failures):
                    self._record(object_, incident, Outcome.FAILED, ms, why)
                for failure in failures:
                    failure.again(why, now)
        self._drifting &= set(left)
        due = {(object_, self._backend(x).source) for x in planned for object_ in x.objects}
        self._failures = {key: it for key, it in self._failures.items() if key in due}
        given_up = {object_ for object_, incident in incidents.items() if incident.gave_up}
        for conflict in sorted(set(found.conflicts) - self._conflicts, key=str):
            if conflict.object in given_up:
                continue  # told as a failure
            incident = _Incident((conflict.text,), conflict.cause)
            self._record(conflict.object, incident, Outcome.CONFLICT, ms)
        self._conflicts = frozenset(found.conflicts)

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
        self._publisher.recorded(record)

    def _publish(self, found: Diff, *, healing: bool) -> Status:
        unread = [f"{source}: {failure.why}" for source, failure in self._unread.items()]
        now = Circumstances(
            paused=self._paused,
            healing=healing,
            failures={object_: failure.why for (object_, _), failure in self._failures.items()},
            fights=self._contested,
            troubles=[text for texts in self._troubles.values() for text in texts] + unread,
        )
        policy = self.policy
        if self.observe_only:
            policy = replace(policy, enforcement=Enforcement.OBSERVE)
        result = status(policy, self._observed, found, now)
        self._publisher.publish(result)
        return result

    # -- when to look again without being poked

    @property
    def _observing(self) -> bool:
        return self.observe_only or self.policy.enforcement is Enforcement.OBSERVE

    @property
    def _is_legacy(self) -> bool:
        ruleset = self._observed.firewall
        return ruleset is not None and ruleset.world is World.IPTABLES_LEGACY

    @property
    def _paused(self) -> bool:
        return self._clock.monotonic() < self._paused_until

    def _idle_seconds(self) -> float:
        now = self._clock.monotonic()
        times = [self._resync_at]
        if self._look_again_at:
            times.append(self._look_again_at)
        times += [failure.not_before for failure in self._failures.values()]
        times += [failure.not_before for failure in self._unread.values() if failure.attempts]
        times += [self._fights[object_].not_before for object_ in self._contested]
        if self._paused:
            times.append(self._paused_until)
        return max(0.0, min(times) - now)

    def _due(self) -> Pokes:
        return Pokes(self._clock.monotonic(), set(ALL_SOURCES), ["resync"])


def _by_object(drift: Iterable[Drift]) -> dict[str, list[Drift]]:
    found: dict[str, list[Drift]] = {}
    for item in drift:
        found.setdefault(item.object, []).append(item)
    return found
