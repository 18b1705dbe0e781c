"""Acknowledgements between openline peers over real sockets (rule 3.4)."""

from __future__ import annotations

import asyncio

import openline

from ..clock import elapse
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
from .lines import answering, heard
from .rawsocket import Actor, RawServer
from .wire import BINARY, batch, frame


async def test_send_waits_for_the_acknowledgement(make: Make, raw_server: RawServer) -> None:
    a, actor = await make(), Actor()
    sending = asyncio.ensure_future(a.send(raw_server.address, task("x")))
    end = await raw_server.accept(actor)
    assert [message.payload for message in await heard(end)] == ["x"]
    await elapse(0.1)
    assert not sending.done()
    await end.frame(BINARY, batch([], {"default": 2}))
    receipt = await within(sending)
    assert receipt == openline.Receipt(1, True, "websocket", "outbound", receipt.rtt)


async def test_a_message_and_its_acknowledgement_are_two_frames(make: Make, raw: Open) -> None:
    a = await make()
    box = Box(a)
    end = await raw(port_of(await serve(a)), Actor())
    for number in range(5):
        await end.post(task(number))
        answer = await end.decoded()
        assert (answer.messages, dict(answer.acks)) == ([], {"default": number + 2})  # type: ignore[union-attr]
    assert box.payloads == list(range(5))


async def test_an_answer_carries_the_acknowledgement(make: Make, raw: Open) -> None:
    a = await make()
    answering(a)
    end = await raw(port_of(await serve(a)), Actor())
    for number in range(5):
        await end.post(task(number))
        assert [message.payload for message in await end.take()] == [number]
        assert end.acked == {"default": number + 2}


async def test_many_frames_of_one_read_are_acknowledged_together(make: Make, raw: Open) -> None:
    a = await make()
    box = Box(a)
    end = await raw(port_of(await serve(a)), Actor())
    frames = [end.numbered(task(number)) for number in range(200)]
    await end.send(b"".join(frame(BINARY, each) for each in frames))
    heard, acked = 0, 0
    while acked < 201:
        answer = await end.decoded()
        acked = dict(answer.acks)["default"]  # type: ignore[union-attr]
        heard += 1
    assert heard <= 20
    assert box.payloads == list(range(200))


async def test_one_dial_for_many_sends_batches_and_requests(make: Make) -> None:
    dials = Dials()
    a, b = await make(opener=dials), await make()
    asked = answering(b)
    address = await serve(b)
    sends = [a.send(address, task(number)) for number in range(50)]
    batches = [a.send_batch(address, tasks(100, stream_id=stream)) for stream in range(3)]
    requests = [a.request(address, task(number, stream_id="rpc")) for number in range(50)]
    await within(asyncio.gather(*sends, *batches, *requests))
    assert len(dials.made) == 1
    await eventually(lambda: len(asked) == 400)
    assert a.stats().resent == b.stats().duplicates_suppressed == 0


async def test_acknowledged_means_that_the_other_transport_has_it(make: Make) -> None:
    """Also while its handler is busy, and where nobody has asked for it yet."""
    a, b = await make(), await make()
    address = await serve(b)
    for number in range(10):
        assert (await within(a.send(address, task(number)))).acked
        assert b.stats().messages_received == number + 1
    assert [(await b.receive(next(iter(b.peers())).address)).payload for _ in range(10)] == list(range(10))
