"""Calls without a bus between: whatever comes, the answer is one of the contract's, and no text of
Python's.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from dbus_next.constants import MessageType

from tests.lab.hostile import call, complete_types, random_signature, random_value
from tests.unit.test_frames import from_the_bus
from tests.unit.test_tree import BRIDGE, NETWORK, PORT, status
from vnetd.api import contract
from vnetd.api.limits import PENDING_QUESTIONS
from vnetd.api.service import Service
from vnetd.bus import frames, sysbus
from vnetd.core.record import Record
from vnetd.errors import Conflict, NoSuchNetwork

CALLS = 20_000
ERRORS = re.compile(
    r"org\.vnetd1\.Error\.(NoSuchNetwork|InvalidArgument|Conflict|LimitsExceeded|Busy)"
    r"|org\.freedesktop\.DBus\.Error\."
    r"(UnknownObject|UnknownMethod|InvalidArgs|UnknownInterface|UnknownProperty|PropertyReadOnly)"
)
PYTHON = re.compile(r"Traceback|Error\(|object at 0x|'NoneType'|\bself\b|\.py\b")


class Bus:
    """In place of a connection: what is written to it is read again."""

    connected = True
    queued = 0

    def __init__(self, uid: int = 0) -> None:
        self.uid = uid
        self.answers: list[bytes] = []
        self.serial = 0

    def next_serial(self) -> int:
        self.serial += 1
        return self.serial

    def write(self, message: bytes) -> None:
        self.answers.append(message)

    async def user(self, _name: str) -> int:
        return self.uid


class Operations:
    """As root may ask for everything, all of it is asked for; it notes with what."""

    def __init__(self) -> None:
        self.paused: list[float] = []

    async def reconcile(self, progress: Any) -> Any:
        progress(0, 0, "")
        return status({})

    async def plan(self) -> Sequence[Any]:
        for _ in range(50):  # others have their turns meanwhile
            await asyncio.sleep(0)
        return []

    async def why(self, subject: str, _destination: str) -> Any:
        raise NoSuchNetwork(f"{subject} is neither a network nor a running guest on one")

    def reload(self) -> None:
        pass

    def policy_text(self) -> tuple[str, str]:
        return "", "absent"

    async def set_policy(self, _text: str, _etag: str, _uid: int) -> str:
        raise Conflict("somebody was faster")

    def pause(self, seconds: float) -> None:
        self.paused.append(seconds)

    def resume(self) -> None:
        pass

    def history(self, _before: int, limit: int) -> Sequence[tuple[int, Record]]:
        assert 0 < limit <= 100
        return []

    async def host_policy(self) -> str:
        return ""

    def leases(self, _network: str) -> Any:
        return asyncio.sleep(0, [])

    def metrics(self) -> str:
        return ""


async def answered(service: Service) -> None:
    while service._limits._pending.total():  # noqa: ASYNC110 - each call is a task that only it knows
        await asyncio.sleep(0)


def test_arguments_of_all_kinds_get_an_answer_that_helps() -> None:
    random.seed(7)
    operations, bus = Operations(), Bus()
    service = Service(operations, lambda _topic, _texts: None)
    methods = [
        (interface.name, member, takes)
        for interface in contract.interfaces().values()
        for member, takes in interface.takes.items()
    ]
    paths = ("/org/vnetd1", "/org/vnetd1/network/lab", "/org/vnetd1/port/vnet0", "/", "/a/b")

    async def run() -> None:
        async with asyncio.TaskGroup() as service._tasks:
            announcing = service._tasks.create_task(service._tree.announce())
            service._bus = service._asking = bus  # type: ignore[assignment]
            service.publish(status({"lab": NETWORK}, {"vblab": BRIDGE}, {"vnet0": PORT}))
            await asyncio.sleep(0)
            for number in range(CALLS):
                interface, member, takes = random.choice(methods)
                signature = takes if random.random() < 0.8 else random_signature()
                body = [random_value(one) for one in complete_types(signature)]
                message = call(interface, member, signature, body, random.choice(paths))
                sender = f":1.{number}"  # each a stranger, so that few are refused for their number
                for frame in sysbus.call_frames().feed(from_the_bus(message, sender)):
                    service._on_call(frame)
                await answered(service)
                service._limits.forget()
            announcing.cancel()

    asyncio.run(run())
    seen: Counter[str] = Counter()
    for message in bus.answers:
        answer = sysbus.unmarshal(message)
        if answer.message_type is MessageType.SIGNAL:
            continue
        assert answer.destination
        seen[answer.error_name or "result"] += 1
        if answer.message_type is MessageType.ERROR:
            assert answer.error_name
            assert ERRORS.fullmatch(answer.error_name), (answer.error_name, answer.body)
            assert not PYTHON.search(answer.body[0]), answer.body
    assert sum(seen.values()) == CALLS
    assert seen["result"] > 40
    assert len(seen) > 8
    assert all(0 < seconds <= 31536000 for seconds in operations.paused)


def errors_of(
    uid: int, message: bytes, connections: int, asked: Any = None, *, calls: int = 1
) -> Counter[str]:
    """What so many connections of one user get for the same call, or for so many at once."""
    bus = Bus(uid)
    service = Service(Operations(), lambda _topic, _texts: None)

    async def run() -> None:
        async with asyncio.TaskGroup() as service._tasks:
            announcing = service._tasks.create_task(service._tree.announce())
            service._bus = service._asking = bus  # type: ignore[assignment]
            if asked is not None:
                service._authority._ask = asked
            service.publish(status({}))
            await asyncio.sleep(0)
            for number in range(connections):
                sent = from_the_bus(message, f":1.{number}") * calls
                for frame in sysbus.call_frames().feed(sent):
                    service._on_call(frame)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            if asked is None:
                await answered(service)
            for number in range(connections):
                service._authority.left(f":1.{number}")
            await answered(service)
            announcing.cancel()

    asyncio.run(run())
    read = map(sysbus.unmarshal, bus.answers)
    return Counter(
        answer.error_name or "result"
        for answer in read
        if answer.message_type is not MessageType.SIGNAL
    )


def test_new_connections_bring_no_new_budget() -> None:
    seen = errors_of(1000, call("org.freedesktop.DBus.Peer", "Ping"), 600)
    assert seen["result"] >= 290
    assert seen["org.vnetd1.Error.LimitsExceeded"] > 200


@pytest.mark.parametrize(("connections", "calls"), [(10, 1), (1, 10)])
def test_one_user_is_asked_for_few_passwords_at_a_time(connections: int, calls: int) -> None:
    async def asked(_to: str, _path: str, _interface: str, member: str, *_: Any, **__: Any) -> Any:
        if member == "CheckAuthorization":
            await asyncio.Event().wait()
        return []

    message = bytearray(call("org.vnetd1.Manager", "Resume"))
    message[2] |= frames.ALLOW_INTERACTIVE_AUTHORIZATION
    seen = errors_of(1000, bytes(message), connections, asked, calls=calls)
    assert seen == {
        "org.vnetd1.Error.NotAuthorized": PENDING_QUESTIONS,
        "org.vnetd1.Error.LimitsExceeded": 10 - PENDING_QUESTIONS,
    }


def test_of_policies_as_long_as_may_be_one_user_keeps_few_in_memory() -> None:
    async def asked(_to: str, _path: str, _interface: str, member: str, *_: Any, **__: Any) -> Any:
        if member == "CheckAuthorization":
            await asyncio.Event().wait()
        return []

    message = bytearray(call("org.vnetd1.Manager", "SetPolicy", "ss", ["#" * (1 << 20), "x"]))
    message[2] |= frames.ALLOW_INTERACTIVE_AUTHORIZATION
    seen = errors_of(1000, bytes(message), 20, asked)
    assert seen["org.vnetd1.Error.NotAuthorized"] <= PENDING_QUESTIONS
    assert seen["org.vnetd1.Error.LimitsExceeded"] >= 20 - PENDING_QUESTIONS


def test_root_waits_with_many_others_for_a_look_at_the_host() -> None:
    assert errors_of(0, call("org.vnetd1.Manager", "Plan"), 10) == {"result": 10}


def test_a_policy_that_is_longer_is_not_read() -> None:
    message = call("org.vnetd1.Manager", "SetPolicy", "ss", ["#" * (2 << 20), "x"])
    assert errors_of(0, message, 1) == {"org.vnetd1.Error.LimitsExceeded": 1}


def test_a_fault_of_its_own_is_told_without_its_words() -> None:
    class Faulty(Operations):
        def resume(self) -> None:
            raise KeyError("secret")

    bus = Bus()
    service = Service(Faulty(), lambda _topic, _texts: None)

    async def run() -> None:
        async with asyncio.TaskGroup() as service._tasks:
            announcing = service._tasks.create_task(service._tree.announce())
            service._bus = service._asking = bus  # type: ignore[assignment]
            service.publish(status({}))
            await asyncio.sleep(0)
            message = from_the_bus(call("org.vnetd1.Manager", "Resume"), ":1.5")
            for frame in sysbus.call_frames().feed(message):
                service._on_call(frame)
            await answered(service)
            announcing.cancel()

    asyncio.run(run())
    answer = sysbus.unmarshal(bus.answers[-1])
    assert answer.error_name == "org.vnetd1.Error.Internal"
    assert "secret" not in answer.body[0]
