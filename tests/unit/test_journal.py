from __future__ import annotations

import logging
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vnetd import journal


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as taken:
        taken.bind(str(tmp_path / "journal"))
        taken.settimeout(10)
        yield taken


@pytest.fixture
def handler(journald: socket.socket) -> Iterator[journal.JournalHandler]:
    handler = journal.JournalHandler(journald.getsockname())
    yield handler
    handler.close()


def received(journald: socket.socket) -> dict[str, str]:
    """One entry of the native protocol."""
    data, at, found = journald.recv(1 << 20), 0, {}
    while at < len(data):
        end = data.index(b"\n", at)
        (length,) = struct.unpack_from("<Q", data, end + 1)
        found[data[at:end].decode()] = data[end + 9 : end + 9 + length].decode()
        at = end + 9 + length + 1
    return found


HOSTILE = "x\x1b[2J\x9b31m\u202e\x7f\r\x07\u2028y"


def test_an_entry_has_its_fields(handler: journal.JournalHandler, journald: socket.socket) -> None:
    extra = journal.fields("0" * 32, network="lab", culprit="two\nlines", ms=0, drift="")
    record = logging.makeLogRecord({"msg": "hello\nPRIORITY=0", "levelno": 30, **extra})
    handler.emit(record)
    entry = received(journald)
    assert entry["MESSAGE"] == "hello\nPRIORITY=0"
    assert entry["PRIORITY"] == "4"
    assert entry["MESSAGE_ID"] == "0" * 32
    assert entry["VNETD_NETWORK"] == "lab"
    assert entry["VNETD_CULPRIT"] == "two\\nlines"
    assert entry["VNETD_MS"] == "0"
    assert "VNETD_DRIFT" not in entry
    assert not [name for name in entry if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name)]


def test_no_name_reaches_a_terminal_raw(
    handler: journal.JournalHandler, journald: socket.socket
) -> None:
    extra = journal.fields("0" * 32, culprit=HOSTILE)
    record = logging.makeLogRecord({"msg": "by %s", "args": (HOSTILE,), "levelno": 30, **extra})
    handler.emit(record)
    entry = received(journald)
    escaped = r"x\x1b[2J\x9b31m\u202e\x7f\r\x07\u2028y"
    assert entry["MESSAGE"] == f"by {escaped}"
    assert entry["VNETD_CULPRIT"] == escaped


def test_on_a_terminal_no_name_forges_an_entry() -> None:
    script = """
import logging
from vnetd import journal
journal.set_up("info")
logging.getLogger("vnetd").warning("by %s", "x\\nERROR: all is lost\\x1b[2J")
"""
    command = [sys.executable, "-c", script]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert said == "WARNING: by x\n    ERROR: all is lost\\x1b[2J\n"


def test_an_entry_that_is_too_large_is_cut_not_lost(
    handler: journal.JournalHandler, journald: socket.socket
) -> None:
    extra = journal.fields("0" * 32, network="lab", drift="x" * 10_000_000)
    handler.emit(logging.makeLogRecord({"msg": "hello", "levelno": 30, **extra}))
    entry = received(journald)
    assert entry["VNETD_NETWORK"] == "lab"
    assert set(entry["VNETD_DRIFT"]) == {"x"}


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
