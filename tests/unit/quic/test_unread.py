"""A client that sends and never reads: what it is owed does not pile up."""

from __future__ import annotations

import asyncio
from typing import Any

import openline

from ..transport.helpers import Box, eventually, task
from ..transport.rawsocket import Actor
from ..transport.wire import batch
from .conftest import Dial, Make
from .rawquic import RawQuic, client_configuration

LONG = [f"{number:03}" + "n" * 1000 for number in range(200)]


async def deaf_client(dial: Dial, port: int) -> RawQuic:
    """It acknowledges packets, and gives no credit once its first windows are full."""
    client = await dial(port, Actor(), client_configuration(max_stream_data=20_000, max_data=100_000))
    client.quic._drain_core = lambda: None  # type: ignore[method-assign]
    return client


async def send_more(client: RawQuic, t: openline.Transport, frames: int) -> None:
    """Messages on all streams, as fast as they are taken."""
    client.say(client.track(1), batch([], opens=dict.fromkeys(LONG, 1)))
    for _ in range(frames):
        client.say(client.track(1), batch([task(stream_id=name) for name in LONG]))
        while client.quic._core is not None and client.quic._core.get_send_buffer_size(None) > 500_000:
            client.transmit()
            await asyncio.sleep(0.001)


async def test_acknowledgements_that_are_not_read_do_not_pile_up(make: Make, dial: Dial) -> None:
    t = await make()
    Box(t)
    listener = await t.listen(0, host="127.0.0.1")
    client = await deaf_client(dial, listener.port)
    await send_more(client, t, 20)
    await eventually(lambda: t.stats().messages_received == 20 * len(LONG), 20.0)
    [connection] = t._node.table.connections
    link: Any = connection.link
    assert link._engine.waiting < 1024 * 1024
    assert connection.in_arrears


async def test_it_is_cut_in_the_end(make: Make, dial: Dial) -> None:
    t = await make(max_idle_timeout=3.0, progress_cap=0.5)
    listener = await t.listen(0, host="127.0.0.1")
    client = await deaf_client(dial, listener.port)
    await send_more(client, t, 5)
    await eventually(lambda: t.stats().active == 0, 10.0)
