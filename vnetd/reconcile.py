"""Reconciler: observe → diff → plan → apply → verify → publish, one pass at a time.

An event only says where to look again. What to do is decided from desired and observed state.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from vnetd.backends.base import Backend
from vnetd.core.actions import Action
from vnetd.core.desired import desired
from vnetd.core.diff import Diff, diff
from vnetd.core.drift import Drift
from vnetd.core.model import Cause, Definition, Observed, Ruleset, Source, World, network_of
from vnetd.core.pacing import Failure
from vnetd.core.plan import plan
from vnetd.core.policy import Enforcement, Policy
from vnetd.core.status import Circumstances, Status, status
from vnetd.errors import BackendError, Busy, Hangs, NotConnected, Outdated, is_want_of_files
from vnetd.incidents import Incidents, Recorder
from vnetd.trigger import Clock, Pokes, Trigger

log = logging.getLogger(__name__)

_T = TypeVar("_T")

ALL_SOURCES = frozenset(Source)
# Actions whose result shows only in the next look (a restarted network's taps) need a further
# round; a plan that comes out the same again made no progress. After a flush libvirt's nftables
# backend deletes rules that it has just installed: it may take several turns until all stand.
_MOST_ROUNDS = 12
# libvirt pokes when it answers; but the writer may have been somebody else.
_REWRITE_SECONDS = 3.0
_MOST_TRIES = 2
# Longer than libvirt takes to answer where it is not at work on a network.
_AT_ONCE_SECONDS = 0.03


Progress = Callable[[int, int, str], None]
"""Actions done, actions known so far, the one under way; a first time when the pass begins."""


def _untold(_done: int, _total: int, _step: str) -> None:
    pass


class Publisher(Recorder, Protocol):
    def publish(self, status: Status) -> None: ...


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
        self._end_of_pause = ""
        self._troubles: dict[str, tuple[str, ...]] = {}
        self._unread: dict[Source, Failure] = {}
        self._hung: dict[Source, Hangs] = {}
        """Systems that this pass gives no further try, for everything else waits meanwhile."""
        self._incidents = Incidents(publisher, clock)
        self._rewriting = False
        """libvirt writes rules, which wait for its end: at its start it takes all out and in."""
        self._read_at = 0.0
        """What libvirt wrote until then was there when rules were read, or asked for by vnetd."""
        self._look_again_at = 0.0
        """Of rules that libvirt writes without an answer to anything else."""
        self._pass_started: float | None = None
        self._resync_at = 0.0
        self._links_seen = 0
        """Pokes for links until they were looked at."""
        self._changing: frozenset[str] = frozenset()
        """Networks that vnetd has changed since libvirt was looked at: they are not as known."""
        self._outdated = False
        """Of the actions under way, some were for what is not so any more."""
        self._mended: set[Action] = set()
        """Done early, of the actions under way."""
        self._causes: Mapping[Source, Cause] = {}
        """Of what the pass under way looks at."""

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
        end = self._clock.utcnow() + timedelta(seconds=seconds)
        self._end_of_pause = f"{end:%Y-%m-%d %H:%M:%S} UTC"
        self.trigger.poke(reason="pause")

    def resume(self) -> None:
        self._paused_until = 0.0
        self.trigger.poke(*ALL_SOURCES, reason="resume")

    async def reconcile(self, progress: Progress = _untold) -> Status:
        """One full pass, now, whatever was to be waited for."""
        self._incidents.wait_no_more()
        for failure in self._unread.values():
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
        failed: Counter[Action] = Counter()
        self._incidents.begin()
        self._hung.clear()
        self._causes = pokes.causes
        rules_wait = pokes.writing is not None and Source.FIREWALL not in pokes.sources
        if not rules_wait:
            self._read_at = self._clock.monotonic()
        await self._observe(pokes.sources)
        now = self._clock.monotonic()
        if Source.LIBVIRT not in self._unread:
            self._look_again_at = 0.0
        elif pokes.writing is not None:
            self._look_again_at = now + _REWRITE_SECONDS
        self._rewriting = rules_wait or now < self._look_again_at
        found, planned = self._think()
        tried: tuple[Action, ...] = ()
        done = 0
        for _ in range(_MOST_ROUNDS):
            self._incidents.note(found.drift, pokes.causes)
            actions = tuple(x for x in planned if failed[x] < _MOST_TRIES and self._may(x))
            if done and self._is_writing:
                # What was right to put back may be wrong by now. The next pass waits for libvirt.
                actions = tuple(
                    x for x in actions if self._backend(x).source is not Source.FIREWALL
                )
            if not actions or actions == tried or self._stopping.is_set():
                break
            if not all(action.quick for action in actions):
                self._incidents.announce()
                self._publish(found, healing=True)
            self._observed = replace(self._observed, insist=False)
            self._outdated = False
            failed.update(await self._apply(actions, done, progress))
            done += len(actions)
            if self._hung:
                self._publish(found, healing=True)  # the look that follows may hang as well
            touched = self._touched(actions)
            if self._outdated:
                touched.add(Source.FIREWALL)
            await self._observe(touched)
            if Source.LIBVIRT in touched:
                self._read_at = self._clock.monotonic()
            tried = () if self._outdated else actions
            found, planned = self._think()
            self._incidents.mark_ended(found)
        self._incidents.announce()
        due = frozenset((o, self._backend(x).source) for x in planned for o in x.objects)
        self._incidents.conclude(found, due, pokes.first, writing=self._is_writing)
        return self._publish(found, healing=False)

    async def _observe(self, sources: Iterable[Source]) -> None:
        wanted = set(sources)
        if Source.LIBVIRT in wanted and self._is_legacy:
            wanted.add(Source.FIREWALL)  # a network may have started with rules nobody told of
        running = self._running
        self._observed = replace(self._observed, asked=self.policy.asked)
        if wanted >= ALL_SOURCES:
            self._resync_at = self._clock.monotonic() + self.policy.resync
        for backend in self._backends:
            source = backend.source
            if source not in wanted:
                continue
            try:
                await self._observe_with(backend)
                self._unread.pop(source, None)
                if source is not Source.LIBVIRT:
                    continue
                if self._awaits_libvirt:
                    wanted.add(Source.FIREWALL)
                if self._running != running:
                    # Of a network that has stopped since the last look at rules, all would seem
                    # left over; of one that has started, all would seem to be missing, and its
                    # dnsmasq dead.
                    wanted |= {Source.FIREWALL, Source.DNSMASQ}
            except BackendError as error:
                failure = self._unread.setdefault(source, Failure(""))
                if failure.why != str(error):
                    log.warning("%s: %s", source, error)
                failure.why = str(error)
                if not isinstance(error, NotConnected | Busy):  # its watcher pokes when it is back
                    failure.again(str(error), self._clock.monotonic())
        # Last: whatever was seen to be missing, of these it may be libvirt that has removed it.
        self._observed = replace(self._observed, leaving=self._leaving() | self._changing)

    async def _observe_with(self, backend: Backend) -> None:
        try:
            await self._look_with(backend)
        except OSError as error:
            if is_want_of_files(error):
                raise BackendError(str(error)) from error
            raise

    async def _look_with(self, backend: Backend) -> None:
        if backend.source is Source.LINKS:
            self._links_seen = self.trigger.count(Source.LINKS)
        if backend.source is not Source.LIBVIRT:
            self._observed = await backend.observe(self._observed)
            return
        seen = await self._while_libvirt(backend.observe(self._observed))
        self._observed = replace(self._observed, libvirt=seen.libvirt)
        self._changing = frozenset()

    async def _while_libvirt(self, work: Coroutine[Any, Any, _T]) -> _T:
        """libvirt answers when it is through with a network, which takes half a second; guests can
        be on its bridge as soon as there is one.
        """
        if self._pass_started is None:
            return await work
        task = asyncio.ensure_future(work)
        try:
            if not self._leaving():
                await asyncio.wait([task], timeout=_AT_ONCE_SECONDS)
            while not task.done():
                poked = asyncio.ensure_future(self.trigger.beyond(Source.LINKS, self._links_seen))
                await asyncio.wait([task, poked], return_when=asyncio.FIRST_COMPLETED)
                poked.cancel()
                if not task.done():
                    await self._mend_links(task.done)
            return task.result()
        finally:
            task.cancel()

    async def _mend_links(self, is_answered: Callable[[], bool]) -> None:
        """With what is known of libvirt. What fails is left to the pass, which knows more then."""
        await self._observe([Source.LINKS])
        if is_answered():
            return  # which networks are leaving was said of the answer, and not of what is known
        found, planned = self._consider(self._observed, lambda item: item.source is Source.LINKS)
        for action in planned:
            backend = self._backend(action)
            if backend.source is not Source.LINKS or not self._may(action):
                continue
            if is_answered():
                return
            self._incidents.note_early(
                [x for x in found.drift if x.source is Source.LINKS and x.object in action.objects],
                self._causes,
            )
            log.info("%s (%s)", str(action), action.reason)
            try:
                await backend.apply(action)
            except BackendError as error:
                log.debug("%s: %s", str(action), error)
            else:
                self._mended.add(action)
                self._incidents.done(action, backend.source)

    def _think(self) -> tuple[Diff, tuple[Action, ...]]:
        # What could not be looked at may have changed since: it is no ground to do anything.
        found, actions = self._consider(self._observed, lambda x: x.source not in self._unread)
        if found.rules_stand:
            self._remembered = self._observed.firewall
        return found, actions

    def _consider(
        self, observed: Observed, is_ground: Callable[[Drift], bool]
    ) -> tuple[Diff, tuple[Action, ...]]:
        """What is wrong, and what to do about the part of it that is ground to do something."""
        policy = desired(self.policy, observed.libvirt)
        found = diff(policy, observed, self._remembered)
        chains = self._remembered.chains if self._remembered else None
        sure = replace(found, drift=tuple(item for item in found.drift if is_ground(item)))
        return found, plan(policy, observed, sure, chains)

    def _may(self, action: Action) -> bool:
        source = self._backend(action).source
        if self._observing or self._paused or source in self._unread:
            return False
        if self._rewriting and source is Source.FIREWALL:
            return False
        return self._incidents.may(action, source)

    def _backend(self, action: Action) -> Backend:
        return next(b for b in self._backends if isinstance(action, b.actions))

    async def _apply(
        self, actions: Sequence[Action], before: int, progress: Progress
    ) -> list[Action]:
        """Run the actions in order; returns those that failed. before: done in rounds before."""
        failed = []
        self._mended.clear()
        for done, action in enumerate(actions, before):
            if self._stopping.is_set():
                break
            if action in self._mended:
                continue
            progress(done, before + len(actions), str(action))
            backend = self._backend(action)
            if self._leaves(action, backend.source):
                self._outdated = True
                continue
            log.info("%s (%s)", str(action), action.reason)
            try:
                if hung := self._hung.get(backend.source):
                    raise hung
                if backend.source is Source.LIBVIRT:
                    names = (network_of(object_) for object_ in action.objects)
                    self._changing |= {name for name in names if name is not None}
                    await self._while_libvirt(backend.apply(action))
                else:
                    await backend.apply(action)
            except Outdated as error:
                log.debug("%s: %s", str(action), error)
                self._outdated = True
            except BackendError as error:
                log.warning("%s: %s", str(action), error)
                failed.append(action)
                if isinstance(error, Hangs):
                    self._hung[backend.source] = error
                self._incidents.refused(action, backend.source, str(error))
            else:
                self._incidents.done(action, backend.source)
        return failed

    def _leaves(self, action: Action, source: Source) -> bool:
        """libvirt has begun to remove what it would mend. The guard stays until all is gone."""
        if source is Source.GUARD:
            return False
        return not self._leaving().isdisjoint(map(network_of, action.objects))

    def _touched(self, actions: Iterable[Action]) -> set[Source]:
        """A network that starts or stops changes links and rules as well; a bridge is a link."""
        touched = {self._backend(action).source for action in actions}
        if Source.UPLINKS in touched:
            touched.add(Source.LINKS)
        return set(ALL_SOURCES) if Source.LIBVIRT in touched else touched

    def _publish(self, found: Diff, *, healing: bool) -> Status:
        troubles = [text for texts in self._troubles.values() for text in texts]
        troubles += [f"{source}: {failure.why}" for source, failure in self._unread.items()]
        if healing:  # at the end they are failures
            troubles += [f"{source}: {error}" for source, error in self._hung.items()]
        if self._paused:
            troubles.insert(0, f"paused until {self._end_of_pause}, or: vnetctl resume")
        now = Circumstances(
            paused=self._paused,
            healing=healing,
            failures=self._incidents.failures,
            fights=self._incidents.contested,
            troubles=troubles,
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
    def _awaits_libvirt(self) -> bool:
        """Before it can be said whose all of the rules are."""
        ruleset = self._observed.firewall
        return ruleset is not None and not ruleset.settled

    @property
    def _is_writing(self) -> bool:
        """libvirt writes rules unasked, as after a firewalld reload: one network after another."""
        ruleset = self._observed.firewall
        in_iptables = ruleset is not None and ruleset.world.is_iptables
        return in_iptables and (self._rewriting or self.trigger.written > self._read_at)

    @property
    def _running(self) -> dict[str, Definition]:
        networks = self._observed.libvirt.networks if self._observed.libvirt else {}
        return {name: network.live for name, network in networks.items() if network.live}

    @property
    def _paused(self) -> bool:
        return self._clock.monotonic() < self._paused_until

    def _idle_seconds(self) -> float:
        now = self._clock.monotonic()
        times = [self._resync_at, *self._incidents.times()]
        if now < self._look_again_at:
            times.append(self._look_again_at)
        times += [failure.not_before for failure in self._unread.values() if failure.attempts]
        if self._paused:
            times.append(self._paused_until)
        return max(0.0, min(times) - now)

    def _due(self) -> Pokes:
        return Pokes(self._clock.monotonic(), set(ALL_SOURCES), ["resync"])
