"""One vnetd to a host, which waits with a start when it keeps coming to an end."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Self

from vnetd.core.pacing import Lives
from vnetd.errors import VnetdError

_MOST_BYTES = 4096


class Instance:
    """Two would undo each other's repairs: the lock is the open file's. Inside is how often vnetd
    ended soon after it began: systemd keeps it over restarts, and a proper end removes it.
    """

    def __init__(self, runtime: Path) -> None:
        """Raises VnetdError where another runs."""
        try:
            runtime.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(runtime / "vnetd.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            wrong = f"{runtime}: {error.strerror}; vnetd needs it as its runtime directory"
            raise VnetdError(wrong) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise VnetdError("vnetd is already running on this host") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def delay(self) -> float:
        """Note this start. How many seconds to wait with it."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        lives = self._read().next(now)
        self._write(f"{lives.short} {lives.began}")
        return lives.began - now

    def ended_well(self) -> None:
        self._write("")

    def _read(self) -> Lives:
        try:
            short, began = os.pread(self._fd, _MOST_BYTES, 0).split()
            return Lives(int(short), float(began))
        except ValueError:
            return Lives(began=float("-inf"))

    def _write(self, text: str) -> None:
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text.encode(), 0)
