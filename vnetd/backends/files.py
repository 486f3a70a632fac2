"""Policy files, and directories whose changes matter."""

from __future__ import annotations

import asyncio
import errno
import os
import pwd
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vnetd.core.policy import PolicyText
from vnetd.errors import PolicyError, Problem

DEFAULT_CONFIG = Path("/etc/vnetd/vnetd.toml")

_MOST_BYTES = 4 * 1024 * 1024

# inotify(7)
_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
_IS_DIRECTORY = 0x40000000
_FINISHED = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _DELETE


def drop_ins(main: Path) -> Path:
    return main.with_name(main.name + ".d")


def read_policy(main: Path, *, instead: str | None = None) -> list[PolicyText]:
    """The main file and its drop-ins in order of their names; [] if there is none of them.

    instead: of what the main file says. Raises PolicyError for files that cannot be read or must
    not be trusted.
    """
    directory = drop_ins(main)
    texts = [] if instead is None else [PolicyText(str(main), instead)]
    paths = []
    try:
        paths += [main] if instead is None and main.exists() else []
        paths += sorted(path for path in directory.iterdir() if path.suffix == ".toml")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _unreadable(Path(error.filename or directory), error) from error
    return texts + [read_text(path) for path in paths]


def read_text(path: Path) -> PolicyText:
    """Raises PolicyError."""
    try:
        # Not blocking: a FIFO in place of a file must not hang the reader.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            _check(path, os.fstat(file.fileno()))
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(data) > _MOST_BYTES:
        raise _refused(path, f"is larger than {_MOST_BYTES >> 20} MiB", "make it smaller")
    try:
        return PolicyText(str(path), data.decode())
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise _refused(path, "is not UTF-8 text", "save it as UTF-8", line) from error


def replace_text(path: Path, text: str) -> None:
    """At once for whoever reads it, and readable for everybody. Raises OSError."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.chmod(0o644)
    new.rename(path)


def is_watchable(directory: Path) -> bool:
    return os.access(directory, os.R_OK | os.X_OK) and directory.is_dir()


class DirectoryWatch:
    """Changes of the files in directories, those that exist and may be read.

    A file counts when it has been written, not while: its creation alone says nothing. created:
    a new name counts too, for symbolic links, which nobody ever writes to. matters: of a file's
    name; an editor's own files must not lead to a look at one that it is just writing.
    """

    def __init__(
        self,
        paths: Iterable[Path],
        *,
        created: bool = False,
        matters: Callable[[str], bool] = lambda _: True,
    ) -> None:
        # pyroute2 brings the system calls. Imported late: it takes a quarter of a second, which
        # a command line that only reads a policy need not wait for.
        from pyroute2.inotify.inotify_fd import Inotify

        self._created = created
        self._matters = matters
        self._inotify = Inotify(path=())
        self._inotify.bind()
        os.set_inheritable(self._inotify.fd, False)
        for path in paths:
            if is_watchable(path):
                self._inotify.register_path(str(path), _FINISHED | _CREATE)

    async def changed(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            readable = asyncio.Event()
            loop.add_reader(self._inotify.fd, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(self._inotify.fd)
            if any(self._counts(*event) for event in _events(os.read(self._inotify.fd, 1 << 16))):
                return

    def close(self) -> None:
        self._inotify.close()

    def _counts(self, mask: int, name: str) -> bool:
        if mask & _IS_DIRECTORY or not name:  # without one: events were lost
            return True
        return self._matters(name) and bool(self._created or not mask & _CREATE)


def _events(events: bytes) -> Iterator[tuple[int, str]]:
    """Masks and names. struct inotify_event: wd, mask, cookie, length of the name, name."""
    at = 0
    while at + 16 <= len(events):
        _, mask, _, length = struct.unpack_from("iIII", events, at)
        name = events[at + 16 : at + 16 + length].rstrip(b"\0")
        yield mask, os.fsdecode(name)
        at += 16 + length


def _check(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _refused(path, "is not a regular file", "put a file there")
    if status.st_mode & stat.S_IWOTH:
        raise _refused(path, "can be written by anybody", f"run: chmod o-w {path}")
    if status.st_uid not in (0, os.geteuid()) and status.st_uid != _service():
        raise _refused(path, "belongs to another user", f"run: chown root {path}")


def _service() -> int:
    """The user whom the service runs as: a policy that was changed over the bus is its own."""
    try:
        return pwd.getpwnam("vnetd").pw_uid
    except KeyError:
        return 0


def missing(path: Path, *, empty: bool) -> Problem:
    """One that is to say nothing any more has at least a comment in it."""
    wrong = f"is {'empty' if empty else 'gone'}; the policy that was read from it stays in force"
    return Problem(str(path), 0, "", wrong, "put it back, or restart vnetd to do without")


def _unreadable(path: Path, error: OSError) -> PolicyError:
    wrong = f"cannot be read: {os.strerror(error.errno or errno.EIO)}"
    return _refused(path, wrong, "check the path and its permissions")


def _refused(path: Path, wrong: str, right: str, line: int = 0) -> PolicyError:
    return PolicyError([Problem(str(path), line, "", wrong, right)])
