"""The two ends of a link between PCs; the doctor sends this file's text to them over SSH.

    link.py listen PORT ...    listen at these ports (0: any), print those it got, and the time for each line of input
    link.py connect TARGETS    connect to each [address, port, bytes] of this JSON list and send so much there

It imports nothing but the standard library, and runs on any Python 3.8 or later.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from typing import TypedDict

CONNECT_SECONDS = 5.0
SEND_SECONDS = 2.0
"""A slow link is known to be slow after this long."""
ANSWER_SECONDS = 30.0
BUFFER_BYTES = 256 << 10


class Reached(TypedDict):
    """What came of trying to reach a target."""

    error: str
    """Why it cannot be reached; "" where it can."""
    mb_per_s: float | None
    """How many 10^6 bytes a second arrive there; None where none were sent."""


def listen(ports: list[int]) -> None:
    """Receive whatever comes, until the input ends."""
    got = []
    for port in ports:
        try:
            server = socket.create_server(("", port))
        except OSError:  # Ray, or somebody else, listens there already
            continue
        got.append(server.getsockname()[1])
        threading.Thread(target=serve, args=(server,), daemon=True).start()
    print(json.dumps({"ports": got}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"time": time.time()}), flush=True)


def connect(targets: list[tuple[str, int, int]]) -> list[Reached]:
    """Try each target in turn."""
    return [_reach(*target) for target in targets]


def serve(server: socket.socket) -> None:
    """Receive from one connection after the other, and tell each how many bytes came."""
    while True:
        connection, _ = server.accept()
        with connection:
            count = 0
            while block := connection.recv(BUFFER_BYTES):
                count += len(block)
            connection.sendall(str(count).encode())


def _reach(address: str, port: int, size: int) -> Reached:
    try:
        with socket.create_connection((address, port), timeout=CONNECT_SECONDS) as link:
            return {"error": "", "mb_per_s": _send(link, size) if size else None}
    except OSError as problem:
        return {"error": problem.strerror or str(problem), "mb_per_s": None}


def _send(link: socket.socket, size: int) -> float | None:
    """Return how many MB a second arrive; a small buffer, or a slow link's speed would be that of filling it."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    link.settimeout(ANSWER_SECONDS)
    block = bytes(BUFFER_BYTES)
    start = time.monotonic()
    sent = 0
    while sent < size and time.monotonic() - start < SEND_SECONDS:
        link.sendall(block)
        sent += len(block)
    link.shutdown(socket.SHUT_WR)
    arrived = int(link.recv(64) or 0)
    return arrived / 1e6 / (time.monotonic() - start)


if __name__ == "__main__":
    if sys.argv[1] == "listen":
        listen([int(word) for word in sys.argv[2:]])
    else:
        print(json.dumps(connect(json.loads(sys.argv[2]))))
