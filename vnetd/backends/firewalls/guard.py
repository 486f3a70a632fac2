"""The guard's table in the kernel: read, written in one transaction, and held by a socket.

The kernel lets only the owner's socket write to the table (since Linux 5.12), and keeps it when
the owner has gone (since 6.9): a vnetd that comes back adopts it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace

from vnetd.backends import netlink, process
from vnetd.backends.base import Poke
from vnetd.backends.firewalls import guard_messages as codec
from vnetd.backends.firewalls import nf_messages as nf
from vnetd.backends.firewalls.nf_tables import Tell
from vnetd.backends.netlink import Generation
from vnetd.core.actions import Action
from vnetd.core.keep.guard import WriteGuard
from vnetd.core.model import Cause, GuardTable, Held, Observed, Source
from vnetd.core.rules.guard import TABLE
from vnetd.errors import BackendError

_FLAGS = {
    Held.PERSISTENT: nf.OWNER | nf.PERSIST,
    Held.OWNED: nf.OWNER,
    Held.OPEN: 0,
}
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL)
_NO_TABLE = "vnetd-none"


class Guard:
    source = Source.GUARD
    actions: tuple[type[Action], ...] = (WriteGuard,)

    def __init__(
        self, subscribe: Callable[[Tell], None], kept: socket.socket | None = None
    ) -> None:
        """subscribe: to what the kernel tells of nf_tables. kept: the socket of an earlier vnetd,
        which still owns the table.
        """
        self._subscribe = subscribe
        self._socket = kept or netlink.open_nftables()
        self._port: int = self._socket.getsockname()[0]
        self._possible = tuple(_FLAGS)
        self._open_to_all = asyncio.Event()

    def fileno(self) -> int:
        return self._socket.fileno()

    async def observe(self, observed: Observed) -> Observed:
        try:
            return replace(observed, guard=self._look())
        except OSError as error:
            raise _failed(error) from error

    async def apply(self, action: Action) -> None:
        assert isinstance(action, WriteGuard), action
        try:
            await asyncio.to_thread(self._write, action)  # of thousands of rules, it takes a while
        except OSError as error:
            raise _failed(error) from error

    async def watch(self, poke: Poke) -> None:
        """Only a table without an owner can be changed by others."""
        await self._open_to_all.wait()

        def tell(generation: Generation | None) -> None:
            if generation is None:
                poke(self.source, reason="nf_tables events were lost")
            elif (nf.INET, TABLE) in generation.tables and generation.pid != os.getpid():
                parents = process.ancestors(generation.pid, generation.process)
                cause = Cause(generation.process, generation.pid, parents or ())
                poke(self.source, reason="the guard was changed", cause=cause)

        self._subscribe(tell)

    def _write(self, action: WriteGuard) -> None:
        for held in self._possible:
            seen = self._look()
            try:
                self._transact(*self._steps(action, held, seen))
            except OSError as error:
                if error.errno not in _UNSUPPORTED or held is self._possible[-1]:
                    raise
            else:
                self._possible = (held,)
                if held is Held.OPEN:
                    self._open_to_all.set()
                return

    def _steps(self, action: WriteGuard, held: Held, seen: GuardTable | None) -> Iterator[bytes]:
        table, present = dict(action.table), seen.chains if seen else {}
        if seen is not None and seen.held is held:
            if not seen.mine:
                yield nf.make_table(nf.INET, TABLE, _FLAGS[held])  # which makes it ours
            wanted = {name: table.get(name, ()) for name in action.chains}
        else:
            if seen is not None and seen.held is not None:
                yield nf.make_table(nf.INET, TABLE, _FLAGS[seen.held])
                yield nf.delete_table(nf.INET, TABLE)
            yield nf.make_table(nf.INET, TABLE, _FLAGS[held])
            wanted, present = table, {}
        if table:
            yield from codec.replace_chains(wanted, present)
        else:
            yield nf.delete_table(nf.INET, TABLE)

    def best(self) -> Held:
        """The best that this kernel can do; changes nothing. Raises BackendError."""
        for held in Held:
            # The kernel says what is wrong with each step of a transaction, and takes back all of
            # it for the last one, which fails for certain.
            make = nf.make_table(nf.INET, _NO_TABLE, _FLAGS[held])
            delete = nf.delete_table(nf.INET, f"{_NO_TABLE}2")
            self._socket.send(nf.transaction((make, delete)))
            answers = netlink.answers(self._socket)
            errors = {netlink.code(body) for kind, body in answers if kind == netlink.ERROR}
            if errors == {errno.ENOENT}:
                return held
            if not errors & {*_UNSUPPORTED}:
                code = next(iter(errors), errno.EIO)
                raise _failed(OSError(code, os.strerror(code)))
        raise BackendError("this kernel has no nf_tables")

    # -- the socket

    def _look(self) -> GuardTable | None:
        """None: a kernel without nf_tables."""
        try:
            tables = [nf.table(body) for body in self._ask(nf.ask_for_tables())]
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return None
            raise
        own = next((item for item in tables if item[0] == (nf.INET, TABLE)), None)
        if own is None:
            return GuardTable(held=None, mine=False)
        _, flags, owner = own
        chains: dict[str, list[str]] = {}
        for body in self._ask(nf.ask_for_rules(nf.INET, TABLE)):
            chain, digest = codec.rule_of(body)
            chains.setdefault(chain, []).append(digest)
        # Of a table that has lost its owner the kernel keeps PERSIST alone.
        held = Held.PERSISTENT if flags & nf.PERSIST else Held.OPEN
        if flags == nf.OWNER:
            held = Held.OWNED
        return GuardTable(
            held=held,
            mine=held is Held.OPEN or owner == self._port,
            chains={chain: tuple(digests) for chain, digests in chains.items()},
        )

    def _ask(self, question: bytes) -> list[bytes]:
        netlink.answers(self._socket)  # an earlier vnetd may have been killed before it read them
        return netlink.dump(self._socket, question)

    def _transact(self, *steps: bytes) -> None:
        """Raises OSError with what the kernel says of the first step that it refuses."""
        self._socket.send(nf.transaction(steps))
        for kind, body in netlink.answers(self._socket):
            if kind == netlink.ERROR:
                netlink.check(body)


def _failed(error: OSError) -> BackendError:
    if error.errno == errno.EPERM:
        return BackendError(f"table inet {TABLE}: another process owns it, or CAP_NET_ADMIN lacks")
    return BackendError(f"table inet {TABLE}: {error.strerror}")
