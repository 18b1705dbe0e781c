"""A peer that has proven itself, sends on and on, and acknowledges nothing: qh3 remembers each packet that
answers it. What that takes counts as the peer's, and ends the connection at a limit."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import openline
from openline.backends.quic import core
from openline.backends.quic.core import COUNT_EVERY, PACKET_KEPT

from ..transport.helpers import Box, eventually, task
from ..transport.rawsocket import Actor
from ..transport.wire import batch
from .conftest import Dial, Make
from .rawquic import RawQuic

# A PING in a packet of its own takes about 44 bytes of the congestion window. Two of them have one answer.
WINDOW = 44 * 10 * COUNT_EVERY


async def with_a_large_window(dial: Dial, port: int) -> RawQuic:
    """A client that may have thousands of packets under way, as all it sent so far was acknowledged."""
    client = await dial(port, Actor())
    client.say(client.track(1), batch([], opens={"default": 1}))
    while client.quic._core.congestion_window < WINDOW:
        client.say(client.track(1), batch([task("x" * 50_000)]))
        while client.quic._core.get_send_buffer_size(None):
            client.transmit()
            await asyncio.sleep(0.001)
    return client


async def ping_and_be_deaf(client: RawQuic, count: int) -> None:
    """Nothing that comes is read from now on, so nothing is acknowledged."""
    client.received = lambda data, addr: None  # type: ignore[method-assign]
    for number in range(count):
        client.quic._core.send_ping(number)
        client.transmit()
        await asyncio.sleep(0)


def kept(t: openline.Transport) -> int:
    [connection] = t._table.connections
    link: Any = connection.link
    return int(link._engine.core.kept)


async def test_it_counts_as_the_peers(make: Make, dial: Dial) -> None:
    t = await make()
    Box(t)
    listener = await t.listen(0, host="127.0.0.1")
    client = await with_a_large_window(dial, listener.port)
    await ping_and_be_deaf(client, 3 * COUNT_EVERY)
    await eventually(lambda: kept(t) >= PACKET_KEPT * COUNT_EVERY)


async def test_a_stranger_is_cut_where_the_share_of_all_is_used_up(make: Make, dial: Dial) -> None:
    t = await make()
    Box(t)
    listener = await t.listen(0, host="127.0.0.1")
    client = await with_a_large_window(dial, listener.port)
    t._node.door.unfinished._share.limit = PACKET_KEPT * 3 * COUNT_EVERY // 2
    await ping_and_be_deaf(client, 4 * COUNT_EVERY)
    await eventually(lambda: t.stats().strangers_cut == 1)


async def test_one_that_is_known_is_cut_at_the_limit(
    make: Make, dial: Dial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "MAX_UNACKNOWLEDGED", 2 * COUNT_EVERY)
    t = await make()
    Box(t)
    listener = await t.listen(0, host="127.0.0.1")
    client = await with_a_large_window(dial, listener.port)
    await ping_and_be_deaf(client, 2 * COUNT_EVERY)
    assert t.stats().active == 1
    await ping_and_be_deaf(client, 5 * COUNT_EVERY)
    await eventually(lambda: t.stats().active == 0)
