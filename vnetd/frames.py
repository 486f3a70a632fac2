"""Messages of D-Bus as bytes, as far as one must know them before reading on. Pure.

dbus-next unmarshals a message whole before anybody can ask who sent it: an array of a million
values, which any user may send, then takes minutes. Here the head is read first, and the body only
of those that somebody wants. The format: D-Bus Specification, "Message Protocol".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

METHOD_CALL, METHOD_RETURN, ERROR, SIGNAL = 1, 2, 3, 4
NO_REPLY_EXPECTED, ALLOW_INTERACTIVE_AUTHORIZATION = 0x1, 0x4

_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL = 1, 2, 3, 4, 5
_DESTINATION, _SENDER, _SIGNATURE = 6, 7, 8
_FIXED = 16
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

    @property
    def wants_reply(self) -> bool:
        return self.type == METHOD_CALL and not self.flags & NO_REPLY_EXPECTED

    @property
    def may_interact(self) -> bool:
        """The caller allows that its user is asked for a password meanwhile."""
        return bool(self.flags & ALLOW_INTERACTIVE_AUTHORIZATION)


class Frames:
    """Cuts what comes in into messages."""

    def __init__(self, longest_body: int) -> None:
        self._longest_body = longest_body
        self._buffer = bytearray()
        self._skip = 0

    def feed(self, data: bytes) -> Iterator[tuple[Head, bytes | None]]:
        """Each message's head, and all its bytes: None where the body is too long to be read."""
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        self._buffer += data
        at = 0
        while (frame := self._next(at)) is not None:
            length, head, message = frame
            at += length
            if head is not None:
                yield head, message
        self._skip += max(0, at - len(self._buffer))
        del self._buffer[:at]

    def _next(self, at: int) -> tuple[int, Head | None, bytes | None] | None:
        """Its whole length, head and bytes; None while they have not come."""
        here = len(self._buffer) - at
        if here < _FIXED:
            return None
        order = "<" if self._buffer[at] == ord("l") else ">"
        body, _, fields = struct.unpack_from(order + "III", self._buffer, at + 4)
        length = _FIXED + fields + -fields % 8
        if length > _LONGEST_HEAD:
            return length + body, None, None
        whole = length + body if body <= self._longest_body else length
        if here < whole:
            return None
        message = bytes(memoryview(self._buffer)[at : at + whole])
        try:
            head = _head(message, order, body, _FIXED + fields)
        except (ValueError, IndexError, struct.error):  # fields of a later protocol
            head = None
        return length + body, head, message if whole == length + body else None


def _head(data: bytes, order: str, body: int, end: int) -> Head:
    """Raises ValueError, IndexError or struct.error for what the specification does not have."""
    values = {}
    serial = struct.unpack_from(order + "I", data, 8)[0]
    at = _FIXED
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
    )


def error(serial: int, call: Head, name: str, text: str) -> bytes:
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
    start = struct.pack("<cBBBIII", b"l", type_, 0, 1, len(body), serial, len(head))
    return start + head + bytes(-len(head) % 8) + body


def _field(code: int, type_: str, value: str) -> bytes:
    return struct.pack("<BB2s", code, 1, type_.encode() + b"\0") + _string(value)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data + b"\0"
