"""A chain is put right with as little as possible, and nothing foreign moves."""

from __future__ import annotations

import random

import pytest

from vnetd.core.rules.repair import Edit, Flaws, edits, flaws

EXPECTED = [f"rule {letter}" for letter in "abcdefgh"]


def applied(chain: list[str], changes: list[Edit]) -> list[str]:
    """As iptables does it: deletes the first match, inserts at the position."""
    chain = list(chain)
    for change in changes:
        if change.position:
            assert change.position <= len(chain) + 1, "iptables: index of insertion too big"
            chain.insert(change.position - 1, change.rule)
        else:
            chain.remove(change.rule)
    return chain


def test_right_in_order_among_foreign_rules_is_right() -> None:
    assert not flaws(["x", *EXPECTED[:3], "y", *EXPECTED[3:], "x"], EXPECTED)


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        (EXPECTED[1:], Flaws(missing=("rule a",))),
        ([*EXPECTED, "rule c"], Flaws(duplicate=("rule c",))),
        (["rule b", "rule a", *EXPECTED[2:]], Flaws(misplaced=("rule a",))),
        ([], Flaws(missing=tuple(EXPECTED))),
    ],
)
def test_flaws(observed: list[str], expected: Flaws) -> None:
    found = flaws(observed, EXPECTED)
    if expected.misplaced:
        assert len(found.misplaced) == 1  # either of the two swapped rules
    else:
        assert found == expected


def test_any_damage_is_repaired_and_foreign_rules_keep_their_order() -> None:
    chance = random.Random(4)
    for _ in range(2000):
        good = list(EXPECTED)
        for number in range(chance.randrange(4)):
            good.insert(chance.randrange(len(good) + 1), f"foreign {number}")
        broken = list(good)
        for _ in range(chance.randrange(1, 6)):
            match chance.randrange(4):
                case 0 if broken:
                    broken.pop(chance.randrange(len(broken)))
                case 1:
                    broken.insert(chance.randrange(len(broken) + 1), chance.choice(EXPECTED))
                case 2:
                    chance.shuffle(broken)
                case _:
                    broken.insert(chance.randrange(len(broken) + 1), "new foreign")
        for remembered in (good, []):
            result = applied(broken, edits(broken, EXPECTED, remembered))
            assert not flaws(result, EXPECTED)
            assert [r for r in result if r not in EXPECTED] == [
                r for r in broken if r not in EXPECTED
            ]


def test_a_lost_rule_returns_to_its_place_among_foreign_ones() -> None:
    good = ["x", "rule a", "y", "rule b", "z", "rule c"]
    expected = ["rule a", "rule b", "rule c"]
    for lost in expected:
        broken = [rule for rule in good if rule != lost]
        assert applied(broken, edits(broken, expected, good)) == good


def test_without_memory_rules_go_to_the_head_as_libvirt_puts_them() -> None:
    assert applied(["x"], edits(["x"], ["rule a", "rule b"])) == ["rule a", "rule b", "x"]


def test_a_rule_that_is_right_is_not_touched() -> None:
    changes = edits([*EXPECTED[:4], *EXPECTED[5:]], EXPECTED)
    assert changes == [Edit("rule e", position=5)]
