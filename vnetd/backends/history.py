"""The history: records in SQLite, so that neither a crash nor a restart loses them."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from vnetd.core import record as r
from vnetd.errors import BackendError

_MOST_RECORDS = 10_000
_MOST_ID = (1 << 63) - 1


class History:
    def __init__(self, path: Path | None) -> None:
        """None: in memory only. Raises BackendError."""
        try:
            self._database = sqlite3.connect(path or ":memory:", isolation_level=None)
            # With a write-ahead log a crash at any moment leaves whole records behind.
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS record (id INTEGER PRIMARY KEY, json TEXT NOT NULL)"
            )
        except sqlite3.Error as error:
            raise BackendError(f"history {path}: {error}") from error

    def append(self, record: r.Record) -> int:
        """Its id: they grow, and none is used again. Raises BackendError, as on a full disk."""
        text = json.dumps(r.to_json(record), ensure_ascii=False)
        try:
            cursor = self._database.execute("INSERT INTO record (json) VALUES (?)", (text,))
            number = cursor.lastrowid or 0
            self._database.execute("DELETE FROM record WHERE id <= ?", (number - _MOST_RECORDS,))
        except sqlite3.Error as error:
            raise BackendError(f"history: {error}") from error
        return number

    def read(self, before: int, limit: int) -> list[tuple[int, r.Record]]:
        """Ids and records: the last ones before that id (0: of all), oldest first. Raises
        BackendError.
        """
        below = min(before or _MOST_ID, _MOST_ID)
        select = "SELECT id, json FROM record WHERE id < ? ORDER BY id DESC LIMIT ?"
        try:
            rows = self._database.execute(select, (below, limit)).fetchall()
        except sqlite3.Error as error:
            raise BackendError(f"history: {error}") from error
        return [(number, r.from_json(json.loads(text))) for number, text in reversed(rows)]

    def close(self) -> None:
        self._database.close()
