"""Prove by real packets where they end: from a guest that is made for it, traced by the kernel.

Run by root's vnetctl, not by the daemon, whose sandbox may make no namespaces. All that it makes
belongs to processes that die with it: the network namespace to one (with it goes the veth on the
bridge), the table that turns tracing on to another (the kernel removes an owner's table). So there
is nothing to clean up, not even after SIGKILL.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from vnetd.backends import process, trace
from vnetd.errors import BackendError

_T = TypeVar("_T")
_CLONE_NEWNET = 0x40000000
_ANSWER_SECONDS = 1.5
# STP: listening and learning take twice the forward delay, which is 15 s by default.
_PORT_SECONDS = 35.0
_POLL_SECONDS = 0.05
_FIRST_SECONDS = 3.0
_FIRST_PORT, _LAST_PORT, _DNS, _HTTPS = 9, 10, 53, 443
_QUERY = b"\x77\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03box\x00\x00\x01\x00\x01"


@dataclass(frozen=True, slots=True)
class Probe:
    """One question that the made-up guest asked. path: the base chains that its packet met."""

    question: str
    answered: bool
    path: tuple[str, ...]
    dropped: str
    rule: str


async def run(bridge: str, address: str, host: str, destination: str) -> list[Probe]:
    """address: a free one of the network, with prefix length. Raises BackendError."""
    async with contextlib.AsyncExitStack() as stack:
        guest = await stack.enter_async_context(_child("unshare", "--net", "cat"))
        link = f"vnp{guest.pid}"
        await _until(_in_other_netns(guest.pid), _FIRST_SECONDS, "a namespace for the probe")
        await process.run(
            ["ip", "link", "add", link, "type", "veth", "peer", "eth0", "netns", str(guest.pid)]
        )
        await _plug(link, bridge, guest.pid, address, host)
        sockets = ThreadPoolExecutor(1, initializer=_enter, initargs=(guest.pid,))
        stack.callback(sockets.shutdown)
        monitor = await stack.enter_async_context(_child("nft", "monitor", "trace"))
        lines: list[str] = []
        reading = asyncio.ensure_future(_read(monitor, lines))
        stack.callback(reading.cancel)
        own, _, _ = address.partition("/")
        tracer = await stack.enter_async_context(_child("nft", "-i"))
        await _trace(tracer, bridge, own)
        loop = asyncio.get_running_loop()

        def ask(question: Callable[[], _T]) -> asyncio.Future[_T]:
            return loop.run_in_executor(sockets, question)

        # From the first packet that the kernel tells of all are seen; the last comes behind all.
        await _seen(ask, host, _FIRST_PORT, lines)
        del lines[:]
        dns = await ask(lambda: _asks_dns(own, host))
        tcp = await ask(lambda: _connects(own, destination))
        await _seen(ask, host, _LAST_PORT, lines)
        found = trace.parse(lines)
        return [
            await _told(f"DNS query to {host}", dns, found, f"udp dport {_DNS}", own),
            await _told(f"TCP to {destination}:{_HTTPS}", tcp, found, f"tcp dport {_HTTPS}", own),
        ]


@contextlib.asynccontextmanager
async def _child(*argv: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """One that ends with this process, however that ends."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        "setpriv", "--pdeathsig", "KILL", *argv, stdin=pipe, stdout=pipe, stderr=pipe
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


def _in_other_netns(pid: int) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        return os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")

    return holds


async def _until(holds: Callable[[], Awaitable[bool]], seconds: float, what: str) -> None:
    """By asking again: of these nobody tells."""
    try:
        async with asyncio.timeout(seconds):
            while not await holds():  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        raise BackendError(f"probe: waited {seconds:.0f} s in vain for {what}") from None


async def _plug(link: str, bridge: str, pid: int, address: str, host: str) -> None:
    inside = ["nsenter", "-t", str(pid), "-n", "ip"]
    await process.run(["ip", "link", "set", link, "master", bridge, "up"])
    nodad = ["nodad"] if ":" in address else []
    await process.run([*inside, "addr", "add", address, "dev", "eth0", *nodad])
    await process.run([*inside, "link", "set", "eth0", "up"])
    await process.run([*inside, "route", "add", "default", "via", host])
    await _until(_forwards(link), _PORT_SECONDS, f"the port {link} of {bridge} to forward")


def _forwards(link: str) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        (found,) = json.loads(await process.run(["ip", "-j", "-d", "link", "show", link]))
        port = found.get("linkinfo", {}).get("info_slave_data", {})
        return bool(port.get("state") == "forwarding")

    return holds


def _enter(pid: int) -> None:
    """Only this thread: what sockets it makes are the probe's."""
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(namespace)


async def _trace(tracer: asyncio.subprocess.Process, bridge: str, own: str) -> None:
    """Tracing on for this address alone; answers wear it only behind their translation."""
    family = "ip6" if ":" in own else "ip"
    table = f"inet vnetd_probe_{tracer.pid}"
    text = f"""\
add table {table} {{ flags owner; }}
add chain {table} from {{ type filter hook prerouting priority -350; }}
add chain {table} to {{ type filter hook forward priority -350; }}
add rule {table} from iifname "{bridge}" {family} saddr {own} meta nftrace set 1
add rule {table} to oifname "{bridge}" {family} daddr {own} meta nftrace set 1
"""
    assert tracer.stdin is not None, "stdin is a pipe"
    tracer.stdin.write(text.encode())
    await tracer.stdin.drain()


async def _read(monitor: asyncio.subprocess.Process, lines: list[str]) -> None:
    assert monitor.stdout is not None, "stdout is a pipe"
    async for line in monitor.stdout:
        lines.append(line.decode(errors="replace"))


async def _seen(
    ask: Callable[[Callable[[], None]], asyncio.Future[None]],
    host: str,
    port: int,
    lines: list[str],
) -> None:
    """Send to this port until the kernel tells of it; in vain if nothing comes up from the bridge,
    or if that is dropped before it is traced, which what follows will say.
    """

    async def told() -> bool:
        await ask(lambda: _say(host, port))
        return any(f"udp dport {port} " in line for line in lines)

    with contextlib.suppress(BackendError):
        await _until(told, _FIRST_SECONDS, "the probe's packets")


def _say(host: str, port: int) -> None:
    with _socket(host, socket.SOCK_DGRAM) as sending, contextlib.suppress(OSError):
        sending.sendto(b"", (host, port))


def _asks_dns(own: str, host: str) -> bool:
    with _socket(host, socket.SOCK_DGRAM) as asking:
        try:
            asking.bind((own, 0))
            asking.sendto(_QUERY, (host, _DNS))
            return bool(asking.recv(512))
        except OSError:
            return False


def _connects(own: str, destination: str) -> bool:
    with _socket(destination, socket.SOCK_STREAM) as asking:
        try:
            asking.bind((own, 0))
            asking.connect((destination, _HTTPS))
        except ConnectionRefusedError:
            return True  # an answer: nobody is at home there
        except OSError:
            return False
        return True


def _socket(to: str, kind: socket.SocketKind) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, kind)
    made.settimeout(_ANSWER_SECONDS)
    return made


async def _told(
    question: str, answered: bool, found: list[trace.Traced], port: str, own: str
) -> Probe:
    """The question's own packet if that was dropped, else an answer that was."""
    asked = [item for item in found if port in item.packet]
    answers = [item for item in found if f"daddr {own}" in item.packet]
    # The kernel gives a packet another id at each hook that sees other interfaces.
    path = tuple(dict.fromkeys(chain for item in asked for chain in item.chains))
    drop = next((item.drop for item in (*asked, *answers) if item.drop), None)
    if answered or drop is None:
        return Probe(question, answered, path, "", "")
    family, table, chain, what, handle = drop
    rule = await _rule(family, table, chain, handle) if handle else what
    return Probe(question, answered, path, f"{family} {table} {chain}", rule or what)


async def _rule(family: str, table: str, chain: str, handle: int) -> str:
    """The text of a rule: nft knows handles, but only iptables its own matches."""
    listed = await process.run(["nft", "-j", "-a", "list", "chain", family, table, chain])
    rules = [item["rule"]["handle"] for item in json.loads(listed)["nftables"] if "rule" in item]
    if handle not in rules:
        return ""
    at = rules.index(handle)
    if family in ("ip", "ip6"):
        command = "iptables-nft-save" if family == "ip" else "ip6tables-nft-save"
        saved = await process.run([command, "-t", table])
        texts = [line for line in saved.splitlines() if line.startswith(f"-A {chain} ")]
        if len(texts) == len(rules):
            return texts[at].removeprefix(f"-A {chain} ")
    text = await process.run(["nft", "-a", "list", "chain", family, table, chain])
    line = next((line for line in text.splitlines() if line.endswith(f"# handle {handle}")), "")
    return line.rpartition("# handle")[0].strip()
