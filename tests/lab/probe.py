"""How long new connections of a guest fail, by real packets.

Run in a guest's namespace with the wan's address and a step in seconds: opens a UDP socket of its
own (a new flow, so NAT is asked each time) every step until its standard input ends, and prints
what came back. It says when the first answer has come, or that it began if there should be none.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from tests.lab.echo import PORT

STEP_SECONDS = 0.002
# An answer in the box takes microseconds, if its processes get the CPU; one that has not come by
# now will not come. Where none is wanted there is no point in waiting as long.
_PATIENCE_SECONDS, _PATIENCE_IN_VAIN = 5.0, 1.0


@dataclass
class Outage:
    """ms: from the first flow that failed to the first that worked again, the longest such gap.

    sources: the addresses from which the wan saw the flows come.
    """

    sent: int = 0
    lost: int = 0
    ms: float = 0.0
    still_out: bool = False
    sources: list[str] = field(default_factory=list)

    def read(self, text: str) -> None:
        self.__dict__.update(json.loads(text.splitlines()[-1]))


@dataclass
class _Flow:
    socket: socket.socket
    at: float
    answer: str | None = None


def main(address: str, step: float, *, in_vain: bool = False) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    flows: list[_Flow] = []
    waiting = selectors.DefaultSelector()
    os.set_blocking(0, False)
    told, due = False, time.monotonic()
    patience = _PATIENCE_IN_VAIN if in_vain else _PATIENCE_SECONDS
    while not _ended():
        due += step
        flow = _Flow(socket.socket(family, socket.SOCK_DGRAM), time.monotonic())
        flows.append(flow)
        try:
            flow.socket.connect((address, PORT))
            flow.socket.send(b"?")
            waiting.register(flow.socket, selectors.EVENT_READ, flow)
        except OSError:
            flow.socket.close()
        _collect(waiting, until=due, patience=patience)
        time.sleep(max(0.0, due - time.monotonic()))  # its pace, whatever has come back
        if not told and (in_vain or any(flow.answer for flow in flows)):
            told = True
            print("at work", flush=True)
    _collect(waiting, until=time.monotonic() + patience, patience=patience)
    print(json.dumps(_sum_up(flows)))


def _ended() -> bool:
    try:
        return os.read(0, 1) == b""
    except BlockingIOError:
        return False


def _collect(waiting: selectors.BaseSelector, until: float, patience: float) -> None:
    """Until nothing waits any more, or so long; looks once also where the time is over: a slow
    machine must not see no answer at all.
    """
    while True:
        left = max(0.0, until - time.monotonic())
        for key, _ in waiting.select(left if waiting.get_map() else 0):
            flow: _Flow = key.data
            waiting.unregister(flow.socket)
            with contextlib.suppress(OSError):  # an ICMP error: lost
                flow.answer = flow.socket.recv(2048).decode().partition(" ")[2]
            flow.socket.close()
        for key in list(waiting.get_map().values()):
            if time.monotonic() - key.data.at > patience:
                waiting.unregister(key.fileobj)
                key.data.socket.close()
        if not waiting.get_map() or time.monotonic() >= until:
            break


def _sum_up(flows: list[_Flow]) -> dict[str, Any]:
    longest, since = 0.0, None
    for flow in flows:
        if flow.answer is None:
            since = flow.at if since is None else since
        elif since is not None:
            longest, since = max(longest, flow.at - since), None
    return {
        "sent": len(flows),
        "lost": sum(flow.answer is None for flow in flows),
        "ms": round(longest * 1000, 1),
        "still_out": since is not None,
        "sources": sorted({flow.answer for flow in flows if flow.answer}),
    }


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), in_vain="in-vain" in sys.argv[3:])
