"""dbus-broker as the system bus of a box: broker DIRECTORY, where unpack has put it.

Does what systemd does for it: listens in its place, and is a journal, whose entries it prints.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

_BUS, _JOURNAL = Path("/run/dbus/system_bus_socket"), Path("/run/systemd/journal/socket")
_PROGRAM = "/usr/bin/dbus-broker"  # the launcher looks nowhere else
_FIRST_FD = 3  # sd_listen_fds(3)
_PR_SET_PDEATHSIG = 1


def main(folder: Path) -> None:
    if not os.path.exists(_PROGRAM):
        both = f"lowerdir={folder}/usr/bin:/usr/bin"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", both, "/usr/bin"], check=True)
    _JOURNAL.parent.mkdir(parents=True, exist_ok=True)
    _JOURNAL.unlink(missing_ok=True)
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    journal.bind(str(_JOURNAL))
    if not os.fork():
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        while True:
            print(journal.recv(1 << 16).decode(errors="replace"), flush=True)
    bus = socket.socket(socket.AF_UNIX)
    early = _BUS.with_suffix(".early")
    bus.bind(str(early))
    early.chmod(0o666)
    bus.listen(128)
    early.rename(_BUS)
    os.dup2(bus.fileno(), _FIRST_FD)
    os.set_inheritable(_FIRST_FD, True)
    os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    os.execv(f"{_PROGRAM}-launch", ["dbus-broker-launch", "--scope", "system"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
