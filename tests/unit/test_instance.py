from __future__ import annotations

from pathlib import Path

import pytest

from vnetd.errors import VnetdError
from vnetd.instance import Instance


def test_the_second_is_refused(tmp_path: Path) -> None:
    with Instance(tmp_path), pytest.raises(VnetdError, match="already running"):
        Instance(tmp_path)


def test_it_waits_after_several_short_lives_until_one_ends_well(tmp_path: Path) -> None:
    delays = []
    for _ in range(7):
        with Instance(tmp_path) as instance:
            delays.append(instance.delay())
    assert delays[:5] == [0] * 5
    assert delays[-1] > 0
    with Instance(tmp_path) as instance:
        instance.ended_well()
    with Instance(tmp_path) as instance:
        assert instance.delay() == 0


def test_a_lock_with_nonsense_in_it_is_a_lock(tmp_path: Path) -> None:
    (tmp_path / "vnetd.lock").write_text("x \0")
    with Instance(tmp_path) as instance:
        assert instance.delay() == 0
