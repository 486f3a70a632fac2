"""Run tools, and find out who runs what."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from vnetd.core.model import Cause
from vnetd.errors import BackendError, Hangs, is_want_of_files

# What a busy host takes for hundreds of networks is a part of it; all else waits meanwhile.
_SECONDS = 10.0
# What an admin recognises is among the first ancestors: a shell, cron, ansible, a service.
_MOST_ANCESTORS = 4
DNSMASQ_PID_FILES = Path("/run/libvirt/network")
_PID_FILES = (Path("/run/libvirtd.pid"), Path("/run/virtnetworkd.pid"))


async def run(argv: Sequence[str], stdin: str = "", env: Mapping[str, str] | None = None) -> str:
    """The tool's output. env: beside vnetd's own. Raises BackendError with what it said if it fails
    or is absent, Hangs after 10 s.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=None if env is None else {**os.environ, **env},
        )
    except OSError as error:
        raise BackendError(f"{argv[0]}: {error.strerror}") from error
    try:
        async with asyncio.timeout(_SECONDS):
            out, err = await process.communicate(stdin.encode())
    except TimeoutError:
        raise Hangs(f"{argv[0]}: no end after {_SECONDS:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        said = err.decode(errors="replace").strip() or f"exit status {process.returncode}"
        raise BackendError(f"{' '.join(argv)}: {said}")
    return out.decode(errors="replace")


def name_of(pid: int) -> str | None:
    """The kernel's name of a process (at most 15 bytes); None if it is gone."""
    try:
        return _name_of(pid)
    except OSError:
        return None


def _name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")


def libvirt() -> Cause | None:
    """The daemon through which a network was changed; libvirt does not tell for whom."""
    for path in _PID_FILES:
        try:
            pid = int(path.read_text())
        except (OSError, ValueError):
            continue
        if (name := name_of(pid)) is not None:
            return Cause(name, pid)
    return None


def dnsmasq(network: str) -> int | None:
    """The pid of the one that libvirt runs for it. libvirt leaves the file behind when it stops a
    network: another process may have the pid. Raises BackendError where vnetd cannot tell for want
    of open files.
    """
    try:
        pid = int((DNSMASQ_PID_FILES / f"{network}.pid").read_text())
        return pid if _name_of(pid) == "dnsmasq" else None
    except ValueError:
        return None
    except OSError as error:
        if is_want_of_files(error):
            raise BackendError(f"dnsmasq of network {network}: {error.strerror}") from error
        return None


def ancestors(pid: int, name: str) -> tuple[str, ...] | None:
    """ "NAME[PID]" of its ancestors, nearest first, without PID 1.

    None if the process has gone, or if the pid is not of this pid namespace (the kernel speaks of
    the initial one): then another process, or none, has it here.
    """
    if name_of(pid) != name:
        return None
    found: list[str] = []
    while len(found) < _MOST_ANCESTORS and (pid := _parent(pid)) > 1:
        found.append(f"{name_of(pid)}[{pid}]")
    return tuple(found)


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    # The name may hold spaces and brackets; the fields behind it do not: proc(5).
    return int(stat.rpartition(b")")[2].split()[1])
