"""The files in which libvirt keeps the state of its networks, also the handles of their nftables
rules. Only root may read them: to others vnetd-libvirt-status.socket hands them over as a tar file.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import tarfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

DIRECTORY = Path("/run/libvirt/network")
SOCKET = Path("/run/vnetd-libvirt-status.socket")
_SECONDS = 5.0
# Times of files go in steps: what was written so recently may still change within the step.
_STEP_NS = 50_000_000

Files = tuple[tuple[int, str], ...]
"""When it was written (ns since the epoch), and its text."""

_cache: tuple[int, Files] | None = None
_said = ""


async def read() -> Files:
    """Those that can be read."""
    try:
        return _read()
    except PermissionError:
        return await _ask()


async def may_read() -> bool:
    try:
        _read()
    except PermissionError:
        await _ask()
        return not _said
    return True


def written(networks: Iterable[str]) -> dict[str, int]:
    """When each was written (ns since the epoch), of those that there are; anybody may ask."""
    found = {}
    for network in networks:
        with suppress(FileNotFoundError):
            found[network] = (DIRECTORY / f"{network}.xml").stat().st_mtime_ns
    return found


def _read() -> Files:
    files = []
    for path in DIRECTORY.glob("*.xml"):
        with suppress(FileNotFoundError):  # its network has been stopped
            files.append((path.stat().st_mtime_ns, path.read_text()))
    return tuple(files)


async def _ask() -> Files:
    """libvirt renames each into its place, so the directory tells when one of them changed."""
    global _cache, _said
    changed = os.stat(DIRECTORY).st_mtime_ns
    if _cache is not None and _cache[0] == changed:
        return _cache[1]
    try:
        async with asyncio.timeout(_SECONDS):
            reader, writer = await asyncio.open_unix_connection(SOCKET)
            try:
                data = await reader.read()
            finally:
                writer.close()
        files = unpack(data)
    except (OSError, TimeoutError, tarfile.TarError) as error:
        why = f"no end after {_SECONDS:.0f} s" if isinstance(error, TimeoutError) else str(error)
        said = f"libvirt's status files cannot be read: {SOCKET}: {why}"
        if said != _said:
            log.warning("%s", said)
        _said = said
        return ()
    _said = ""
    if time.time_ns() - changed > _STEP_NS:
        _cache = changed, files
    return files


def unpack(data: bytes) -> Files:
    files = []
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.name.endswith(".xml") else None
            if content is not None:
                text = content.read().decode(errors="replace")
                files.append((round(member.mtime * 1e9), text))
    return tuple(files)
