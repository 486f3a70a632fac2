"""A connection to a libvirt that takes its time."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import libvirt
import pytest

from vnetd.backends.libvirt import connection
from vnetd.backends.libvirt.connection import Connection

SECONDS = 10.0


def test_what_is_answered_while_it_is_asked_whether_it_lives_does_not_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, over = threading.Event(), threading.Event()

    def ping(_uri: str) -> None:
        asked.set()
        over.wait(SECONDS)
        raise libvirt.libvirtError("no answer in time")

    def tell(reason: str, **_: Any) -> None:
        if reason == "libvirt answers again":
            over.set()

    async def ask() -> None:
        asking = Connection("qemu:///system")
        loop = asyncio.get_running_loop()
        asking._tell, asking._current = tell, connection._Session(None, loop, tell, asyncio.Event())
        asking._tried.set()
        assert await asking.change(lambda _: asked.wait(SECONDS), "a start")
        assert await asking.read(lambda _: "something", "a look") == "something"

    monkeypatch.setattr(connection, "_ping", ping)
    monkeypatch.setattr(connection, "_PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(connection, "_PING_SECONDS", SECONDS)
    asyncio.run(ask())
