"""What is acknowledged and what is not while a transport closes (rule 3.4)."""

from __future__ import annotations

import asyncio
import struct

import pytest

import openline

from ..clock import elapse, hurry
from .conftest import Make, Open
from .helpers import (
    Box,
    Dials,
    eventually,
    port_of,
    serve,
    task,
    tasks,
    within,
)
from .lines import heard
from .rawsocket import Actor, RawServer
from .wire import BINARY, CLOSE, batch

# Nobody waits for what takes time in here.
pytestmark = pytest.mark.usefixtures("hurried")

GOING_AWAY, PROTOCOL_ERROR = 1001, 1002


async def test_what_was_taken_in_is_acknowledged_before_the_goodbye(make: Make, raw: Open) -> None:
    a = await make(close_timeout=2.0)
    box = Box(a)
    end = await raw(port_of(await serve(a)), Actor())
    for number in range(10):
        await end.post(task(number))
    await eventually(lambda: len(box) == 10)
    closing = asyncio.ensure_future(a.close())
    assert await within(end.closed()) == GOING_AWAY
    assert end.acked == {"default": 11}
    await within(closing)


async def test_what_comes_after_close_began_is_not_acknowledged(make: Make, raw: Open) -> None:
    """So its sender keeps it for the next process."""
    a = await make(close_timeout=2.0)
    started, gate = asyncio.Event(), asyncio.Event()

    @a.on_message
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        started.set()
        await gate.wait()

    end = await raw(port_of(await serve(a)), Actor())
    await end.post(task("before"))
    await within(started.wait())
    closing = asyncio.ensure_future(a.close())
    await elapse(0.1)
    await end.post(task("after"))
    await elapse(0.1)
    gate.set()
    assert await within(end.closed()) == GOING_AWAY
    assert end.acked == {"default": 2}
    await within(closing)
    assert a.stats().messages_received == 1


async def test_its_own_messages_are_drained(make: Make, raw_server: RawServer) -> None:
    a, actor = await make(close_timeout=3.0), Actor()
    sending = asyncio.ensure_future(a.send_batch(raw_server.address, tasks(10)))
    end = await raw_server.accept(actor)
    assert len(await heard(end)) == 10
    closing = asyncio.ensure_future(a.close())
    await elapse(0.3)
    assert not closing.done()
    await end.frame(BINARY, batch([], {"default": 11}))
    assert all(receipt.acked for receipt in await within(sending))
    assert await within(end.closed()) == GOING_AWAY
    await within(closing)


async def test_the_next_process_at_that_port_gets_the_rest(make: Make) -> None:
    a = await make(send_timeout=20.0)
    identity = openline.Identity()
    b = await make(identity=identity, close_timeout=1.0)
    started = asyncio.Event()
    boxes = [Box(b)]

    @b.on_message
    async def slow(peer: openline.Peer, message: openline.Message) -> None:
        started.set()
        await elapse(0.3)

    address = await serve(b)
    await a.send(address, task(0))
    closing = asyncio.ensure_future(b.close())
    await elapse(0.1)
    sending = [asyncio.ensure_future(a.send(address, task(number))) for number in range(1, 10)]
    await within(closing)
    again = await make(identity=identity)
    boxes.append(Box(again))
    await again.listen(port_of(address), host="127.0.0.1")
    await within(asyncio.gather(*sending), 10.0)
    assert [box.payloads for box in boxes] == [[0], list(range(1, 10))]


async def test_who_was_told_goodbye_does_not_dial_at_once(make: Make, raw_server: RawServer) -> None:
    dials = Dials()
    a, actor = await make(opener=dials, send_timeout=20.0), Actor()
    sending = asyncio.ensure_future(a.send(f"ws://{raw_server.address}", task("x")))
    end = await raw_server.accept(actor)
    await heard(end)
    await end.frame(CLOSE, struct.pack("!H", GOING_AWAY))
    with hurry() as passed:
        end = await raw_server.accept(actor)
    assert 0.9 < passed() < 3.0
    assert len(dials.made) == 2
    assert (await end.takes(sending)).attempts == 2
