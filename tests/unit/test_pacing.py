from __future__ import annotations

from itertools import pairwise

from vnetd.core.pacing import Failure, Fight, Lives, backoff


def test_backoff_grows_to_a_minute() -> None:
    assert [backoff(attempt) for attempt in (1, 2, 3, 7, 50)] == [1, 2, 4, 60, 60]


def test_failures_wait_longer_each_time() -> None:
    failure = Failure("")
    failure.again("no", 100)
    failure.again("no", 101)
    assert (failure.attempts, failure.not_before) == (2, 103)


def test_who_comes_to_an_end_too_often_waits_before_the_next_start() -> None:
    lives, now, waits = Lives(began=-1000.0), 0.0, []
    for _ in range(11):
        lives = lives.next(now)
        waits.append(lives.began - now)
        now = lives.began + 1
    assert waits == [0, 0, 0, 0, 0, 1, 2, 4, 8, 10, 10]
    assert lives.next(lives.began + 60).began == lives.began + 60, "a long life is a new beginning"


def healed_at(times: list[float], drift: str = "same") -> list[float]:
    """The times at which drift was healed at once, for drift noticed at all of them."""
    fight, healed = Fight(), []
    for now in times:
        if not fight.must_wait(drift, now):
            fight.healed(now + 0.01)
            healed.append(now)
    return healed


def test_the_same_drift_in_a_loop_is_healed_ever_more_slowly() -> None:
    times = [tick / 10 for tick in range(200)]  # 20 s, every 100 ms
    healed = healed_at(times)
    assert len([now for now in healed if now < 1]) == 5
    assert len(healed) <= 10
    gaps = [later - sooner for sooner, later in pairwise(healed[5:])]
    assert gaps == sorted(gaps)


def test_drift_now_and_then_is_always_healed() -> None:
    times = [float(tick) for tick in range(0, 1000, 10)]
    assert healed_at(times) == times


def test_other_drift_starts_anew() -> None:
    fight = Fight()
    for now in range(5):
        assert not fight.must_wait("one", now)
        fight.healed(now)
    assert fight.must_wait("one", 5)
    assert not fight.must_wait("two", 5)


def test_a_fight_that_ended_is_forgotten() -> None:
    fight = Fight()
    for now in range(5):
        fight.must_wait("one", now)
        fight.healed(now)
    assert fight.must_wait("one", 5)
    assert not fight.must_wait("one", 100)
    assert not fight.told
