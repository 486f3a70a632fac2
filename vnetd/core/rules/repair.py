"""Compare one chain with what it must hold, and say how to put it right.

Foreign rules in a chain of libvirt's (hook scripts put them there) and in the built-in chains keep
their places. A chain is right if libvirt's rules stand in it once each and in libvirt's order.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Flaws:
    missing: tuple[str, ...] = ()
    duplicate: tuple[str, ...] = ()
    misplaced: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.duplicate or self.misplaced)

    def __str__(self) -> str:
        parts = []
        for what, rules in (
            ("missing", self.missing),
            ("duplicate", self.duplicate),
            ("out of order", self.misplaced),
        ):
            if len(rules) == 1:
                parts.append(f"{what} {rules[0]}")
            elif rules:
                parts.append(f"{len(rules)} rules {what}")
        return ", ".join(parts)

    @property
    def rules(self) -> frozenset[str]:
        return frozenset((*self.missing, *self.duplicate, *self.misplaced))

    def by_rule(self) -> dict[str, str]:
        """Rule → the name of what is wrong with it."""
        kinds = ("missing", "duplicate", "misplaced")
        return {rule: kind for kind in kinds for rule in getattr(self, kind)}


def flaws_of(rules: Iterable[str], wrong: Mapping[str, str]) -> Flaws:
    """As far as these rules are concerned. wrong: a chain's flaws by rule."""
    found: dict[str, list[str]] = {}
    for rule in rules:
        if (kind := wrong.get(rule)) is not None:
            found.setdefault(kind, []).append(rule)
    return Flaws(**{kind: tuple(dict.fromkeys(of_kind)) for kind, of_kind in found.items()})


@dataclass(frozen=True, slots=True)
class Edit:
    """position: where to insert (1 = first), or 0 to delete the first rule of this text."""

    rule: str
    position: int = 0


def flaws(observed: Sequence[str], expected: Sequence[str]) -> Flaws:
    return _flaws(tuple(observed), tuple(expected))


# Whoever decides about a broken chain asks again.
@lru_cache(maxsize=64)
def _flaws(observed: tuple[str, ...], expected: tuple[str, ...]) -> Flaws:
    if observed == expected:  # most chains, most of the time
        return Flaws()
    rank = {rule: place for place, rule in enumerate(expected)}
    ours = [rule for rule in observed if rule in rank]
    copies = Counter(ours)
    in_order = set(_longest_rising(ours, rank))
    return Flaws(
        missing=tuple(rule for rule in expected if rule not in copies),
        duplicate=tuple(rule for rule in expected if copies[rule] > 1),
        misplaced=tuple(r for r in expected if copies[r] == 1 and r not in in_order),
    )


def edits(
    observed: Sequence[str], expected: Sequence[str], remembered: Sequence[str] = ()
) -> list[Edit]:
    """The changes that put a chain right: first all deletions, then insertions from the top down.

    Deletions name the rule, never a number: should somebody else write in between, nothing foreign
    can be hit. remembered is the chain as it was when it was last right: a lost rule goes back to
    its old place among foreign ones.
    """
    wrong = flaws(observed, expected)
    if not wrong:
        return []
    guides = (remembered, expected) if _holds(remembered, expected) else (expected,)
    for guide in guides:
        changes, result = _edits(observed, expected, wrong.rules, guide)
        if not flaws(result, expected):
            return changes
    raise AssertionError("a chain guided by its own expectation must come out right")


def _edits(
    observed: Sequence[str], expected: Sequence[str], wrong: frozenset[str], guide: Sequence[str]
) -> tuple[list[Edit], list[str]]:
    """The changes, and what comes of them; of use only where that is right."""
    deletions = [Edit(rule) for rule in observed if rule in wrong]
    chain = [rule for rule in observed if rule not in wrong]
    if chain:  # else flushed: nothing foreign to stand beside
        result = _filled(chain, [rule for rule in expected if rule in wrong], guide)
    else:
        result = list(expected)
    # Right is in order: of those that go in from the top down none pushes another.
    insertions = [Edit(rule, at) for at, rule in enumerate(result, 1) if rule in wrong]
    return [*deletions, *insertions], result


def _filled(chain: Sequence[str], lost: Iterable[str], guide: Sequence[str]) -> list[str]:
    """The chain with each lost rule behind the nearest rule that the guide has before it, else
    before the nearest that comes after it.
    """
    rank = {rule: place for place, rule in reversed(list(enumerate(guide)))}
    # A list of rules linked by their numbers; 0 is in front of the first.
    rules = ["", *chain]
    following = [*range(1, len(rules)), 0]
    first = {rule: number for number, rule in reversed(list(enumerate(rules[1:], 1)))}
    last = {rule: number for number, rule in enumerate(rules[1:], 1)}
    for rule in lost:
        at = rank[rule]
        before = next((last[r] for r in _back(guide, at) if r in last), None)
        if before is None:
            after = next(
                (first[guide[i]] for i in range(at + 1, len(guide)) if guide[i] in first), 0
            )
            before = following.index(after) if after else 0
        first[rule] = last[rule] = len(rules)
        rules.append(rule)
        following.append(following[before])
        following[before] = last[rule]
    number, result = following[0], []
    while number:
        result.append(rules[number])
        number = following[number]
    return result


def _back(guide: Sequence[str], at: int) -> Iterator[str]:
    return (guide[place] for place in range(at - 1, -1, -1))


def _holds(chain: Sequence[str], expected: Sequence[str]) -> bool:
    return bool(chain) and not flaws(chain, expected)


def _longest_rising(ours: Sequence[str], rank: dict[str, int]) -> list[str]:
    """The longest run of rules that already stand in order (patience sorting)."""
    tails: list[int] = []
    tail_at: list[int] = []
    back: list[int] = []
    for at, rule in enumerate(ours):
        column = bisect_left(tails, rank[rule])
        back.append(tail_at[column - 1] if column else -1)
        if column == len(tails):
            tails.append(rank[rule])
            tail_at.append(at)
        else:
            tails[column] = rank[rule]
            tail_at[column] = at
    run: list[str] = []
    at = tail_at[-1] if tail_at else -1
    while at >= 0:
        run.append(ours[at])
        at = back[at]
    return run
