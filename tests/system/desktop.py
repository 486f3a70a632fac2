"""desktop.py PASSWORD METHOD…: polkit's agent for this session, as a desktop has one, which knows
the password; meanwhile each method of org.vnetd1.Manager is called, by the same process.
Prints JSON: what each call came to, and how often a password was asked for until then.

desktop.py --silent COUNT METHOD: an agent that never answers, while one method is called so many
times at once. Prints a line of JSON whenever a call ends: the errors of all that have.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import sys
from collections import Counter

from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import BusType, MessageFlag, MessageType
from dbus_next.message import Message
from dbus_next.signature import Variant

_POLKIT = "org.freedesktop.PolicyKit1"
_AGENT = "/org/vnetd1/test/agent"
_HELPER = "/usr/lib/polkit-1/polkit-agent-helper-1"


class Desktop:
    def __init__(self, bus: MessageBus, password: str | None) -> None:
        self.asked = 0
        self._bus = bus
        self._password = password
        self._answers: set[asyncio.Task[None]] = set()
        bus.add_message_handler(self._on_message)

    async def register(self) -> None:
        subject = ["unix-session", {"session-id": Variant("s", os.environ["XDG_SESSION_ID"])}]
        reply = await self._bus.call(
            Message(
                destination=_POLKIT,
                path="/org/freedesktop/PolicyKit1/Authority",
                interface=f"{_POLKIT}.Authority",
                member="RegisterAuthenticationAgent",
                signature="(sa{sv})ss",
                body=[subject, "C", _AGENT],
            )
        )
        assert reply is not None, "an answer is asked for"
        assert reply.message_type is MessageType.METHOD_RETURN, reply.body

    def _on_message(self, message: Message) -> bool:
        if message.member != "BeginAuthentication":
            return False
        self.asked += 1
        if self._password is None:
            return True
        answer = asyncio.create_task(self._answer(message))
        self._answers.add(answer)
        answer.add_done_callback(self._answers.discard)
        return True

    async def _answer(self, message: Message) -> None:
        cookie, identities = message.body[4:6]
        user = pwd.getpwuid(identities[0][1]["uid"].value).pw_name
        pipe = asyncio.subprocess.PIPE
        helper = await asyncio.create_subprocess_exec(_HELPER, user, stdin=pipe, stdout=pipe)
        await helper.communicate(f"{cookie}\n{self._password}\n".encode())
        await self._bus.send(Message.new_method_return(message))


async def call(bus: MessageBus, method: str) -> str:
    """ "" or the error's name."""
    reply = await bus.call(
        Message(
            destination="org.vnetd1",
            path="/org/vnetd1",
            interface="org.vnetd1.Manager",
            member=method,
            flags=MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION,
        )
    )
    assert reply is not None, "an answer is asked for"
    return reply.error_name or ""


async def registered(password: str | None) -> tuple[Desktop, MessageBus]:
    """And the connection of a tool in the same session."""
    desktop = Desktop(await MessageBus(bus_type=BusType.SYSTEM).connect(), password)
    await desktop.register()
    return desktop, await MessageBus(bus_type=BusType.SYSTEM).connect()


async def silent(count: str, method: str) -> None:
    _, tool = await registered(None)
    errors: Counter[str] = Counter()
    for answer in asyncio.as_completed([call(tool, method) for _ in range(int(count))]):
        errors[await answer] += 1
        print(json.dumps(errors), flush=True)


async def main(password: str, *methods: str) -> None:
    desktop, tool = await registered(password)
    print(json.dumps([[await call(tool, method), desktop.asked] for method in methods]))


if __name__ == "__main__":
    asyncio.run(silent(*sys.argv[2:]) if sys.argv[1] == "--silent" else main(*sys.argv[1:]))
