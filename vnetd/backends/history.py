"""The history: records in SQLite, so that neither a crash nor an upgrade loses them.

With a write-ahead log a crash at any moment leaves whole records behind. It is not flushed to the
disk for each of them (synchronous = NORMAL): a busy disk would hold up the repair of networks, and
all that a power cut can cost is the last records.

A disk that takes no more holds up nothing: records then wait in memory, and the file stays as it
is.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections import deque
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from vnetd.core import record as r
from vnetd.core.policy import Retention

log = logging.getLogger(__name__)

# What each version of the schema adds to the one before. An older vnetd works with a newer file:
# nothing is ever taken away, and new columns may be empty.
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS record (id INTEGER PRIMARY KEY, json TEXT NOT NULL);",
    """
    ALTER TABLE record ADD COLUMN time TEXT;
    UPDATE record SET time = json_extract(json, '$.time');
    CREATE INDEX record_time ON record (time);
    """,
)
_MOST_WAITING = 1000
# Age counts back from the record behind so many: a clock that is years ahead for a while, as one
# without a battery is, must not end all that was before.
_ALWAYS_KEPT = 20
_MOST_ID = (1 << 63) - 1
# Of another program that holds a lock on the file.
_LOCK_SECONDS = 0.2
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class History:
    def __init__(self, path: Path) -> None:
        self.retention = Retention()
        self._path = path
        self._database: sqlite3.Connection | None = None
        self._waiting: deque[tuple[int, r.Record]] = deque(maxlen=_MOST_WAITING)
        self._last_id = 0
        self._trouble = ""
        self._moved = ""
        self._try_to(self._open)
        if self._database is None:
            self._number()

    @property
    def troubles(self) -> list[str]:
        """What an admin must know of it."""
        return [text for text in (self._trouble, self._moved) if text]

    def append(self, record: r.Record) -> int:
        """Its id: they grow, and none is used again."""
        self._last_id += 1
        self._waiting.append((self._last_id, record))
        self.flush()
        return self._last_id

    def flush(self) -> None:
        """Write what waits, if anything does: the disk may take it again."""
        if self._waiting or self._database is None:
            self._try_to(self._write)

    def read(self, before: int = 0, limit: int = _MOST_ID) -> list[tuple[int, r.Record]]:
        """Ids and records: the last ones before that id (0: of all), oldest first."""
        before = min(before or _MOST_ID, _MOST_ID)
        found: list[tuple[int, r.Record]] = []
        for number, text in self._rows(before, min(limit, _MOST_ID)):
            # What a newer vnetd wrote may not be understood.
            with suppress(KeyError, TypeError, ValueError):
                found.append((number, r.from_json(json.loads(text))))
        found += [item for item in self._waiting if item[0] < before]
        return found[-limit:] if limit else []

    def close(self) -> None:
        if self._database is not None:
            self._database.close()

    def _try_to(self, work: Callable[[], None]) -> None:
        try:
            try:
                work()
            except sqlite3.DatabaseError as error:
                if _code(error) not in _DAMAGED:
                    raise
                self._move_aside(error)
                work()
        except (OSError, sqlite3.Error) as error:
            self._trouble = f"history: {self._path}: {error}; new records wait in memory"
        else:
            self._trouble = ""

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self._path, _LOCK_SECONDS, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            (sound,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if sound != "ok":
                raise _Damaged(sound)
            (version,) = database.execute("PRAGMA user_version").fetchone()
            for number, step in enumerate(_SCHEMA[version:], version + 1):
                script = f"BEGIN IMMEDIATE; {step} PRAGMA user_version = {number}; COMMIT;"
                database.executescript(script)
            database.execute("BEGIN IMMEDIATE")  # says at once where nothing can be written
            database.execute("ROLLBACK")
        except BaseException:
            database.close()
            raise
        self._database = database
        self._number()

    def _number(self) -> None:
        """Records that came while the file could not be read go behind those that are in it."""
        in_file = max((number for number, _ in self._rows(_MOST_ID, 1)), default=0)
        if not self._waiting:
            self._last_id = max(self._last_id, in_file)
        elif (least := in_file + 1 - self._waiting[0][0]) > 0:
            renumbered = [(number + least, record) for number, record in self._waiting]
            self._waiting = deque(renumbered, _MOST_WAITING)
            self._last_id += least

    def _write(self) -> None:
        if self._database is None:
            self._open()
        database = self._database
        assert database is not None, "it is open"
        while self._waiting:
            number, record = self._waiting[0]
            text = json.dumps(r.to_json(record), ensure_ascii=False)
            row = (number, text, record.time)
            database.execute("INSERT INTO record (id, json, time) VALUES (?, ?, ?)", row)
            self._waiting.popleft()
            oldest = number - self.retention.records
            database.execute("DELETE FROM record WHERE id <= ?", (oldest,))
            self._delete_old(database)

    def _delete_old(self, database: sqlite3.Connection) -> None:
        query = "SELECT time FROM record ORDER BY id DESC LIMIT 1 OFFSET ?"
        (time,) = database.execute(query, (_ALWAYS_KEPT,)).fetchone() or (None,)
        if time is not None:
            since = datetime.fromisoformat(time) - timedelta(days=self.retention.days)
            text = since.astimezone(UTC).isoformat().replace("+00:00", "Z")
            database.execute("DELETE FROM record WHERE time < ?", (text,))

    def _rows(self, before: int, limit: int) -> list[tuple[int, str]]:
        query = "SELECT id, json FROM record WHERE id < ? ORDER BY id DESC LIMIT ?"
        try:
            if self._database is not None:
                return self._database.execute(query, (before, limit)).fetchall()[::-1]
            # Where nothing can be written SQLite reads only what it may take for unchanging.
            unchanging = f"{self._path.absolute().as_uri()}?immutable=1"
            with closing(sqlite3.connect(unchanging, uri=True)) as database:
                return database.execute(query, (before, limit)).fetchall()[::-1]
        except sqlite3.Error as error:
            log.debug("history: %s: %s", self._path, error)
            return []

    def _move_aside(self, error: Exception) -> None:
        self.close()
        self._database = None
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        aside = self._path.with_name(f"{self._path.name}.damaged-{stamp}")
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                self._path.with_name(self._path.name + suffix).rename(f"{aside}{suffix}")
        self._path.rename(aside)
        self._moved = f"history: was damaged ({error}); it is in {aside} now, and a new one begins"


class _Damaged(sqlite3.DatabaseError):
    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def _code(error: sqlite3.Error) -> int:
    """Without the extension."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
