"""The lock that all tools of iptables-legacy take, libvirt's too: who holds it writes alone."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from vnetd.errors import BackendError

PATH = "/run/xtables.lock"
_SECONDS, _POLL_SECONDS = 5.0, 0.01


@asynccontextmanager
async def held() -> AsyncIterator[Mapping[str, str]]:
    """Gives the environment in which tools of this process go without it, iptables(8). Raises
    BackendError where others hold it for 5 s, OSError where it cannot be opened.
    """
    lock = os.open(PATH, os.O_RDONLY | os.O_CLOEXEC)
    try:
        await _take(lock)
        yield {"XTABLES_LOCKFILE": os.devnull}
    finally:
        os.close(lock)


async def _take(lock: int) -> None:
    try:
        async with asyncio.timeout(_SECONDS):
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    await asyncio.sleep(_POLL_SECONDS)
                else:
                    return
    except TimeoutError:
        raise BackendError(
            f"{PATH} is held by another tool for {_SECONDS:.0f} s; see: lsof {PATH}"
        ) from None
