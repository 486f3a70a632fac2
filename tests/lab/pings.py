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
        if not _is_answered(client, ping):
            break
        worst = max(worst, time.monotonic() - began)
    print(f"{worst * 1000:.1f}")


def _is_answered(client: Client, ping: bytes) -> bool:
    """Or nobody wants to know any more; False where the bus has ended."""
    try:
        client.send(ping)
        client.sock.setblocking(True)
        asked = client.sock.fileno()
        if asked not in select.select([asked, 0], [], [])[0]:
            return True
        return bool(client.sock.recv(4096))  # nobody else sends it anything
    except ConnectionError:
        return False


if __name__ == "__main__":
    main()
