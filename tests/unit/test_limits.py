"""What one user may cost: of calls, of what they ask for, and of others' calls."""

from __future__ import annotations

from vnetd.api import limits
from vnetd.api.limits import Account, Limits


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def known(clock: Clock, users: dict[str, int]) -> Limits:
    found = Limits(clock)
    for sender, uid in users.items():
        found.learn(sender, uid)
    return found


def calls(found: Limits, sender: str, most: int = 10_000) -> int:
    """How many are taken, each of which is over before the next."""
    for number in range(most):
        account = found.admit(sender)
        if account is None:
            return number
        found.done(account)
    return most


def test_a_burst_is_taken_and_then_a_rate() -> None:
    clock = Clock()
    found = known(clock, {":1.1": 1000})
    assert calls(found, ":1.1") == limits.BURST
    clock.now = 1.0
    assert calls(found, ":1.1") == limits.RATE


def test_connections_of_one_user_share_and_others_lose_nothing() -> None:
    found = known(Clock(), {":1.1": 1000, ":1.2": 1000, ":1.3": 1001})
    assert calls(found, ":1.1") == limits.BURST
    assert calls(found, ":1.2") == 0
    assert calls(found, ":1.3") == limits.BURST


def test_what_costs_more_uses_up_more() -> None:
    found = known(Clock(), {":1.1": 1000})
    account = found.admit(":1.1")
    assert account is not None
    account.charge(limits.BURST)
    assert found.admit(":1.1") is None


def test_calls_that_are_not_over_are_limited_too() -> None:
    found = known(Clock(), {":1.1": 0})
    taken = [account for _ in range(100) if (account := found.admit(":1.1"))]
    assert len(taken) == limits.PENDING_CALLS
    found.done(taken[0])
    assert found.admit(":1.1") is not None


def test_all_together_are_limited_too() -> None:
    users = {f":1.{number}": 1000 + number for number in range(20)}
    found = known(Clock(), users)
    taken = [account for sender in users for _ in range(60) if (account := found.admit(sender))]
    assert len(taken) == limits.PENDING_CALLS_OF_ALL
    found.learn(":1.root", 0)
    assert found.admit(":1.root") is not None


def test_a_crowd_of_strangers_keeps_out_nobody() -> None:
    found = known(Clock(), {":1.1": 1000})
    strangers = [f":2.{number}" for number in range(250)]
    waiting = sum(bool(found.admit(sender)) for sender in strangers for _ in range(20))
    assert waiting < limits.PENDING_CALLS_OF_ALL + len(strangers)
    assert calls(found, ":1.1") == limits.BURST
    newcomer = found.admit(":3.1")
    assert newcomer is not None
    found.learn(":3.1", 0)
    assert found.admit(":3.1") is not None


def test_a_stranger_has_a_few_calls_until_the_bus_has_told_who_it_is() -> None:
    found = Limits(Clock())
    accounts: list[Account] = []
    while account := found.admit(":1.1"):
        accounts.append(account)
    assert 0 < len(accounts) < 20
    found.learn(":1.1", 1000)
    assert calls(found, ":1.1") == limits.BURST
    for account in accounts:
        found.done(account)


def test_connections_that_come_and_go_do_not_add_up() -> None:
    found = Limits(Clock())
    for number in range(5000):
        sender = f":1.{number}"
        found.admit(sender)
        found.learn(sender, 1000 + number)
        found.admit(sender)
    assert len(found._users) <= 1024
    assert len(found._accounts) <= 1024
