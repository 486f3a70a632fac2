"""The mends to dbus-next's connection."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from pathlib import Path

import pytest

from vnetd.bus import sysbus


def test_a_bus_that_goes_down_during_authentication_ends_connecting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bus"
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={path}")

    async def close_at_once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def connect() -> None:
        async with await asyncio.start_unix_server(close_at_once, path):
            await asyncio.wait_for(sysbus.connect(), 5)

    with pytest.raises(sysbus.BusError, match="cannot be reached"):
        asyncio.run(connect())


# dbus-next's constructor leaves the socket that it could not connect to the collector.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_no_bus_at_all_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nowhere/bus")
    with pytest.raises(sysbus.BusError, match="cannot be reached"):
        asyncio.run(sysbus.connect())
    gc.collect()
