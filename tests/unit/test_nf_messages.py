"""Rules as the kernel dumps them, compared as bytes, and what it is told of them."""

from __future__ import annotations

import struct

from vnetd.backends.firewalls.nf_messages import add_rule, delete_rule, rules, transaction
from vnetd.backends.netlink import attributes, encoded, messages


def counter(packets: int) -> bytes:
    values = encoded(1, struct.pack(">Q", 84 * packets)) + encoded(2, struct.pack(">Q", packets))
    return encoded(1, encoded(1, b"counter\0") + encoded(2, values, nested=True), nested=True)


def cmp(value: bytes) -> bytes:
    data = encoded(3, encoded(1, value), nested=True)
    return encoded(1, encoded(1, b"cmp\0") + encoded(2, data, nested=True), nested=True)


def rule(*expressions: bytes, handle: int = 7, comment: bytes = b"") -> bytes:
    return (
        struct.pack("=BBH", 2, 0, 0)
        + encoded(1, b"nat\0")
        + encoded(2, b"LIBVIRT_PRT\0")
        + encoded(3, struct.pack(">Q", handle))
        + encoded(6, struct.pack(">Q", handle - 1))
        + encoded(4, b"".join(expressions), nested=True)
        + (encoded(7, comment) if comment else b"")
    )


def only(body: bytes) -> bytes:
    ((chain, _, found),) = rules([body])
    assert chain == b"LIBVIRT_PRT"
    return found


def test_handles_positions_and_counters_do_not_tell_rules_apart() -> None:
    first = only(rule(cmp(b"\x0a\0\0\1"), counter(0), handle=7))
    later = only(rule(cmp(b"\x0a\0\0\1"), counter(1 << 40), handle=9))
    assert first == later


def test_a_rule_goes_back_as_it_came_but_for_its_counters() -> None:
    lost = rule(cmp(b"\x0a\0\0\1"), counter(3), handle=7, comment=b"\0\5mine\0")
    ((_, handle, whole),) = rules([lost])
    assert handle == 7
    ((kind, body),) = messages(add_rule(2, "nat", "LIBVIRT_PRT", whole, before=9))
    found = attributes(body[4:])
    assert kind & 0xFF == 6
    assert found[6] == struct.pack(">Q", 9)
    assert found[4] == cmp(b"\x0a\0\0\1") + counter(0)
    assert found[7] == b"\0\5mine\0"


def test_a_transaction_holds_at_one_generation_and_its_last_step_is_answered() -> None:
    steps = [delete_rule(2, "nat", "LIBVIRT_PRT", handle) for handle in (7, 9)]
    batch = transaction(steps, generation=11)
    (begin, _), *whole = messages(batch)
    assert [kind & 0xFF for kind, _ in whole] == [8, 8, 0x11]
    assert begin == 0x10
    assert encoded(1, struct.pack(">I", 11)) in batch
    assert [flags(step) for step in (batch[28:], batch[28 + len(steps[0]) :])] == [1, 5]


def flags(step: bytes) -> int:
    (found,) = struct.unpack_from("=H", step, 6)
    return int(found)


def test_all_else_does() -> None:
    plain = only(rule(cmp(b"\x0a\0\0\1"), counter(3)))
    assert plain != only(rule(cmp(b"\x0a\0\0\2"), counter(3)))
    assert plain != only(rule(cmp(b"\x0a\0\0\1")))
    assert plain != only(rule(counter(3), cmp(b"\x0a\0\0\1")))
    assert plain != only(rule(cmp(b"\x0a\0\0\1"), counter(3), comment=b"\0\5mine\0"))


def test_a_cut_message_is_no_error() -> None:
    whole = rule(cmp(b"\x0a\0\0\1"), counter(3))
    for end in range(len(whole)):
        assert len(list(rules([whole[:end]]))) == 1
