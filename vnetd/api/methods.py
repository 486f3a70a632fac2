"""What each method of the contract does: thin, on the operations of the daemon."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from dbus_next.signature import Variant

from vnetd.api import calls, contract, names, objects
from vnetd.api.calls import Call, CallError
from vnetd.api.jobs import Jobs
from vnetd.api.names import DBUS_ERROR, ERROR
from vnetd.api.tree import Tree, marshal
from vnetd.core.actions import Action
from vnetd.core.model import Lease
from vnetd.core.record import Record
from vnetd.core.why import Answer

Body = list[Any] | bytes
"""A result's arguments, or the same marshalled."""
Handler = Callable[[Call], Awaitable[Body]]

_PAGE = 100
# A look at the whole host keeps a repair waiting meanwhile.
_LOOK_COST = 100.0
# So many times as long as the look before.
_REST = 4.0
_MOST_LOOKS = 4
_PAGE_COST = 5.0
_JOB_COST = 20.0


class Operations(Protocol):
    """What callers can ask for."""

    async def plan(self) -> Sequence[Action]: ...

    async def why(self, subject: str, destination: str) -> Answer:
        """Raises VnetdError."""

    async def host_policy(self) -> str:
        """Raises VnetdError."""

    async def leases(self, network: str) -> Sequence[Lease]:
        """Of it, or of all that run ("" for none in particular). Raises VnetdError."""

    def reload(self) -> None:
        """Raises PolicyError."""

    def policy_text(self) -> tuple[str, str]:
        """Of the main file, and its etag. Raises PolicyError."""

    async def set_policy(self, text: str, etag: str, uid: int) -> str:
        """In force when it returns the new etag. Raises PolicyError, Conflict or VnetdError."""

    def pause(self, seconds: float) -> None: ...

    def resume(self) -> None: ...

    def metrics(self) -> str: ...

    def history(self, before: int, limit: int) -> Sequence[tuple[int, Record]]:
        """The last records before that id, oldest first; 0: the newest. Raises VnetdError."""


class Methods:
    def __init__(
        self,
        operations: Operations,
        tree: Tree,
        jobs: Jobs,
        spawn: Callable[[Awaitable[None]], None],
    ) -> None:
        self._operations = operations
        self._tree = tree
        self._jobs = jobs
        self._spawn = spawn
        self._looking = asyncio.Semaphore(1)
        self._looks = 0
        self._rest_until = 0.0
        self.handlers: dict[tuple[str, str], Handler] = {
            (names.MANAGER, "Reconcile"): self._reconcile,
            (names.MANAGER, "Reload"): self._reload,
            (names.MANAGER, "GetPolicy"): self._get_policy,
            (names.MANAGER, "SetPolicy"): self._set_policy,
            (names.MANAGER, "Plan"): self._plan,
            (names.MANAGER, "Why"): self._why,
            (names.MANAGER, "GetNetwork"): self._get_network,
            (names.MANAGER, "Leases"): self._leases,
            (names.MANAGER, "HostPolicy"): self._host_policy,
            (names.MANAGER, "Pause"): self._pause,
            (names.MANAGER, "Resume"): self._resume,
            (names.MANAGER, "History"): self._history,
            (names.MANAGER, "HistoryPage"): self._history_page,
            (names.MANAGER, "Metrics"): self._metrics,
            (names.PROPERTIES, "Get"): self._get,
            (names.PROPERTIES, "GetAll"): self._get_all,
            (names.PROPERTIES, "Set"): self._set,
            (names.OBJECT_MANAGER, "GetManagedObjects"): self._managed_objects,
            (names.INTROSPECTABLE, "Introspect"): self._introspect,
            (names.PEER, "Ping"): self._ping,
            (names.PEER, "GetMachineId"): self._machine_id,
        }

    # -- org.vnetd1.Manager

    async def _reconcile(self, call: Call) -> Body:
        call.account.charge(_JOB_COST)
        path, work = self._jobs.reconcile()
        if work is not None:
            self._spawn(work)
        return [path]

    async def _reload(self, call: Call) -> Body:
        call.account.charge(_JOB_COST)
        self._operations.reload()
        return []

    async def _get_policy(self, call: Call) -> Body:
        call.account.charge(_PAGE_COST)
        return [*self._operations.policy_text()]

    async def _set_policy(self, call: Call) -> Body:
        call.account.charge(_JOB_COST)
        text, etag = call.arguments
        return [await self._operations.set_policy(text, etag, call.uid)]

    async def _plan(self, call: Call) -> Body:
        async with self._look(call):
            actions = await self._operations.plan()
        return await asyncio.to_thread(_marshal_plan, actions)

    async def _why(self, call: Call) -> Body:
        subject = calls.name(call.arguments[0], "a network or a guest")
        destination = calls.address(call.arguments[1])
        async with self._look(call):
            return [objects.answer(await self._operations.why(subject, destination))]

    @asynccontextmanager
    async def _look(self, call: Call) -> AsyncIterator[None]:
        """One at a time, so that a repair waits for one at most, and seldom for that: between those
        of others than root there is a rest. Root waits for them, but is not refused.
        """
        call.account.charge(_LOOK_COST)
        if self._looks >= _MOST_LOOKS and call.uid != 0:
            raise CallError(f"{ERROR}.Busy", "others look at the whole host just now; try again")
        self._looks += 1
        try:
            async with self._looking:
                if call.uid != 0:
                    await asyncio.sleep(self._rest_until - time.monotonic())
                began = time.monotonic()
                try:
                    yield
                finally:
                    ended = time.monotonic()
                    self._rest_until = ended + _REST * (ended - began)
        finally:
            self._looks -= 1

    async def _get_network(self, call: Call) -> Body:
        return [self._network_path(call.arguments[0])]

    def _network_path(self, network: str) -> str:
        path = names.network_path(calls.name(network, "a network"))
        if path not in self._tree:
            raise CallError(f"{ERROR}.NoSuchNetwork", f"there is no network {network}")
        return path

    async def _host_policy(self, call: Call) -> Body:
        async with self._look(call):
            return [await self._operations.host_policy()]

    async def _leases(self, call: Call) -> Body:
        call.account.charge(_PAGE_COST)
        (network,) = call.arguments
        if network:
            self._network_path(network)
        return [[objects.lease(item) for item in await self._operations.leases(network)]]

    async def _pause(self, call: Call) -> Body:
        (seconds,) = call.arguments
        if not 0 < seconds <= names.LONGEST_PAUSE:
            raise calls.invalid(f"a pause takes from 1 to {names.LONGEST_PAUSE} seconds")
        self._operations.pause(seconds)
        return []

    async def _resume(self, _call: Call) -> Body:
        self._operations.resume()
        return []

    async def _history(self, call: Call) -> Body:
        return await self._page(call, 0, _PAGE)

    async def _history_page(self, call: Call) -> Body:
        before, limit = call.arguments
        if limit == 0:
            raise calls.invalid(f"a page has from 1 to {_PAGE} records")
        return await self._page(call, before, min(limit, _PAGE))

    async def _page(self, call: Call, before: int, limit: int) -> Body:
        call.account.charge(_PAGE_COST)
        records = self._operations.history(before, limit)
        return await asyncio.to_thread(_marshal_records, records)

    async def _metrics(self, call: Call) -> Body:
        call.account.charge(_PAGE_COST)
        return [self._operations.metrics()]

    # -- org.freedesktop.DBus.*

    async def _get(self, call: Call) -> Body:
        interface, name = call.arguments
        return [self._property(call.head.path, interface, name)]

    async def _get_all(self, call: Call) -> Body:
        (interface,) = call.arguments
        known = ("", self._tree.interface(call.head.path))
        if interface not in known and interface not in contract.interfaces():
            what = f"{call.head.path} has no interface {calls.clip(interface)}"
            raise CallError(f"{DBUS_ERROR}.UnknownInterface", what)
        return [self._tree.properties(call.head.path) if interface in known else {}]

    async def _set(self, call: Call) -> Body:
        interface, name, _ = call.arguments
        self._property(call.head.path, interface, name)
        raise CallError(f"{DBUS_ERROR}.PropertyReadOnly", f"property {name} cannot be set")

    def _property(self, path: str, interface: str, name: str) -> Variant:
        properties = self._tree.properties(path)
        if interface in ("", self._tree.interface(path)) and name in properties:
            return properties[name]
        what = f"{path} has no property {calls.clip(name)}"
        raise CallError(f"{DBUS_ERROR}.UnknownProperty", what)

    async def _managed_objects(self, _call: Call) -> Body:
        return await self._tree.managed()

    async def _introspect(self, call: Call) -> Body:
        return [self._tree.introspect(call.head.path)]

    async def _ping(self, _call: Call) -> Body:
        return []

    async def _machine_id(self, _call: Call) -> Body:
        return [_machine_id()]


def _machine_id() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip()
    except OSError as error:
        raise CallError(f"{DBUS_ERROR}.Failed", "this machine has no machine id") from error


def _marshal_plan(actions: Sequence[Action]) -> bytes:
    return marshal("aa{sv}", [[objects.action(action) for action in actions]])


def _marshal_records(records: Sequence[tuple[int, Record]]) -> bytes:
    return marshal("aa{sv}", [[objects.record(number, record) for number, record in records]])
