"""Messages of D-Bus as bytes, as far as one must know them before reading on. Pure.

dbus-next unmarshals a message whole before anybody can ask who sent it: an array of a million
values, which any user may send, then takes minutes. Here the head is read first, and the body only
of those that somebody wants. The format: D-Bus Specification, "Message Protocol".
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

METHOD_CALL, METHOD_RETURN, ERROR, SIGNAL = 1, 2, 3, 4
NO_REPLY_EXPECTED, ALLOW_INTERACTIVE_AUTHORIZATION = 0x1, 0x4

_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL = 1, 2, 3, 4, 5
_DESTINATION, _SENDER, _SIGNATURE = 6, 7, 8
_FIXED = 16
_BIG_ENDIAN = ord("B")
_LITTLE, _BIG = struct.Struct("<xBBxIII"), struct.Struct(">xBBxIII")
# Nobody else's bytes can look like it: names and paths have none like these, and a number of 32
# bits in front of a field's length, whose upper bytes are 0, is followed by no such name.
_SENDER_FIELD = re.compile(rb"\x07\x01s\0....(:\d+\.\d+|org\.freedesktop\.DBus)\0", re.DOTALL)
# Paths have no longest length; all else in a head has 255 bytes.
_LONGEST_HEAD = 8192


@dataclass(frozen=True, slots=True)
class Head:
    """Fields that a message does not have are empty. body: the length of its body in bytes."""

    type: int
    flags: int
    serial: int
    body: int
    path: str = ""
    interface: str = ""
    member: str = ""
    sender: str = ""
    signature: str = ""
    reply_serial: int = 0

    @property
    def wants_reply(self) -> bool:
        return self.type == METHOD_CALL and not self.flags & NO_REPLY_EXPECTED

    @property
    def may_interact(self) -> bool:
        """The caller allows that its user is asked for a password meanwhile."""
        return bool(self.flags & ALLOW_INTERACTIVE_AUTHORIZATION)


@dataclass(frozen=True, slots=True)
class Frame:
    """One message as it came. What decides whether to read on is read; head() is the rest.

    sender: what the bus has put in. body: its length. message: all its bytes; of one that is too
    long only those of its head.
    """

    type: int
    flags: int
    serial: int
    body: int
    sender: str
    message: bytes
    whole: bool

    @property
    def wants_reply(self) -> bool:
        return self.type == METHOD_CALL and not self.flags & NO_REPLY_EXPECTED

    def head(self) -> Head | None:
        """None for fields of a later protocol."""
        try:
            return _head(self.message)
        except (ValueError, IndexError, struct.error):
            return None

    def number(self) -> int:
        """The body of an answer that is one uint32. Raises struct.error."""
        return int(struct.unpack_from(_order(self.message) + "I", self.message, -4)[0])


class Frames:
    """Cuts what comes in into messages."""

    def __init__(self, longest_body: int, longer: Mapping[str, int] = MappingProxyType({})) -> None:
        """longer: bodies of calls of these methods."""
        self._longest_body = longest_body
        self._longer = longer
        self._buffer = bytearray()
        self._skip = 0
        self._missing = 0

    @property
    def rest(self) -> int:
        """So many of the next bytes belong to one long message: nobody wants them, or all of it."""
        return self._skip or self._missing

    def feed(self, data: bytes) -> Iterator[Frame]:
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        self._buffer += data
        self._missing = at = 0
        while len(self._buffer) - at >= _FIXED:
            length, frame = self._next(at)
            if length == 0:
                break
            at += length
            if frame is not None:
                yield frame
        self._skip += max(0, at - len(self._buffer))
        del self._buffer[:at]

    def _next(self, at: int) -> tuple[int, Frame | None]:
        """Its length; 0 while it has not come whole, or not its head where that will do."""
        start = _BIG if self._buffer[at] == _BIG_ENDIAN else _LITTLE
        type_, flags, body, serial, fields = start.unpack_from(self._buffer, at)
        head = _FIXED + fields + -fields % 8
        if head > _LONGEST_HEAD:
            return head + body, None
        here = len(self._buffer) - at
        wanted = head + body if body <= self._longest_body else head
        if body > self._longest_body and here >= head:
            method = _method(bytes(memoryview(self._buffer)[at : at + head]))
            if body <= self._longer.get(method, 0):
                wanted = head + body
                self._missing = max(0, wanted - here)
        if here < wanted:
            return 0, None
        message = bytes(memoryview(self._buffer)[at : at + wanted])
        found = _SENDER_FIELD.search(message, _FIXED, head)
        sender = found[1].decode() if found else ""
        whole = wanted == head + body
        return head + body, Frame(type_, flags, serial, body, sender, message, whole)


def _method(head: bytes) -> str:
    """That is called; "" for what is no call, or cannot be read."""
    try:
        return _head(head).member if head[1] == METHOD_CALL else ""
    except (ValueError, IndexError, struct.error):
        return ""


def _order(message: bytes) -> str:
    return ">" if message[0] == _BIG_ENDIAN else "<"


def _head(data: bytes) -> Head:
    """Raises ValueError, IndexError or struct.error for what the specification does not have."""
    order, values, numbers = _order(data), {}, {}
    body, serial, fields = struct.unpack_from(order + "III", data, 4)
    at, end = _FIXED, _FIXED + fields
    while at < end:
        at += -at % 8
        code, signature = data[at], data[at + 1 : at + 3]
        at += 4
        match signature:
            case b"\x01s" | b"\x01o":
                at += -at % 4
                length = struct.unpack_from(order + "I", data, at)[0]
                values[code] = data[at + 4 : at + 4 + length].decode()
                at += 4 + length + 1
            case b"\x01g":
                values[code] = data[at + 1 : at + 1 + data[at]].decode()
                at += 1 + data[at] + 1
            case b"\x01u":
                at += -at % 4 + 4
                numbers[code] = struct.unpack_from(order + "I", data, at - 4)[0]
            case _:
                raise ValueError(f"field {code} is {signature!r}")
    return Head(
        type=data[1],
        flags=data[2],
        serial=serial,
        body=body,
        path=values.get(_PATH, ""),
        interface=values.get(_INTERFACE, ""),
        member=values.get(_MEMBER, ""),
        sender=values.get(_SENDER, ""),
        signature=values.get(_SIGNATURE, ""),
        reply_serial=numbers.get(_REPLY_SERIAL, 0),
    )


def method_call(serial: int, destination: str, interface: str, member: str, text: str) -> bytes:
    """With one string, on a path that the bus's own methods do not mind."""
    fields = [
        _field(_PATH, "o", "/"),
        _field(_INTERFACE, "s", interface),
        _field(_MEMBER, "s", member),
        _field(_DESTINATION, "s", destination),
    ]
    return _message(METHOD_CALL, serial, fields, "s", _string(text))


def error(serial: int, call: Head | Frame, name: str, text: str) -> bytes:
    """The answer to a call, in less time than a caller needs for the next one."""
    fields = [
        _field(_ERROR_NAME, "s", name),
        struct.pack("<BB2sI", _REPLY_SERIAL, 1, b"u\0", call.serial),
        _field(_DESTINATION, "s", call.sender),
    ]
    return _message(ERROR, serial, fields, "s", _string(text))


def method_return(serial: int, call: Head, signature: str, body: bytes) -> bytes:
    fields = [
        struct.pack("<BB2sI", _REPLY_SERIAL, 1, b"u\0", call.serial),
        _field(_DESTINATION, "s", call.sender),
    ]
    return _message(METHOD_RETURN, serial, fields, signature, body)


def signal(
    serial: int, path: str, interface: str, member: str, signature: str, body: bytes
) -> bytes:
    fields = [
        _field(_PATH, "o", path),
        _field(_INTERFACE, "s", interface),
        _field(_MEMBER, "s", member),
    ]
    return _message(SIGNAL, serial, fields, signature, body)


def array(elements: Sequence[bytes]) -> bytes:
    """The body of one array of structs or dict entries, each marshalled from an offset of 0."""
    # What fills up to the next one belongs to the array, what follows the last does not.
    filled = b"".join(element + bytes(-len(element) % 8) for element in elements[:-1])
    content = filled + elements[-1] if elements else b""
    return struct.pack("<I4x", len(content)) + content


def _message(type_: int, serial: int, fields: list[bytes], signature: str, body: bytes) -> bytes:
    fields.append(struct.pack("<BB2sB", _SIGNATURE, 1, b"g\0", len(signature)))
    fields[-1] += signature.encode() + b"\0"
    head = b"".join(field + bytes(-len(field) % 8) for field in fields[:-1]) + fields[-1]
    # Else the bus says of each answer to somebody who has left that there is nobody.
    flags = 0 if type_ == METHOD_CALL else NO_REPLY_EXPECTED
    start = struct.pack("<cBBBIII", b"l", type_, flags, 1, len(body), serial, len(head))
    return start + head + bytes(-len(head) % 8) + body


def _field(code: int, type_: str, value: str) -> bytes:
    return struct.pack("<BB2s", code, 1, type_.encode() + b"\0") + _string(value)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data + b"\0"
