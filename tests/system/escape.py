"""Try to get out of a sandbox: prints each attempt and how it ended, as JSON ("" is: it succeeded).

Whatever succeeds does no harm to the host that it runs in.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import socket
from collections.abc import Callable
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
# unistd.h of x86_64 and of aarch64; sched.h; stat.h
_INIT_MODULE = 105 if os.uname().machine == "aarch64" else 175
_CLONE_NEWNET, _CLONE_NEWUSER = 0x40000000, 0x10000000
_BLOCK_DEVICE = 0o060600
_PROTECTED = "/var/lib/vnetd/attempt"


def _called(function: Callable[..., int], *arguments: object) -> None:
    if function(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _written(path: str) -> None:
    Path(path).write_text("x")
    Path(path).unlink()


def _opened(path: str) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))


def _socket(family: int, kind: int, protocol: int = 0) -> None:
    socket.socket(family, kind, protocol).close()


def _made_setuid() -> None:
    Path(_PROTECTED).touch()
    try:
        os.chmod(_PROTECTED, 0o4755)
    finally:
        Path(_PROTECTED).unlink()


def _opened_disk() -> None:
    """Of a major number that no driver has."""
    os.mknod("/tmp/disk", _BLOCK_DEVICE, os.makedev(253, 200))
    Path("/tmp/disk").unlink()


ATTEMPTS: dict[str, Callable[[], object]] = {
    "write /etc": lambda: _written("/etc/attempt"),
    "write a drop-in of the policy": lambda: _written("/etc/vnetd/vnetd.toml.d/attempt.toml"),
    "write /usr": lambda: _written("/usr/lib/attempt"),
    "write libvirt's files": lambda: _written("/var/lib/libvirt/attempt"),
    "write /root": lambda: _written("/root/attempt"),
    "read /etc/shadow": lambda: Path("/etc/shadow").read_text(),
    "write a cgroup": lambda: Path("/sys/fs/cgroup/attempt").mkdir(),
    "set the host's name": lambda: Path("/proc/sys/kernel/hostname").write_text("attempt"),
    "load a module": lambda: _called(_libc.syscall, _INIT_MODULE, None, 0, b""),
    "make a raw disk": _opened_disk,
    "open the kernel's memory": lambda: _opened("/dev/mem"),
    "open the kernel's log": lambda: _opened("/dev/kmsg"),
    "open a TCP socket": lambda: _socket(socket.AF_INET, socket.SOCK_STREAM),
    "open a raw socket": lambda: _socket(socket.AF_INET, socket.SOCK_RAW, 255),
    "open a packet socket": lambda: _socket(socket.AF_PACKET, socket.SOCK_RAW),
    "become root": lambda: os.setuid(0),
    "signal PID 1": lambda: os.kill(1, 0),
    "mount": lambda: _called(_libc.mount, b"none", b"/mnt", b"tmpfs", 0, None),
    "make a network namespace": lambda: _called(_libc.unshare, _CLONE_NEWNET),
    "make a user namespace": lambda: _called(_libc.unshare, _CLONE_NEWUSER),
    "make writable code": lambda: mmap.mmap(
        -1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    ).close(),
    "make a setuid file": _made_setuid,
}

# Without them vnetd could not do its work.
NEEDED: dict[str, Callable[[], object]] = {
    "write the state": lambda: _written(_PROTECTED),
    "write the policy": lambda: _written("/etc/vnetd/.vnetd.toml.new"),
    "set forwarding": lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"),
    "speak netlink": lambda: _socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE),
    "see who is PID 1": lambda: Path("/proc/1/comm").read_text(),
}


def main() -> None:
    said: dict[str, str] = {}
    for name, attempt in (ATTEMPTS | NEEDED).items():
        try:
            attempt()
        except OSError as error:
            said[name] = error.strerror or str(error)
        else:
            said[name] = ""
    print(json.dumps(said))


if __name__ == "__main__":
    main()
