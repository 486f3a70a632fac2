"""Every form of network that there is, in every firewall, on both libvirts: whatever is done to its
rules is undone, exactly; with the network they go, and with it they come again.

The long form takes each rule out alone, and starts networks in every order, for half an hour.
Without it rules and orders are taken by lot, always the same ones, but of each form in each
firewall.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from pathlib import Path

import pytest

from tests.cases.record_rules import in_any_order, start
from tests.definitions import DEFINITIONS, definition
from tests.lab import rules as lab
from tests.lab.hypervisor import WORLDS, WORLDS_IN_SHORT, Hypervisor
from tests.lab.rules import Rule
from tests.lab.trespass import open_guest, trespassing
from tests.long import LONG

EVERY = LONG
NAMES = in_any_order()
NUMBERS = range(len(NAMES))
WITHOUT_RULES = {"bridge", "open", "passthrough", "private", "vepa"}
RULED = {name for name in NAMES if name not in WITHOUT_RULES}
SEVERAL = ("nat-dhcp", "route", "isolated-dhcp-v6", "nat-nat66-source")


@dataclass(frozen=True)
class Firewall:
    root: Path | None
    backend: str
    variant: str

    def box(self) -> Hypervisor:
        return Hypervisor(root=self.root, backend=self.backend, variant=self.variant)

    @property
    def is_nftables(self) -> bool:
        return self.backend == "nftables"

    @property
    def flush(self) -> str:
        return FLUSH_IPTABLES if self.variant == "legacy" else FLUSH_RULESET

    @property
    def rules(self) -> Callable[[Hypervisor], list[Rule]]:
        return lab.of_nftables if self.is_nftables else lab.of_iptables

    def saved(self, box: Hypervisor) -> list[str]:
        """As they stand; but libvirt's nftables backend has its networks in one order after it has
        started them, and in another after it has installed all rules again.
        """
        if not self.is_nftables:
            return box.rules().splitlines()
        chains: dict[tuple[str, str, str], list[Rule]] = defaultdict(list)
        for rule in lab.of_nftables(box):
            chains[rule.place].append(rule)
        return [
            f"{place} {rule.text}"
            for place, rules in sorted(chains.items())
            for rule in sorted(rules, key=lambda rule: -1 if rule.number is None else rule.number)
        ]

    def delete(self, box: Hypervisor, rules: Sequence[Rule]) -> None:
        (lab.delete_in_nftables if self.is_nftables else lab.delete_in_iptables)(box, rules)

    def copy(self, box: Hypervisor, rules: Sequence[Rule]) -> None:
        (lab.copy_in_nftables if self.is_nftables else lab.copy_in_iptables)(box, rules)

    def swap(self, box: Hypervisor, pairs: Sequence[tuple[Rule, Rule]]) -> None:
        (lab.swap_in_nftables if self.is_nftables else lab.swap_in_iptables)(box, pairs)


FIREWALLS = {name: Firewall(*world) for name, world in WORLDS.items()}
FLUSH_IPTABLES = (
    "iptables -F; iptables -t nat -F; iptables -t mangle -F; ip6tables -F; ip6tables -t nat -F"
)
FLUSH_RULESET = "nft flush ruleset"
JUMP = re.compile(r"-j LIBVIRT_|counter jump guest_")
# libvirt installs the rules of all networks again for one lost rule, and for some it takes turns.
SECONDS = 100.0


@pytest.fixture(params=FIREWALLS, scope="module")
def firewall(request: pytest.FixtureRequest) -> Firewall:
    return FIREWALLS[request.param]


@pytest.fixture(scope="module")
def box(firewall: Firewall) -> Iterator[Hypervisor]:
    with firewall.box() as hypervisor:
        start_all(hypervisor)
        hypervisor.start_vnetd("")
        with nobody_gets_through(hypervisor):
            yield hypervisor


@contextmanager
def nobody_gets_through(box: Hypervisor) -> Iterator[None]:
    """Whatever is done to the rules."""
    guests, inwards = {}, []
    for name in ("nat-nat66", "isolated-dhcp-v6"):
        n = NAMES.index(name)
        guests[name] = open_guest(box, f"vbm{n}", f"10.60.{n}", f"fd60:{n}::")
        inwards += [f"10.60.{n}.50", f"fd60:{n}::50"]
    with trespassing(box, inwards, [guests["isolated-dhcp-v6"]]):
        yield


def start_all(box: Hypervisor) -> None:
    for number, name in enumerate(NAMES):
        box.path(f"/run/box/{name}.xml").write_text(definition(name, number))
    box.run("virsh", "; ".join(f"net-create /run/box/{name}.xml" for name in NAMES))


@pytest.fixture
def lot(request: pytest.FixtureRequest) -> random.Random:
    """Other rules in each test and each firewall."""
    return random.Random(request.node.name)


def heal(box: Hypervisor, firewall: Firewall, damage: Callable[[], object]) -> set[str]:
    """Gives the objects that have a record of it."""
    good, known = firewall.saved(box), len(box.history())
    damage()
    box.wait_until(
        lambda: firewall.saved(box) == good, seconds=SECONDS, what="libvirt's rules back"
    )
    box.wait_until(lambda: box.state() == "converged", seconds=SECONDS, what="converged")
    assert firewall.saved(box) == good
    return {record["object"] for record in box.history()[known:]}


def by_number(rules: Sequence[Rule]) -> dict[int | None, list[Rule]]:
    found: dict[int | None, list[Rule]] = defaultdict(list)
    for rule in rules:
        found[rule.number].append(rule)
    return found


def but_for_jumps(rules: Sequence[Rule]) -> list[str]:
    """What is some network's: also where the rule of one that is gone names no bridge any more."""
    return [f"{rule.place} {rule.text}" for rule in rules if not JUMP.match(rule.text)]


def destroy(box: Hypervisor, firewall: Firewall, name: str) -> None:
    """Of it nothing is left, of the others all."""
    number = NAMES.index(name)
    others = [rule for rule in firewall.rules(box) if rule.number != number]
    box.run("virsh", "net-destroy", name)
    assert but_for_jumps(firewall.rules(box)) == but_for_jumps(others), name


def destroy_all(box: Hypervisor, firewall: Firewall, names: Sequence[str]) -> None:
    if EVERY:
        for name in names:
            destroy(box, firewall, name)
    else:
        box.run("virsh", "; ".join(f"net-destroy {name}" for name in names))
    assert but_for_jumps(firewall.rules(box)) == []
    guard = ("nft", "list", "table", "inet", "vnetd")
    box.wait_until(lambda: not box.succeeds(*guard), what="the guard gone with the last of them")
    box.wait_for_state("converged")


def networks(names: set[str]) -> set[str]:
    return {f"network/{name}" for name in names}


def test_each_form_has_the_rules_that_it_should(box: Hypervisor, firewall: Firewall) -> None:
    assert {NAMES[n] for n in by_number(firewall.rules(box)) if n is not None} == RULED
    kept = {n["Name"]: n["State"] for n in box.vnetctl_json("status")["Networks"]}
    assert kept == dict.fromkeys(DEFINITIONS, "converged")


@pytest.mark.timeout(2 * SECONDS + 60)
@pytest.mark.parametrize("script", [FLUSH_IPTABLES, FLUSH_RULESET])
def test_flushed(box: Hypervisor, firewall: Firewall, script: str) -> None:
    if script.startswith("nft") == (firewall.is_nftables or firewall.variant == "nft"):
        recorded = heal(box, firewall, lambda: box.sh(script))
        assert recorded >= networks(RULED)


@pytest.mark.timeout(2 * SECONDS + 60)
def test_a_rule_of_each_is_deleted(box: Hypervisor, firewall: Firewall, lot: random.Random) -> None:
    chosen = [lot.choice(rules) for rules in by_number(firewall.rules(box)).values()]
    assert heal(box, firewall, lambda: firewall.delete(box, chosen)) >= networks(RULED)


@pytest.mark.timeout(2 * SECONDS + 60)
def test_a_rule_of_each_is_copied(box: Hypervisor, firewall: Firewall, lot: random.Random) -> None:
    found = firewall.rules(box)
    chosen = found if EVERY else [lot.choice(rules) for rules in by_number(found).values()]
    print(f"{len(chosen)} of {len(found)} rules")
    assert heal(box, firewall, lambda: firewall.copy(box, chosen))


@pytest.mark.timeout(2 * SECONDS + 60)
@pytest.mark.parametrize("offset", [0, 1] if EVERY else [0])
def test_rules_of_each_are_swapped(
    box: Hypervisor, firewall: Firewall, lot: random.Random, offset: int
) -> None:
    pairs = lab.neighbours(firewall.rules(box)[offset:])
    chosen: dict[int | None, list[tuple[Rule, Rule]]] = defaultdict(list)
    for pair in pairs:
        chosen[pair[0].number].append(pair)
    # nftables has one rule of an isolated network in a chain, and one order of one rule
    movable = {name for name in RULED if not (firewall.is_nftables and name[:8] == "isolated")}
    assert {NAMES[number] for number in chosen if number is not None} == movable
    some = pairs if EVERY else [lot.choice(of_one) for of_one in chosen.values()]
    print(f"{len(some)} of {len(pairs)} pairs")
    assert heal(box, firewall, lambda: firewall.swap(box, some)) >= networks(movable)


@pytest.mark.timeout(3600)
def test_each_rule_is_deleted_alone(
    box: Hypervisor, firewall: Firewall, lot: random.Random
) -> None:
    if firewall.is_nftables:
        pytest.skip("libvirt would install all networks' rules for each: see the test below")
    good, rules = firewall.saved(box), firewall.rules(box)
    chosen = rules if EVERY else lot.sample(rules, 4)
    print(f"{len(chosen)} of {len(rules)} rules")
    for rule in chosen:
        firewall.delete(box, [rule])
        box.wait_until(lambda: firewall.saved(box) == good, what=f"{rule} back")
    box.wait_for_state("converged")


@pytest.mark.timeout(2 * SECONDS + 60)
def test_nothing_is_left_and_all_comes_again(box: Hypervisor, firewall: Firewall) -> None:
    good = firewall.saved(box)
    if EVERY:
        for name in NAMES:
            destroy(box, firewall, name)
            start(box, name, NAMES.index(name))
            assert sorted(firewall.saved(box)) == sorted(good), name
    destroy_all(box, firewall, NAMES)
    start_all(box)
    assert firewall.saved(box) == good
    box.wait_until(lambda: box.state() == "converged", seconds=SECONDS, what="converged")
    assert firewall.saved(box) == good


@pytest.fixture(scope="module")
def bare_box(firewall: Firewall) -> Iterator[Hypervisor]:
    with firewall.box() as hypervisor:
        hypervisor.start_vnetd("")
        yield hypervisor


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("firewall", WORLDS if EVERY else WORLDS_IN_SHORT, indirect=True)
def test_several_started_in_any_order(
    bare_box: Hypervisor, firewall: Firewall, lot: random.Random
) -> None:
    box, orders = bare_box, list(permutations(SEVERAL))
    for order in orders if EVERY else lot.sample(orders, 1):
        start_some(box, order)
        good, rules = firewall.saved(box), by_number(firewall.rules(box))
        assert {NAMES[number] for number in rules if number is not None} == set(SEVERAL)
        some = [lot.choice(of_one) for of_one in rules.values()]
        heal(box, firewall, partial(firewall.delete, box, some))
        heal(box, firewall, partial(box.sh, firewall.flush))
        destroy_all(box, firewall, lot.sample(order, len(order)))
        start_some(box, order)
        assert firewall.saved(box) == good
        destroy_all(box, firewall, order)


def start_some(box: Hypervisor, names: Sequence[str]) -> None:
    for name in names:
        start(box, name, NAMES.index(name))
    box.wait_until(lambda: box.state() == "converged", seconds=SECONDS, what="converged")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("firewall", ["libvirt 11.3 nftables"], indirect=True)
@pytest.mark.parametrize("name", sorted(RULED) if EVERY else ["nat-v6"])
def test_each_rule_of_a_form_alone(bare_box: Hypervisor, firewall: Firewall, name: str) -> None:
    box = bare_box
    start(box, name, 1)
    box.wait_for_state("converged")
    good = firewall.saved(box)
    places = range(len(good)) if EVERY else (2, 10)
    print(f"{len(places)} of {len(good)} rules")
    for place in places:
        rule = firewall.rules(box)[place]
        firewall.delete(box, [rule])
        box.wait_until(lambda: firewall.saved(box) == good, what=f"{rule} back")
    box.wait_for_state("converged")
    box.run("virsh", "net-destroy", name)
    assert but_for_jumps(firewall.rules(box)) == []
    start(box, name, 1)
    assert firewall.saved(box) == good
    box.run("virsh", "net-destroy", name)
    box.wait_for_state("converged")
    assert but_for_jumps(firewall.rules(box)) == []
