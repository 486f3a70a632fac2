"""Passes: when, how many, and what they make of failures, fights and pauses."""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from dataclasses import replace
from datetime import datetime
from ipaddress import ip_address

import pytest

from tests.fakes import nat
from tests.passes import CULPRIT, World, world
from vnetd.backends.firewalls.filters import Filters
from vnetd.backends.firewalls.firewall import Firewall
from vnetd.backends.firewalls.guard import Guard
from vnetd.backends.kernel.hostbridges import HostBridges
from vnetd.backends.kernel.links import Links
from vnetd.backends.kernel.routes import Routes
from vnetd.backends.kernel.sysctls import Sysctls
from vnetd.backends.libvirt.libvirtd import Libvirtd
from vnetd.core.actions import Action
from vnetd.core.keep.bridges import RemakeBridge
from vnetd.core.keep.networks import StartNetwork, UpdateDhcp
from vnetd.core.keep.rules import RestoreRules
from vnetd.core.model import DhcpHost, Source, State
from vnetd.core.policy import Policy
from vnetd.core.record import Outcome
from vnetd.errors import Hangs
from vnetd.trigger import Clock, Trigger


@world
async def test_second_pass_does_nothing(w: World) -> None:
    assert await w.look() is State.CONVERGED
    assert w.host.applied == []
    assert w.published.records == []


@world
async def test_a_flush_is_repaired_from_the_firewall_alone(w: World) -> None:
    good = {chain: list(rules) for chain, rules in w.host.chains.items()}
    looks = {backend.source: backend.looks for backend in w.host.backends}
    w.host.flush()
    assert await w.look(Source.FIREWALL, cause=CULPRIT) is State.CONVERGED
    assert w.host.chains == good
    assert w.host.backends[0].looks == looks[Source.LIBVIRT]
    assert {record.object for record in w.published.records} == {"network/a", "network/b"}
    assert {record.cause for record in w.published.records} == {CULPRIT}
    assert w.published.drift[-1][2] == CULPRIT


@world
async def test_the_order_between_networks_comes_back(w: World) -> None:
    w.host.stop("a")
    w.host.start("a")
    assert await w.look() is State.CONVERGED
    newest_first = {chain: list(rules) for chain, rules in w.host.chains.items()}
    w.host.flush()
    await w.look(Source.FIREWALL)
    assert w.host.chains == newest_first


@world
async def test_a_failing_repair_is_recorded_once_and_tried_ever_more_slowly(w: World) -> None:
    w.host.stop("a")
    w.host.fail[StartNetwork] = "no subnet free"
    tries = []
    for _ in range(40):
        seen = len(w.published.records)
        assert await w.look() is State.DEGRADED
        tries.append(w.reconciler._incidents._failures["network/a", Source.LIBVIRT].attempts)
        assert len(w.published.records) == (1 if seen == 0 else seen)
        w.now += 1
    assert tries[-1] <= 7
    (record,) = w.published.records
    assert (record.outcome, record.actions) == (Outcome.FAILED, ("no subnet free",))
    w.host.fail.clear()
    w.now += 60
    assert await w.look() is State.CONVERGED
    assert w.published.records[-1].outcome is Outcome.REPAIRED


@world
async def test_one_failure_does_not_stop_the_others(w: World) -> None:
    w.host.stop("a")
    w.host.flush()
    w.host.fail[StartNetwork] = "no subnet free"
    await w.look()
    outcomes = {record.object: record.outcome for record in w.published.records}
    assert outcomes == {"network/a": Outcome.FAILED, "network/b": Outcome.REPAIRED}


@world
async def test_what_hangs_is_not_tried_again_for_the_next(w: World) -> None:
    w.host.stop("a")
    w.host.stop("b")
    w.host.fail[StartNetwork] = Hangs("no end")
    await w.look()
    assert len(w.host.refused) == 1
    said = [x.state for x in w.published.statuses if "libvirt: no end" in x.reasons]
    assert said == [State.DEGRADED]  # before the next look; behind it the networks have it
    failed = {(record.object, record.actions) for record in w.published.records}
    assert failed == {("network/a", ("no end",)), ("network/b", ("no end",))}
    w.host.fail.clear()
    w.now += 60
    assert await w.look() is State.CONVERGED


@world
async def test_what_fails_holds_up_nothing_else_of_its_network(w: World) -> None:
    good = {chain: Counter(rules) for chain, rules in w.host.chains.items()}
    host = DhcpHost(ip_address("10.0.0.9"), mac="52:54:00:00:00:09")
    networks = {"a": replace(nat("a", 0), hosts=(host,)), "b": nat("b", 1)}
    w.reconciler.policy = Policy(networks=networks)
    w.host.fail[UpdateDhcp] = "No chain/target/match by that name."
    for _ in range(3):
        await w.look()
        w.host.remove_rules("a")
        await w.look(Source.FIREWALL)
        assert {chain: Counter(rules) for chain, rules in w.host.chains.items()} == good
        w.now += 10
    outcomes = {(record.object, record.outcome) for record in w.published.records}
    assert ("network/a", Outcome.FAILED) in outcomes


@world
async def test_a_source_that_cannot_be_read_is_a_reason_and_stops_only_itself(w: World) -> None:
    w.host.unreadable[Source.LIBVIRT] = "no answer"
    w.host.flush()
    assert await w.look() is State.DEGRADED
    assert "libvirt: no answer" in w.published.statuses[-1].reasons
    assert {type(action) for action in w.host.applied} == {RestoreRules}
    w.host.unreadable.clear()
    assert await w.look() is State.CONVERGED


@world
async def test_what_could_not_be_looked_at_is_no_ground_to_act(w: World) -> None:
    bridge = w.host.links.pop("vba")
    w.host.fail[RemakeBridge] = "busy"
    await w.look()
    w.host.fail.clear()
    w.now += 3600  # whatever there was to wait for
    w.host.unreadable[Source.LINKS] = "dump interrupted"
    w.host.links["vba"] = bridge  # which cannot be seen
    assert await w.look() is State.DEGRADED
    assert w.host.applied == []
    w.host.unreadable.clear()
    assert await w.look() is State.CONVERGED
    assert w.host.applied == []


@world
async def test_want_of_files_ends_no_pass_and_no_vnetd(w: World) -> None:
    w.host.unreadable[Source.DNSMASQ] = OSError(errno.EMFILE, "Too many open files")
    w.host.flush()
    assert await w.look() is State.DEGRADED
    assert [type(action) for action in w.host.applied] == [RestoreRules]
    w.host.unreadable.clear()
    w.now += 3600
    assert await w.look() is State.CONVERGED


@world
async def test_a_fight_is_told_once_and_slows_down(w: World) -> None:
    for _ in range(200):
        w.host.flush()
        await w.look(Source.FIREWALL, cause=CULPRIT)
        w.now += 0.1
    heals = [record for record in w.published.records if record.outcome is Outcome.REPAIRED]
    told = [record for record in w.published.records if record.outcome is Outcome.CONFLICT]
    assert len(heals) <= 2 * 10
    assert {record.object for record in told} == {"network/a", "network/b"}
    assert len(told) == 2
    assert "iptables[4711]" in told[0].actions[0]
    w.now += 60
    assert await w.look() is State.CONVERGED


@world
async def test_what_comes_and_goes_by_itself_is_told_once(w: World) -> None:
    w.published.drift.clear()
    for _ in range(100):
        right = {chain: list(rules) for chain, rules in w.host.chains.items()}
        w.host.flush()
        await w.look(Source.FIREWALL)
        w.host.chains = right
        await w.look(Source.FIREWALL)
        w.now += 0.01
    # Five repairs for each of two networks, and then a fight.
    assert len(w.published.drift) == 2 * (5 + 1)
    assert await w.look() is State.DEGRADED, "right at the moment, but not for long"
    w.now += 60
    assert await w.look() is State.CONVERGED


@world
async def test_observing_changes_nothing(w: World) -> None:
    w.reconciler.observe_only = True
    w.host.flush()
    assert await w.look() is State.DRIFTED
    assert w.host.applied == []
    assert w.published.drift


@world
async def test_a_pause_ends_by_itself(w: World) -> None:
    w.reconciler.pause(60)
    w.host.flush()
    assert await w.look() is State.PAUSED
    assert w.host.applied == []
    w.now += 61
    assert await w.look() is State.CONVERGED
    assert w.host.applied


@world
async def test_planning_changes_nothing(w: World) -> None:
    w.host.flush()
    assert {type(action) for action in await w.reconciler.plan()} == {RestoreRules}
    assert w.host.applied == []


@world
async def test_a_network_out_of_policy_goes_and_a_foreign_one_stays(w: World) -> None:
    w.reconciler.policy = Policy(networks={"a": nat("a", 0)})
    assert await w.look() is State.CONVERGED
    assert set(w.host.networks) == {"a"}
    w.reconciler.policy = Policy(networks={})
    assert await w.look() is State.CONVERGED
    assert set(w.host.networks) == {"a"}


def test_a_storm_of_pokes_is_one_pass() -> None:
    async def storm() -> None:
        trigger = Trigger(Clock(asyncio.get_running_loop().time, datetime.now))
        for number in range(1000):
            trigger.poke(Source.LINKS, reason=f"event {number % 3}")
        pokes = await trigger.wait(1)
        assert pokes is not None
        assert pokes.sources == {Source.LINKS}
        assert pokes.reasons == ["event 0", "event 1", "event 2"]
        assert await trigger.wait(0.01) is None

    asyncio.run(storm())


def test_a_writer_at_work_is_waited_for() -> None:
    async def write() -> float:
        loop = asyncio.get_running_loop()
        trigger = Trigger(Clock(loop.time, datetime.now))
        began = loop.time()

        async def writer() -> None:
            for _ in range(5):
                trigger.poke(Source.FIREWALL, reason="libvirt writes", writing=True)
                await asyncio.sleep(Trigger.QUIET / 3)

        writing = asyncio.ensure_future(writer())
        assert await trigger.wait(5) is not None
        assert writing.done(), "the pass began between two writes"
        return loop.time() - began

    assert asyncio.run(write()) < Trigger.LONGEST


def test_what_must_be_at_once_waits_for_no_writer() -> None:
    async def write() -> None:
        now = 0.0
        trigger = Trigger(Clock(lambda: now, datetime.now))
        trigger.poke(Source.FIREWALL, Source.LINKS, reason="libvirt writes", writing=True)
        waiting = asyncio.ensure_future(trigger.wait(0))
        await asyncio.sleep(0)
        trigger.poke(Source.FILTERS, reason="firewalld reloaded", cause=CULPRIT, at_once=True)
        at_once = await waiting
        assert at_once is not None
        assert (at_once.sources, at_once.causes) == ({Source.FILTERS}, {Source.FILTERS: CULPRIT})
        now = 1.0
        rest = await trigger.wait(0)
        assert rest is not None
        assert rest.sources == {Source.FIREWALL, Source.LINKS}
        assert await trigger.wait(0) is None

    asyncio.run(asyncio.wait_for(write(), 5))


def test_a_writer_that_says_it_is_through_is_not_waited_for() -> None:
    async def write() -> None:
        now = 0.0
        trigger = Trigger(Clock(lambda: now, datetime.now))
        trigger.poke(Source.FIREWALL, reason="libvirt writes", writing=True)
        trigger.poke(Source.LIBVIRT, reason="network stopped", writing=False)
        assert await trigger.wait(0) is not None

    asyncio.run(asyncio.wait_for(write(), 5))


@pytest.mark.parametrize("stop_first", [True, False])
def test_run_ends_when_stopped(*, stop_first: bool) -> None:
    async def run() -> None:
        w = World()
        running = asyncio.ensure_future(w.reconciler.run())
        if not stop_first:
            await w.reconciler.reconcile()
        w.reconciler.stop()
        await asyncio.wait_for(running, 5)

    asyncio.run(run())


def test_every_action_has_a_backend() -> None:
    kinds = (Libvirtd, Links, Routes, HostBridges, Firewall, Filters, Guard, Sysctls)
    taken = [action.__name__ for kind in kinds for action in kind.actions]
    # a set: of a class with slots the one without may still be there
    assert sorted(taken) == sorted({action.__name__ for action in Action.__subclasses__()})
