"""How long vnetd takes to answer anybody on the bus: the lag of its event loop, seen from outside.

Pings it every 10 ms until its standard input ends, or the bus does, and prints how long the longest
answer took, in ms.
"""

from __future__ import annotations

import select
import time

from tests.lab.hostile import Client, call
from vnetd.api import names

_STEP_SECONDS = 0.01


def main() -> None:
    client, ping = Client(), call(names.PEER, "Ping")
    worst = 0.0
    print("at work", flush=True)
    while not select.select([0], [], [], _STEP_SECONDS)[0]:
        began = time.monotonic()
        client.send(ping)
        client.sock.setblocking(True)
        answered = client.sock.fileno() in select.select([client.sock.fileno(), 0], [], [])[0]
        if answered and not client.sock.recv(4096):  # nobody else sends it anything
            break
        worst = max(worst, time.monotonic() - began)
    print(f"{worst * 1000:.1f}")


if __name__ == "__main__":
    main()
