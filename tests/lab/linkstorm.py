"""A storm of link events: veths of nobody go up and down, so many times a second for so long, and
some appear and are gone, as containers' do.

    python -m tests.lab.linkstorm PER_SECOND SECONDS

Says when it begins; prints how many times a second it was, and how many events the kernel made of
it, as JSON.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from contextlib import suppress

from pyroute2 import IPRoute

from vnetd.backends import netlink

_PAIRS = 8
# Changes of those that stay, until one more comes and goes: deleting takes the kernel its time.
_PER_CONTAINER = 2000
_NEWLINK, _REQUEST_ACK = 16, 1 | 4
_IFF_UP = 1


def main(per_second: int, seconds: float) -> None:
    with IPRoute() as ipr:
        for number in range(_PAIRS):
            ipr.link("add", ifname=f"storm{number}", kind="veth", peer=f"mrots{number}")
        indexes = [socket.if_nametoindex(f"storm{number}") for number in range(_PAIRS)]
        for number in range(_PAIRS):
            ipr.link("set", index=socket.if_nametoindex(f"mrots{number}"), state="up")
        asking, events = netlink.open_route(), netlink.open_link_events()
        print("at work", flush=True)
        began, done, seen = time.monotonic(), 0, 0
        while (now := time.monotonic()) < began + seconds:
            if done >= (now - began) * per_second:
                time.sleep(0.001)
                continue
            _set(asking, indexes[done // 2 % _PAIRS], up=done % 2 == 0)
            done += 1
            if done % _PER_CONTAINER == 0:
                name = f"gone{done % 1000}"
                ipr.link("add", ifname=name, kind="veth", peer=f"enog{done % 1000}")
                ipr.link("del", ifname=name)
            seen += _count(events)
        took = time.monotonic() - began
        for index in indexes:
            ipr.link("del", index=index)
    print(json.dumps({"per_second": round(done / took), "events": round(seen / took)}))


def _set(asking: socket.socket, index: int, *, up: bool) -> None:
    header = struct.pack("=BxHiII", 0, 0, index, _IFF_UP if up else 0, _IFF_UP)
    asking.send(netlink.message(_NEWLINK, _REQUEST_ACK, header))
    for _, body in netlink.messages(asking.recv(1 << 16)):
        netlink.check(body)


def _count(events: socket.socket) -> int:
    seen = 0
    with suppress(BlockingIOError):
        while True:
            seen += sum(1 for _ in netlink.messages(events.recv(1 << 17)))
    return seen


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
