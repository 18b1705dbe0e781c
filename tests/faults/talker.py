"""An agent that talks to others at length, and keeps a journal of what it sent and received.

Run as `talker.py CONFIG_JSON HOST PORT NAME JOURNAL`; takes the orders of `agent.py`, and `talk`. The
journal is a file of JSON lines, each of them written before the program goes on, so that it also
holds the last thing that a killed process has done. Whoever starts again under the same name reads
there what is settled, and sends the rest again under the same ids: at least once.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from agent import Agent, run

import openline

# After an error that says that no byte has left, until the next attempt.
RETRY_AFTER = 0.15
Way = Callable[[str, list[openline.Message]], Awaitable[None]]


class Journal:
    """One line for each thing that happens, with the time on the clock of the machine."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def note(self, did: str, **what: Any) -> None:
        os.write(self._file, json.dumps({"did": did, **what, "at": time.monotonic()}).encode() + b"\n")


def settled(path: str) -> set[str]:
    """Ids of messages that an earlier process knows to have arrived."""
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    said = [json.loads(line) for line in lines]
    return {line["id"] for line in said if line["did"] in ("acked", "answered")}


def in_groups(messages: Sequence[openline.Message], size: int) -> list[list[openline.Message]]:
    return [list(messages[start : start + size]) for start in range(0, len(messages), size)]


class Talker(Agent):
    """Sends each peer its messages on five streams, a different way on each."""

    def __init__(self, transport: openline.Transport, name: str, path: str) -> None:
        super().__init__(transport)
        self._name = name
        self._settled = settled(path)
        self._journal = Journal(path)
        self._journal.note("born", node=transport.node_id)
        self._slow = 0.0
        self._talking: asyncio.Task[Any] | None = None

    # Receiving

    def on_message(self, peer: openline.Peer, message: openline.Message) -> Awaitable[Any] | None:
        if message.reply_to is not None:
            # The process that asked is dead, or has given up.
            self._journal.note("late", id=message.reply_to)
            return None
        self._journal.note("got", id=message.id, node=peer.node_id, stream=message.stream_id)
        if message.payload["asks"]:
            return self._answer(peer, message)
        return asyncio.sleep(self._slow) if self._slow and message.stream_id == "batch" else None

    async def _answer(self, peer: openline.Peer, message: openline.Message) -> None:
        while True:
            try:
                await peer.reply(message, {"answers": message.id})
                return
            except openline.Unreachable as error:
                self._journal.note("failed", id=f"answer to {message.id}", error=repr(error))
                await asyncio.sleep(RETRY_AFTER)

    def on_undelivered(self, peer: openline.Peer, message: openline.Message, why: str) -> None:
        self._journal.note("undelivered", id=message.id, why=why)

    async def fall_silent(self) -> None:
        """Give up sending, in the middle of it."""
        if self._talking is not None:
            self._talking.cancel()

    async def dawdle(self, seconds: float) -> None:
        """Take so long over each message that comes in a batch."""
        self._slow = seconds

    # Sending

    async def talk(self, to: dict[str, str], count: int, seconds: float, size: int = 0) -> None:
        """Send each peer `count` messages, spread over that time. Returns when all are settled."""
        # How many are sent at a time, and in which way. 42 and "42" are two streams.
        ways: dict[str | int, tuple[int, Way]] = {
            "one by one": (1, self._one_by_one),
            "pipelined": (8, self._pipelined),
            "batch": (40, self._batch),  # it leaves in two chunks
            42: (1, self._requests),
            "42": (5, self._in_turns),
        }
        self._talking = asyncio.current_task()
        async with asyncio.TaskGroup() as all_streams:
            for name, address in to.items():
                for stream, (number, way) in ways.items():
                    messages = list(self._messages(name, stream, count // len(ways), size))
                    groups = in_groups(messages, number)
                    all_streams.create_task(self._stream(address, groups, way, seconds))
        self._journal.note("done")

    def _messages(self, to: str, stream: str | int, count: int, size: int) -> Iterator[openline.Message]:
        for number in range(count):
            id = f"{self._name}>{to}/{stream!r}/{number}"
            if id not in self._settled:
                asks = stream == 42 or (stream == "42" and number % 5 == 4)
                # Now and then one that leaves in pieces.
                fill = "x" * (size * 20 if number % 50 == 25 else size)
                payload = {"asks": asks, "fill": fill}
                yield openline.Message(id=id, payload=payload, stream_id=stream)

    async def _stream(self, to: str, groups: list[list[openline.Message]], way: Way, seconds: float) -> None:
        """Each group when its time has come and the one before is settled."""
        started = time.monotonic()
        for number, group in enumerate(groups):
            await asyncio.sleep(started + number * seconds / len(groups) - time.monotonic())
            await way(to, group)

    async def _one_by_one(self, to: str, messages: list[openline.Message]) -> None:
        for message in messages:
            await self._persist(to, message, self._send)

    async def _pipelined(self, to: str, messages: list[openline.Message]) -> None:
        async with asyncio.TaskGroup() as under_way:
            for message in messages:
                under_way.create_task(self._persist(to, message, self._send))

    async def _requests(self, to: str, messages: list[openline.Message]) -> None:
        for message in messages:
            await self._persist(to, message, self._request)

    async def _in_turns(self, to: str, messages: list[openline.Message]) -> None:
        """One sent, three as a batch, one asked: all on one stream."""
        for asks, group in groupby(messages, lambda message: message.payload["asks"]):
            some = list(group)
            if asks:
                await self._requests(to, some)
            else:
                await self._one_by_one(to, some[:1])
                await self._batch(to, some[1:])

    async def _batch(self, to: str, messages: list[openline.Message]) -> None:
        while messages:
            for message in messages:
                self._journal.note("sent", id=message.id)
            try:
                receipts = await self.transport.send_batch(to, messages)
            except openline.Unreachable as error:
                # Nobody will tell us of the arrival of what was handed over before, but arrive it must.
                for message in messages[: error.sent]:
                    self._journal.note("handed over", id=message.id)
                messages = messages[error.sent :]
                for message in messages:
                    self._journal.note("failed", id=message.id, error=repr(error))
                await asyncio.sleep(RETRY_AFTER)
                continue
            for message, receipt in zip(messages, receipts, strict=True):
                self._settle(message, receipt)
            return

    async def _persist(
        self,
        to: str,
        message: openline.Message,
        attempt: Callable[[str, openline.Message], Awaitable[None]],
    ) -> None:
        """Try until it is settled. Only where it is certain, or not to be known, that it was not."""
        while True:
            self._journal.note("sent", id=message.id)
            try:
                await attempt(to, message)
                return
            except (openline.Unreachable, TimeoutError) as error:
                self._journal.note("failed", id=message.id, error=repr(error))
                await asyncio.sleep(RETRY_AFTER)

    async def _send(self, to: str, message: openline.Message) -> None:
        self._settle(message, await self.transport.send(to, message))

    async def _request(self, to: str, message: openline.Message) -> None:
        answer = await self.transport.request(to, message)
        self._journal.note("answered", id=message.id, answers=answer.payload["answers"])

    def _settle(self, message: openline.Message, receipt: openline.Receipt) -> None:
        self._journal.note("acked", id=message.id, acked=receipt.acked, attempts=receipt.attempts)


if __name__ == "__main__":
    name, path = sys.argv[4:]
    run(*sys.argv[1:4], lambda transport: Talker(transport, name, path))
