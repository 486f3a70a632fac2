"""Notices that the wall clock was set, or that the machine has slept: the kernel then cancels a
timer that would never end. Whatever waits, waits by the monotonic clock, and does not mind.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import struct
import time
from collections.abc import Callable

# sys/timerfd.h
_CLOCK_REALTIME, _ABSOLUTE, _CANCEL_ON_SET = 0, 1, 2
_NEVER = struct.pack("=qqqq", 0, 0, (1 << 63) - 1, 0)
_libc = ctypes.CDLL(None, use_errno=True)


async def watch(on_set: Callable[[float], None]) -> None:
    """Call on_set with the seconds by which the clock jumped. Until cancelled. Returns where the
    kernel has no such timer.
    """
    timer = _libc.timerfd_create(_CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC)
    if timer < 0:
        return
    loop = asyncio.get_running_loop()
    ahead = _ahead()

    def on_cancel() -> None:
        nonlocal ahead
        try:
            os.read(timer, 8)
        except OSError as error:
            if error.errno != errno.ECANCELED:
                raise
        _arm(timer)
        before, ahead = ahead, _ahead()
        on_set(ahead - before)

    try:
        _arm(timer)
        loop.add_reader(timer, on_cancel)
        await loop.create_future()
    finally:
        loop.remove_reader(timer)
        os.close(timer)


def _ahead() -> float:
    """Of the time that this machine has been at work."""
    return time.time() - time.monotonic()


def _arm(timer: int) -> None:
    if _libc.timerfd_settime(timer, _ABSOLUTE | _CANCEL_ON_SET, _NEVER, None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
