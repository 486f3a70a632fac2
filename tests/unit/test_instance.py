from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from vnetd import __main__, journal
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


def test_systemd_does_not_try_in_a_tight_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(sys, "argv", ["vnetd"])
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(journal, "set_up", lambda _: None)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with Instance(tmp_path):
        assert (__main__.main(), waits) == (1, [])
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
        assert __main__.main() == 1
    assert [seconds >= 1 for seconds in waits] == [True]
