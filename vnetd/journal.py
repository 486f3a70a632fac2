"""Log to the journal with structured fields, or to stderr where that is no journal.

Not through systemd-python: its send() holds the interpreter's lock while a hung journald does not
read, and the whole daemon would stand still with it.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import sys
from contextlib import suppress

from vnetd.core.wording import printable

SOCKET = "/run/systemd/journal/socket"
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}
_DAEMON_FACILITY = 3
# Of an entry that is too large for a datagram, so much of each field.
_MOST_BYTES = 4096


def set_up(level: str) -> None:
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(levelname)s: %(message)s", newline="\n    "))
    if _stderr_is_journal():
        handler = JournalHandler()
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def fields(message_id: str, **values: object) -> dict[str, dict[str, object]]:
    """For a log call's extra: each keyword becomes the journal field VNETD_KEYWORD, unless "".

    Nothing in them but what can be printed, on one line.
    """
    found = {f"VNETD_{key.upper()}": printable(str(value)) for key, value in values.items()}
    return {"vnetd": {"MESSAGE_ID": message_id, **{k: v for k, v in found.items() if v}}}


class _Formatter(logging.Formatter):
    """newline: what a line begins with that is not the first; so no name can forge an entry."""

    def __init__(self, text: str, newline: str = "\n") -> None:
        super().__init__(text)
        self._newline = newline

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n").replace("\n", self._newline)


class JournalHandler(logging.Handler):
    """journald's native protocol. An entry that journald does not take at once is dropped."""

    def __init__(self, path: str = SOCKET) -> None:
        super().__init__()
        # basicConfig() gives a handler without a format one that repeats level and logger.
        self.setFormatter(_Formatter("%(message)s"))
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        entry = {
            "MESSAGE": self.format(record),
            "PRIORITY": _PRIORITY.get(record.levelno, 6),
            "SYSLOG_IDENTIFIER": "vnetd",
            "SYSLOG_FACILITY": _DAEMON_FACILITY,
            "CODE_FILE": record.pathname,
            "CODE_LINE": record.lineno,
            "CODE_FUNC": record.funcName,
            "LOGGER": record.name,
            **getattr(record, "vnetd", {}),
        }
        with suppress(OSError):  # there is nowhere left to say so
            try:
                self._socket.sendto(encode(entry), self._path)
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
                self._socket.sendto(encode(entry, most=_MOST_BYTES), self._path)

    def close(self) -> None:
        self._socket.close()
        super().close()


def encode(entry: dict[str, object], most: int | None = None) -> bytes:
    """Each field as NAME, newline, 64-bit little-endian length, value, newline.

    most: bytes of each value; the rest is cut off.
    """
    parts = []
    for name, value in entry.items():
        data = str(value).encode(errors="replace")[:most]
        parts += [name.encode(), b"\n", struct.pack("<Q", len(data)), data, b"\n"]
    return b"".join(parts)


def _stderr_is_journal() -> bool:
    """systemd.exec(5): $JOURNAL_STREAM names the device and inode of the stream."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
