"""The mends to dbus-next's connection."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from pathlib import Path

import pytest

from vnetd.bus import frames, sysbus
from vnetd.bus.frames import Head


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


def test_all_calls_of_a_stranger_ask_once_whose_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bus"
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={path}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        async def ask() -> tuple[list[int | None], bytes]:
            bus = sysbus.Bus()
            with bus._stream, bus._sock:
                askers = [asyncio.ensure_future(bus.user(":1.7")) for _ in range(5)]
                await asyncio.sleep(0)
                asked = bytes(bus._out._buffer)
                (call,) = frames.Frames(sysbus.LONGEST_CALL).feed(asked)
                asker = Head(frames.METHOD_CALL, 0, call.serial, 0, sender=":1.9")
                answer = frames.method_return(1, asker, "u", (1000).to_bytes(4, "little"))
                for frame in frames.Frames(sysbus.LONGEST_CALL).feed(answer):
                    bus._take(frame)
                return await asyncio.gather(*askers), asked

        uids, asked = asyncio.run(ask())
    assert uids == [1000] * 5
    assert asked.count(b"GetConnectionUnixUser") == 1
