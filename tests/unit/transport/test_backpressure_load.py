"""Load in both directions: nothing deadlocks and memory stays flat (rule 3.5)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import openline

from ..clock import elapse, hurry
from ..memory import MiB, Peak, needs_peak
from .conftest import Make
from .helpers import (
    Box,
    eventually,
    serve,
    task,
    tasks,
    within,
)
from .lines import answering


@needs_peak
async def test_a_slow_handler_stalls_its_own_stream_and_memory_stays_flat(make: Make) -> None:
    a, b = await make(window_bytes=MiB, window_messages=1000), await make(inbox_bytes=MiB)
    gate = asyncio.Event()

    @b.on_message(stream_id="slow")
    async def slow(peer: openline.Peer, message: openline.Message) -> None:
        await gate.wait()

    fast = Box(b, stream_id="fast")
    address = await serve(b)
    payload = bytes(10_000)
    await a.send(address, task(payload, stream_id="fast"))
    with Peak() as peak:
        messages = [task(payload, stream_id="slow") for _ in range(5000)]
        flood = asyncio.ensure_future(a.send_batch(address, messages))
        await elapse(0.3)
        with hurry() as passed:
            for number in range(200):
                await within(a.send(address, task(number, stream_id="fast")))
        assert passed() < 3.0
        assert not flood.done()
    assert fast.payloads[1:] == list(range(200))
    assert peak.grown < 20 * MiB
    gate.set()
    await within(flood, 20.0)


async def test_replies_on_both_sides_under_load_do_not_deadlock(make: Make) -> None:
    a, b = await make(inbox_messages=16), await make(inbox_messages=16)
    for transport in (a, b):
        answering(transport, pause=0.0)
    there, back = await serve(b), await serve(a)
    asked = [t.request(to, task(n)) for n in range(300) for t, to in ((a, there), (b, back))]
    answers = await within(asyncio.gather(*asked), 20.0)
    assert [answer.payload for answer in answers] == [n for n in range(300) for _ in range(2)]
    assert a.stats().handler_errors == b.stats().handler_errors == 0


async def test_echoes_of_echoes(make: Make) -> None:
    """Handlers that send on the stream they were called on, as many as an inbox holds."""
    a, b = await make(), await make()
    done = [0, 0]

    def handler(index: int) -> Any:
        async def handle(peer: openline.Peer, message: openline.Message) -> None:
            if message.payload:
                await peer.reply(message, message.payload - 1)
            else:
                done[index] += 1

        return handle

    a.on_message(handler(0))
    b.on_message(handler(1))
    there = await serve(b)
    await within(asyncio.gather(*(a.send(there, task(20)) for _ in range(500))), 20.0)
    await eventually(lambda: sum(done) == 500, 20.0)


@pytest.mark.parametrize("factory", ["asyncio", "uvloop", "debug"])
def test_on_any_loop(factory: str) -> None:
    """Waiters step tasks by themselves, which each loop has its own opinion of."""
    if factory == "uvloop":
        uvloop = pytest.importorskip("uvloop")
        make_loop = uvloop.new_event_loop
    else:
        make_loop = asyncio.new_event_loop
    complaints: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        config = openline.Config(close_timeout=0.5)
        async with openline.load_transport(config) as a, openline.load_transport(config) as b:
            answering(b)
            address = await serve(b)
            for number in range(20):
                assert (await a.request(address, task(number))).payload == number
                assert (await a.send(address, task(number, stream_id="s"))).acked
            asked = [a.request(address, task(number, stream_id=number % 5)) for number in range(100)]
            assert [answer.payload for answer in await asyncio.gather(*asked)] == list(range(100))
            assert len(await a.send_batch(address, tasks(1000))) == 1000
            doomed = asyncio.ensure_future(a.request(address, task(stream_id="s"), timeout=5.0))
            await asyncio.sleep(0)
            doomed.cancel()
            await asyncio.gather(doomed, return_exceptions=True)

    with asyncio.Runner(loop_factory=make_loop, debug=factory == "debug") as runner:
        runner.run(main())
    assert complaints == []
