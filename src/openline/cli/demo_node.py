"""One openline program of the demo: commands come in as lines of JSON, answers and events go out.

Run as `python -m openline.cli.demo_node NAME HOST PORT IDLE_TIMEOUT`.
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
from typing import Any

import openline
from openline.backends.sockets import SockAddr, describe, open_socket

Command = Callable[..., Awaitable[Any]]
LOOK_EVERY = 0.02
STALL = 0.1


class Dialer:
    """Opens sockets; refuses some addresses where the demo cannot have the kernel do that."""

    def __init__(self) -> None:
        self.refused: set[tuple[str, int]] = set()

    async def open(self, family: socket.AddressFamily, address: SockAddr) -> socket.socket:
        if (address[0], address[1]) in self.refused:
            raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
        return await open_socket(family, address)


class Node:
    """A transport, what it has received, and the commands it takes."""

    def __init__(self, transport: openline.Transport, dialer: Dialer) -> None:
        self.transport = transport
        self.received: list[Any] = []
        self._dialer = dialer
        self._news = asyncio.Event()
        self.commands: dict[str, Command] = {
            "connect": self.connect,
            "send": self.send,
            "send_dialing": self.send_dialing,
            "dial": self.dial,
            "receive": self.receive,
            "refuse": self.refuse,
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
            async with openline.load_transport(opener=self._dialer.open) as fresh:
                reports.append(await report(fresh, to, payload))
        return reports

    async def dial(self, host: str, port: int) -> str | None:
        """A plain TCP connect, without openline: the error, or None when it worked."""
        try:
            (await asyncio.wait_for(self._dialer.open(socket.AF_INET, (host, port)), 5)).close()
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
        return {"attempts": len(error.tried), "direction": None, "error": reasons}
    except (openline.Error, TimeoutError) as error:
        return {"attempts": 1, "direction": None, "error": str(error)}
    return {"attempts": receipt.attempts, "direction": receipt.direction, "error": None}


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


async def watch(node: Node) -> None:
    """Tell every change of the line's state: when it was seen, and our own stalls so far."""
    before, stalled, due = "", 0.0, time.monotonic()
    while True:
        now = time.monotonic()
        late = now - due
        stalled += late if late > STALL else 0.0
        if (state := node.line_state()) != before:
            tell(event="line", state=state, at=now, stalled=stalled)
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


async def live(name: str, host: str, port: int, idle_timeout: float) -> None:
    config = openline.Config(name=name, max_idle_timeout=idle_timeout)
    dialer = Dialer()
    async with openline.load_transport(config, opener=dialer.open) as transport:
        node = Node(transport, dialer)
        listener = await transport.listen(port, host=host)
        tell(event="listening", port=listener.port)
        watcher = asyncio.create_task(watch(node))
        await obey(node)
        watcher.cancel()


def main() -> None:
    # The demo tells the story itself.
    logging.getLogger("openline").addHandler(logging.NullHandler())
    name, host, port, idle_timeout = sys.argv[1:]
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(live(name, host, int(port), float(idle_timeout)))


if __name__ == "__main__":
    main()
