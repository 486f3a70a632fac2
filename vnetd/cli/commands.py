"""The commands that ask the daemon."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from dbus_next.message import Message

from vnetd.api import names
from vnetd.api.names import DBUS_ERROR, ERROR, NEEDS_PASSWORD
from vnetd.bus import sysbus
from vnetd.cli import render
from vnetd.cli.client import Daemon, plain
from vnetd.cli.codes import DRIFTED, FAILED, OK
from vnetd.errors import BackendError

UNREACHABLE_ERRORS = (
    f"{DBUS_ERROR}.ServiceUnknown",
    f"{DBUS_ERROR}.NameHasNoOwner",
    f"{DBUS_ERROR}.NoReply",
    f"{DBUS_ERROR}.Disconnected",
)
REFUSED_ERRORS = (
    f"{ERROR}.NotAuthorized",
    f"{DBUS_ERROR}.AccessDenied",
    NEEDS_PASSWORD,
)
# A look at a host with hundreds of networks, behind a pass that starts them all.
LONG_SECONDS = 600.0
_PAGE = 100


async def status(arguments: argparse.Namespace) -> int:
    async with _connected() as vnetd:
        manager = await vnetd.properties(names.ROOT, names.MANAGER)
        bridges: list[dict[str, Any]] = []
        if arguments.network is not None:
            (path,) = await vnetd.manager("GetNetwork", "s", [arguments.network])
            networks = [await vnetd.properties(path, names.NETWORK)]
        else:
            (objects,) = await vnetd.call(names.ROOT, names.OBJECT_MANAGER, "GetManagedObjects")
            networks, bridges = (
                _by_name(objects, interface) for interface in (names.NETWORK, names.BRIDGE)
            )
    if arguments.json:
        render.print_json({**manager, "Networks": networks, "Bridges": bridges})
    elif arguments.network is not None:
        render.print_network(networks[0])
    else:
        render.print_status(manager, networks, bridges)
    states = [network["State"] for network in networks]
    if arguments.network is None:
        states.append(manager["State"])
    return DRIFTED if {"drifted", "degraded"} & set(states) else OK


def _by_name(objects: Mapping[str, Any], interface: str) -> list[dict[str, Any]]:
    found = [plain(item[interface]) for item in objects.values() if interface in item]
    return sorted(found, key=lambda item: str(item["Name"]))


async def plan(arguments: argparse.Namespace) -> int:
    async with _connected() as vnetd:
        (actions,) = await vnetd.manager("Plan", seconds=LONG_SECONDS)
        found = plain(actions)
        manager = await vnetd.properties(names.ROOT, names.MANAGER)
    if arguments.json:
        render.print_json(found)
    else:
        render.print_plan(found, manager["State"])
    return DRIFTED if found else OK


async def reconcile(arguments: argparse.Namespace) -> int:
    async with _connected() as vnetd:
        result, detail = await _finish(vnetd, "Reconcile")
    if result != "done":
        render.complain(f"the pass failed: {detail}")
        return FAILED
    if arguments.json:
        render.print_json({"State": detail})
    else:
        print(detail)
    if detail not in ("drifted", "degraded"):
        return OK
    render.complain("what is wrong: vnetctl status")
    return FAILED


async def _finish(vnetd: Daemon, member: str) -> tuple[str, str]:
    """Start a job and wait for its end: its result and detail."""
    ended: dict[str, tuple[str, str]] = {}
    heard = asyncio.Event()

    def on_signal(message: Message) -> None:
        if message.member == "JobRemoved":
            _, path, result, detail = message.body
            ended[path] = (result, detail)
            heard.set()
        elif message.member == "PropertiesChanged" and sys.stderr.isatty():
            render.print_progress(plain(message.body[1]))

    await vnetd.hear(on_signal, names.MANAGER, names.ROOT)
    await vnetd.hear(on_signal, names.PROPERTIES, f"{names.ROOT}/job")
    (job,) = await vnetd.manager(member)

    async def end() -> None:
        while job not in ended:
            heard.clear()
            await heard.wait()

    await vnetd.until(end())
    return ended[job]


async def reload(arguments: argparse.Namespace) -> int:
    await call("Reload")
    return _done(arguments)


async def pause(arguments: argparse.Namespace) -> int:
    await call("Pause", "t", [arguments.seconds])
    return _done(arguments)


async def resume(arguments: argparse.Namespace) -> int:
    await call("Resume")
    return _done(arguments)


async def metrics(arguments: argparse.Namespace) -> int:
    (text,) = await call("Metrics")
    if arguments.json:
        render.print_json({"Metrics": text})
    else:
        print(text, end="")
    return OK


async def history(arguments: argparse.Namespace) -> int:
    found: deque[dict[str, Any]] = deque()
    wanted = arguments.lines
    async with _connected() as vnetd:
        while wanted is None or len(found) < wanted:
            limit = _PAGE if wanted is None else min(_PAGE, wanted - len(found))
            before = found[0]["id"] if found else 0
            (records,) = await vnetd.manager("HistoryPage", "tu", [before, limit])
            if not records:
                break
            found.extendleft(reversed(plain(records)))
    if arguments.json:
        for record in found:
            render.print_json_line(render.record(record))
    else:
        render.print_history(found)
    return OK


async def import_(arguments: argparse.Namespace) -> int:
    (policy,) = await call("HostPolicy", seconds=LONG_SECONDS)
    if arguments.json:
        render.print_json({"policy": policy})
    else:
        print(policy, end="")
    return OK


async def leases(arguments: argparse.Namespace) -> int:
    (found,) = await call("Leases", "s", [arguments.network])
    if arguments.json:
        render.print_json(plain(found))
    else:
        render.print_leases(plain(found))
    return OK


async def why(arguments: argparse.Namespace) -> int:
    body = [arguments.subject, arguments.destination]
    (text,) = await call("Why", "ss", body, seconds=LONG_SECONDS)
    answer = json.loads(text)
    if arguments.probe:
        answer["probe"] = await _probe(answer)
    if arguments.json:
        render.print_json(answer)
    else:
        render.print_answer(answer)
    if any(not probe["answered"] for probe in answer.get("probe", ())):
        return DRIFTED
    return DRIFTED if answer["verdict"] == "blocked" else OK


async def _probe(answer: dict[str, Any]) -> list[dict[str, Any]]:
    from vnetd.backends import probe  # only where it is asked for

    destination = answer["destination"] or answer["gateway"]
    if os.geteuid() != 0:
        raise BackendError("--probe makes a guest of its own: only root may")
    if not (answer["bridge"] and answer["free"] and destination):
        raise BackendError("--probe needs an active network with a free address, and a destination")
    found = await probe.run(answer["bridge"], answer["free"], answer["host"], destination)
    return [asdict(item) for item in found]


async def watch(arguments: argparse.Namespace) -> int:
    """Until the daemon's bus goes away or the user ends it."""

    def on_signal(message: Message) -> None:
        if message.member == "JobRemoved":
            return  # no change by itself
        body = [plain(item) for item in message.body]
        if arguments.json:
            render.print_json_line(render.signal(str(message.member), body))
        else:
            render.print_signal(str(message.member), body)

    async with _connected() as vnetd:
        await vnetd.properties(names.ROOT, names.MANAGER)  # says at once if there is no daemon
        await vnetd.hear(on_signal, names.MANAGER, names.ROOT)
        await vnetd.until(asyncio.Event().wait(), whoever=True)
    return OK


@asynccontextmanager
async def _connected() -> AsyncIterator[Daemon]:
    async with sysbus.connected() as bus:
        yield Daemon(bus)


async def call(
    member: str, signature: str = "", body: Sequence[object] = (), *, seconds: float = 25.0
) -> list[Any]:
    async with _connected() as vnetd:
        return await vnetd.manager(member, signature, body, seconds=seconds)


def _done(arguments: argparse.Namespace) -> int:
    if arguments.json:
        render.print_json({})
    return OK
