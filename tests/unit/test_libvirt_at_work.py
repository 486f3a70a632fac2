"""Passes while libvirt is at work on a network, and what they look at when it is through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from tests.fakes import nat
from tests.passes import CULPRIT, World, world
from vnetd.core.actions import Action
from vnetd.core.keep.rules import RestoreRules
from vnetd.core.model import IfName, Link, Mode, Observed, Source, State, Tap
from vnetd.core.model import World as Firewalls
from vnetd.core.record import Outcome
from vnetd.core.rules import iptables
from vnetd.errors import Outdated


@world
async def test_nothing_of_a_network_that_is_leaving_comes_back(w: World) -> None:
    w.host.leaving.add("a")
    w.host.flush()
    del w.host.links["vba"]
    await w.look()
    assert {type(action) for action in w.host.applied} == {RestoreRules}
    restored = [rule for rules in w.host.chains.values() for rule in rules]
    assert any("vbb" in rule for rule in restored)
    assert not any("vba" in rule for rule in restored)
    w.host.leaving.clear()
    assert await w.look() is State.CONVERGED
    assert any("vba" in rule for rules in w.host.chains.values() for rule in rules)


@world
async def test_a_network_that_libvirt_begins_to_stop_during_a_pass_is_let_go(w: World) -> None:
    firewall = next(b for b in w.host.backends if b.source is Source.FIREWALL)
    apply = firewall.apply

    async def apply_slowly(action: Action) -> None:
        w.host.leaving.add("a")
        await apply(action)

    firewall.apply = apply_slowly  # type: ignore[method-assign]
    w.host.flush()
    w.host.links["vba"] = replace(w.host.links["vba"], up=False)
    await w.look()
    assert not w.host.links["vba"].up
    w.host.leaving.clear()
    assert await w.look() is State.CONVERGED


@world
async def test_what_somebody_has_changed_since_the_look_is_looked_at_again(w: World) -> None:
    firewall = next(b for b in w.host.backends if b.source is Source.FIREWALL)
    apply = firewall.apply
    outdated = [Outdated("")] * 3

    async def apply_in_vain(action: Action) -> None:
        if outdated:
            raise outdated.pop()
        await apply(action)

    firewall.apply = apply_in_vain  # type: ignore[method-assign]
    w.host.flush()
    assert await w.look(cause=CULPRIT) is State.CONVERGED
    assert {record.outcome for record in w.published.records} == {Outcome.REPAIRED}
    assert len(w.host.applied) == 1


@world
async def test_rules_that_were_written_since_the_look_are_looked_at_with_what_hangs_on_them(
    w: World,
) -> None:
    links = next(b for b in w.host.backends if b.source is Source.LINKS)
    apply = links.apply
    flushes = [w.host.flush]

    async def apply_in_vain(action: Action) -> None:
        if flushes:
            flushes.pop()()
            raise Outdated("")
        await apply(action)

    links.apply = apply_in_vain  # type: ignore[method-assign]
    w.host.links["vba"] = replace(w.host.links["vba"], up=False)
    await w.look(Source.LINKS)
    assert [type(action) for action in w.host.applied].count(RestoreRules) == 1
    assert w.host.links["vba"].up


async def with_guest(w: World) -> None:
    """A tap on network a, whose bridge libvirt would know again."""
    policy = replace(nat("a", 0), mac="52:54:00:00:00:aa", stp=False, mode=Mode.OPEN)
    w.reconciler.policy = replace(
        w.reconciler.policy, networks={**w.reconciler.policy.networks, "a": policy}
    )
    w.host.taps = (Tap("web", IfName("vnet0"), "a"),)
    w.host.links["vnet0"] = Link(9, IfName("vnet0"), "tun", "", 1500, up=True)
    assert await w.look() is State.CONVERGED
    assert w.host.links["vnet0"].master == "vba"
    w.host.applied.clear()
    w.published.records.clear()


def unplug(w: World) -> None:
    w.host.links["vnet0"] = replace(w.host.links["vnet0"], master=None, port=None)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110  the fakes tell nobody
            await asyncio.sleep(0.001)


@world
async def test_guests_are_on_the_bridge_before_libvirt_is_through_with_the_start(w: World) -> None:
    await with_guest(w)
    w.host.stop("a")
    unplug(w)
    w.host.starts.clear()
    starting = asyncio.ensure_future(w.look(cause=CULPRIT))
    await until(lambda: "vba" in w.host.links)
    w.reconciler.trigger.poke(Source.LINKS, reason="links changed")
    await until(lambda: w.host.links["vnet0"].master == "vba")
    assert w.host.networks["a"].live is None
    w.host.starts.set()
    assert await starting is State.CONVERGED
    (record,) = w.published.records
    assert record.actions == ("plug tap vnet0 into bridge vba", "start network a")
    assert record.cause == CULPRIT


@world
async def test_what_was_done_while_libvirt_was_at_work_is_not_done_again(w: World) -> None:
    await with_guest(w)
    w.host.stop("a")
    w.host.links["vbb"] = replace(w.host.links["vbb"], up=False)
    w.host.starts.clear()
    starting = asyncio.ensure_future(w.look())
    await until(lambda: "vba" in w.host.links)
    w.reconciler.trigger.poke(Source.LINKS, reason="links changed")
    await until(lambda: w.host.links["vbb"].up)
    w.host.starts.set()
    assert await starting is State.CONVERGED
    assert list(map(str, w.host.applied)).count("set bridge vbb up") == 1


@world
async def test_a_network_that_comes_back_goes_on_until_its_bridge_is_deleted(w: World) -> None:
    await with_guest(w)
    w.host.answers.clear()
    w.host.leaving.add("a")
    w.host.links["vba"] = replace(w.host.links["vba"], up=False)
    reading = asyncio.ensure_future(w.look())
    w.reconciler.trigger.poke(Source.LINKS, reason="links changed")
    await until(lambda: w.host.links["vba"].up)
    w.host.stop("a")
    unplug(w)
    w.host.leaving.clear()
    w.host.answers.set()
    assert await reading is State.CONVERGED
    (record,) = w.published.records
    assert record.actions == (
        "set bridge vba up",
        "start network a",
        "plug tap vnet0 into bridge vba",
    )


@world
async def test_an_answer_that_comes_during_a_look_at_links_is_heeded(w: World) -> None:
    await with_guest(w)
    (links,) = [b for b in w.host.backends if b.source is Source.LINKS]
    looking = links.observe

    async def observe(observed: Observed) -> Observed:
        seen = await looking(observed)
        w.host.leaving.clear()
        w.host.answers.set()
        for _ in range(5):
            await asyncio.sleep(0)
        return seen

    w.host.answers.clear()
    reading = asyncio.ensure_future(w.look(Source.LIBVIRT))
    w.host.stop("a")
    w.host.leaving.add("a")
    links.observe = observe  # type: ignore[method-assign]
    w.reconciler.trigger.poke(Source.LINKS, reason="links changed")
    assert await reading is State.CONVERGED
    assert not any("make bridge" in str(action) for action in w.host.applied)


@world
async def test_links_are_kept_while_libvirt_is_busy_with_another_network(w: World) -> None:
    await with_guest(w)
    w.host.answers.clear()
    reading = asyncio.ensure_future(w.look(Source.LIBVIRT))
    unplug(w)
    w.reconciler.trigger.poke(Source.LINKS, reason="links changed")
    await until(lambda: w.host.links["vnet0"].master == "vba")
    w.host.answers.set()
    assert await reading is State.CONVERGED
    assert [record.outcome for record in w.published.records] == [Outcome.REPAIRED]


@world
async def test_asking_for_a_plan_changes_nothing_while_libvirt_is_busy(w: World) -> None:
    await with_guest(w)
    w.host.answers.clear()
    planning = asyncio.ensure_future(w.reconciler.plan())
    unplug(w)
    w.reconciler.trigger.poke(Source.LINKS, reason="links changed")
    await asyncio.sleep(0.1)
    assert w.host.applied == []
    w.host.answers.set()
    assert [str(action) for action in await planning] == ["plug tap vnet0 into bridge vba"]


@world
async def test_with_libvirt_vnetd_looks_at_rules_of_whose_changes_nobody_tells(w: World) -> None:
    (firewall,) = [b for b in w.host.backends if b.source is Source.FIREWALL]
    before = firewall.looks
    await w.look(Source.LIBVIRT)
    assert firewall.looks == before
    w.host.world = Firewalls.IPTABLES_LEGACY
    await w.look(Source.FIREWALL)
    before = firewall.looks
    await w.look(Source.LIBVIRT)
    assert firewall.looks == before + 1


@world
async def test_with_libvirt_vnetd_looks_at_rules_that_it_may_have_written_since(w: World) -> None:
    (firewall,) = [b for b in w.host.backends if b.source is Source.FIREWALL]
    w.host.settled = False
    await w.look(Source.FIREWALL)
    before = firewall.looks
    w.host.unreadable[Source.LIBVIRT] = "it starts"
    await w.look(Source.LIBVIRT)
    assert firewall.looks == before
    w.host.unreadable.clear()
    w.host.settled = True
    await w.look(Source.LIBVIRT)
    await w.look(Source.LIBVIRT)
    assert firewall.looks == before + 1


@world
async def test_rules_are_not_judged_by_what_stood_before_a_network_started(w: World) -> None:
    w.host.stop("a")
    w.reconciler.pause(60)
    await w.look()
    w.now += 61
    w.host.start("a")
    assert await w.look(Source.LIBVIRT, Source.LINKS) is State.CONVERGED
    assert w.host.applied == []


@world
async def test_its_dnsmasq_is_looked_for_when_a_network_has_started(w: World) -> None:
    (dnsmasq,) = [b for b in w.host.backends if b.source is Source.DNSMASQ]
    w.host.stop("a")
    w.reconciler.pause(60)
    await w.look()
    w.host.start("a")
    before = dnsmasq.looks
    await w.look(Source.LIBVIRT)
    await w.look(Source.LIBVIRT)
    assert dnsmasq.looks == before + 1


# -- libvirt rewrites the rules of all its networks, one network after the other


class Rewriting:
    """Before each look at the rules behind a repair, libvirt has taken network b's out."""

    def __init__(self, w: World) -> None:
        self._w = w
        (self._firewall,) = [b for b in w.host.backends if b.source is Source.FIREWALL]
        self._looking = self._firewall.observe
        self._firewall.observe = self._observe  # type: ignore[method-assign]

    async def _observe(self, observed: Observed) -> Observed:
        if self._w.host.applied or self._w.host.refused:
            self._w.host.remove_rules("b")
            self.write()
        return await self._looking(observed)

    def write(self) -> None:
        self._w.now += 0.01
        self._w.reconciler.trigger.poke(Source.FIREWALL, reason="libvirt writes", writing=True)

    def end(self) -> None:
        self._firewall.observe = self._looking  # type: ignore[method-assign]
        w = self._w
        live = w.host.networks["b"].live
        assert live is not None
        w.host.remove_rules("b")
        for chain, rules in iptables.network_rules(live).items():
            w.host.chains[chain][:0] = rules


@world
async def test_rules_that_libvirt_takes_out_again_are_no_failure(w: World) -> None:
    libvirt = Rewriting(w)
    w.host.flush()
    assert await w.look(cause=CULPRIT) is State.DRIFTED
    assert [type(action) for action in w.host.applied] == [RestoreRules]
    assert [record.object for record in w.published.records] == ["network/a"]
    w.now += 20
    libvirt.end()
    assert await w.look() is State.CONVERGED
    assert len(w.host.applied) == 1
    (_, record) = w.published.records
    assert (record.object, record.outcome) == ("network/b", Outcome.REPAIRED)
    assert (record.cause, record.ms // 1000) == (CULPRIT, 20)


@world
async def test_a_repair_that_libvirt_came_in_between_of_is_no_failure(w: World) -> None:
    libvirt = Rewriting(w)
    w.host.fail[RestoreRules] = "Index of insertion too big."
    w.host.flush()
    assert await w.look() is State.DRIFTED
    assert len(w.host.refused) == 1
    w.host.fail.clear()
    libvirt.end()
    w.host.applied.clear()
    assert await w.look() is State.CONVERGED
    assert {record.outcome for record in w.published.records} == {Outcome.REPAIRED}


@world
async def test_nor_is_one_that_libvirt_made_in_vnetds_place(w: World) -> None:
    libvirt = Rewriting(w)
    w.host.fail[RestoreRules] = "Index of insertion too big."
    w.host.remove_rules("b")
    assert await w.look() is State.DRIFTED
    libvirt.end()
    assert await w.look() is State.CONVERGED
    assert w.published.records == []


@world
async def test_rules_that_somebody_takes_out_for_minutes_fail(w: World) -> None:
    Rewriting(w)
    w.host.flush()
    for _ in range(5):
        await w.look()
        w.now += 30
    (record,) = [x for x in w.published.records if x.outcome is Outcome.FAILED]
    assert record.ms // 1000 == 120


@world
async def test_without_libvirt_at_work_a_repair_that_does_not_hold_is_a_failure(w: World) -> None:
    libvirt = Rewriting(w)
    libvirt.write = lambda: None  # type: ignore[method-assign]
    w.host.flush()
    assert await w.look() is State.DEGRADED
    assert [r.object for r in w.published.records if r.outcome is Outcome.FAILED] == ["network/b"]
