"""PID 1 of the box: gives it its own files, reaps what dies, and ends with the process outside.

init.py CACHE [ROOT]: on this machine's system, or on the one in ROOT, which sees this tree too.

Runs in fresh mount, network, pid, uts and ipc namespaces. Everything that it makes lives in them
(mounts, links, processes), so all of it goes when this process goes, however that happens. It
goes when its standard input ends, which the process outside holds open.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

# mount(2), sched.h
_MS_REC, _MS_PRIVATE, _CLONE_NEWNS = 0x4000, 0x40000, 0x20000

_TREE = Path(__file__).resolve().parents[2]
# Empty in the box.
_EMPTY = ("/var/lib/libvirt", "/var/lib/vnetd", "/var/log/libvirt")
# Files of the machine, but what the box writes stays in the box.
_OVERLAID = ("/etc", "/usr", "/var")
_USERS = {"libvirt-qemu": 64055, "lab-user": 64056, "alice": 64057, "vnetd": 64058}

_LIBVIRTD_CONF = """\
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_group = "vnetd"
unix_sock_rw_perms = "0770"
log_outputs = "2:stderr"
"""
# The box has no cgroups, no virtlogd, no security driver and only one user for all.
QEMU_CONF = """\
user = "root"
group = "root"
stdio_handler = "file"
security_driver = "none"
namespaces = []
cgroup_controllers = []
"""


# This kernel may have no act_csum. libvirt's nftables backend starts no network without, and needs
# it only for DHCP clients of old.
TC = """\
#!/bin/sh
case "$*" in *"action csum"*) exit 0 ;; esac
exec /usr/sbin/tc "$@"
"""


def main(cache: Path, root: Path | None) -> None:
    outside_pid = os.readlink("/proc/self")
    make_root_private()
    if root is not None:
        _change_root(root)
    mount("-t", "proc", "proc", "/proc")
    mount("-t", "sysfs", "sys", "/sys")
    mount("-t", "tmpfs", "tmpfs", "/run")
    # What libvirt learns of qemu in a second stays true: kept outside for the next box.
    mount("--bind", str(cache), made("/run/cache"))
    for path in _OVERLAID if root is None else ():
        upper, work = made(f"/run/overlay{path}/upper"), made(f"/run/overlay{path}/work")
        layers = f"lowerdir={path},upperdir={upper},workdir={work}"
        mount("-t", "overlay", "overlay", "-o", layers, path)
    for path in _EMPTY:
        mount("-t", "tmpfs", "tmpfs", made(path))
    mount("--bind", "/run/cache", made("/var/cache/libvirt"))
    os.chdir("/")
    mount("--make-rshared", "/")  # what a test mounts vnetd sees, whose mounts are its own copy
    _configure()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    signal.signal(signal.SIGCHLD, reap)
    print(f"ready {outside_pid}", flush=True)
    while os.read(0, 4096):
        pass


def make_root_private() -> None:
    """Nothing mounted here may show outside.

    In a plain chroot "/" is no mount point and cannot be made private. The way out: back to the
    root of this mount namespace, which is its own copy, and in again over a bind mount.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) == 0:
        return
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    if libc.setns(namespace, _CLONE_NEWNS) or libc.mount(
        b"none", b"/", None, _MS_REC | _MS_PRIVATE, None
    ):
        raise OSError(ctypes.get_errno(), "cannot make the mounts private")
    path = os.readlink(f"/proc/self/fd/{root}")
    mount("--rbind", path, path)
    os.chroot(path)
    os.chdir("/")


def _change_root(root: Path) -> None:
    """To a copy of it that goes with the box."""
    mount("-t", "tmpfs", "tmpfs", "/run")
    new, upper, work = made("/run/new"), made("/run/upper"), made("/run/work")
    mount("-t", "overlay", "overlay", "-o", f"lowerdir={root},upperdir={upper},workdir={work}", new)
    mount("--rbind", "/dev", f"{new}/dev")
    mount("--bind", str(_TREE), made(f"{new}{_TREE}"))
    os.chroot(new)
    os.chdir("/")
    shim = Path("/usr/local/sbin/tc")
    shim.write_text(TC)
    shim.chmod(0o755)


def _configure() -> None:
    for path in ("/run/dbus", "/run/lock", "/run/netns", "/etc/libvirt/qemu/networks/autostart"):
        made(path)
    for name in ("dnsmasq", "images", "network", "qemu"):
        made(f"/var/lib/libvirt/{name}")
    for definition in Path("/etc/libvirt/qemu").rglob("*.xml"):
        definition.unlink()
    shutil.rmtree("/etc/vnetd", ignore_errors=True)
    Path("/etc/libvirt/libvirtd.conf").write_text(_LIBVIRTD_CONF)
    Path("/etc/libvirt/qemu.conf").write_text(QEMU_CONF)
    Path("/etc/machine-id").write_text(uuid.uuid4().hex + "\n")
    Path("/etc/hostname").write_text("box\n")
    # libvirt looks its own host name up before it starts a guest: DNS is dead in here.
    Path("/etc/hosts").write_text("127.0.0.1 localhost box\n")
    Path("/etc/resolv.conf").unlink(missing_ok=True)
    Path("/etc/resolv.conf").write_text("")
    socket.sethostname("box")
    users, groups = Path("/etc/passwd").read_text(), Path("/etc/group").read_text()
    for name, number in _USERS.items():
        if f"{name}:" not in users:
            users += f"{name}:x:{number}:{number}::/nonexistent:/bin/sh\n"
        if f"{name}:" not in groups:
            groups += f"{name}:x:{number}:\n"
    Path("/etc/passwd").write_text(users)
    Path("/etc/group").write_text(groups)


def reap(*_: object) -> None:
    """libvirt takes a dnsmasq for alive as long as its pid exists, be it a zombie's."""
    while True:
        try:
            pid, _status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def made(path: str) -> str:
    Path(path).mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else None)
