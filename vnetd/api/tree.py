"""The objects on the bus. What is announced is what is read: both change in one step.

A host with thousands of guests has thousands of objects; they are compared, marshalled and
announced in slices between which all else goes on, and each is marshalled once until it changes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from dbus_next._private.marshaller import Marshaller
from dbus_next.signature import Variant

from vnetd.api import contract, names, objects
from vnetd.api.objects import Fact, Properties
from vnetd.bus import frames
from vnetd.core.status import Status

_SLICE_SECONDS = 0.004


class Emit(Protocol):
    def __call__(
        self, path: str, interface: str, member: str, signature: str, body: bytes
    ) -> None: ...


@dataclass(slots=True)
class Node:
    """One object. entry: itself as an element of GetManagedObjects, once it is asked for."""

    path: str
    fact: Fact
    properties: Properties
    entry: bytes | None = None

    @property
    def interface(self) -> str:
        return objects.interface(self.fact)

    def marshalled(self) -> bytes:
        """As arguments (o, a{sa{sv}}), and as a dict entry alike."""
        if self.entry is None:
            self.entry = marshal("oa{sa{sv}}", [self.path, {self.interface: self.properties}])
        return self.entry


def marshal(signature: str, body: list[Any]) -> bytes:
    return bytes(Marshaller(signature, body).marshall())


class Tree:
    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._nodes: dict[str, Node] = {}
        self._below: dict[str, set[str]] = {}
        self._introspected: dict[str, str] = {}
        self._news: deque[Status | Callable[[], None]] = deque()
        self._told = asyncio.Event()
        self.has_objects = asyncio.Event()

    # -- to write

    def publish(self, status: Status) -> None:
        """Announced by and by; of several in a row only the last is."""
        if self._news and isinstance(self._news[-1], Status):
            self._news.pop()
        self._news.append(status)
        self._told.set()

    def after_that(self, tell: Callable[[], None]) -> None:
        """When all that was published before is announced."""
        self._news.append(tell)
        self._told.set()

    async def announce(self) -> None:
        """Until cancelled."""
        while True:
            await self._told.wait()
            self._told.clear()
            while self._news:
                item = self._news.popleft()
                if isinstance(item, Status):
                    await self._update(item)
                else:
                    item()

    async def _update(self, status: Status) -> None:
        gone = {path for path, node in self._nodes.items() if node.interface != names.JOB}
        pause = _Slices()
        for path, fact in objects.facts(status):
            gone.discard(path)
            self.put(path, fact)
            await pause.between()
        for path in gone:
            self.remove(path)
            await pause.between()
        self.has_objects.set()

    def put(self, path: str, fact: Fact) -> None:
        old = self._nodes.get(path)
        if old is not None and old.fact == fact:
            return
        node = Node(path, fact, objects.properties(fact))
        self._nodes[path] = node
        if old is None:
            self._grow(path)
            if path != names.ROOT:
                self._root_says("InterfacesAdded", "oa{sa{sv}}", node.marshalled())
            return
        changed = {
            name: value
            for name, value in node.properties.items()
            if old.properties[name].value != value.value
        }
        body = marshal("sa{sv}as", [node.interface, changed, []])
        self._emit(path, names.PROPERTIES, "PropertiesChanged", "sa{sv}as", body)

    def remove(self, path: str) -> None:
        node = self._nodes.pop(path)
        self._shrink(path)
        self._root_says("InterfacesRemoved", "oas", marshal("oas", [path, [node.interface]]))

    def _root_says(self, member: str, signature: str, body: bytes) -> None:
        self._emit(names.ROOT, names.OBJECT_MANAGER, member, signature, body)

    # -- to read

    def __contains__(self, path: str) -> bool:
        return path in self._nodes

    def is_above(self, path: str) -> bool:
        """No object itself, but it leads to some: clients walk down from "/"."""
        return path in self._below

    def interface(self, path: str) -> str:
        return self._nodes[path].interface

    def properties(self, path: str) -> dict[str, Variant]:
        return self._nodes[path].properties

    async def managed(self) -> bytes:
        """The body of GetManagedObjects' answer."""
        pause = _Slices()
        while missing := [n for n in self._managed() if n.entry is None]:
            for node in missing:
                node.marshalled()
                await pause.between()
        # In one step with the answer: no change may be announced in between.
        return frames.array([node.marshalled() for node in self._managed()])

    def _managed(self) -> Iterator[Node]:
        return (node for path, node in self._nodes.items() if path != names.ROOT)

    def introspect(self, path: str) -> str:
        if path not in self._introspected:
            found = [names.PROPERTIES, names.INTROSPECTABLE, names.PEER]
            if path == names.ROOT:
                found.append(names.OBJECT_MANAGER)
            if path in self._nodes:
                found.append(self._nodes[path].interface)
            else:
                found.remove(names.PROPERTIES)
            children = tuple(sorted(self._below.get(path, ())))
            self._introspected[path] = contract.introspection(tuple(found), children)
        return self._introspected[path]

    def _grow(self, path: str) -> None:
        self._introspected.pop(path, None)
        while path != "/":
            above, _, name = path.rpartition("/")
            above = above or "/"
            self._introspected.pop(above, None)
            known = name in self._below.setdefault(above, set())
            self._below[above].add(name)
            if known:
                return
            path = above

    def _shrink(self, path: str) -> None:
        self._introspected.pop(path, None)
        while path != "/" and path not in self._nodes and path not in self._below:
            above, _, name = path.rpartition("/")
            above = above or "/"
            self._introspected.pop(above, None)
            self._below[above].discard(name)
            if self._below[above]:
                return
            del self._below[above]
            path = above


class _Slices:
    """Lets all else have a turn when a slice of time is used up."""

    def __init__(self) -> None:
        self._until = time.monotonic() + _SLICE_SECONDS

    async def between(self) -> None:
        if time.monotonic() > self._until:
            await asyncio.sleep(0)
            self._until = time.monotonic() + _SLICE_SECONDS
