"""A real agent on openline's public API: commands on standard input, answers and events on output.

Run as `agent.py CONFIG_JSON HOST PORT`; an empty HOST listens on all. One line of JSON each:
`{"id": 1, "do": "send", ...}` is answered by `{"id": 1, "result": ...}`, and `{"event": ...}` tells
what happens by itself, with the time it was seen.
"""

import asyncio
import contextlib
import errno
import json
import logging
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

import openline

LOOK_EVERY = 0.01
STALL = 0.05
Make = Callable[[openline.Transport], "Agent"]


class Agent:
    def __init__(self, transport: openline.Transport) -> None:
        self.transport = transport
        self.received: list[int] = []
        self._undelivered: list[int] = []
        self._news = asyncio.Event()
        transport.on_message(self.on_message)
        transport.on_undelivered(self.on_undelivered)

    def on_message(self, peer: openline.Peer, message: openline.Message) -> None:
        self.received.append(message.payload["n"])
        self._news.set()

    def on_undelivered(self, peer: openline.Peer, message: openline.Message, why: str) -> None:
        self._undelivered.append(message.payload["n"])

    async def connect(self, to: str, keep: bool) -> None:
        await self.transport.connect(to, keep=keep)

    async def send(
        self, to: str, numbers: list[int], size: int = 0, batch: bool = False, stream: str = "default"
    ) -> list[Any]:
        """Receipts as [attempts, direction]; the error's kind and text in the place of one that failed."""
        payloads = [{"n": number, "fill": "x" * size} for number in numbers]
        messages = [openline.Message(payload=payload, stream_id=stream) for payload in payloads]
        if batch:
            return [[r.attempts, r.direction] for r in await self.transport.send_batch(to, messages)]
        return [await self._send_one(to, message) for message in messages]

    async def _send_one(self, to: str, message: openline.Message) -> list[Any]:
        try:
            receipt = await self.transport.send(to, message)
        except (openline.Error, TimeoutError) as error:
            return [type(error).__name__, str(error)]
        return [receipt.attempts, receipt.direction]

    async def flood(self, to: str, count: int, size: int) -> int:
        """Send as fast as the transport takes it; how many it took without an error."""
        taken = 0
        for number in range(count):
            [outcome, _] = await self._send_one(
                to, openline.Message(payload={"n": number, "fill": "x" * size})
            )
            taken += isinstance(outcome, int)
        return taken

    async def receive(self, count: int, timeout: float) -> list[int]:
        """The numbers received so far, after waiting for that many."""
        # When time is up the caller sees that some are missing, and which.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while len(self.received) < count:
                    self._news.clear()
                    await self._news.wait()
        return self.received

    async def dial(self, host: str, port: int, udp: bool = False) -> str:
        """What becomes of a plain connect, without openline."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            try:
                await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, (host, port)), 5)
            except OSError as error:
                return errno.errorcode.get(error.errno or 0, "timeout")
        return "connected"

    async def stats(self) -> dict[str, Any]:
        return dict(self.transport.stats())

    async def undelivered(self) -> list[int]:
        """The numbers of the messages that the transport has given up."""
        return self._undelivered

    async def explain(self, to: str) -> str:
        return str(self.transport.explain(to))

    async def lines(self) -> list[list[str]]:
        """The live connections: whose, over what, who opened it, and where its far end is now."""
        return sorted(
            [peer.name, line.link.backend, line.endpoint.direction, line.endpoint.remote]
            for peer in self.transport.peers()
            for line in peer._remote.connections
        )

    async def node_id(self) -> str:
        return self.transport.node_id


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


async def watch(agent: Agent) -> None:
    """Tell every change of the one peer's state: when it was seen, and our own stalls so far."""
    before, stalled, due = "", 0.0, time.monotonic()
    while True:
        now = time.monotonic()
        late = now - due
        stalled += late if late > STALL else 0.0
        state = next((peer.state for peer in agent.transport.peers()), "gone")
        if state != before:
            tell(event="state", state=state, at=now, stalled=stalled)
            before = state
        due = now + LOOK_EVERY
        await asyncio.sleep(LOOK_EVERY)


async def carry_out(agent: Agent, order: dict[str, Any]) -> None:
    number, do = order.pop("id"), order.pop("do")
    try:
        tell(id=number, result=await getattr(agent, do)(**order))
    except Exception as error:
        logging.exception("could not %s", do)
        tell(id=number, error=repr(error))


async def live(config: openline.Config, host: str | None, port: int, make: Make) -> None:
    async with openline.load_transport(config) as transport:
        agent = make(transport)
        await transport.listen(port, host=host)
        tell(event="listening")
        watcher = asyncio.create_task(watch(agent))
        async with asyncio.TaskGroup() as running:
            while line := await asyncio.to_thread(sys.stdin.readline):
                running.create_task(carry_out(agent, json.loads(line)))
        watcher.cancel()


def run(config: str, host: str, port: str, make: Make) -> None:
    logging.basicConfig(level=logging.DEBUG, format="%(relativeCreated)d %(levelname)s %(message)s")
    asyncio.run(live(msgspec.json.decode(config, type=openline.Config), host or None, int(port), make))


if __name__ == "__main__":
    run(*sys.argv[1:], Agent)
