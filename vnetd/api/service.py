"""org.vnetd1 on the system bus: the connection, calls and their answers, signals.

dbus-next's own service classes are not used: they send tracebacks to callers, cannot tell who
calls, and announce objects from the wrong path. Nor are its messages for calls: see frames.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol

from dbus_next.constants import MessageType, RequestNameReply
from dbus_next.message import Message

from vnetd.api import contract, names, objects
from vnetd.api.authority import Authority
from vnetd.api.calls import Call, CallError, clip
from vnetd.api.jobs import Jobs
from vnetd.api.limits import ANSWER_BYTES, Account, Limits
from vnetd.api.methods import Body, Methods
from vnetd.api.methods import Operations as MethodOperations
from vnetd.api.names import DBUS_ERROR, ERROR
from vnetd.api.tree import Tree, marshal
from vnetd.bus import frames, sysbus
from vnetd.bus.frames import Frame, Head
from vnetd.core.model import Cause
from vnetd.core.record import Outcome, Record
from vnetd.core.status import Status
from vnetd.errors import Conflict, NoSuchNetwork, PolicyError, Problem, VnetdError
from vnetd.reconcile import Progress

log = logging.getLogger(__name__)

_RECONNECT_SECONDS = 1.0
# While the bus takes no more, refusals go unsaid, and large answers are refused.
_MOST_QUEUED_REFUSALS, _MOST_QUEUED_ANSWERS = 1 << 20, 16 << 20
# So many bytes of arguments cost as much to read as a call.
_ARGUMENT_BYTES = 256
_TOO_MANY = "too many calls; try again in a second"
_MEMBERS = {
    Outcome.REPAIRED: "Repaired",
    Outcome.FAILED: "RepairFailed",
    Outcome.CONFLICT: "Conflict",
}


class Operations(MethodOperations, Protocol):
    async def reconcile(self, progress: Progress) -> Status: ...


class Service:
    """A Publisher, for as long as there is a bus; what happens without one is published later."""

    def __init__(self, operations: Operations, trouble: Callable[[str, Sequence[str]], None]):
        self._trouble = trouble
        self._bus: sysbus.Bus | None = None
        self._asking: sysbus.Bus | None = None
        """vnetd's own calls go by another connection: no answer waits behind a flood of callers."""
        self._tasks: asyncio.TaskGroup | None = None
        self._limits = Limits(time.monotonic)
        self._authority = Authority(self._ask)
        self._tree = Tree(self._emit)
        jobs = Jobs(self._tree, self._emit, operations.reconcile)
        self._handlers = Methods(operations, self._tree, jobs, self._spawn).handlers
        self._by_member: dict[str, list[str]] = {}
        for interface, member in self._handlers:
            self._by_member.setdefault(member, []).append(interface)

    async def serve(self) -> None:
        """Stay on the bus, and come back when it does. Until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            self._tasks.create_task(self._tree.announce())
            await self._tree.has_objects.wait()  # before callers find the name
            while True:
                try:
                    await self._serve()
                except (sysbus.BusError, sysbus.RemoteError, OSError, EOFError) as error:
                    why = str(error) or "the connection to the system bus is lost"
                    self._trouble("bus", [why])
                finally:
                    self._bus = self._asking = None
                await asyncio.sleep(_RECONNECT_SECONDS)

    # -- Publisher

    def publish(self, status: Status) -> None:
        self._tree.publish(status)

    def drift_detected(self, object_: str, drift: Sequence[str], cause: Cause | None) -> None:
        self._tell("DriftDetected", [object_, list(drift), objects.cause(cause)])

    def recorded(self, number: int, record: Record) -> None:
        """number: its id in the history."""
        self._tell(_MEMBERS[record.outcome], [record.object, objects.record(number, record)])

    def policy_loaded(self, files: Sequence[str], networks: int) -> None:
        self._tell("PolicyLoaded", [list(files), networks])

    def policy_rejected(self, problems: Sequence[Problem]) -> None:
        self._tell("PolicyRejected", [[objects.problem(problem) for problem in problems]])

    def _tell(self, member: str, body: list[Any]) -> None:
        signature = contract.interfaces()[names.MANAGER].signals[member]
        tell = partial(self._emit, names.ROOT, names.MANAGER, member, signature)
        self._tree.after_that(lambda: tell(marshal(signature, body)))

    # -- connection

    async def _serve(self) -> None:
        async with sysbus.connected(self._on_call) as bus, sysbus.connected(_unheard) as asking:
            bus.add_message_handler(self._on_signal)
            asking.add_message_handler(self._on_signal)
            self._limits.forget()
            self._bus, self._asking = bus, asking
            try:
                (reply,) = await sysbus.call_bus(bus, "RequestName", "su", [names.BUS_NAME, 0])
            except sysbus.RemoteError as error:
                # The bus's own words hold a number that is another one at each try.
                refused = f"the bus refuses the name {names.BUS_NAME}: {error.name}"
                raise sysbus.BusError(f"{refused}; is its policy installed and loaded?") from error
            taken = reply == RequestNameReply.IN_QUEUE.value
            wrong = f"the name {names.BUS_NAME} belongs to another process"
            self._trouble("bus", [wrong] if taken else [])
            await sysbus.first_lost(bus, asking)

    def _on_signal(self, message: Message) -> bool:
        """Of the bus itself: the connections hear no others."""
        if message.message_type is MessageType.SIGNAL:
            if message.member == "NameAcquired" and message.body == [names.BUS_NAME]:
                self._trouble("bus", [])
            if message.member == "NameOwnerChanged" and message.body[2] == "":
                self._authority.left(message.body[0])
        return False

    def _emit(self, path: str, interface: str, member: str, signature: str, body: bytes) -> None:
        if self._bus is not None and self._bus.connected:
            serial = self._bus.next_serial()
            self._bus.write(frames.signal(serial, path, interface, member, signature, body))

    async def _ask(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str,
        body: Sequence[object],
        *,
        seconds: float,
    ) -> list[Any]:
        if self._asking is None:
            raise sysbus.BusError("the connection to the system bus is lost")
        return await sysbus.call(
            self._asking, destination, path, interface, member, signature, body, seconds=seconds
        )

    def _spawn(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            await work

        if self._tasks is not None:
            self._tasks.create_task(run())

    # -- calls

    def _on_call(self, frame: Frame) -> None:
        """Refuse at once, before anything costs, or answer in a task."""
        if not frame.sender or self._bus is None:
            return  # not through the bus, or behind its end
        account = self._limits.admit(frame.sender)
        if account is None:
            self._refuse(frame, f"{ERROR}.LimitsExceeded", _TOO_MANY)
            return
        head = frame.head()
        if head is None or head.sender != frame.sender:
            self._limits.done(account)
            return
        try:
            interface = self._interface(head)
            self._spawn(self._answer(head, frame.message, interface, account))
        except CallError as error:
            self._limits.done(account)
            self._refuse(head, error.name, str(error))

    def _interface(self, head: Head) -> str:
        """The one that is called. Raises CallError where the contract has no such call."""
        path, member = clip(head.path), head.member
        is_object = head.path in self._tree
        if not is_object and not self._tree.is_above(head.path):
            raise CallError(f"{DBUS_ERROR}.UnknownObject", f"{path} is no object of vnetd")
        found = [
            interface
            for interface in self._by_member.get(member, ())
            if head.interface in (interface, "") and self._has(head.path, interface)
        ]
        if not found:
            what = f"{head.interface or '*'}.{member}"
            raise CallError(f"{DBUS_ERROR}.UnknownMethod", f"{path} has no method {what}")
        takes = contract.interfaces()[found[0]].takes[member]
        if head.signature != takes:
            wrong = f"{member} takes ({takes}), not ({clip(head.signature)})"
            raise CallError(f"{DBUS_ERROR}.InvalidArgs", wrong)
        longest = sysbus.LONGEST_CALLS.get(member, sysbus.LONGEST_CALL)
        if head.body > longest:
            wrong = f"the arguments have more than {longest} bytes"
            raise CallError(f"{ERROR}.LimitsExceeded", wrong)
        return found[0]

    def _has(self, path: str, interface: str) -> bool:
        if interface in (names.INTROSPECTABLE, names.PEER):
            return True
        if interface == names.OBJECT_MANAGER:
            return path == names.ROOT
        if interface == names.PROPERTIES:
            return path in self._tree
        return path in self._tree and self._tree.interface(path) == interface

    async def _answer(self, head: Head, message: bytes, interface: str, account: Account) -> None:
        try:
            if not account.is_known:
                # Whoever connects anew for each call has no more of them for it.
                own = await self._introduce(head.sender)
                self._limits.done(account)
                account = own
            body = await self._run(head, message, interface, account)
            self._reply(head, contract.interfaces()[interface].gives[head.member], body, account)
        except CallError as error:
            self._refuse(head, error.name, str(error))
        except PolicyError as error:
            self._refuse(head, f"{ERROR}.PolicyError", str(error))
        except NoSuchNetwork as error:
            self._refuse(head, f"{ERROR}.NoSuchNetwork", str(error))
        except Conflict as error:
            self._refuse(head, f"{ERROR}.Conflict", str(error))
        except VnetdError as error:
            self._refuse(head, f"{ERROR}.Failed", str(error))
        except asyncio.CancelledError:
            self._refuse(head, f"{ERROR}.Failed", "vnetd is stopping")
            raise
        except Exception:
            # A fault of vnetd's own: the log gets it, the caller no Python text.
            log.exception("call %s.%s", interface, head.member)
            text = "vnetd met an internal error; its log says more"
            self._refuse(head, f"{ERROR}.Internal", text)
        finally:
            self._limits.done(account)

    async def _run(self, head: Head, message: bytes, interface: str, account: Account) -> Body:
        assert account.uid is not None, "callers are introduced first"
        arguments = []
        if head.signature:
            usual = min(len(message), sysbus.LONGEST_CALL)
            account.charge(usual / _ARGUMENT_BYTES + len(message) / ANSWER_BYTES)
            arguments = sysbus.unmarshal(message).body
        call = Call(head, arguments, account.uid, account)
        await self._authority.require(call, contract.interfaces()[interface].actions[head.member])
        self._interface(head)  # it may have gone meanwhile
        return await self._handlers[interface, head.member](call)

    async def _introduce(self, sender: str) -> Account:
        """Whose connection it is. The bus is asked: what a caller says of itself is no proof."""
        if self._limits.user(sender) is None:
            uid = await self._asking.user(sender) if self._asking is not None else None
            if uid is None:
                raise CallError(f"{ERROR}.NotAuthorized", "the bus does not know the caller")
            self._limits.learn(sender, uid)
        account = self._limits.admit(sender)
        if account is None:
            raise CallError(f"{ERROR}.LimitsExceeded", _TOO_MANY)
        return account

    def _reply(self, head: Head, signature: str, body: Body, account: Account) -> None:
        if not head.wants_reply or self._bus is None or not self._bus.connected:
            return
        if isinstance(body, list):
            body = marshal(signature, body)
        account.charge(len(body) / ANSWER_BYTES)
        if self._bus.queued > _MOST_QUEUED_ANSWERS:
            self._refuse(head, f"{ERROR}.Busy", "the bus takes answers too slowly; try again")
            return
        self._bus.write(frames.method_return(self._bus.next_serial(), head, signature, body))

    def _refuse(self, head: Head | Frame, name: str, text: str) -> None:
        if not head.wants_reply or self._bus is None or not self._bus.connected:
            return
        if self._bus.queued < _MOST_QUEUED_REFUSALS:
            self._bus.write(frames.error(self._bus.next_serial(), head, name, text))


def _unheard(frame: Frame) -> None:
    """Only org.vnetd1 is to be called, and not the connection that asks."""
