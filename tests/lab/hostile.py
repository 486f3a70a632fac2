"""A user of the bus who means no good: hostile flood | giant | vanish | crowd |
churn | fuzz N.

Ends at SIGTERM, fuzz also after N arguments, and prints what it did.

Speaks to the bus over a bare socket: a library would stop it from most of this.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from dbus_next.constants import MessageFlag
from dbus_next.message import Message
from dbus_next.signature import Variant

from vnetd.api import contract, names

_BUS = "org.freedesktop.DBus"
_SOCKET = "/run/dbus/system_bus_socket"
_CROWD = 300
_STRINGS = (
    "",
    "lab",
    "../../etc/passwd",
    "$(touch /tmp/owned)",
    "`touch /tmp/owned`",
    "lab'; touch /tmp/owned; '",
    "<network/>",
    "]]><!ENTITY x SYSTEM 'file:///etc/shadow'>",
    "-rf",
    "a\nb\tc\x1b[2J",
    "%s%n%d{0}{0.__class__}",
    "ä" * 200,
    "‮gnp.exe",
    "x" * 5000,
    "0.0.0.0/0",
    "fe80::1%lab",
    "10.77.0.1; add table inet owned",
    "PRIORITY=0\nMESSAGE=owned",
)


class Client:
    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(_SOCKET)
        self.sock.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
        self.sock.recv(256)
        self.sock.sendall(b"BEGIN\r\n")
        self.serial = 0
        self.heard = 0
        self.send(self.bus_call("Hello"))
        self.sock.setblocking(True)
        self.sock.recv(4096)

    def send(self, message: bytes | bytearray) -> bool:
        """Under a serial of its own; False when the bus has put an end to it."""
        self.serial += 1
        data = bytearray(message)
        data[8:12] = self.serial.to_bytes(4, "little")
        view, sent = memoryview(data), 0
        self.sock.setblocking(False)
        try:
            while sent < len(view):
                readable, writable, _ = select.select([self.sock], [self.sock], [], 1)
                if readable and not self.hear():
                    return False
                if writable:
                    sent += self.sock.send(view[sent:])
        except OSError:
            return False
        return True

    def hear(self) -> bool:
        """Whatever there is, unread."""
        try:
            while data := self.sock.recv(1 << 20):
                self.heard += len(data)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def bus_call(self, member: str, *text: str) -> bytes:
        return marshal(Message(_BUS, "/", _BUS, member, signature="s" * len(text), body=[*text]))

    def close(self) -> None:
        self.sock.close()


def marshal(message: Message) -> bytes:
    if not message.serial:
        message.serial = 1
    return bytes(message._marshall())  # type: ignore[no-untyped-call]


def call(
    interface: str,
    member: str,
    signature: str = "",
    body: list[Any] | None = None,
    path: str = names.ROOT,
    *,
    mute: bool = False,
) -> bytes:
    flags = MessageFlag.NO_REPLY_EXPECTED if mute else MessageFlag.NONE
    return marshal(
        Message(
            names.BUS_NAME,
            path,
            interface,
            member,
            flags=flags,
            signature=signature,
            body=body or [],
        )
    )


def flood(done: Counter[str]) -> Iterator[None]:
    """Calls as fast as the bus takes them, half of which want no answer."""
    kinds: list[tuple[str, str, str, list[Any]]] = [
        (names.PEER, "Ping", "", []),
        (names.PROPERTIES, "GetAll", "s", [names.MANAGER]),
        (names.OBJECT_MANAGER, "GetManagedObjects", "", []),
        (names.INTROSPECTABLE, "Introspect", "", []),
        (names.MANAGER, "Plan", "", []),
        (names.MANAGER, "Why", "ss", ["lab", "192.0.2.1"]),
        (names.MANAGER, "History", "", []),
        (names.MANAGER, "Reconcile", "", []),
        (names.MANAGER, "Pause", "t", [60]),
        (names.MANAGER, "Nothing", "", []),
    ]
    calls = [call(*kind, mute=mute) for kind in kinds for mute in (True, False)]
    client = Client()
    while True:
        for message in calls:
            if not client.send(message):
                client = Client()
                done["connections"] += 1
            done["calls"] += 1
        yield


def giant(done: Counter[str]) -> Iterator[None]:
    """As long as the bus lets through, and slow to unmarshal."""
    bodies: list[tuple[str, list[Any]]] = [
        ("ssv", ["org.vnetd1.Manager", "State", Variant("ai", list(range(1500)))]),
        ("ss", ["lab" * 2000, ""]),
        ("ss", ["#" * (1 << 20), ""]),
        ("av", [[Variant("s", "z")] * 20_000]),
        ("as", [["y"] * 200_000]),
        ("ay", [bytes(8 << 20)]),
        ("s", ["x" * (31 << 20)]),
    ]
    messages = [
        call(interface, member, *body, mute=mute)
        for body in bodies
        for interface, member in (
            (names.MANAGER, "Why"),
            (names.MANAGER, "SetPolicy"),
            (names.PROPERTIES, "Set"),
        )
        for mute in (True, False)
    ]
    messages.append(call(names.PEER, "Ping", path="/" + "p" * (4 << 20)))
    client = Client()
    while True:
        for message in messages:
            if not client.send(message):
                client = Client()
                done["connections"] += 1
            done["messages"] += 1
            done["bytes"] += len(message)
            yield


def vanish(done: Counter[str]) -> Iterator[None]:
    """Comes, asks, and is gone or deaf: half an authentication, half a message, answers unread."""
    ask = call(names.OBJECT_MANAGER, "GetManagedObjects")
    deaf: list[Client] = []
    while True:
        with socket.socket(socket.AF_UNIX) as half:
            half.connect(_SOCKET)
            half.sendall(b"\0AUTH EXTERN")
        client = Client()
        client.send(ask)
        client.sock.setblocking(True)
        client.sock.sendall(ask[: len(ask) // 2])
        if random.random() < 0.1:
            deaf.append(client)
        else:
            client.close()
        if len(deaf) > 20:
            deaf.pop(0).close()
        for listener in deaf:
            try:
                listener.sock.setblocking(False)
                listener.sock.send(ask)
            except OSError:
                done["cut off"] += 1
        done["connections"] += 1
        yield


def crowd(done: Counter[str]) -> Iterator[None]:
    """As many connections as dbus-daemon lets one user have, and more; all of them ask."""
    ask = call(names.PEER, "Ping")
    clients: list[Client] = []
    while True:
        try:
            if len(clients) < _CROWD:
                clients.append(Client())
                done["connections"] += 1
        except OSError:
            done["refused"] += 1
        for client in clients:
            client.send(ask)
            done["calls"] += 1
        yield


def churn(done: Counter[str]) -> Iterator[None]:
    """Matches by the thousand, and signals that look like those of others."""
    client = Client()
    rules = [f"type='signal',sender='org.vnetd1',arg0='{number}'" for number in range(400)]
    forged: list[tuple[str, str, str, str, list[Any]]] = [
        ("/org/fedoraproject/FirewallD1", "org.fedoraproject.FirewallD1", "Reloaded", "", []),
        ("/org/freedesktop/DBus", _BUS, "NameOwnerChanged", "sss", ["org.vnetd1", ":1.1", ""]),
        ("/org/freedesktop/DBus", _BUS, "NameLost", "s", ["org.vnetd1"]),
        (
            "/org/freedesktop/login1",
            "org.freedesktop.login1.Manager",
            "PrepareForSleep",
            "b",
            [True],
        ),
        ("/org/vnetd1", names.MANAGER, "Repaired", "sa{sv}", ["network/lab", {}]),
    ]
    signals = []
    for path, interface, member, signature, body in forged:
        message = Message.new_signal(path, interface, member, signature, body)
        if (
            member != "Reloaded"
        ):  # libvirtd takes anybody's for firewalld's, and writes its rules anew
            signals.append(marshal(message))
        message.destination = names.BUS_NAME
        signals.append(marshal(message))
    while True:
        for verb in ("AddMatch", "RemoveMatch"):
            for rule in rules:
                if not client.send(client.bus_call(verb, rule)):
                    client = Client()
                done["matches"] += 1
                if done["matches"] % 20 == 0:
                    for look_alike in signals:
                        client.send(look_alike)
                        done["signals"] += 1
            yield


def fuzz(done: Counter[str], most: int) -> Iterator[None]:
    """Arguments of all kinds for every method of every object, a few of them of the right type."""
    client = Client()
    methods = [
        (interface.name, member, takes)
        for interface in contract.interfaces().values()
        for member, takes in interface.takes.items()
    ]
    paths = ("/org/vnetd1", "/org/vnetd1/network/lab", "/org/vnetd1/bridge/vblab", "/", "/a/b")
    while done["arguments"] < most:
        interface, member, takes = random.choice(methods)
        signature = takes if random.random() < 0.7 else random_signature()
        body = [random_value(one) for one in complete_types(signature)]
        message = call(
            interface, member, signature, body, random.choice(paths), mute=random.random() < 0.5
        )
        if not client.send(message):
            client = Client()
            done["connections"] += 1
        done["calls"] += 1
        done["arguments"] += max(1, len(body))
        yield


def random_signature() -> str:
    pool = ("s", "u", "t", "o", "b", "y", "x", "d", "v", "as", "a{sv}", "(su)", "aav", "a(sv)", "g")
    return "".join(random.choice(pool) for _ in range(random.randrange(0, 5)))


def complete_types(signature: str) -> list[str]:
    from dbus_next.signature import SignatureTree

    return [found.signature for found in SignatureTree._get(signature).types]


def random_value(signature: str) -> Any:
    match signature:
        case "s":
            if random.random() < 0.5:
                return random.choice(_STRINGS)
            return "".join(chr(random.randrange(1, 0xD7FF)) for _ in range(random.randrange(30)))
        case "o":
            return random.choice(("/", "/org/vnetd1", "/a/b_c"))
        case "g":
            return random.choice(("", "s", "a{sv}"))
        case "b":
            return random.random() < 0.5
        case "y":
            return random.randrange(256)
        case "u":
            return random.choice((0, 1, 60, (1 << 32) - 1, random.randrange(1 << 32)))
        case "t":
            return random.choice((0, 1, 60, 1 << 63, (1 << 64) - 1, random.randrange(1 << 64)))
        case "x":
            return random.choice((0, -1, -(1 << 63), (1 << 63) - 1))
        case "d":
            return random.choice((0.0, -1.5, float("inf"), float("nan")))
        case "v":
            inner = random.choice(("s", "u", "as", "v", "a{sv}", "t"))
            return Variant(inner, random_value(inner))
        case _ if signature.startswith("a{"):
            return {random_value("s"): random_value("v") for _ in range(random.randrange(3))}
        case _ if signature.startswith("a"):
            return [random_value(signature[1:]) for _ in range(random.randrange(4))]
        case _:  # a struct
            return [random_value(one) for one in complete_types(signature[1:-1])]


def main(kind: str, most: str = "0") -> None:
    random.seed(f"{kind}{most}")
    done: Counter[str] = Counter()
    work = {f.__name__: f for f in (flood, giant, vanish, crowd, churn)}
    steps = fuzz(done, int(most) or 1_000_000) if kind == "fuzz" else work[kind](done)
    began = time.monotonic()
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    print("at work", flush=True)
    for _ in steps:
        if told:
            break
    print(json.dumps({"kind": kind, "seconds": round(time.monotonic() - began, 1), **done}))


if __name__ == "__main__":
    main(*sys.argv[1:])
