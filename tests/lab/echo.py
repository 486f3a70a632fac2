"""The wan host's answer to probes: each datagram comes back with the address it came from."""

from __future__ import annotations

import contextlib
import socket

PORT = 9999
# socket(7). While this process waits for the CPU, packets wait here: none is lost by the lab.
_SO_RCVBUFFORCE, _BUFFER = 33, 16 << 20


def main() -> None:
    answers = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    answers.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    answers.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    answers.bind(("::", PORT))
    while True:
        data, sender = answers.recvfrom(2048)
        with contextlib.suppress(OSError):  # no way back: a guest's own address came through
            answers.sendto(data + b" " + sender[0].removeprefix("::ffff:").encode(), sender)


if __name__ == "__main__":
    main()
