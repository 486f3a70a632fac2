"""vnetd as a client of the bus sees it: calls, and signals that are truly its own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from dbus_next.constants import MessageFlag, MessageType
from dbus_next.message import Message
from dbus_next.signature import Variant

from vnetd.api import names
from vnetd.bus import sysbus
from vnetd.cli import agent

_PASSWORD_SECONDS = 300.0
_PATIENCE_SECONDS, _PAUSE_SECONDS = 5.0, 0.05

OnSignal = Callable[[Message], None]


class Daemon:
    def __init__(self, bus: sysbus.Bus) -> None:
        self._bus = bus
        self._owner = ""
        self._ended = asyncio.Event()
        self._heard: list[tuple[str, str, OnSignal]] = []

    async def call(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[object] = (),
        *,
        seconds: float = 25.0,
    ) -> list[Any]:
        """Raises BusError or RemoteError. Does not start a daemon that somebody has stopped."""
        flags = MessageFlag.NO_AUTOSTART
        address = (names.BUS_NAME, path, interface, member, signature, body)
        try:
            return await self._insist(address, seconds, flags)
        except sysbus.RemoteError as error:
            if error.name != names.NEEDS_PASSWORD or not sys.stdin.isatty():
                raise
        flags |= MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION
        async with agent.on_terminal():  # somebody is there who may know one
            seconds = max(seconds, _PASSWORD_SECONDS)
            return await sysbus.call(self._bus, *address, seconds=seconds, flags=flags)

    async def _insist(
        self,
        address: tuple[str, str, str, str, str, Sequence[object]],
        seconds: float,
        flags: MessageFlag,
    ) -> list[Any]:
        """Who connects again and again uses up what vnetd has for newcomers: one in two is turned
        away then, and let in a moment later.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + _PATIENCE_SECONDS
        while True:
            try:
                return await sysbus.call(self._bus, *address, seconds=seconds, flags=flags)
            except sysbus.RemoteError as error:
                if error.name != f"{names.ERROR}.LimitsExceeded" or clock() > until:
                    raise
            await asyncio.sleep(_PAUSE_SECONDS)

    async def manager(
        self,
        member: str,
        signature: str = "",
        body: Sequence[object] = (),
        *,
        seconds: float = 25.0,
    ) -> list[Any]:
        return await self.call(names.ROOT, names.MANAGER, member, signature, body, seconds=seconds)

    async def properties(self, path: str, interface: str) -> dict[str, Any]:
        (values,) = await self.call(path, names.PROPERTIES, "GetAll", "s", [interface])
        found: dict[str, Any] = plain(values)
        return found

    async def hear(self, on_signal: OnSignal, interface: str, below: str) -> None:
        """Of objects at that path and below it."""
        if not self._heard:
            self._bus.add_message_handler(self._on_message)
            changes = f"type='signal',sender='{sysbus.BUS}',member='NameOwnerChanged'"
            await self._match(f"{changes},arg0='{names.BUS_NAME}'")
            asking = (self._bus, "GetNameOwner", "s", [names.BUS_NAME])
            (self._owner,) = await sysbus.call_bus(*asking)
        self._heard.append((interface, below, on_signal))
        rule = f"type='signal',sender='{names.BUS_NAME}',interface='{interface}'"
        await self._match(f"{rule},path_namespace='{below}'")

    async def until(self, waiting: Coroutine[Any, Any, object], *, whoever: bool = False) -> None:
        """Wait for that, or raise BusError: when the bus goes, or (not whoever) the daemon."""
        gone = self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
        ends = [asyncio.ensure_future(gone)]
        if not whoever:
            ends.append(asyncio.ensure_future(self._ended.wait()))
        wanted = asyncio.ensure_future(waiting)
        try:
            await asyncio.wait({wanted, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if not wanted.done():
                lost = "the connection to the system bus is lost"
                raise sysbus.BusError(lost if ends[0].done() else "vnetd has ended")
        finally:
            for task in (wanted, *ends):
                task.cancel()
            await asyncio.gather(wanted, *ends, return_exceptions=True)

    async def _match(self, rule: str) -> None:
        await sysbus.call_bus(self._bus, "AddMatch", "s", [rule])

    def _on_message(self, message: Message) -> bool:
        if message.message_type is not MessageType.SIGNAL:
            return False
        if message.sender == sysbus.BUS and message.member == "NameOwnerChanged":
            self._owner = message.body[2]
            if not self._owner:
                self._ended.set()
        elif (
            message.sender == self._owner
        ):  # anybody may send a look-alike right to this connection
            for interface, below, on_signal in self._heard:
                if message.interface == interface and (message.path + "/").startswith(below + "/"):
                    on_signal(message)
        return False


def plain(value: Any) -> Any:
    """Without the Variants: what JSON can carry."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value
