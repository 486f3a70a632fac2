"""Heads of messages, against dbus-next's own marshalling of the whole."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import pytest
from dbus_next.constants import MessageFlag, MessageType
from dbus_next.message import Message
from dbus_next.signature import Variant

from vnetd.api.tree import marshal
from vnetd.bus import frames, sysbus
from vnetd.bus.frames import Frame, Frames, Head

LONGEST = 256


def call(body: list[object] | None = None, signature: str = "") -> Message:
    return Message(
        destination="org.vnetd1",
        path="/org/vnetd1",
        interface="org.vnetd1.Manager",
        member="Why",
        flags=MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION,
        serial=7,
        signature=signature,
        body=body or [],
    )


def marshalled(message: Message) -> bytes:
    return bytes(message._marshall())  # type: ignore[no-untyped-call]


def read(frame: Frame) -> Head:
    head = frame.head()
    assert head is not None
    return head


def from_the_bus(message: bytes, sender: str) -> bytes:
    """With the field that the bus adds behind all others."""
    (length,) = struct.unpack_from("<I", message, 12)
    field = b"\x07\x01s\0" + struct.pack("<I", len(sender)) + sender.encode() + b"\0"
    fields = message[16 : 16 + length] + bytes(-length % 8) + field
    body = message[16 + length + -length % 8 :]
    head = message[:12] + struct.pack("<I", len(fields)) + fields
    return head + bytes(-len(head) % 8) + body


@pytest.mark.parametrize("sender", [":1.9", ":1.4294967295", "org.freedesktop.DBus"])
def test_who_sent_it_is_known_before_its_head_is_read(sender: str) -> None:
    (frame,) = Frames(LONGEST).feed(from_the_bus(marshalled(call(["lab", ""], "ss")), sender))
    assert frame.sender == sender == read(frame).sender
    assert sysbus.unmarshal(frame.message).body == ["lab", ""]


def test_nobody_can_write_a_sender_into_other_fields() -> None:
    for number in (0x00730107, 0x07017300, 0x01730007):
        message = call()
        message.reply_serial = number
        for member in ("x", "x" * 58, "x" * 0x31):
            message.member = member
            (frame,) = Frames(LONGEST).feed(from_the_bus(marshalled(message), ":1.9"))
            assert frame.sender == ":1.9"
            (frame,) = Frames(LONGEST).feed(marshalled(message))
            assert frame.sender == ""


def test_a_head_says_what_the_message_says() -> None:
    message = marshalled(call(["lab", ""], "ss"))
    (frame,) = Frames(LONGEST).feed(message)
    assert (frame.message, frame.whole, frame.sender) == (message, True, "")
    assert (frame.type, frame.serial, frame.wants_reply) == (frames.METHOD_CALL, 7, True)
    head = frame.head()
    assert head is not None
    assert head.may_interact
    assert head.wants_reply
    assert (head.type, head.serial, head.signature) == (frames.METHOD_CALL, 7, "ss")
    assert (head.path, head.interface, head.member) == ("/org/vnetd1", "org.vnetd1.Manager", "Why")


@pytest.mark.parametrize("size", [1, 3, 16, 100, 4096])
def test_messages_come_in_any_pieces(size: int) -> None:
    stream = marshalled(call()) + marshalled(call(["x" * 9999], "s")) + marshalled(call(["y"], "s"))
    cut, found = Frames(LONGEST), []
    for at in range(0, len(stream), size):
        found += list(cut.feed(stream[at : at + size]))
    assert [frame.whole for frame in found] == [True, False, True]
    assert [read(frame).signature for frame in found] == ["", "s", "s"]
    assert sysbus.unmarshal(found[-1].message).body == ["y"]


@pytest.mark.parametrize("size", [1, 100, 4096, 1 << 20])
def test_calls_of_some_methods_may_be_longer(size: int) -> None:
    long, other, signal = call(["x" * 9999], "s"), call(["y" * 9999], "s"), call(["z" * 9999], "s")
    long.member = "SetPolicy"
    signal.message_type, signal.member = MessageType.SIGNAL, "SetPolicy"
    stream = b"".join(map(marshalled, (other, long, signal, call(["y"], "s"))))
    cut, found = Frames(LONGEST, {"SetPolicy": 10_100}), []
    for at in range(0, len(stream), size):
        found += list(cut.feed(stream[at : at + size]))
        assert cut.rest <= len(stream) - min(at + size, len(stream))
    assert [frame.whole for frame in found] == [False, True, False, True]
    assert sysbus.unmarshal(found[1].message).body == ["x" * 9999]
    (cut_short,) = Frames(LONGEST, {"SetPolicy": 9999}).feed(marshalled(long))
    assert not cut_short.whole


def test_a_head_without_end_is_skipped_in_silence() -> None:
    long = call()
    long.path = "/" + "x" * 100_000
    stream = marshalled(long) + marshalled(call())
    cut, found = Frames(LONGEST), []
    for at in range(0, len(stream), 1000):
        found += list(cut.feed(stream[at : at + 1000]))
    assert [read(frame).path for frame in found] == ["/org/vnetd1"]


def test_big_endian_is_read_as_well() -> None:
    text = b"/org/vnetd1"
    path = b"\x01\x01o\0" + struct.pack(">I", len(text)) + text + b"\0"
    member = b"\x03\x01s\0" + struct.pack(">I", 4) + b"Ping\0"
    fields = path + bytes(-len(path) % 8) + member
    message = struct.pack(">cBBBIII", b"B", 1, 0, 1, 0, 9, len(fields)) + fields
    message += bytes(-len(message) % 8)
    (frame,) = Frames(LONGEST).feed(message)
    head = read(frame)
    assert (head.path, head.member, head.serial) == ("/org/vnetd1", "Ping", 9)


def test_noise_ends_in_no_exception_of_another_kind() -> None:
    """The bus passes well-formed messages only; a fault of its must not be one of vnetd."""
    random.seed(1)
    good = marshalled(call(["lab", ""], "ss"))
    for _ in range(3000):
        noise = bytearray(good)
        for _ in range(random.randrange(1, 6)):
            noise[random.randrange(16, len(noise))] = random.randrange(256)
        for frame in Frames(LONGEST).feed(bytes(noise)):
            assert frame.head() is None or isinstance(frame.head(), Head)


def test_answers_are_what_dbus_next_reads() -> None:
    (frame,) = Frames(LONGEST).feed(marshalled(call()))
    head = replace(read(frame), sender=":1.9")  # the bus puts it in
    answer = sysbus.unmarshal(frames.error(3, head, "org.vnetd1.Error.Busy", "später"))
    assert answer.message_type is MessageType.ERROR
    assert (answer.serial, answer.reply_serial, answer.destination) == (3, 7, ":1.9")
    assert (answer.error_name, answer.body) == ("org.vnetd1.Error.Busy", ["später"])
    body = marshal("sas", ["a", ["b", "c"]])
    answer = sysbus.unmarshal(frames.method_return(4, head, "sas", body))
    assert (answer.message_type, answer.body) == (MessageType.METHOD_RETURN, ["a", ["b", "c"]])
    answer = sysbus.unmarshal(frames.signal(5, "/x", "a.b", "Changed", "", b""))
    assert (answer.path, answer.interface, answer.member) == ("/x", "a.b", "Changed")


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_parts_make_the_array_that_marshalling_it_whole_makes(count: int) -> None:
    objects = {
        f"/x/{'n' * number}": {"a.b": {"P": Variant("s", "v" * number), "Q": Variant("b", True)}}
        for number in range(1, count + 1)
    }
    parts = [marshal("oa{sa{sv}}", [path, inside]) for path, inside in objects.items()]
    assert frames.array(parts) == marshal("a{oa{sa{sv}}}", [objects])
