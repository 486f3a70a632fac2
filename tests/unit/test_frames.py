"""Heads of messages, against dbus-next's own marshalling of the whole."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import pytest
from dbus_next.constants import MessageFlag, MessageType
from dbus_next.message import Message
from dbus_next.signature import Variant

from vnetd import frames, sysbus
from vnetd.api.tree import marshal
from vnetd.frames import Frames, Head

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


def test_a_head_says_what_the_message_says() -> None:
    message = marshalled(call(["lab", ""], "ss"))
    ((head, body),) = Frames(LONGEST).feed(message)
    assert body == message
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
    assert [(head.signature, message is None) for head, message in found] == [
        ("", False),
        ("s", True),
        ("s", False),
    ]
    last = found[-1][1]
    assert last is not None
    assert sysbus.unmarshal(last).body == ["y"]


def test_a_head_without_end_is_skipped_in_silence() -> None:
    long = call()
    long.path = "/" + "x" * 100_000
    stream = marshalled(long) + marshalled(call())
    cut, found = Frames(LONGEST), []
    for at in range(0, len(stream), 1000):
        found += list(cut.feed(stream[at : at + 1000]))
    assert [head.path for head, _ in found] == ["/org/vnetd1"]


def test_big_endian_is_read_as_well() -> None:
    text = b"/org/vnetd1"
    path = b"\x01\x01o\0" + struct.pack(">I", len(text)) + text + b"\0"
    member = b"\x03\x01s\0" + struct.pack(">I", 4) + b"Ping\0"
    fields = path + bytes(-len(path) % 8) + member
    message = struct.pack(">cBBBIII", b"B", 1, 0, 1, 0, 9, len(fields)) + fields
    message += bytes(-len(message) % 8)
    ((head, _),) = Frames(LONGEST).feed(message)
    assert (head.path, head.member, head.serial) == ("/org/vnetd1", "Ping", 9)


def test_noise_ends_in_no_exception_of_another_kind() -> None:
    """The bus passes well-formed messages only; a fault of its must not be one of vnetd."""
    random.seed(1)
    good = marshalled(call(["lab", ""], "ss"))
    for _ in range(3000):
        noise = bytearray(good)
        for _ in range(random.randrange(1, 6)):
            noise[random.randrange(16, len(noise))] = random.randrange(256)
        for head, _message in Frames(LONGEST).feed(bytes(noise)):
            assert isinstance(head, Head)


def test_answers_are_what_dbus_next_reads() -> None:
    ((head, _),) = Frames(LONGEST).feed(marshalled(call()))
    head = replace(head, sender=":1.9")  # the bus puts it in
    read = sysbus.unmarshal(frames.error(3, head, "org.vnetd1.Error.Busy", "später"))
    assert read.message_type is MessageType.ERROR
    assert (read.serial, read.reply_serial, read.destination) == (3, 7, ":1.9")
    assert (read.error_name, read.body) == ("org.vnetd1.Error.Busy", ["später"])
    body = marshal("sas", ["a", ["b", "c"]])
    read = sysbus.unmarshal(frames.method_return(4, head, "sas", body))
    assert (read.message_type, read.body) == (MessageType.METHOD_RETURN, ["a", ["b", "c"]])
    read = sysbus.unmarshal(frames.signal(5, "/x", "a.b", "Changed", "", b""))
    assert (read.path, read.interface, read.member) == ("/x", "a.b", "Changed")


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_parts_make_the_array_that_marshalling_it_whole_makes(count: int) -> None:
    objects = {
        f"/x/{'n' * number}": {"a.b": {"P": Variant("s", "v" * number), "Q": Variant("b", True)}}
        for number in range(1, count + 1)
    }
    parts = [marshal("oa{sa{sv}}", [path, inside]) for path, inside in objects.items()]
    assert frames.array(parts) == marshal("a{oa{sa{sv}}}", [objects])
