"""One connection to the system bus, on dbus-next's message layer, with its faults mended."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import BusType, MessageFlag, MessageType
from dbus_next.message import Message

from vnetd.bus import frames
from vnetd.bus.frames import Frame
from vnetd.errors import VnetdError

log = logging.getLogger(__name__)

BUS = "org.freedesktop.DBus"
"""Its name, and that of its interface; it minds no path."""

# One turn of the loop reads no more than this, so that a flood leaves time for all else.
_READ_BYTES = 4096
_SKIP_BYTES = 1 << 20
_WRITE_BYTES = 65536
# A bus that takes nothing any more must not grow the daemon.
_MOST_QUEUED_BYTES = 64 << 20
_ANSWER_SECONDS = 5.0
# Of a connection that serves: no argument of org.vnetd1 comes near it, no reply of the bus either.
LONGEST_CALL = 8192
LONGEST_POLICY = 1 << 20
LONGEST_CALLS = {"SetPolicy": LONGEST_POLICY + LONGEST_CALL}
_LONGEST_MESSAGE = 128 << 20  # D-Bus Specification, "Message Format"

OnCall = Callable[[Frame], None]
"""Of a method call; not whole where it is longer than it may be."""


class BusError(VnetdError):
    """The bus, or the service behind it, cannot be reached."""


class RemoteError(VnetdError):
    """The service answered with an error. name: the error's name on the bus."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


class Bus(MessageBus):
    """on_call: serve method calls; such a connection hears signals of the bus itself only."""

    def __init__(self, on_call: OnCall | None = None) -> None:
        super().__init__(bus_type=BusType.SYSTEM)
        self._on_call = on_call
        self._frames = call_frames() if on_call else frames.Frames(_LONGEST_MESSAGE)
        self._out = _Writer(self)
        self._writer: Any = self._out
        self._asked: dict[int, asyncio.Future[int | None]] = {}
        self._asked_of: dict[str, asyncio.Future[int | None]] = {}

    @property
    def queued(self) -> int:
        """Bytes that wait for the bus to take them."""
        return self._out.queued

    @property
    def greeted(self) -> bool:
        """The bus has given it a name: nothing else may be sent before."""
        return bool(self.unique_name)

    def write(self, message: bytes) -> None:
        self._out.write(message)

    def next_serial(self) -> int:
        serial = int(self._serial) % 0xFFFFFFFF + 1  # dbus-next's own grows out of its 32 bits
        self._serial = serial
        return serial

    def _message_reader(self) -> None:
        try:
            rest = min(self._frames.rest, _SKIP_BYTES)
            data = self._sock.recv(max(rest, _READ_BYTES))
            if not data:
                raise EOFError("the bus has closed the connection")
            for frame in self._frames.feed(data):
                self._take(frame)
        except BlockingIOError:
            return
        except (OSError, EOFError) as error:
            self._finalize(error)
        except Exception as error:  # of dbus-next, for what no bus should send: the daemon lives on
            log.exception("a message that cannot be read")
            self._finalize(BusError(f"the bus sent what cannot be read: {error}"))

    def _take(self, frame: Frame) -> None:
        if frame.type == frames.METHOD_CALL:
            if self._on_call is not None:
                self._on_call(frame)
            return
        if frame.type == frames.SIGNAL and self._on_call is not None and frame.sender != BUS:
            return  # anybody may send one to anybody
        head = frame.head() if frame.whole else None
        if head is None:
            return
        asked = self._asked.pop(head.reply_serial, None)
        if asked is not None and not asked.done():
            returned = frame.type == frames.METHOD_RETURN
            asked.set_result(frame.number() if returned else None)
        elif frame.type == frames.SIGNAL or head.reply_serial in self._method_return_handlers:
            self._on_message(unmarshal(frame.message))

    async def user(self, name: str) -> int | None:
        """The uid of whoever has this unique name; None if nobody has. Raises BusError.

        Anybody who connects makes vnetd ask, so that this does without dbus-next's messages, and
        asks once for all that a connection sends until the answer.
        """
        return await asyncio.shield(self._asked_of.get(name) or self._ask_user(name))

    def _ask_user(self, name: str) -> asyncio.Future[int | None]:
        loop, serial = asyncio.get_running_loop(), self.next_serial()
        answer: asyncio.Future[int | None] = loop.create_future()

        def give_up() -> None:
            if not answer.done():
                answer.set_exception(BusError("the bus does not answer"))

        def over(_: object) -> None:
            late.cancel()
            self._asked.pop(serial, None)
            del self._asked_of[name]
            answer.exception()  # whoever asked may be gone

        late = loop.call_later(_ANSWER_SECONDS, give_up)
        answer.add_done_callback(over)
        self._asked[serial] = self._asked_of[name] = answer
        self.write(frames.method_call(serial, BUS, BUS, "GetConnectionUnixUser", name))
        return answer

    async def _auth_readline(self) -> str:
        # The library's own spins for ever when the bus closes the connection here.
        line = b""
        while not line.endswith(b"\r\n"):
            byte = await asyncio.get_running_loop().sock_recv(self._sock, 1)
            if not byte:
                raise BusError("the bus closed the connection during authentication")
            line += byte
        return line[:-2].decode()


class _Writer:
    """In place of dbus-next's, for which a full socket buffer is the end of the connection."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()

    @property
    def queued(self) -> int:
        return len(self._buffer)

    def schedule_write(
        self, message: Message | None = None, future: asyncio.Future[None] | None = None
    ) -> None:
        self.write(bytes(message._marshall()) if message is not None else b"")
        if future is not None:
            future.set_result(None)

    def write(self, message: bytes) -> None:
        if len(self._buffer) + len(message) > _MOST_QUEUED_BYTES:
            self._bus._finalize(BusError("the bus takes no messages any more"))
            return
        self._buffer += message
        if self._buffer and self._bus.greeted and self._bus.connected:
            self._loop.add_writer(self._bus._fd, self._flush)

    def _flush(self) -> None:
        try:
            sent = self._bus._sock.send(self._buffer[:_WRITE_BYTES])
        except BlockingIOError:
            return
        except OSError as error:
            self._bus._finalize(error)
            return
        del self._buffer[:sent]
        if not self._buffer:
            self._loop.remove_writer(self._bus._fd)


async def connect(on_call: OnCall | None = None) -> Bus:
    """To $DBUS_SYSTEM_BUS_ADDRESS or the well-known socket. Raises BusError."""
    bus = None
    try:
        bus = Bus(on_call)
        await bus.connect()
    except Exception as error:  # dbus-next has no common base for what connecting can raise
        if bus is not None:
            bus._stream.close()
            bus._sock.close()
        raise BusError(f"the system bus cannot be reached: {error}") from error
    return bus


@asynccontextmanager
async def connected(on_call: OnCall | None = None) -> AsyncIterator[Bus]:
    bus = await connect(on_call)
    try:
        yield bus
    finally:
        bus.disconnect()


async def first_lost(*connections: Bus) -> None:
    """Returns, or raises what it ended with, when one of them has ended."""
    ends = [asyncio.ensure_future(bus.wait_for_disconnect()) for bus in connections]
    try:
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in done:
            end.result()
    finally:
        for end in ends:
            end.cancel()


def call_frames() -> frames.Frames:
    """Of a connection that serves."""
    return frames.Frames(LONGEST_CALL, LONGEST_CALLS)


def unmarshal(message: bytes) -> Message:
    found: Message = Unmarshaller(io.BytesIO(message)).unmarshall()
    return found


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
    flags: MessageFlag = MessageFlag.NONE,
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
        flags=flags,
        serial=bus.next_serial(),
    )
    try:
        async with asyncio.timeout(seconds):
            reply = await bus.call(message)
    except TimeoutError:
        raise BusError(f"{destination} gave no answer to {member} in {seconds:.0f} s") from None
    except (EOFError, OSError) as error:
        raise BusError("the connection to the system bus is lost") from error
    finally:
        bus._method_return_handlers.pop(message.serial, None)  # the library would keep it for ever
    assert reply is not None, "a call without NO_REPLY_EXPECTED has a reply"
    if reply.message_type is MessageType.ERROR:
        text = reply.body[0] if reply.body and isinstance(reply.body[0], str) else ""
        raise RemoteError(reply.error_name or "", text or str(reply.error_name))
    return list(reply.body)


async def call_bus(
    bus: MessageBus, member: str, signature: str = "", body: Sequence[object] = ()
) -> list[Any]:
    """A method of the bus itself."""
    return await call(bus, BUS, "/org/freedesktop/DBus", BUS, member, signature, body)


async def signal_process(pid: int, path: str, interface: str, member: str) -> None:
    """A signal to the connections of one process, and to nobody else. Raises BusError."""
    async with connected() as bus:
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
