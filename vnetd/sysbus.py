"""One connection to the system bus, on dbus-next's message layer, with its faults mended."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import BusType, MessageType
from dbus_next.message import Message

from vnetd.errors import VnetdError

_BUS = "org.freedesktop.DBus"


class BusError(VnetdError):
    """The bus, or the service behind it, cannot be reached."""


class RemoteError(VnetdError):
    """The service answered with an error. name: the error's name on the bus."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


async def connect() -> MessageBus:
    """To $DBUS_SYSTEM_BUS_ADDRESS or the well-known socket. Raises BusError."""
    bus = None
    try:
        bus = _Bus(bus_type=BusType.SYSTEM)
        bus._writer.sock = _PatientSocket(bus._sock)
        return await bus.connect()
    except Exception as error:  # dbus-next has no common base for what connecting can raise
        if bus is not None:
            bus._stream.close()
            bus._sock.close()
        raise BusError(f"the system bus cannot be reached: {error}") from error


async def call(
    bus: MessageBus,
    destination: str,
    path: str,
    interface: str,
    member: str,
    signature: str = "",
    body: Sequence[object] = (),
    *,
    seconds: float = 25.0,
) -> list[Any]:
    """The reply's arguments. Raises BusError or RemoteError."""
    if not bus.connected:
        raise BusError("the connection to the system bus is lost")
    message = Message(
        destination=destination,
        path=path,
        interface=interface,
        member=member,
        signature=signature,
        body=list(body),
    )
    try:
        async with asyncio.timeout(seconds):
            reply = await bus.call(message)
    except TimeoutError:
        raise BusError(f"{destination} gave no answer to {member} in {seconds:.0f} s") from None
    except (EOFError, OSError) as error:
        raise BusError("the connection to the system bus is lost") from error
    assert reply is not None, "a call without NO_REPLY_EXPECTED has a reply"
    if reply.message_type is MessageType.ERROR:
        text = reply.body[0] if reply.body and isinstance(reply.body[0], str) else ""
        raise RemoteError(reply.error_name or "", text or str(reply.error_name))
    return list(reply.body)


async def call_bus(
    bus: MessageBus, member: str, signature: str = "", body: Sequence[object] = ()
) -> list[Any]:
    """A method of the bus itself."""
    return await call(bus, _BUS, "/org/freedesktop/DBus", _BUS, member, signature, body)


async def signal_process(pid: int, path: str, interface: str, member: str) -> None:
    """A signal to the connections of one process, and to nobody else. Raises BusError."""
    bus = await connect()
    try:
        (names,) = await call_bus(bus, "ListNames")
        heard = False
        for name in names:
            if not name.startswith(":"):
                continue
            with suppress(RemoteError):  # it has left
                (owner,) = await call_bus(bus, "GetConnectionUnixProcessID", "s", [name])
                if owner == pid:
                    signal = Message.new_signal(path, interface, member)
                    signal.destination = name
                    await bus.send(signal)
                    heard = True
        if not heard:
            raise BusError(f"process {pid} is not on the system bus")
        await call_bus(bus, "GetId")  # answered after the signals have gone out
    finally:
        bus.disconnect()  # type: ignore[no-untyped-call]


class _Bus(MessageBus):
    async def _auth_readline(self) -> str:
        # The library's own spins for ever when the bus closes the connection here.
        line = b""
        while not line.endswith(b"\r\n"):
            byte = await asyncio.get_running_loop().sock_recv(self._sock, 1)
            if not byte:
                raise BusError("the bus closed the connection during authentication")
            line += byte
        return line[:-2].decode()


class _PatientSocket:
    """A full socket buffer means "later". dbus-next takes it for the end of the connection."""

    def __init__(self, real: socket.socket) -> None:
        self._real = real

    def send(self, data: memoryview) -> int:
        try:
            return self._real.send(data)
        except BlockingIOError:
            return 0
