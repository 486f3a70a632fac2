"""One connection to a libvirt daemon, kept: opened again whenever it is lost.

libvirt's calls block, so each runs in a thread of its own. One that is never answered costs a
thread and some patience, never a pass.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeVar

import libvirt

from vnetd.backends import process
from vnetd.core.model import Cause
from vnetd.errors import BackendError, Busy, NotConnected

_T = TypeVar("_T")

# The daemon itself asks every 5 s by default; this one speaks up only where that one is silent.
_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT = 6, 2
# Reading waits behind a network that libvirt starts, which takes half a second or less.
_PATIENCE_SECONDS = 3.0
_PING_SECONDS = 2.0
# A worker of a daemon that lives can hang as well: then another connection may do better.
_LONGEST_CALL_SECONDS = 120.0
_LONGEST_WAIT = 2.0
# libvirtd ends 2 minutes after its last client has gone, and only then.
_REST_AFTER_SECONDS = 10.0
# How often one that may only read asks whether it may do more by now.
_ASK_AGAIN_SECONDS = 5.0

NETWORK_EVENTS = (libvirt.VIR_NETWORK_EVENT_ID_LIFECYCLE,)
DOMAIN_EVENTS = (
    libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
)


class Tell(Protocol):
    """What came from libvirt, or of it. stopped: a network. everything: another daemon may answer
    now.
    """

    def __call__(
        self,
        reason: str,
        *,
        cause: Cause | None = None,
        writing: bool | None = None,
        stopped: str = "",
        everything: bool = False,
    ) -> None: ...


class Connection:
    def __init__(
        self, uri: str, *, network_events: Iterable[int] = (), domain_events: Iterable[int] = ()
    ) -> None:
        self.session = 0
        """Counts the connections; 0 before the first."""
        self.read_only = False
        self.resting = False
        self._uri = uri
        self._network_events = tuple(network_events)
        self._domain_events = tuple(domain_events)
        self._current: _Session | None = None
        self._closing: set[asyncio.Future[None]] = set()
        self._why = "not connected yet"
        self._tried = asyncio.Event()
        self._idle = False
        self._news = asyncio.Event()
        """Of the connection itself: it is over, or need not be."""
        self._woken = asyncio.Event()
        self._tell: Tell | None = None

    async def keep(
        self, tell: Tell, meanwhile: Iterable[Callable[[], Coroutine[Any, Any, None]]] = ()
    ) -> None:
        """Stay connected until cancelled; every new connection asks for a look at everything.
        meanwhile: what is to run as long as there is one, or it rests.
        """
        _start_event_loop()
        self._tell = tell
        attempt = 0
        while True:
            try:
                session = await self._open(tell)
            except BackendError as error:
                self._lost(str(error), tell)
                attempt += 1
                await asyncio.sleep(min(_LONGEST_WAIT, 0.1 * 2**attempt))
                continue
            attempt = 0
            self._tried.set()
            tell("libvirt answers", everything=True)
            tasks = [asyncio.ensure_future(work()) for work in meanwhile]
            try:
                await self._serve(session)
                self._current = None
                closing = asyncio.ensure_future(session.close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
                if self.resting:
                    self._why = f"{self._uri} is called back"
                    await self._woken.wait()
                    self.resting = False
                else:
                    self._lost(f"lost the connection to {self._uri}", tell)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def set_idle(self, idle: bool) -> None:
        """There is nothing to keep: neither keep the daemon awake, from a while later until wake()
        is called.
        """
        if idle != self._idle:
            self._idle = idle
            self._news.set()

    def wake(self) -> None:
        self._woken.set()

    async def read(self, work: Callable[[Any], _T], what: str) -> _T:
        """Raises NotConnected, or Busy where the daemon lives but takes its time; tells when it is
        through.
        """
        await self._tried.wait()
        call = await self._begin(work, what)
        done, _ = await asyncio.wait([call], timeout=_PATIENCE_SECONDS)
        if not done:
            raise await self._unanswered(what)
        return _result(call, what)

    async def change(self, work: Callable[[Any], _T], what: str) -> _T:
        """As long as it takes, unless the daemon hangs. Raises BackendError."""
        call = await self._begin(work, what)
        while True:
            done, _ = await asyncio.wait([call], timeout=_PATIENCE_SECONDS)
            if done:
                return _result(call, what)
            unanswered = await self._unanswered(what)
            if isinstance(unanswered, NotConnected):
                raise unanswered

    def _connected(self) -> _Session:
        if self._current is None:
            raise NotConnected(self._why)
        return self._current

    async def _begin(self, work: Callable[[Any], _T], what: str) -> asyncio.Future[_T]:
        self.wake()
        session = self._connected()
        if session.hangs:
            raise NotConnected(session.hangs)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await session.one_call.acquire()
        except TimeoutError:
            raise await self._unanswered(what) from None
        call = asyncio.ensure_future(in_thread(lambda: work(session.connection)))
        late = asyncio.get_running_loop().call_later(_LONGEST_CALL_SECONDS, session.end)
        began = asyncio.get_running_loop().time()

        def ended(call: asyncio.Future[_T]) -> None:
            late.cancel()
            session.hangs = ""
            session.one_call.release()
            _ = call.cancelled() or call.exception()  # nobody may be waiting for it any more
            took = asyncio.get_running_loop().time() - began
            if took > _PATIENCE_SECONDS and self._tell is not None:
                self._tell("libvirt answers again")

        call.add_done_callback(ended)
        return call

    async def _unanswered(self, what: str) -> BackendError:
        """Whether the daemon hangs, or is just long about it."""
        session = self._connected()
        ping = asyncio.ensure_future(in_thread(lambda: _ping(self._uri)))
        ping.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        done, _ = await asyncio.wait([ping], timeout=_PING_SECONDS)
        waited = f"{what}: libvirt has given no answer for {_PATIENCE_SECONDS:.0f} s"
        # Nothing else would say that it lives, if what it was asked has been answered meanwhile.
        if (done and ping.exception() is None) or not session.one_call.locked():
            return Busy(f"{waited}; it is busy")
        session.hangs = f"{waited}, and does not answer anything else"
        return NotConnected(session.hangs)

    def _lost(self, why: str, tell: Tell) -> None:
        self._tried.set()
        if why != self._why:
            self._why = why
            tell(why)

    async def _open(self, tell: Tell) -> _Session:
        # Against a stopped daemon open() hangs for ever, and only in its own thread.
        opening = asyncio.ensure_future(in_thread(lambda: _open(self._uri)))
        done, _ = await asyncio.wait([opening], timeout=_PATIENCE_SECONDS)
        if not done:
            self._lost(f"{self._uri} does not answer", tell)
        try:
            connection, self.read_only = await opening
        except libvirt.libvirtError as error:
            raise NotConnected(error.get_error_message() or str(error)) from error
        session = _Session(connection, asyncio.get_running_loop(), tell, self._news)
        try:
            await in_thread(lambda: session.register(self._network_events, self._domain_events))
        except libvirt.libvirtError as error:
            await session.close()
            raise NotConnected(error.get_error_message() or str(error)) from error
        self._current = session
        self._why = ""
        self.session += 1
        return session

    async def _serve(self, session: _Session) -> None:
        """Until the connection is lost, could be a better one, or need not be."""
        while not session.over:
            wait = _ASK_AGAIN_SECONDS if self.read_only else None
            wait = _REST_AFTER_SECONDS if self._idle else wait
            try:
                async with asyncio.timeout(wait):
                    await self._news.wait()
                self._news.clear()
            except TimeoutError:
                self.resting = self._idle
                self._woken.clear()
                if self._idle or await in_thread(lambda: _may_write(self._uri)):
                    return


def _open(uri: str) -> tuple[Any, bool]:
    """The connection, and whether it may only read."""
    try:
        return libvirt.open(uri), False
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_SYSTEM_ERROR:
            raise  # nobody is there
        try:
            return libvirt.openReadOnly(uri), True
        except libvirt.libvirtError:
            raise error from None


def _ping(uri: str) -> None:
    """By a connection of its own, which ends here, in the thread that this is called in."""
    _open(uri)[0].getLibVersion()


def _may_write(uri: str) -> bool:
    try:
        libvirt.open(uri).close()
    except libvirt.libvirtError:
        return False
    return True


def _result(call: asyncio.Future[_T], what: str) -> _T:
    try:
        return call.result()
    except libvirt.libvirtError as error:
        raise BackendError(f"{what}: {error.get_error_message()}") from error


class _Session:
    """One connection, from its open to its close. One call at a time, and none while it is closed:
    where libvirt's client loses its connection under two threads that wait for answers, it writes
    into the stack of the one that has left (virNetClientIOEventLoop, seen with 9.0).

    libvirt's callbacks run in its event thread: they only hand the news to the loop.
    """

    def __init__(
        self, connection: Any, loop: asyncio.AbstractEventLoop, tell: Tell, news: asyncio.Event
    ) -> None:
        self.connection = connection
        self.one_call = asyncio.Lock()
        self.hangs = ""
        """What it said nothing to, until it does."""
        self.over = False
        self._loop = loop
        self._tell = tell
        self._news = news
        self._networks: list[int] = []
        self._domains: list[int] = []

    def register(self, network_events: Iterable[int], domain_events: Iterable[int]) -> None:
        connection = self.connection
        connection.registerCloseCallback(self._on_close, None)
        connection.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT)
        for event in network_events:
            self._networks.append(
                connection.networkEventRegisterAny(None, event, self._on_network, None)
            )
        for event in domain_events:
            self._domains.append(
                connection.domainEventRegisterAny(None, event, self._on_domain, None)
            )

    def end(self) -> None:
        self.over = True
        self._news.set()

    async def close(self) -> None:
        """After the call that is under way, if it is ever answered."""
        async with self.one_call:
            await in_thread(self._close)

    def _close(self) -> None:
        """Each step by itself: on a dead connection all of them fail, and let go all the same."""
        with suppress(libvirt.libvirtError):
            self.connection.unregisterCloseCallback()
        for callback in self._networks:
            with suppress(libvirt.libvirtError):
                self.connection.networkEventDeregisterAny(callback)
        for callback in self._domains:
            with suppress(libvirt.libvirtError):
                self.connection.domainEventDeregisterAny(callback)
        with suppress(libvirt.libvirtError):
            self.connection.close()

    def _on_network(self, _connection: Any, network: Any, event: int, *_rest: Any) -> None:
        what = {
            libvirt.VIR_NETWORK_EVENT_DEFINED: "defined",
            libvirt.VIR_NETWORK_EVENT_UNDEFINED: "undefined",
            libvirt.VIR_NETWORK_EVENT_STARTED: "started",
            libvirt.VIR_NETWORK_EVENT_STOPPED: "stopped",
        }.get(event, "changed")
        name = network.name()
        tell = partial(
            self._tell,
            f"network {name} {what}",
            cause=process.libvirt(),
            writing=False,
            stopped=name if event == libvirt.VIR_NETWORK_EVENT_STOPPED else "",
        )
        self._hand_over(tell)

    def _on_domain(self, _connection: Any, domain: Any, *_rest: Any) -> None:
        self._hand_over(partial(self._tell, f"domain {domain.name()} changed"))

    def _on_close(self, _connection: Any, _reason: int, _opaque: Any) -> None:
        self._hand_over(self.end)

    def _hand_over(self, news: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop has ended before the connection
            self._loop.call_soon_threadsafe(news)


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


async def in_thread(work: Callable[[], _T]) -> _T:
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
        except BaseException as raised:  # whatever it is, it is the caller's
            error = raised
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="libvirt-call", daemon=True).start()
    return await future
