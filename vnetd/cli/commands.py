"""The commands that ask the daemon."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import MessageType
from dbus_next.message import Message

from vnetd import sysbus
from vnetd.api import names
from vnetd.api.objects import plain
from vnetd.cli import render
from vnetd.cli.codes import DRIFTED, FAILED, OK
from vnetd.errors import BackendError

_DBUS_ERROR = "org.freedesktop.DBus.Error"
UNREACHABLE_ERRORS = (
    f"{_DBUS_ERROR}.ServiceUnknown",
    f"{_DBUS_ERROR}.NameHasNoOwner",
    f"{_DBUS_ERROR}.NoReply",
    f"{_DBUS_ERROR}.Disconnected",
)
REFUSED_ERRORS = ("org.vnetd1.Error.NotAuthorized", f"{_DBUS_ERROR}.AccessDenied")
# Starting one network takes libvirt a second; a first pass starts all of them.
_LONG_SECONDS = 600.0


async def status(arguments: argparse.Namespace) -> int:
    bus = await sysbus.connect()
    manager = await _properties(bus)
    (objects,) = await sysbus.call(
        bus, names.BUS_NAME, names.ROOT, names.OBJECT_MANAGER, "GetManagedObjects"
    )
    networks = [plain(found[names.NETWORK]) for found in objects.values()]
    networks.sort(key=lambda network: str(network["Name"]))
    if arguments.network is not None:
        networks = [network for network in networks if network["Name"] == arguments.network]
        if not networks:
            render.complain(f"there is no network {arguments.network}; see: vnetctl status")
            return FAILED
    if arguments.json:
        render.print_json({**manager, "Networks": networks})
    elif arguments.network is not None:
        render.print_network(networks[0])
    else:
        render.print_status(manager, networks)
    states = [network["State"] for network in networks]
    if arguments.network is None:
        states.append(manager["State"])
    return DRIFTED if {"drifted", "degraded"} & set(states) else OK


async def plan(arguments: argparse.Namespace) -> int:
    (actions,) = await _call("Plan", seconds=_LONG_SECONDS)
    found = plain(actions)
    if arguments.json:
        render.print_json(found)
    else:
        render.print_plan(found)
    return DRIFTED if found else OK


async def reconcile(arguments: argparse.Namespace) -> int:
    (state,) = await _call("Reconcile", seconds=_LONG_SECONDS)
    if arguments.json:
        render.print_json({"State": state})
    else:
        print(state)
    return FAILED if state in ("drifted", "degraded") else OK


async def reload(arguments: argparse.Namespace) -> int:
    await _call("Reload")
    return _done(arguments)


async def pause(arguments: argparse.Namespace) -> int:
    await _call("Pause", "u", [arguments.seconds])
    return _done(arguments)


async def resume(arguments: argparse.Namespace) -> int:
    await _call("Resume")
    return _done(arguments)


async def history(arguments: argparse.Namespace) -> int:
    (records,) = await _call("History")
    found = plain(records)
    if arguments.lines is not None:
        found = found[-arguments.lines :] if arguments.lines > 0 else []
    if arguments.json:
        for record in found:
            render.print_json_line(render.record(record))
    else:
        render.print_history(found)
    return OK


async def why(arguments: argparse.Namespace) -> int:
    body = [arguments.subject, arguments.destination]
    (text,) = await _call("Why", "ss", body, seconds=_LONG_SECONDS)
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
    bus = await sysbus.connect()
    await _properties(bus)  # says at once if there is no daemon

    def on_message(message: Message) -> bool:
        if message.message_type is MessageType.SIGNAL and message.interface == names.MANAGER:
            body = [plain(item) for item in message.body]
            if arguments.json:
                render.print_json_line(render.signal(str(message.member), body))
            else:
                render.print_signal(str(message.member), body)
        return False

    bus.add_message_handler(on_message)
    # The bus resolves the name to its owner: a look-alike signal of somebody else does not match.
    rule = f"type='signal',sender='{names.BUS_NAME}',interface='{names.MANAGER}'"
    await sysbus.call_bus(bus, "AddMatch", "s", [rule])
    try:
        await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
    except (EOFError, OSError, asyncio.IncompleteReadError) as error:
        raise sysbus.BusError("the connection to the system bus is lost") from error
    return OK


async def _call(
    member: str, signature: str = "", body: Sequence[object] = (), *, seconds: float = 25.0
) -> list[Any]:
    bus = await sysbus.connect()
    return await sysbus.call(
        bus, names.BUS_NAME, names.ROOT, names.MANAGER, member, signature, body, seconds=seconds
    )


async def _properties(bus: MessageBus) -> dict[str, Any]:
    (values,) = await sysbus.call(
        bus, names.BUS_NAME, names.ROOT, names.PROPERTIES, "GetAll", "s", [names.MANAGER]
    )
    found: dict[str, Any] = plain(values)
    return found


def _done(arguments: argparse.Namespace) -> int:
    if arguments.json:
        render.print_json({})
    return OK
