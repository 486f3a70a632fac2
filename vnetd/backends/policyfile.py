"""The policy's main file, for those who change it over the bus: read with an etag, and replaced
whole where it still has the one that the caller has read.
"""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import suppress
from pathlib import Path

from vnetd.backends import files
from vnetd.errors import Conflict, PolicyError, Problem, VnetdError

_ABSENT = "absent"


def read(path: Path) -> tuple[str, str]:
    """Its text and etag. Raises PolicyError where it cannot be read, or not be said on the bus."""
    if not path.exists():
        return "", _ABSENT
    text = files.read_text(path).text
    if "\0" in text:
        line = text.partition("\0")[0].count("\n") + 1
        raise PolicyError([Problem(str(path), line, "", "holds a NUL", "remove it")])
    return text, _etag(text)


def replace(path: Path, text: str, etag: str) -> str:
    """At once, for whoever reads it and whatever power does, where it still has that etag: its new
    one. Through a symbolic link. Raises PolicyError, Conflict, or VnetdError where it cannot be
    written.
    """
    if read(path)[1] != etag:
        wrong = f"{path} has been changed by somebody else since it was read, and stays so"
        raise Conflict(f"{wrong}; read it again, merge, and try again")
    to = Path(os.path.realpath(path))
    new = to.with_name(f".{to.name}.new")
    try:
        _write(new, text.encode(), to)
        new.rename(to)
        _sync(to.parent)
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        raise VnetdError(_unwritable(to, error)) from error
    return _etag(text)


def _write(path: Path, data: bytes, old: Path) -> None:
    """With the mode of the old one, and whose it was as far as vnetd may give it away."""
    path.unlink(missing_ok=True)  # of one who was killed
    with open(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb"
    ) as file:
        mode = 0o644
        with suppress(FileNotFoundError):
            status = old.stat()
            mode = status.st_mode & 0o777
            for owner in (status.st_uid, -1):
                with suppress(PermissionError):
                    os.fchown(file.fileno(), owner, status.st_gid)
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unwritable(path: Path, error: OSError) -> str:
    match error.errno:
        case errno.EROFS:
            right = "its file system is read-only for vnetd: write it where it is made"
        case errno.EACCES | errno.EPERM:
            right = (
                "let the user vnetd write in its directory: systemd-tmpfiles --create vnetd.conf"
            )
        case errno.ENOENT:
            right = "make its directory"
        case _:
            right = "the policy stays as it was"
    return f"{path} cannot be written: {error.strerror}; {right}"


def _etag(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
