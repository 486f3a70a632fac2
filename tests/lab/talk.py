"""One TCP connection that goes on: talk listen PORT, and talk to ADDRESS PORT.

The second prints a line for each answer, and ends when the connection does.
"""

from __future__ import annotations

import socket
import sys
import time

_STEP_SECONDS = 0.01


def listen(port: int) -> None:
    with socket.create_server(("", port)) as server:
        print("listening", flush=True)
        while True:
            connection, _ = server.accept()
            with connection:
                while data := connection.recv(64):
                    connection.sendall(data)


def talk(address: str, port: int) -> None:
    with socket.create_connection((address, port)) as connection:
        number = 0
        while True:
            number += 1
            connection.sendall(b"%d\n" % number)
            answer = b""
            while not answer.endswith(b"\n"):
                answer += connection.recv(64) or sys.exit("the connection has ended")
            print(answer.decode(), end="", flush=True)
            time.sleep(_STEP_SECONDS)


if __name__ == "__main__":
    if sys.argv[1] == "listen":
        listen(int(sys.argv[2]))
    else:
        talk(sys.argv[2], int(sys.argv[3]))
