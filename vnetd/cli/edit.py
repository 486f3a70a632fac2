"""vnetctl edit: the policy, from an editor or a file, over the bus. What one has typed stays."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from difflib import unified_diff
from pathlib import Path
from typing import Any

from vnetd.api.names import ERROR
from vnetd.bus import sysbus
from vnetd.cli import render
from vnetd.cli.codes import FAILED, OK
from vnetd.cli.commands import LONG_SECONDS, call
from vnetd.errors import BackendError


def edit(arguments: argparse.Namespace) -> int:
    """Raises BackendError, BusError or RemoteError. Not a coroutine: an interrupt ends it at once,
    but in an editor, whose own it is.
    """
    text, etag = _get()
    if arguments.file is not None:
        etag = _set(_given(arguments.file), etag)
    else:
        number, name = tempfile.mkstemp(prefix="vnetd-", suffix=".toml")
        os.close(number)
        draft = Path(name)
        draft.write_bytes(text.encode())
        try:
            found = _typed(draft, text, etag)
        finally:
            if draft.exists() and draft.read_bytes() == text.encode():
                draft.unlink()
            elif draft.exists():
                render.complain(f"what you have typed is in {draft}")
        if found is None:
            return FAILED
        etag = found
    if arguments.json:
        render.print_json({"etag": etag})
    return OK


def _typed(draft: Path, text: str, etag: str) -> str | None:
    """The etag of what is in force at the end; None where the user gives up. Removes the draft
    when there is nothing in it any more that is not in force.
    """
    while True:
        _run_editor(draft)
        try:
            typed = checked(draft.read_bytes(), str(draft))
            if typed == text:
                render.complain("nothing is changed")
            else:
                etag = _set(typed, etag)
        except (BackendError, sysbus.BusError, sysbus.RemoteError) as error:
            if not sys.stdin.isatty():
                raise
            render.complain(str(error))
            if isinstance(error, sysbus.RemoteError) and error.name == f"{ERROR}.Conflict":
                before = text
                text, etag = _get()
                print(changes(before, text), file=sys.stderr)
            if not _wants("edit again, with that taken in where it is right?"):
                return None
        else:
            draft.unlink()
            return etag


def _get() -> tuple[str, str]:
    text, etag = asyncio.run(call("GetPolicy"))
    return text, etag


def _set(text: str, etag: str) -> str:
    (new,) = asyncio.run(call("SetPolicy", "ss", [text, etag], seconds=LONG_SECONDS))
    return str(new)


def _given(file: Path) -> str:
    most = sysbus.LONGEST_POLICY + 1
    try:
        if str(file) == "-":
            return checked(sys.stdin.buffer.read(most), "standard input")
        with file.open("rb") as opened:
            return checked(opened.read(most), str(file))
    except OSError as error:
        raise BackendError(f"{file} cannot be read: {error.strerror}") from error


def checked(data: bytes, name: str) -> str:
    """What the bus can carry; else it would end the connection. Raises BackendError."""
    if len(data) > sysbus.LONGEST_POLICY:
        most = sysbus.LONGEST_POLICY >> 20
        raise BackendError(f"{name} is larger than {most} MiB: put some of it into drop-ins")
    for what, at in (("is not UTF-8 text", _not_utf8(data)), ("holds a NUL", data.find(b"\0"))):
        if at >= 0:
            line = data.count(b"\n", 0, at) + 1
            raise BackendError(f"{name}:{line}: {what}; correct it there")
    return data.decode()


def _not_utf8(data: bytes) -> int:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return -1


def changes(before: str, now: str) -> str:
    """What others have done to the policy meanwhile."""
    names = ("as you have read it", "as it is now")
    return "\n".join(unified_diff(before.splitlines(), now.splitlines(), *names, lineterm=""))


def _run_editor(file: Path) -> None:
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    # As others do it: there may be arguments in it, and quotes.
    running = subprocess.Popen(["sh", "-c", f'{editor} "$1"', "sh", str(file)])
    before: Callable[..., Any] | int | None = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = running.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    if code:
        raise BackendError(f"the editor ({editor}) ended with status {code}; nothing is changed")


def _wants(what: str) -> bool:
    try:
        return input(f"{what} [Y/n] ").strip().lower() not in ("n", "no")
    except EOFError:
        return False
