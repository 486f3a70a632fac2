"""libvirt: the connection, its events, networks and the taps of running domains.

libvirt's calls block, so each runs in a thread of its own; nothing of libvirt leaves this file and
libvirt_calls.py but values of the model. Its events only say where to look.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import libvirt

from vnetd.backends import files, process
from vnetd.backends import libvirt_calls as calls
from vnetd.backends.base import Poke
from vnetd.core.actions import Action
from vnetd.core.keep.dnsmasq import StartDnsmasq
from vnetd.core.keep.networks import (
    DefineNetwork,
    RemoveNetwork,
    RestartNetwork,
    SetAutostart,
    StartNetwork,
    UpdateDhcp,
)
from vnetd.core.keep.taps import RecordPort
from vnetd.core.model import (
    Cause,
    Observed,
    Source,
)
from vnetd.errors import BackendError, NotConnected

log = logging.getLogger(__name__)

_T = TypeVar("_T")

# The daemon itself asks every 5 s by default; this one speaks up only where that one is silent.
_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT = 6, 2
# A call waits while libvirt starts another network, and for 10 s while DNS is dead.
_CALL_SECONDS = 25.0
_LONGEST_WAIT = 2.0
# network_conf/virnetworkobj: what changes without an event (net-update, net-autostart, SIGHUP).
DIRECTORIES = tuple(
    Path(path)
    for path in (
        "/etc/libvirt/qemu/networks",
        "/etc/libvirt/qemu/networks/autostart",
        "/run/libvirt/network",
    )
)
# What a change by libvirt may touch. Rules are left out: the kernel tells of them.
_TOUCHED = (Source.LIBVIRT, Source.LINKS, Source.SYSCTLS, Source.DNSMASQ)
# bridge_driver.c: libvirt deletes a network's file there before anything else of the network, and
# writes it after all else.
_STATUS = Path("/run/libvirt/network")
_LEASES = Path("/var/lib/libvirt/dnsmasq")
_CHAINS_LOST = "No chain/target/match by that name"
# Of the command that failed: a rule of a network never jumps to libvirt's chains, nor makes one.
_CHAINS_FAILED = re.compile(
    r"--(new-chain|insert \w+ --jump) LIBVIRT_|--list-rules|nft .*(add (table|chain)|jump guest_)"
)


class Libvirtd:
    source = Source.LIBVIRT
    actions: tuple[type[Action], ...] = (
        RemoveNetwork,
        DefineNetwork,
        SetAutostart,
        UpdateDhcp,
        StartNetwork,
        RestartNetwork,
        StartDnsmasq,
        RecordPort,
    )

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._connection: Any = None
        self._why = "not connected yet"
        self._session = 0
        self._tried = asyncio.Event()
        self._closed = asyncio.Event()
        self._one_call = asyncio.Lock()
        self._lost_chains = False
        self._chains_failed = False
        self._followed: frozenset[str] = frozenset()
        self._active: frozenset[str] = frozenset()

    async def observe(self, observed: Observed) -> Observed:
        await self._tried.wait()
        connection = self._connected()
        self._followed = observed.followed
        recorded = _recorded()
        seen = await self._call(lambda: calls.read(connection, self._followed), "reading networks")
        seen = replace(
            seen,
            session=self._session,
            lost_chains=self._lost_chains,
            chains_failed=self._chains_failed,
        )
        self._active = frozenset(
            name for name, network in seen.networks.items() if network.live and name in recorded
        )
        return replace(observed, libvirt=seen)

    def expect_chains(self) -> None:
        """It has been told to make them again."""
        self._chains_failed = False

    def leaving(self) -> frozenset[str]:
        """Networks that were active at the last look, and of which libvirt has begun to remove
        everything since; libvirt itself says so only when it is through.
        """
        return self._active - _recorded() if self._active else frozenset()

    async def apply(self, action: Action) -> None:
        connection = self._connected()
        match action:
            case DefineNetwork(policy=policy):
                await self._change(lambda: calls.define(connection, policy), policy.name)
            case SetAutostart(network=name, on=on):
                await self._change(lambda: calls.lookup(connection, name).setAutostart(on), name)
            case UpdateDhcp(network=name):
                await self._change(lambda: calls.update_dhcp(connection, action), name)
            case StartNetwork(network=name):
                await self._start(lambda: calls.start(connection, name), name)
            case RestartNetwork(network=name):
                await self._start(lambda: calls.restart(connection, name), name)
            case RecordPort(network=name):
                await self._change(lambda: calls.record_port(connection, action), name)
            case StartDnsmasq(network=name):
                await self._change(lambda: calls.start_dnsmasq(connection, action), name)
            case RemoveNetwork(network=name):
                await self._change(lambda: calls.remove(connection, name), name)
            case _:
                raise AssertionError(action)

    async def watch(self, poke: Poke) -> None:
        """Keep a connection; every new one starts with a look at everything."""
        _start_event_loop()
        attempt = 0
        while True:
            try:
                events = await self._open(poke)
            except BackendError as error:
                if self._why != str(error):
                    self._why = str(error)
                    poke(self.source, reason=self._why)
                self._tried.set()
                attempt += 1
                await asyncio.sleep(min(_LONGEST_WAIT, 0.1 * 2**attempt))
                continue
            attempt = 0
            self._tried.set()
            poke(*Source, reason="libvirt answers")
            try:
                await self._serve(poke)
            finally:
                self._connection = None
                self._why = f"lost the connection to {self._uri}"
                await _in_thread(events.close)
            poke(self.source, reason=self._why)

    def _connected(self) -> Any:
        if self._connection is None:
            raise NotConnected(self._why)
        return self._connection

    async def _open(self, poke: Poke) -> _Events:
        # Against a stopped daemon open() hangs for ever, and only in its own thread.
        opening = asyncio.ensure_future(_in_thread(lambda: libvirt.open(self._uri)))
        done, _ = await asyncio.wait([opening], timeout=_CALL_SECONDS)
        if not done:
            self._why = f"{self._uri} does not answer"
            self._tried.set()
            poke(self.source, reason=self._why)
        try:
            connection = await opening
        except libvirt.libvirtError as error:
            raise NotConnected(error.get_error_message() or str(error)) from error
        self._closed.clear()
        events = _Events(connection, asyncio.get_running_loop(), poke, self._closed)
        try:
            await _in_thread(events.register)
        except libvirt.libvirtError as error:
            await _in_thread(events.close)
            raise NotConnected(error.get_error_message() or str(error)) from error
        self._connection = connection
        self._session += 1
        self._lost_chains = self._chains_failed = False
        return events

    async def _serve(self, poke: Poke) -> None:
        """Until the connection is lost."""
        watching = [
            asyncio.ensure_future(self._watch_files(poke)),
            asyncio.ensure_future(self._watch_leases(poke)),
        ]
        try:
            await self._closed.wait()
        finally:
            for watch in watching:
                watch.cancel()
            await asyncio.wait(watching)

    async def _watch_files(self, poke: Poke) -> None:
        watch = files.DirectoryWatch(DIRECTORIES, created=True)
        try:
            while True:
                await watch.changed()
                poke(*_TOUCHED, reason="libvirt's files changed", cause=process.libvirt())
        finally:
            watch.close()

    async def _watch_leases(self, poke: Poke) -> None:
        watch = files.DirectoryWatch([_LEASES])
        try:
            while True:
                await watch.changed()
                if self._followed:
                    poke(self.source, reason="leases changed")
        finally:
            watch.close()

    async def _call(self, work: Callable[[], _T], what: str) -> _T:
        async with self._one_call:
            call = asyncio.ensure_future(_in_thread(work))
            done, _ = await asyncio.wait([call], timeout=_CALL_SECONDS)
            if not done:
                # The thread ends when keepalive finds the connection dead.
                call.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
                self._closed.set()
                raise BackendError(f"{what}: libvirt gave no answer in {_CALL_SECONDS:.0f} s")
            try:
                return call.result()
            except libvirt.libvirtError as error:
                raise BackendError(f"{what}: {error.get_error_message()}") from error

    async def _change(self, work: Callable[[], object], network: str) -> None:
        try:
            await self._call(work, f"network {network}")
        except BackendError as error:
            if _CHAINS_FAILED.search(str(error)):
                self._chains_failed = True
            raise

    async def _start(self, work: Callable[[], object], network: str) -> None:
        try:
            await self._change(work, network)
        except BackendError as error:
            if _CHAINS_LOST in str(error):
                self._lost_chains = True
            raise
        self._lost_chains = False


def _recorded() -> frozenset[str]:
    return frozenset(path.stem for path in _STATUS.glob("*.xml"))


class _Events:
    """libvirt's callbacks run in its event thread: they only hand the news to the loop."""

    def __init__(
        self,
        connection: Any,
        loop: asyncio.AbstractEventLoop,
        poke: Poke,
        closed: asyncio.Event,
    ) -> None:
        self._connection = connection
        self._loop = loop
        self._poke = poke
        self._closed = closed
        self._networks: list[int] = []
        self._domains: list[int] = []

    def register(self) -> None:
        connection = self._connection
        connection.registerCloseCallback(self._on_close, None)
        connection.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT)
        event = libvirt.VIR_NETWORK_EVENT_ID_LIFECYCLE
        self._networks.append(
            connection.networkEventRegisterAny(None, event, self._on_network, None)
        )
        for event in (
            libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
            libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
            libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
        ):
            self._domains.append(
                connection.domainEventRegisterAny(None, event, self._on_domain, None)
            )

    def close(self) -> None:
        """Each step by itself: on a dead connection all of them fail, and let go all the same."""
        with suppress(libvirt.libvirtError):
            self._connection.unregisterCloseCallback()
        for callback in self._networks:
            with suppress(libvirt.libvirtError):
                self._connection.networkEventDeregisterAny(callback)
        for callback in self._domains:
            with suppress(libvirt.libvirtError):
                self._connection.domainEventDeregisterAny(callback)
        with suppress(libvirt.libvirtError):
            self._connection.close()

    def _on_network(self, _connection: Any, network: Any, event: int, *_rest: Any) -> None:
        what = {
            libvirt.VIR_NETWORK_EVENT_DEFINED: "defined",
            libvirt.VIR_NETWORK_EVENT_UNDEFINED: "undefined",
            libvirt.VIR_NETWORK_EVENT_STARTED: "started",
            libvirt.VIR_NETWORK_EVENT_STOPPED: "stopped",
        }.get(event, "changed")
        self._hand_over(f"network {network.name()} {what}", cause=process.libvirt(), writing=False)

    def _on_domain(self, _connection: Any, domain: Any, *_rest: Any) -> None:
        self._hand_over(f"domain {domain.name()} changed")

    def _on_close(self, _connection: Any, _reason: int, _opaque: Any) -> None:
        with suppress(RuntimeError):  # the loop has ended before the connection
            self._loop.call_soon_threadsafe(self._closed.set)

    def _hand_over(
        self, reason: str, cause: Cause | None = None, writing: bool | None = None
    ) -> None:
        def hand_over() -> None:
            self._poke(*_TOUCHED, reason=reason, cause=cause, writing=writing)

        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(hand_over)


async def ask_version(uri: str) -> str:
    """By a connection of its own. Raises BackendError; a stopped libvirtd never answers."""
    libvirt.registerErrorHandler(lambda *_: None, None)  # else errors go to stderr as well
    try:
        return await _in_thread(lambda: calls.version(libvirt.open(uri)))
    except libvirt.libvirtError as error:
        raise BackendError(error.get_error_message() or str(error)) from error


_event_thread: threading.Thread | None = None


def _start_event_loop() -> None:
    """libvirt's own loop in a thread: its asyncio one loses events if calls come from threads.

    It can be set only once in a process, and before the first connection.
    """
    global _event_thread
    if _event_thread is not None:
        return
    libvirt.registerErrorHandler(lambda *_: None, None)  # else errors go to stderr as well
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    _event_thread = threading.Thread(target=run, name="libvirt-events", daemon=True)
    _event_thread.start()


async def _in_thread(work: Callable[[], _T]) -> _T:
    """Run in a daemon thread: unlike an executor's, one that hangs cannot hold up the exit."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # no error: it is a _T

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="libvirt-call", daemon=True).start()
    return await future
