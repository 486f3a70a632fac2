"""What vnetd needs of its host: how each thing is found out, and what is off without it.

Seen with the eyes of whoever runs it: root is let in where the service's user may not be.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

from vnetd import journal
from vnetd.api.names import BUS_NAME
from vnetd.backends import files, netlink, process
from vnetd.backends.firewalls import iptables, legacy, xtables_lock
from vnetd.backends.firewalls.guard import Guard
from vnetd.backends.libvirt import libvirtd, status_files
from vnetd.bus import sysbus
from vnetd.core import policy
from vnetd.core.model import Family, Held, World
from vnetd.errors import BackendError, PolicyError

_SECONDS = 5.0
_CAP_NET_ADMIN = 12
_POLKIT = "org.freedesktop.PolicyKit1"
_FIREWALLD = "org.fedoraproject.FirewallD1"
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


class Found(StrEnum):
    OK = "ok"
    MISSING = "missing"
    UNUSED = "unused"
    """Not there, and nothing on this host asks for it."""


class Missing(Exception):
    """The text says what is wrong, and how to put it right."""


class Unused(Exception):
    """The text says why it does not matter."""


@dataclass(frozen=True, slots=True)
class Host:
    config: Path
    connect: str
    state: Path
    runtime: Path


@dataclass(frozen=True, slots=True)
class Check:
    """look tells what there is, or raises Missing or Unused."""

    name: str
    off: str
    look: Callable[[Host], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    found: Found
    text: str
    off: str


async def look(host: Host) -> list[Finding]:
    findings = []
    for check in CHECKS:
        try:
            found, text = Found.OK, await check.look(host)
        except Missing as missing:
            found, text = Found.MISSING, str(missing)
        except Unused as unused:
            found, text = Found.UNUSED, str(unused)
        off = check.off if found is Found.MISSING else ""
        findings.append(Finding(check.name, found, text, off))
    return findings


def render(findings: Sequence[Finding]) -> str:
    lines = []
    for item in findings:
        lines.append(f"{item.found:<8} {item.name}: {item.text}")
        if item.off:
            lines.append(f"{'':<8} off: {item.off}")
    return "\n".join(lines)


def render_json(findings: Sequence[Finding]) -> str:
    return json.dumps([asdict(item) for item in findings], indent=2, ensure_ascii=False)


# -- how each is found out


async def _libraries(_: Host) -> str:
    names = ("libvirt", "dbus_next", "pyroute2", "systemd.daemon", "tomli")
    if absent := [name for name in names if find_spec(name) is None]:
        raise Missing(f"{', '.join(absent)} cannot be imported: install them for {sys.executable}")
    return "all are there"


async def _user(_: Host) -> str:
    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


async def _net_admin(_: Host) -> str:
    if not _effective_capabilities() >> _CAP_NET_ADMIN & 1:
        raise Missing("this process has not got it: run it by vnetd.service, or as root")
    return "is effective"


def _effective_capabilities() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))


def _tools(*names: str) -> Callable[[Host], Awaitable[str]]:
    async def look(_: Host) -> str:
        if absent := [name for name in names if shutil.which(name) is None]:
            raise Missing(f"{', '.join(absent)} not found in {os.environ.get('PATH', '')}")
        return ", ".join(names)

    return look


async def _legacy(_: Host) -> str:
    in_use = any(legacy.tables(family) for family in Family)
    try:
        variant = await iptables.variant()
    except BackendError as error:
        raise Missing(str(error)) from error
    if not in_use and variant is not World.IPTABLES_LEGACY:
        raise Unused("it has no tables, and iptables is not the legacy one here")
    if not legacy.may_read():
        raise Missing(
            "IP sockets or CAP_NET_RAW are refused: vnetd.service needs the drop-in "
            "/usr/share/doc/vnetd/iptables-legacy.conf"
        )
    if os.access(xtables_lock.PATH, os.F_OK) and not os.access(xtables_lock.PATH, os.W_OK):
        wrong = f"{xtables_lock.PATH} cannot be written: run systemd-tmpfiles --create vnetd.conf"
        raise Missing(wrong)
    return await _tools("iptables-legacy-save", "ip6tables-legacy-restore")(_)


async def _guard(_: Host) -> str:
    try:
        guard = Guard(lambda _: None)
    except OSError as error:
        raise Missing(f"netlink: {error.strerror}") from error
    try:
        return str(guard.best())
    except BackendError as error:
        raise Missing(str(error)) from error
    finally:
        os.close(guard.fileno())


async def _guard_flags(host: Host) -> str:
    held = Held(await _guard(host))
    if held is not Held.PERSISTENT:
        raise Missing(
            f"this kernel ({os.uname().release}) knows {held or 'no flags'}: 6.9 has both"
        )
    return "owner, persist"


async def _events(_: Host) -> str:
    try:
        netlink.open_nftables_events().close()
        netlink.open_link_events().close()
    except OSError as error:
        raise Missing(f"the kernel refuses them: {error.strerror}") from error
    return "rtnetlink, nf_tables"


async def _pidfd(_: Host) -> str:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        raise Missing(f"pidfd_open: {error.strerror}") from error
    return "works"


async def _sysctls(_: Host) -> str:
    if not os.access(_FORWARDING, os.W_OK, effective_ids=True):  # else without capabilities
        raise Missing("vnetd.service needs ReadWritePaths=/proc/sys/net, and CAP_NET_ADMIN")
    return "can be written"


async def _libvirt(host: Host) -> str:
    try:
        async with asyncio.timeout(_SECONDS):
            version = await libvirtd.ask_version(host.connect)
    except TimeoutError:
        raise Missing(f"{host.connect} does not answer") from None
    except BackendError as error:
        raise Missing(
            f"{error}; is libvirtd running, and the polkit rule vnetd.rules there?"
        ) from error
    return f"{host.connect}, version {version}"


async def _directories(_: Host) -> str:
    closed = [
        path for path in libvirtd.DIRECTORIES if path.exists() and not files.is_watchable(path)
    ]
    if closed:
        raise Missing(f"only root may read {', '.join(map(str, closed))}")
    return "can be watched"


async def _status_files(_: Host) -> str:
    if await status_files.may_read():
        return "can be read"
    raise Missing(
        f"only root may read {status_files.DIRECTORY}, and {status_files.SOCKET} does not "
        "answer: systemctl start vnetd-libvirt-status.socket"
    )


async def _bus(_: Host) -> str:
    try:
        async with sysbus.connected() as bus:
            (owned,) = await sysbus.call_bus(bus, "NameHasOwner", "s", [BUS_NAME])
            if not owned:
                await sysbus.call_bus(bus, "RequestName", "su", [BUS_NAME, 4])
    except sysbus.BusError as error:
        raise Missing(str(error)) from error
    except sysbus.RemoteError as error:
        wrong = f"the name {BUS_NAME} is refused: is org.vnetd1.conf installed and loaded?"
        raise Missing(wrong) from error
    return f"{BUS_NAME} is {'served' if owned else 'free'}"


async def _has_name(name: str) -> bool:
    """Or would be started for a caller."""
    async with sysbus.connected() as bus:
        (names,) = await sysbus.call_bus(bus, "ListNames")
        (startable,) = await sysbus.call_bus(bus, "ListActivatableNames")
    return name in (*names, *startable)


async def _polkit(_: Host) -> str:
    try:
        if await _has_name(_POLKIT):
            return "is on the bus"
    except (sysbus.BusError, sysbus.RemoteError) as error:
        raise Missing(str(error)) from error
    raise Missing(f"{_POLKIT} is not on the bus: install polkitd")


async def _firewalld(_: Host) -> str:
    call = ("busctl", "--system", "call", _FIREWALLD, f"/{_FIREWALLD.replace('.', '/')}")
    if shutil.which("firewall-cmd") is None:
        raise Unused("is not installed")
    try:
        state = await process.run([*call, f"{_FIREWALLD}.zone", "getActiveZones"])
    except BackendError as error:
        if "ServiceUnknown" in str(error) or "not provided" in str(error):
            raise Unused("does not run") from error
        raise Missing(str(error)) from error
    return "answers" if state else "is silent"


def _directory(which: Callable[[Host], Path]) -> Callable[[Host], Awaitable[str]]:
    async def look(host: Host) -> str:
        path = which(host)
        there = next(part for part in (path, *path.parents) if part.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            raise Missing(f"{path} cannot be written by this user")
        return str(path)

    return look


async def _policy(host: Host) -> str:
    try:
        texts = files.read_policy(host.config)
        networks = policy.parse(texts).networks
    except PolicyError as error:
        raise Missing(f"{error.problems[0]}; see: vnetctl check") from error
    return f"{len(networks)} networks from {len(texts)} files"


async def _journal(_: Host) -> str:
    if not os.access(journal.SOCKET, os.W_OK):
        raise Missing(f"{journal.SOCKET} is not there")
    return "is there"


CHECKS = (
    Check("user", "", _user),
    Check("Python libraries", "everything: vnetd does not start", _libraries),
    Check("CAP_NET_ADMIN", "every repair, and the notice of changes", _net_admin),
    Check("kernel notifications", "the notice of changes: only each resync sees them", _events),
    Check("nf_tables", "the guard: a flush cuts or opens guests until it is repaired", _guard),
    Check("table flags owner, persist", "the guard's protection from others", _guard_flags),
    Check("pidfd", "the notice of a dnsmasq that dies: only each resync sees it", _pidfd),
    Check("/proc/sys/net", "turning forwarding on again", _sysctls),
    Check(
        "nft", "libvirt's nftables backend, and naming what drops guests' traffic", _tools("nft")
    ),
    Check(
        "iptables (nf_tables)",
        "putting back libvirt's iptables rules",
        _tools("iptables-nft-save", "iptables-nft-restore", "ip6tables-nft-restore"),
    ),
    Check(
        "iptables-legacy",
        "putting back libvirt's rules there, and naming what others drop there",
        _legacy,
    ),
    Check("ip", "vnetctl why, and naming what drops guests' traffic", _tools("ip")),
    Check("busctl", "firewalld's zones", _tools("busctl")),
    Check("libvirt", "everything but the guard as it is: the state is degraded", _libvirt),
    Check(
        "libvirt's directories",
        "the notice of net-update and net-autostart: only each resync sees them; with /run/libvirt/"
        "network also of dead dnsmasqs",
        _directories,
    ),
    Check(
        "libvirt's status files",
        "with libvirt's nftables backend: knowing which of several equal rules libvirt will "
        "delete, and that it is this backend when all its rules are gone",
        _status_files,
    ),
    Check("system bus", "org.vnetd1 and vnetctl, and repair of libvirt's nftables rules", _bus),
    Check("polkit", "changes by others than root", _polkit),
    Check("firewalld", "bridges' zones", _firewalld),
    Check("policy", "a changed policy: the one before stays in force", _policy),
    Check(
        "state directory", "history over a restart: it is in memory", _directory(lambda h: h.state)
    ),
    Check("runtime directory", "everything: vnetd does not start", _directory(lambda h: h.runtime)),
    Check("journal", "structured log entries: they go to standard error", _journal),
)
