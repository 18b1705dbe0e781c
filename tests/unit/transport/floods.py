"""Peers that pour in more than anybody wants."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
from contextlib import suppress

from .helpers import within
from .rawsocket import Raw


async def pour(peer: Raw, data: bytes, times: int) -> int:
    """Send it so often, or until nobody reads it for a second or the connection is cut; how often."""
    for number in range(times):
        try:
            await within(peer.send(data), 1.0)
        except (TimeoutError, OSError):
            return number
    return times


async def pour_from_a_thread(sock: socket.socket, data: bytes) -> None:
    """As another process does: also while this loop is busy, and what comes in return is taken."""
    done = threading.Event()

    def work() -> None:
        reading = threading.Thread(target=read_away, args=(sock, done), daemon=True)
        reading.start()
        send_all(sock, data)
        done.set()
        reading.join(2.0)

    await asyncio.to_thread(work)


def send_all(sock: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        sock.sendall(data)


def read_away(sock: socket.socket, done: threading.Event) -> None:
    while not done.is_set():
        with suppress(OSError, ValueError):
            if select.select([sock], [], [], 0.05)[0] and not sock.recv(65536):
                return


async def connect_many(
    port: int, count: int, first: bytes = b"", *, at_once: bool = False
) -> list[socket.socket]:
    """Half-open handshakes as fast as they can be made, with few turns of the loop in between."""
    made = []
    for _ in range(count):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", port))
        made.append(sock)
        if len(made) % 200 == 0 and not at_once:
            await asyncio.sleep(0)
    if first:
        for sock in made:
            with suppress(OSError):
                sock.send(first)
    return made
