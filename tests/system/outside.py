"""What is around a host: its disk, the wan host, and the namespaces in which both live.

outside.py TREE NAME: PID 1 of fresh mount, network, pid and ipc namespaces. The host's disk is a
layer over TREE of its own: it outlives reboots. All of it goes when standard input ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.lab.init import made, make_root_private, mount, reap

ROOT = "/run/root"
CGROUPS = Path("/sys/fs/cgroup")


def main(tree: str, name: str) -> None:
    outside_pid = os.readlink("/proc/self")
    make_root_private()
    mount("-t", "proc", "proc", "/proc")
    mount("-t", "sysfs", "sys", "/sys")
    # systemd wants the unified hierarchy, also where this machine has the old ones.
    mount("-t", "cgroup2", "cgroup2", str(CGROUPS))
    mount("-t", "tmpfs", "tmpfs", "/run")
    layers = f"lowerdir={tree},upperdir={made('/run/disk')},workdir={made('/run/work')}"
    mount("-t", "overlay", "overlay", "-o", layers, made(ROOT))
    (CGROUPS / name).mkdir()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    echo = subprocess.Popen([sys.executable, "-m", "tests.lab.echo"])
    signal.signal(signal.SIGCHLD, reap)
    print(f"ready {outside_pid}", flush=True)
    while os.read(0, 4096):
        pass
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    echo.returncode = 0  # it was waited for above
    for directory in (*sorted((CGROUPS / name).rglob("*/"), reverse=True), CGROUPS / name):
        _remove(directory)


def _remove(cgroup: Path) -> None:
    """The kernel takes its time with processes that are waited for already."""
    for _ in range(100):
        with contextlib.suppress(OSError):
            cgroup.rmdir()
            return
        time.sleep(0.02)


if __name__ == "__main__":
    main(*sys.argv[1:])
