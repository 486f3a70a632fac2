"""A pass that hangs is systemd's to end, and a long one is not."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest

from vnetd import watchdog


def test_it_is_fed_for_as_long_as_passes_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "2")
        passes = [None, 60.0, 600.0]
        fed = []

        def busy_since() -> float | None:
            if not passes:
                raise asyncio.CancelledError
            seconds = passes.pop(0)
            return None if seconds is None else time.monotonic() - seconds

        async def count() -> None:
            with pytest.raises(asyncio.CancelledError):
                await watchdog.feed(busy_since)

        asyncio.run(count())
        while True:
            try:
                fed.append(systemd.recv(100))
            except BlockingIOError:
                break
        assert fed == [b"WATCHDOG=1", b"WATCHDOG=1"]


def test_without_one_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    asyncio.run(watchdog.feed(lambda: pytest.fail("asked")))
