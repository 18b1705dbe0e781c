"""Two transports that dial each other, and who is quiet afterwards."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import openline
from openline.connection.connection import State

from .conftest import Make
from .helpers import Box, task, within
from .proofs import Middle, between, pair, settled

REPLACED, CONFLICT = 4001, 4002
QUICK = {"backoff_min": 0.02, "backoff_max": 0.1}

Between = Callable[..., Awaitable[Middle]]


async def two(make: Make, **config: Any) -> tuple[openline.Transport, openline.Transport]:
    """Two transports, that with the greater public key first."""
    high, low = pair()
    return (
        await make("high", identity=high, **config),
        await make("low", identity=low, **config),
    )


def quiet(*transports: openline.Transport) -> list[tuple[int, int, int]]:
    """What rises when somebody dials."""
    return [(t.stats().dials, t.stats().created, t.stats().accepted) for t in transports]


def at_rest(one: openline.Transport, other: openline.Transport) -> bool:
    """Settled, and no dial is under way any more: one that was overtaken still comes to its end."""
    stats = one.stats(), other.stats()
    return settled(one, other) and all(s.dials == s.created + s.dial_failures for s in stats)


class Talk:
    """One side sends numbered messages on several streams, one after the other on each."""

    def __init__(self, t: openline.Transport, to: list[str], streams: int = 3) -> None:
        self._t = t
        self._to = itertools.cycle(to)
        self.sent = Counter[str]()
        self.stop = False
        self._tasks = [asyncio.ensure_future(self._run(f"s{n}")) for n in range(streams)]

    async def _run(self, stream: str) -> None:
        while not self.stop:
            try:
                await self._t.send(next(self._to), task(self.sent[stream], stream_id=stream))
            except openline.Unreachable:
                await asyncio.sleep(0.005)  # no byte has left: the same one again
            else:
                self.sent[stream] += 1
                await asyncio.sleep(0)

    async def end(self) -> None:
        self.stop = True
        await within(asyncio.gather(*self._tasks), 10.0)


def check(talk: Talk, box: Box) -> None:
    """Each stream has come whole, in order, and once."""
    by_stream: dict[str, list[int]] = {stream: [] for stream in talk.sent}
    for message in box:
        by_stream[str(message.stream_id)].append(message.payload)
    assert by_stream == {stream: list(range(count)) for stream, count in talk.sent.items()}


def live(one: openline.Transport, other: openline.Transport) -> list[bytes]:
    return [c.endpoint.connection_id for c in between(one, other) if c.state is State.LIVE]
