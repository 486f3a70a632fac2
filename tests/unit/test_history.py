"""The history over crashes, upgrades, damage and disks that take no more."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vnetd.backends.history import History
from vnetd.core.model import Cause
from vnetd.core.policy import Retention
from vnetd.core.record import Outcome, Record, to_json

RECORD = Record(
    time="2026-11-24T12:00:00.000Z",
    object="network/lab",
    drift=("is not active",),
    cause=Cause("virsh", 7, ("bash[6]",)),
    actions=("start network lab",),
    ms=12,
    outcome=Outcome.REPAIRED,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.sqlite"


def records(count: int) -> list[Record]:
    return [replace(RECORD, ms=number) for number in range(count)]


def read(history: History) -> list[Record]:
    return [record for _, record in history.read()]


def kept(path: Path) -> list[Record]:
    history = History(path)
    found = read(history)
    assert history.troubles == []
    history.close()
    return found


def test_records_come_back_as_they_were(path: Path) -> None:
    history = History(path)
    for record in records(3):
        history.append(record)
    assert read(history) == records(3)
    history.close()
    assert kept(path) == records(3)


def test_pages_have_ids_that_last(path: Path) -> None:
    history = History(path)
    assert [history.append(record) for record in records(5)] == [1, 2, 3, 4, 5]
    assert history.read(limit=2) == [(4, records(5)[3]), (5, records(5)[4])]
    assert [number for number, _ in history.read(before=4, limit=2)] == [2, 3]
    assert history.read(before=1) == []
    history.close()
    assert History(path).append(RECORD) == 6


def test_the_oldest_go_by_number_and_by_age(path: Path) -> None:
    history = History(path)
    history.retention = Retention(records=30, days=30)
    for record in records(40):
        history.append(record)
    assert read(history) == records(40)[10:]
    later = replace(RECORD, time="2026-12-24T13:00:00.000Z")
    for _ in range(21):
        history.append(later)
    assert read(history) == [later] * 21


def test_a_clock_that_was_years_ahead_for_a_while_costs_nothing(path: Path) -> None:
    history = History(path)
    wrong = replace(RECORD, time="2030-11-24T13:00:00.000Z")
    told = [*records(10), *[wrong] * 5, *records(10)]
    for record in told:
        history.append(record)
    assert read(history) == told


def test_a_kill_loses_no_record(path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from tests.unit.test_history import History, records
history = History(Path({str(path)!r}))
for record in records(20):
    history.append(record)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    assert done.returncode == -9
    assert kept(path) == records(20)


def test_a_file_of_the_first_schema_is_read_and_kept_up(path: Path) -> None:
    with sqlite3.connect(path) as old:
        old.execute("CREATE TABLE record (id INTEGER PRIMARY KEY, json TEXT NOT NULL)")
        old.execute("INSERT INTO record (json) VALUES (?)", (json.dumps(to_json(RECORD)),))
    old.close()
    assert kept(path) == [RECORD]
    history = History(path)
    history.retention = Retention(days=1)
    for _ in range(21):
        history.append(replace(RECORD, time="2026-11-26T12:00:00.000Z"))
    assert len(read(history)) == 21, "the old one went by its age"


def test_a_file_of_a_newer_vnetd_is_used_and_left_as_it_is(path: Path) -> None:
    History(path).append(RECORD)
    with sqlite3.connect(path) as newer:
        newer.execute("ALTER TABLE record ADD COLUMN more TEXT")
        newer.execute("PRAGMA user_version = 99")
        newer.execute("""INSERT INTO record (json, more) VALUES ('{"another": "shape"}', 'x')""")
    history = History(path)
    history.append(RECORD)
    assert read(history) == [RECORD, RECORD]
    assert newer.execute("PRAGMA user_version").fetchone() == (99,)
    assert newer.execute("SELECT count(*) FROM record").fetchone() == (3,)
    newer.close()


@pytest.mark.parametrize("damage", ["noise", "truncated", "in the middle"])
def test_a_damaged_file_is_moved_aside_whole(path: Path, damage: str) -> None:
    history = History(path)
    for record in records(200):
        history.append(record)
    history.close()
    good = path.read_bytes()
    bad = {
        "noise": os.urandom(5000),
        "truncated": good[: len(good) // 2 + 17],
        "in the middle": good[:8192] + os.urandom(8192) + good[16384:],
    }[damage]
    path.write_bytes(bad)
    history = History(path)
    (aside,) = path.parent.glob("history.sqlite.damaged-*")
    assert aside.read_bytes() == bad
    (trouble,) = history.troubles
    assert str(aside) in trouble
    history.append(RECORD)
    assert read(history) == [RECORD]


def test_damage_while_it_runs_costs_what_was_damaged_and_no_new_record(path: Path) -> None:
    history = History(path)
    for record in records(200):
        history.append(record)
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    path.write_bytes(os.urandom(path.stat().st_size))
    history.append(RECORD)
    assert read(history)[-1] == RECORD
    assert list(path.parent.glob("history.sqlite.damaged-*"))


def test_a_directory_that_cannot_be_made_costs_the_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    history = History(tmp_path / "file" / "history.sqlite")
    assert "wait in memory" in history.troubles[0]
    history.append(RECORD)
    assert read(history) == [RECORD]
    (tmp_path / "file").unlink()
    history.flush()
    assert history.troubles == []
    assert kept(tmp_path / "file" / "history.sqlite") == [RECORD]


def test_another_program_with_a_lock_on_it_delays_records_and_loses_none(path: Path) -> None:
    history = History(path)
    history.append(RECORD)
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        history.append(RECORD)
        assert "locked" in history.troubles[0]
        assert read(history) == [RECORD, RECORD]
        other.execute("ROLLBACK")
    other.close()
    history.flush()
    assert history.troubles == []
    assert kept(path) == [RECORD, RECORD]
