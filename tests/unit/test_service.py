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

from dbus_next.constants import MessageType

from tests.lab.hostile import call, complete_types, random_signature, random_value
from tests.unit.test_frames import from_the_bus
from tests.unit.test_tree import BRIDGE, NETWORK, PORT, status
from vnetd import frames, sysbus
from vnetd.api import contract
from vnetd.api.service import Service
from vnetd.core.record import Record
from vnetd.errors import NoSuchNetwork

CALLS = 20_000
ERRORS = re.compile(
    r"org\.vnetd1\.Error\.(NoSuchNetwork|InvalidArgument|LimitsExceeded|Busy)"
    r"|org\.freedesktop\.DBus\.Error\."
    r"(UnknownObject|UnknownMethod|InvalidArgs|UnknownInterface|UnknownProperty|PropertyReadOnly)"
)
PYTHON = re.compile(r"Traceback|Error\(|object at 0x|'NoneType'|\bself\b|\.py\b")


class Bus:
    """In place of a connection: what is written to it is read again."""

    connected = True
    queued = 0

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.serial = 0

    def next_serial(self) -> int:
        self.serial += 1
        return self.serial

    def write(self, message: bytes) -> None:
        self.answers.append(message)

    async def user(self, _name: str) -> int:
        return 0


class Operations:
    """As root may ask for everything, all of it is asked for; it notes with what."""

    def __init__(self) -> None:
        self.paused: list[float] = []

    async def reconcile(self, progress: Any) -> Any:
        progress(0, 0, "")
        return status({})

    async def plan(self) -> Sequence[Any]:
        return []

    async def why(self, subject: str, _destination: str) -> Any:
        raise NoSuchNetwork(f"{subject} is neither a network nor a running guest on one")

    def reload(self) -> None:
        pass

    def pause(self, seconds: float) -> None:
        self.paused.append(seconds)

    def resume(self) -> None:
        pass

    def history(self, _before: int, limit: int) -> Sequence[tuple[int, Record]]:
        assert 0 < limit <= 100
        return []

    def leases(self, _network: str) -> Any:
        return asyncio.sleep(0, [])

    def metrics(self) -> str:
        return ""


async def answered(service: Service) -> None:
    while service._limits._pending:  # noqa: ASYNC110 - each call is a task that only it knows
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
            service._bus = bus  # type: ignore[assignment]
            service.publish(status({"lab": NETWORK}, {"vblab": BRIDGE}, {"vnet0": PORT}))
            await asyncio.sleep(0)
            for number in range(CALLS):
                interface, member, takes = random.choice(methods)
                signature = takes if random.random() < 0.8 else random_signature()
                body = [random_value(one) for one in complete_types(signature)]
                message = call(interface, member, signature, body, random.choice(paths))
                sender = f":1.{number}"  # each a stranger, so that few are refused for their number
                for frame in frames.Frames(sysbus.LONGEST_CALL).feed(from_the_bus(message, sender)):
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
    assert seen["result"] > 100
    assert len(seen) > 8
    assert all(0 < seconds <= 31536000 for seconds in operations.paused)


def test_a_fault_of_its_own_is_told_without_its_words() -> None:
    class Faulty(Operations):
        def resume(self) -> None:
            raise KeyError("secret")

    bus = Bus()
    service = Service(Faulty(), lambda _topic, _texts: None)

    async def run() -> None:
        async with asyncio.TaskGroup() as service._tasks:
            announcing = service._tasks.create_task(service._tree.announce())
            service._bus = bus  # type: ignore[assignment]
            service.publish(status({}))
            await asyncio.sleep(0)
            message = from_the_bus(call("org.vnetd1.Manager", "Resume"), ":1.5")
            for frame in frames.Frames(sysbus.LONGEST_CALL).feed(message):
                service._on_call(frame)
            await answered(service)
            announcing.cancel()

    asyncio.run(run())
    answer = sysbus.unmarshal(bus.answers[-1])
    assert answer.error_name == "org.vnetd1.Error.Internal"
    assert "secret" not in answer.body[0]
