from __future__ import annotations

import logging
import socket
from pathlib import Path

from vnetd import journal


def test_an_entry_has_its_fields_whatever_is_in_them(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(path)
        handler = journal.JournalHandler(path)
        extra = journal.fields(network="lab", culprit="two\nlines")
        record = logging.makeLogRecord({"msg": "hello\nPRIORITY=0", "levelno": 30, **extra})
        handler.emit(record)
        entry = journald.recv(4096)
        handler.close()
    assert b"MESSAGE\n" + (16).to_bytes(8, "little") + b"hello\nPRIORITY=0\n" in entry
    assert b"VNETD_CULPRIT\n" + (9).to_bytes(8, "little") + b"two\nlines\n" in entry
    assert b"PRIORITY\n" + (1).to_bytes(8, "little") + b"4\n" in entry


def test_the_message_is_the_message_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(path)
        handler = journal.JournalHandler(path)
        root = logging.getLogger()
        before = root.handlers[:]
        root.handlers.clear()
        try:
            logging.basicConfig(handlers=[handler])
            handler.emit(logging.makeLogRecord({"msg": "hello", "levelno": 20}))
        finally:
            root.handlers[:] = before
        entry = journald.recv(4096)
        handler.close()
    assert entry.startswith(b"MESSAGE\n" + (5).to_bytes(8, "little") + b"hello\n")


def test_a_journald_that_does_not_read_blocks_nobody(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hung:
        hung.bind(path)
        handler = journal.JournalHandler(path)
        for _ in range(5000):
            handler.emit(logging.makeLogRecord({"msg": "x" * 1000, "levelno": 20}))
        handler.close()
