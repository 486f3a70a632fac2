"""systemd's watchdog, which restarts a vnetd that hangs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from systemd import daemon as systemd

# What hangs is given up after 10 s, and not tried again in the same pass: a pass ends before.
_LONGEST_PASS_SECONDS = 120.0


async def feed(busy_since: Callable[[], float | None]) -> None:
    """For as long as passes end. busy_since: as Reconciler's. Returns where nobody watches."""
    usec = int(os.environ.get("WATCHDOG_USEC", "0"))
    while usec:
        since = busy_since()
        if since is None or time.monotonic() - since < _LONGEST_PASS_SECONDS:
            systemd.notify("WATCHDOG=1")
        await asyncio.sleep(usec / 2e6)
