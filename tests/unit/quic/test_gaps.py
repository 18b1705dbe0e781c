"""What the core keeps and does not hand over, as something in front of it is missing, is counted."""

from __future__ import annotations

import asyncio
from typing import Any

import openline
from openline.backends.quic.framing import BINARY, header

from ..transport.helpers import Box, eventually
from ..transport.rawsocket import Actor
from .conftest import Dial, Make
from .rawquic import RawQuic

MIB = 1024 * 1024


class Gapped:
    """A core that hands nothing over, as if the first packet of each stream were missing."""

    def __init__(self, core: Any) -> None:
        self._core = core

    def next_event(self) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)


async def pour(client: RawQuic, size: int) -> None:
    client.write(client.track(1), header(BINARY, size) + bytes(size))
    while not client.over and client.quic._core is not None and client.quic._core.get_send_buffer_size(None):
        client.transmit()
        await asyncio.sleep(0.001)


def link_of(t: openline.Transport) -> Any:
    [connection] = t._node.table.connections
    return connection.link


async def test_what_comes_behind_a_gap_is_paid_from_the_share_of_strangers(make: Make, dial: Dial) -> None:
    t = await make(stranger_buffer_bytes=MIB)
    listener = await t.listen(0, host="127.0.0.1")
    client = await dial(listener.port, Actor())
    await eventually(lambda: t.stats().active == 1)
    core = link_of(t)._engine.core
    core._core = Gapped(core._core)
    pouring = asyncio.ensure_future(pour(client, 4 * MIB))
    await eventually(lambda: t.stats().strangers_cut == 1, 20.0)
    await eventually(lambda: t.stats().active == 0)
    pouring.cancel()


async def test_what_is_handed_over_is_not_counted(make: Make, dial: Dial) -> None:
    t = await make(stranger_buffer_bytes=3 * MIB)
    Box(t)
    listener = await t.listen(0, host="127.0.0.1")
    client = await dial(listener.port, Actor())
    await eventually(lambda: t.stats().active == 1)
    incoming = link_of(t)._incoming
    client.write(client.track(1), header(BINARY, 2 * MIB))
    for _ in range(8):
        await pour_more(client, MIB // 4 - 1)
    await eventually(lambda: incoming._held > 1.9 * MIB, 20.0)
    assert incoming._kept == 0
    assert incoming._unfinished.used < 2.2 * MIB
    assert t.stats().strangers_cut == 0


async def pour_more(client: RawQuic, size: int) -> None:
    client.write(client.track(1), bytes(size))
    while client.quic._core is not None and client.quic._core.get_send_buffer_size(None):
        client.transmit()
        await asyncio.sleep(0.001)
