"""How long vnetd takes to answer anybody on the bus: the lag of its event loop, seen from outside.

Pings it every 10 ms until its standard input ends, or the bus does, and prints how long the longest
answer took, in ms.
"""

from __future__ import annotations

import os
import time

from tests.lab.hostile import Client, call
from vnetd.api import names

_STEP_SECONDS = 0.01


def main() -> None:
    client, ping = Client(), call(names.PEER, "Ping")
    os.set_blocking(0, False)
    worst = 0.0
    print("at work", flush=True)
    while not _ended():
        began = time.monotonic()
        client.send(ping)
        client.sock.setblocking(True)
        if not client.sock.recv(4096):  # nobody else sends it anything
            break
        worst = max(worst, time.monotonic() - began)
        time.sleep(_STEP_SECONDS)
    print(f"{worst * 1000:.1f}")


def _ended() -> bool:
    try:
        return os.read(0, 1) == b""
    except BlockingIOError:
        return False


if __name__ == "__main__":
    main()
