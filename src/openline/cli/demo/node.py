"""One openline program of the demo: commands come in as lines of JSON, answers and events go out.

Run as `python -m openline.cli.demo.node NAME BACKEND HOST PORT IDLE_TIMEOUT`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import openline
from openline.backends.sockets import SockAddr, describe, open_socket
from openline.config import BackendName

Command = Callable[..., Awaitable[Any]]
LOOK_EVERY = 0.02
STALL = 0.1


class Dialer:
    """Opens sockets; refuses some addresses where the demo cannot have the kernel do that."""

    def __init__(self, backend: BackendName) -> None:
        self.refused: set[tuple[str, int]] = set()
        self._backend = backend

    async def open_tcp(self, family: socket.AddressFamily, address: SockAddr) -> socket.socket:
        self._check(address)
        return await open_socket(family, address)

    async def open_udp(self, family: socket.AddressFamily, address: SockAddr) -> socket.socket:
        from openline.backends.quic.udp import open_udp  # loads qh3: not where nothing goes by QUIC

        self._check(address)
        return await open_udp(family, address)

    def _check(self, address: SockAddr) -> None:
        if (address[0], address[1]) in self.refused:
            raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))

    async def try_plainly(self, address: tuple[str, int]) -> None:
        """Without openline: a TCP connect, or a UDP connect and one byte. Raises `OSError`."""
        if self._backend == "quic":
            with await self.open_udp(socket.AF_INET, address) as sock:
                sock.send(b"?")
        else:
            (await self.open_tcp(socket.AF_INET, address)).close()

    def load(self, **settings: Any) -> AbstractAsyncContextManager[openline.Transport]:
        """A transport that has the one backend, and dials here."""
        config = openline.Config(backends=(self._backend,), **settings)
        return openline.load_transport(config, opener=self.open_tcp, udp_opener=self.open_udp)


class Node:
    """A transport, what it has received, and the commands it takes."""

    def __init__(self, transport: openline.Transport, dialer: Dialer) -> None:
        self.transport = transport
        self.received: list[Any] = []
        # Seconds in which this program was not let run.
        self.stalled = 0.0
        self._dialer = dialer
        self._news = asyncio.Event()
        self.commands: dict[str, Command] = {
            "connect": self.connect,
            "send": self.send,
            "send_dialing": self.send_dialing,
            "dial": self.dial,
            "receive": self.receive,
            "refuse": self.refuse,
            "stalls": self.stalls,
        }
        transport.on_message(self._on_message)

    def _on_message(self, peer: openline.Peer, message: openline.Message) -> None:
        self.received.append(message.payload)
        self._news.set()

    async def connect(self, to: str) -> None:
        await self.transport.connect(to, keep=True)

    async def send(self, to: str, payloads: list[Any]) -> list[dict[str, Any]]:
        """Send each in turn over whatever openline chooses."""
        return [await report(self.transport, to, payload) for payload in payloads]

    async def send_dialing(self, to: str, payloads: list[Any]) -> list[dict[str, Any]]:
        """Send each as a transport that always dials does: on a socket of its own."""
        reports = []
        for payload in payloads:
            async with self._dialer.load() as fresh:
                reports.append(await report(fresh, to, payload))
        return reports

    async def dial(self, host: str, port: int) -> str | None:
        """A plain connect, without openline: the error, or None when it worked."""
        try:
            await asyncio.wait_for(self._dialer.try_plainly((host, port)), 5)
        except OSError as error:
            return describe(error)
        return None

    async def receive(self, count: int, timeout: float) -> list[Any]:
        """What has come so far, after waiting for it to be at least `count`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while len(self.received) < count:
                    self._news.clear()
                    await self._news.wait()
        return self.received

    async def refuse(self, host: str, port: int) -> None:
        """Let every fresh connect there fail as on a stale route."""
        self._dialer.refused.add((host, port))

    async def stalls(self) -> float:
        return self.stalled

    def line_state(self) -> str:
        """The state of the one peer."""
        return next((peer.state for peer in self.transport.peers()), "gone")


async def report(transport: openline.Transport, to: str, payload: Any) -> dict[str, Any]:
    """Send one message and say how that went."""
    created = transport.stats().created
    outcome = await try_to_send(transport, to, payload)
    return {**outcome, "created": transport.stats().created - created}


async def try_to_send(transport: openline.Transport, to: str, payload: Any) -> dict[str, Any]:
    try:
        receipt = await transport.send(to, openline.Message(payload=payload))
    except openline.Unreachable as error:
        reasons = "; ".join(reason for _, reason in error.tried)
        return {"attempts": len(error.tried), "line": None, "error": reasons}
    except (openline.Error, TimeoutError) as error:
        return {"attempts": 1, "line": None, "error": str(error)}
    return {"attempts": receipt.attempts, "line": (receipt.direction, receipt.backend), "error": None}


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def tell_event(event: str, **what: Any) -> None:
    tell(event=event, **{"at": time.monotonic(), **what})


async def watch(node: Node) -> None:
    """Tell every change of the line's state: when it was seen, and our own stalls so far."""
    before, due = "", time.monotonic()
    while True:
        now = time.monotonic()
        late = now - due
        node.stalled += late if late > STALL else 0.0
        if (state := node.line_state()) != before:
            tell_event("line", state=state, at=now, stalled=node.stalled)
            before = state
        due = now + LOOK_EVERY
        await asyncio.sleep(LOOK_EVERY)


async def obey(node: Node) -> None:
    """Carry out commands, side by side, until standard input ends."""
    async with asyncio.TaskGroup() as running:
        while line := await asyncio.to_thread(sys.stdin.readline):
            running.create_task(carry_out(node, json.loads(line)))


async def carry_out(node: Node, order: dict[str, Any]) -> None:
    number, do = order.pop("id"), order.pop("do")
    try:
        tell(id=number, result=await node.commands[do](**order))
    except (openline.Error, TimeoutError) as error:
        tell(id=number, error=f"{do}: {error}")


async def live(name: str, backend: BackendName, host: str, port: int, idle_timeout: float) -> None:
    dialer = Dialer(backend)
    async with dialer.load(name=name, max_idle_timeout=idle_timeout) as transport:
        node = Node(transport, dialer)
        listener = await transport.listen(port, host=host)
        tell_event("listening", port=listener.port)
        watcher = asyncio.create_task(watch(node))
        await obey(node)
        watcher.cancel()


def main() -> None:
    # The demo tells the story itself.
    logging.getLogger("openline").addHandler(logging.NullHandler())
    name, backend, host, port, idle_timeout = sys.argv[1:]
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(live(name, cast(BackendName, backend), host, int(port), float(idle_timeout)))


if __name__ == "__main__":
    main()
