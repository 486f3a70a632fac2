"""org.vnetd1 on the system bus: methods, properties and signals over dbus-next's message layer.

dbus-next's own service classes are not used: they send tracebacks to callers, cannot tell who
calls, and announce objects from the wrong path.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from dbus_next import introspection as i
from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import MessageType, RequestNameReply
from dbus_next.message import Message
from dbus_next.signature import Variant

from vnetd import sysbus
from vnetd.api import names, objects
from vnetd.core.actions import Action
from vnetd.core.model import Cause
from vnetd.core.record import Outcome, Record
from vnetd.core.status import Status
from vnetd.core.why import Answer
from vnetd.errors import PolicyError, VnetdError

log = logging.getLogger(__name__)

_ERROR = "org.vnetd1.Error"
_DBUS_ERROR = "org.freedesktop.DBus.Error"
_RECONNECT_SECONDS = 1.0


class Operations(Protocol):
    """What callers can ask for."""

    async def reconcile(self) -> Status: ...

    async def plan(self) -> Sequence[Action]: ...

    async def why(self, subject: str, destination: str) -> Answer:
        """Raises VnetdError."""

    def reload(self) -> None:
        """Raises PolicyError."""

    def pause(self, seconds: float) -> None: ...

    def resume(self) -> None: ...

    def history(self) -> Sequence[Record]:
        """Raises VnetdError."""


class CallError(Exception):
    """Answered to the caller. name: the error's full name."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


_Handler = Callable[[Message], Awaitable[list[Any]]]


class Service:
    """A Publisher, for as long as there is a bus; what happens without one is published later."""

    def __init__(self, operations: Operations, trouble: Callable[[str, Sequence[str]], None]):
        self._operations = operations
        self._trouble = trouble
        self._bus: MessageBus | None = None
        self._status: Status | None = None
        self._objects: objects.Objects = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._handlers: dict[tuple[str, str], tuple[str, _Handler]] = {
            (names.MANAGER, "Reconcile"): ("", self._reconcile),
            (names.MANAGER, "Reload"): ("", self._reload),
            (names.MANAGER, "Plan"): ("", self._plan),
            (names.MANAGER, "Why"): ("ss", self._why),
            (names.MANAGER, "Pause"): ("u", self._pause),
            (names.MANAGER, "Resume"): ("", self._resume),
            (names.MANAGER, "History"): ("", self._history),
            (names.PROPERTIES, "Get"): ("ss", self._get),
            (names.PROPERTIES, "GetAll"): ("s", self._get_all),
            (names.PROPERTIES, "Set"): ("ssv", self._set),
            (names.OBJECT_MANAGER, "GetManagedObjects"): ("", self._managed_objects),
            (names.INTROSPECTABLE, "Introspect"): ("", self._introspect),
            (names.PEER, "Ping"): ("", self._ping),
            (names.PEER, "GetMachineId"): ("", self._machine_id),
        }

    async def serve(self) -> None:
        """Stay on the bus, and come back when it does. Until cancelled."""
        while True:
            try:
                await self._serve()
            except (sysbus.BusError, sysbus.RemoteError, OSError, EOFError) as error:
                self._trouble("bus", [str(error) or "the connection to the system bus is lost"])
            finally:
                self._bus = None
            await asyncio.sleep(_RECONNECT_SECONDS)

    # -- Publisher

    def publish(self, status: Status) -> None:
        if status == self._status:
            return
        self._status = status
        old, self._objects = self._objects, objects.objects(status)
        for path in old.keys() - self._objects.keys():
            self._emit(
                names.ROOT,
                names.OBJECT_MANAGER,
                "InterfacesRemoved",
                "oas",
                [path, list(old[path])],
            )
        for path, interfaces in self._objects.items():
            if path not in old:
                self._emit(
                    names.ROOT,
                    names.OBJECT_MANAGER,
                    "InterfacesAdded",
                    "oa{sa{sv}}",
                    [path, interfaces],
                )
                continue
            for interface, properties in interfaces.items():
                if news := objects.changed(old[path][interface], properties):
                    body = [interface, news, []]
                    self._emit(path, names.PROPERTIES, "PropertiesChanged", "sa{sv}as", body)

    def drift_detected(self, object_: str, drift: Sequence[str], cause: Cause | None) -> None:
        body = [object_, list(drift), objects.cause(cause)]
        self._emit(names.ROOT, names.MANAGER, "DriftDetected", "sasa{sv}", body)

    def recorded(self, record: Record) -> None:
        member = {Outcome.REPAIRED: "Repaired", Outcome.FAILED: "RepairFailed"}.get(record.outcome)
        if member is not None:
            body = [record.object, objects.record(record)]
            self._emit(names.ROOT, names.MANAGER, member, "sa{sv}", body)

    # -- connection

    async def _serve(self) -> None:
        bus = await sysbus.connect()
        bus.add_message_handler(self._on_message)
        self._bus = bus
        try:
            try:
                (reply,) = await sysbus.call_bus(bus, "RequestName", "su", [names.BUS_NAME, 0])
            except sysbus.RemoteError as error:
                # The bus's own words hold a number that is another one at each try.
                refused = f"the bus refuses the name {names.BUS_NAME}: {error.name}"
                raise sysbus.BusError(f"{refused}; is its policy installed and loaded?") from error
            taken = reply == RequestNameReply.IN_QUEUE.value
            wrong = f"the name {names.BUS_NAME} belongs to another process"
            self._trouble("bus", [wrong] if taken else [])
            await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
        finally:
            bus.disconnect()  # type: ignore[no-untyped-call]

    def _emit(
        self, path: str, interface: str, member: str, signature: str, body: list[Any]
    ) -> None:
        if self._bus is not None and self._bus.connected:
            self._send(Message.new_signal(path, interface, member, signature, body))

    def _send(self, message: Message) -> None:
        if self._bus is not None and self._bus.connected:
            sent = self._bus.send(message)
            # Lost with the connection, which _serve notices by itself.
            sent.add_done_callback(lambda done: done.cancelled() or done.exception())

    # -- calls

    def _on_message(self, message: Message) -> bool:
        if message.message_type is MessageType.SIGNAL and message.member == "NameAcquired":
            if message.body == [names.BUS_NAME]:
                self._trouble("bus", [])
            return False
        if message.message_type is not MessageType.METHOD_CALL:
            return False
        call = asyncio.ensure_future(self._answer(message))
        self._calls.add(call)  # the loop itself holds tasks by weak references only
        call.add_done_callback(self._calls.discard)
        return True

    async def _answer(self, message: Message) -> None:
        try:
            signature, body = await self._call(message)
            reply = Message.new_method_return(message, signature, body)
        except CallError as error:
            reply = Message.new_error(message, error.name, str(error))
        except VnetdError as error:
            reply = Message.new_error(message, f"{_ERROR}.Failed", str(error))
        except asyncio.CancelledError:
            self._send(Message.new_error(message, f"{_ERROR}.Failed", "vnetd is stopping"))
            raise
        except Exception:
            # A fault of vnetd's own: the log gets it, the caller no Python text.
            log.exception("call %s.%s", message.interface, message.member)
            text = "vnetd met an internal error; its log says more"
            reply = Message.new_error(message, f"{_ERROR}.Internal", text)
        self._send(reply)

    async def _call(self, message: Message) -> tuple[str, list[Any]]:
        found = [
            (interface, member)
            for interface, member in self._handlers
            if member == message.member and message.interface in (interface, None, "")
        ]
        if not found or not self._has(message.path, found[0][0]):
            what = f"{message.interface or '*'}.{message.member}"
            raise CallError(f"{_DBUS_ERROR}.UnknownMethod", f"{message.path} has no method {what}")
        signature, handler = self._handlers[found[0]]
        if message.signature != signature:
            wrong = f"{message.member} takes ({signature}), not ({message.signature})"
            raise CallError(f"{_DBUS_ERROR}.InvalidArgs", wrong)
        method = next(m for m in _interface(found[0][0]).methods if m.name == message.member)
        return method.out_signature, await handler(message)

    def _has(self, path: str, interface: str) -> bool:
        if interface in (names.INTROSPECTABLE, names.PEER):
            return path in self._objects or path in _parents(self._objects)
        if interface == names.OBJECT_MANAGER:
            return path == names.ROOT
        if interface == names.PROPERTIES:
            return path in self._objects
        return interface in self._objects.get(path, {})

    async def _only_root(self, message: Message) -> None:
        """Raises CallError. The bus itself is asked: what a caller says of itself is no proof."""
        assert self._bus is not None, "a call came over the bus"
        try:
            asking = ("GetConnectionUnixUser", "s", [message.sender])
            (uid,) = await sysbus.call_bus(self._bus, *asking)
        except (sysbus.RemoteError, sysbus.BusError) as error:
            raise CallError(f"{_ERROR}.NotAuthorized", f"the caller is unknown: {error}") from error
        if uid != 0:
            text = f"{message.member} changes networks: only root may call it"
            raise CallError(f"{_ERROR}.NotAuthorized", text)

    async def _reconcile(self, message: Message) -> list[Any]:
        await self._only_root(message)
        return [(await self._operations.reconcile()).state.value]

    async def _reload(self, message: Message) -> list[Any]:
        await self._only_root(message)
        try:
            self._operations.reload()
        except PolicyError as error:
            raise CallError(f"{_ERROR}.PolicyInvalid", str(error)) from error
        return []

    async def _plan(self, _message: Message) -> list[Any]:
        return [[objects.action(action) for action in await self._operations.plan()]]

    async def _why(self, message: Message) -> list[Any]:
        subject, destination = message.body
        return [objects.answer(await self._operations.why(subject, destination))]

    async def _pause(self, message: Message) -> list[Any]:
        await self._only_root(message)
        self._operations.pause(message.body[0])
        return []

    async def _resume(self, message: Message) -> list[Any]:
        await self._only_root(message)
        self._operations.resume()
        return []

    async def _history(self, _message: Message) -> list[Any]:
        return [[objects.record(record) for record in self._operations.history()]]

    async def _get(self, message: Message) -> list[Any]:
        interface, name = message.body
        return [self._property(message.path, interface, name)]

    async def _get_all(self, message: Message) -> list[Any]:
        (interface,) = message.body
        interfaces = self._objects[message.path]
        if interface and interface not in interfaces:
            wrong = f"{message.path} has no interface {interface}"
            raise CallError(f"{_DBUS_ERROR}.UnknownInterface", wrong)
        wanted = [interface] if interface else list(interfaces)
        return [{name: value for key in wanted for name, value in interfaces[key].items()}]

    async def _set(self, message: Message) -> list[Any]:
        interface, name, _ = message.body
        self._property(message.path, interface, name)
        raise CallError(f"{_DBUS_ERROR}.PropertyReadOnly", f"property {name} cannot be set")

    def _property(self, path: str, interface: str, name: str) -> Variant:
        for key, properties in self._objects[path].items():
            if interface in (key, "") and name in properties:
                return properties[name]
        raise CallError(f"{_DBUS_ERROR}.UnknownProperty", f"{path} has no property {name}")

    async def _managed_objects(self, _message: Message) -> list[Any]:
        return [{path: known for path, known in self._objects.items() if path != names.ROOT}]

    async def _introspect(self, message: Message) -> list[Any]:
        interfaces = list(names.STANDARD_INTERFACES)
        if message.path == names.ROOT:
            interfaces.append(names.OBJECT_MANAGER_INTERFACE)
        interfaces += [_interface(name) for name in self._objects.get(message.path, {})]
        node = i.Node(message.path, interfaces)
        prefix = message.path.rstrip("/") + "/"
        below = {
            path.removeprefix(prefix).partition("/")[0]
            for path in self._objects
            if path.startswith(prefix)
        }
        node.nodes = [i.Node(name, is_root=False) for name in sorted(below)]
        return [node.tostring()]

    async def _ping(self, _message: Message) -> list[Any]:
        return []

    async def _machine_id(self, _message: Message) -> list[Any]:
        return [_machine_id()]


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip()
    except OSError as error:
        raise CallError(f"{_DBUS_ERROR}.Failed", "this machine has no machine id") from error


def _interface(name: str) -> i.Interface:
    known = (
        names.MANAGER_INTERFACE,
        names.NETWORK_INTERFACE,
        names.OBJECT_MANAGER_INTERFACE,
        *names.STANDARD_INTERFACES,
    )
    return next(interface for interface in known if interface.name == name)


def _parents(known: objects.Objects) -> set[str]:
    """Paths that are no objects themselves but lead to some: clients walk down from "/"."""
    found = {"/"}
    for path in known:
        parts = path.strip("/").split("/")
        found |= {"/" + "/".join(parts[:length]) for length in range(1, len(parts))}
    return found
