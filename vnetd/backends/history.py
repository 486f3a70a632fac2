"""The history: records in SQLite, so that neither a crash nor a restart loses them."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from vnetd.core import record as r
from vnetd.errors import BackendError

_MOST_RECORDS = 10_000


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

    def append(self, record: r.Record) -> None:
        """Raises BackendError, for example on a full disk."""
        text = json.dumps(r.to_json(record), ensure_ascii=False)
        try:
            cursor = self._database.execute("INSERT INTO record (json) VALUES (?)", (text,))
            oldest = (cursor.lastrowid or 0) - _MOST_RECORDS
            self._database.execute("DELETE FROM record WHERE id <= ?", (oldest,))
        except sqlite3.Error as error:
            raise BackendError(f"history: {error}") from error

    def read(self) -> list[r.Record]:
        """Oldest first. Raises BackendError."""
        try:
            rows = self._database.execute("SELECT json FROM record ORDER BY id").fetchall()
        except sqlite3.Error as error:
            raise BackendError(f"history: {error}") from error
        return [r.from_json(json.loads(text)) for (text,) in rows]

    def close(self) -> None:
        self._database.close()
