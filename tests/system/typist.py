"""typist.py ANSWER COMMAND…: run it on a terminal of its own, and type when it asks in secret.

Prints what was to be read there; its exit status is the command's.
"""

from __future__ import annotations

import os
import pty
import select
import sys
import termios


def main(answer: str, *command: str) -> int:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(command[0], command)
    said, typed = b"", False
    while True:
        ready, _, _ = select.select([terminal], [], [], 0.02)
        try:
            said += os.read(terminal, 4096) if ready else b""
        except OSError:
            break  # its end: nobody has the terminal open any more
        # What is typed before echo goes off is thrown away with it.
        if not typed and b"Password: " in said and not _echoes(terminal):
            os.write(terminal, answer.encode())
            typed = True
    sys.stdout.write(said.decode(errors="replace"))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _echoes(terminal: int) -> bool:
    local_modes: int = termios.tcgetattr(terminal)[3]
    return bool(local_modes & termios.ECHO)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
