"""vnetd.service's sandbox, as far as it can be had without systemd: confine.py UNIT… -- PROGRAM…

Its own view of the mounts, in which all but what the unit lists is read-only (ProtectSystem=strict,
ProtectKernelTunables=); no sockets of other families; no memory that is written and then run. Home
directories and /tmp stay, for this tree may be there. The filter of system calls is systemd's own:
tests/system has that.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

# sched.h, sys/mount.h, linux/mount.h; mount_setattr(2) has this number everywhere
_CLONE_NEWNS, _MS_BIND, _MS_REC, _MS_SLAVE = 0x20000, 0x1000, 0x4000, 0x80000
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
# sys/prctl.h
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_PR_SET_MDWE, _PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
# linux/audit.h: the architecture, and the number of socket(2) there
_ARCHITECTURES = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
# linux/bpf_common.h; offsets in struct seccomp_data; linux/seccomp.h
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EAFNOSUPPORT
_FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}

_SYSTEMD = Path(__file__).resolve().parents[2] / "systemd"
# What *Directory= make; and what is not the file system's.
_WRITABLE = ("/var/lib/vnetd", "/run/vnetd", "/dev", "/proc")
_libc = ctypes.CDLL(None, use_errno=True)


def main(units: Sequence[str], program: list[str]) -> None:
    text = "".join((_SYSTEMD / unit).read_text() for unit in units)
    _close_mounts([path.lstrip("-") for path in _words(text, "ReadWritePaths")])
    _close_sockets([_FAMILIES[name] for name in _words(text, "RestrictAddressFamilies")])
    _libc.prctl(_PR_SET_MDWE, _PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)  # since Linux 6.3
    os.umask(int(_words(text, "UMask")[0], 8))
    os.execvp(program[0], program)


def _words(text: str, setting: str) -> list[str]:
    return " ".join(re.findall(rf"^{setting}=(.*)", text, re.MULTILINE)).split()


def _close_mounts(paths: Sequence[str]) -> None:
    """What is mounted outside later, such as a namespace of ip netns, is still seen."""
    writable = [path for path in (*_WRITABLE, *paths) if Path(path).exists()]
    views = sorted({"/": True, "/proc/sys": True, **dict.fromkeys(writable, False)}.items())
    _check(_libc.unshare(_CLONE_NEWNS))
    _mount("/", _MS_REC | _MS_SLAVE)
    for path, _ in views[1:]:
        _mount(path, _MS_BIND | _MS_REC)
    for path, read_only in views:
        _set_read_only(path, on=read_only)


def _mount(path: str, flags: int) -> None:
    name = path.encode()
    _check(_libc.mount(name, name, None, flags, None))


def _set_read_only(path: str, *, on: bool) -> None:
    attributes = struct.pack("=4Q", _MOUNT_ATTR_RDONLY * on, _MOUNT_ATTR_RDONLY * (not on), 0, 0)
    where = (_AT_FDCWD, path.encode(), _AT_RECURSIVE)
    _check(_libc.syscall(_MOUNT_SETATTR, *where, attributes, len(attributes)))


def _close_sockets(families: Sequence[int]) -> None:
    architecture, number = _ARCHITECTURES[os.uname().machine]
    allow = len(families) + 6
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_IF_EQUAL, 0, allow - 2, architecture),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_IF_EQUAL, 0, allow - 4, number),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        *((_JUMP_IF_EQUAL, allow - at - 1, 0, family) for at, family in enumerate(families, 5)),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    text = b"".join(struct.pack("=HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(text)
    program = struct.pack("@HP", len(steps), ctypes.addressof(buffer))
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0))


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    at = sys.argv.index("--")
    main(sys.argv[1:at], sys.argv[at + 1 :])
