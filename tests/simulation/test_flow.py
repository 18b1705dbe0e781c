"""A slow consumer slows its own stream's sender and nobody else (rule 3.5)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from openline import Message, Peer

from .stage import Node, Puppet, Stage, eventually, simulated, task, tasks


@simulated
async def test_a_slow_handler_stalls_the_senders_of_its_own_stream_only(stage: Stage) -> None:
    a, c = await stage.start(stage.a, window_messages=16), await stage.start(stage.c)
    b = await stage.start(stage.b, inbox_messages=8)
    b.gate = asyncio.Event()
    held = a.begin(a.transport.send_batch(b.address, tasks(1000), timeout=500.0))
    await asyncio.sleep(5.0)
    assert not held.done()
    before = stage.now
    receipts = await asyncio.gather(
        *a.sends(b, range(100), stream_id="other"), *c.sends(b, range(100), stream_id=2)
    )
    assert all(receipt.acked for receipt in receipts)
    assert stage.now - before < 0.5
    assert b.of("other") == b.of(2) == list(range(100))
    assert len(b.of("default")) == 1
    b.gate.set()
    assert len(await held) == 1000
    await eventually(lambda: len(b.of("default")) == 1000)
    assert b.of("default") == list(range(1000))


@simulated
async def test_handlers_that_reply_on_both_sides_do_not_deadlock(stage: Stage) -> None:
    a, b = await stage.two(inbox_messages=16)

    async def answer(peer: Peer, message: Message) -> None:
        await asyncio.sleep(0.001)
        await peer.reply(message, message.payload)

    for node in (a, b):
        node.transport.off_message(node.take)
        node.transport.on_message(answer)

    def asks(node: Node, other: Node) -> list[Any]:
        return [node.begin(node.transport.request(other.address, task(number))) for number in range(200)]

    began = stage.now
    answers = await asyncio.gather(*asks(a, b), *asks(b, a))
    assert [message.payload for message in answers] == [*range(200), *range(200)]
    assert stage.now - began < 10.0
    assert a.stats.handler_errors == b.stats.handler_errors == 0


@pytest.mark.parametrize("window", [1, 3])
@simulated
async def test_nor_do_small_windows_on_both_sides(stage: Stage, window: int) -> None:
    a, b = await stage.two(window_messages=window, inbox_messages=2)

    async def answer(peer: Peer, message: Message) -> None:
        await peer.reply(message, message.payload)

    for node in (a, b):
        node.transport.off_message(node.take)
        node.transport.on_message(answer)

    def asks(node: Node, other: Node) -> list[Any]:
        return [node.begin(node.transport.request(other.address, task(number))) for number in range(50)]

    answers = await asyncio.gather(*asks(a, b), *asks(b, a))
    assert [message.payload for message in answers] == [*range(50), *range(50)]


@simulated
async def test_a_go_that_was_lost_with_its_connection(stage: Stage) -> None:
    """The suspect link is replaced before it is dead; the inbox has had room again since."""
    a, b = await stage.start(stage.a, send_timeout=60.0), await stage.start(stage.b, inbox_messages=4)
    b.gate = asyncio.Event()
    await a.do(a.transport.connect(b.address, keep=True))
    for number in range(5):
        await a.send(b, number)
    await asyncio.sleep(1.0)
    stage.network.silence(stage.a, stage.b)
    b.gate.set()
    began = stage.now
    assert all(receipt.acked for receipt in await asyncio.gather(*a.sends(b, range(5, 8))))
    assert stage.now - began < 20.0
    assert b.payloads == list(range(8))


@simulated
async def test_a_stop_does_not_outlive_the_process_that_gave_it(stage: Stage) -> None:
    a, b = await stage.start(stage.a, send_timeout=60.0), await stage.start(stage.b, inbox_messages=4)
    b.gate = asyncio.Event()
    await asyncio.gather(*a.sends(b, range(5)))
    waiting = a.sends(b, range(5, 8))
    await asyncio.sleep(1.0)
    assert not any(each.done() for each in waiting)
    stage.b.power_off()
    again = await stage.restart(stage.b, kill=False)
    await again.do(again.transport.connect(a.address))
    assert all(receipt.acked for receipt in await asyncio.gather(*waiting))
    await asyncio.sleep(1.0)
    assert again.payloads[-3:] == [5, 6, 7]


@simulated
async def test_a_stop_outlives_the_connection_it_came_over(stage: Stage) -> None:
    a = await stage.start(stage.a, send_timeout=100.0, window_messages=16)
    b = await stage.start(stage.b, inbox_messages=4)
    b.gate = asyncio.Event()
    held = a.begin(a.transport.send_batch(b.address, tasks(500), timeout=100.0))
    for _ in range(4):
        await asyncio.sleep(1.0)
        stage.network.break_links(stage.a, stage.b)
    await asyncio.sleep(5.0)
    received = b.stats.messages_received - b.stats.duplicates_suppressed
    assert received <= 5 * (16 + 4)  # a window and an inbox, after each change
    await asyncio.sleep(5.0)
    assert b.stats.messages_received - b.stats.duplicates_suppressed == received
    b.gate.set()
    assert len(await held) == 500
    await eventually(lambda: len(b.got) == 500)
    assert b.payloads == list(range(500))


@simulated
async def test_puppets_stop_and_go(stage: Stage) -> None:
    """A stop for a stream that was never used, twice, and a go without a stop are harmless."""
    a, puppet = await stage.start(stage.a), Puppet(stage.b)
    end = await puppet.dial(a)
    end.polite = True
    for stop in (False, True, True, False, False):
        end.flow("default", stop)
        end.flow(7, stop)
    await asyncio.sleep(0.1)
    peer = a.transport.peers()[0]
    assert (await a.begin(peer.send(task(1)))).acked
    end.flow("default", True)
    await asyncio.sleep(0.1)
    held = a.begin(peer.send(task(2)))
    assert (await a.begin(peer.send(task(3, stream_id=7)))).acked
    assert not held.done()
    end.flow("default", False)
    assert (await held).acked
    assert end.payloads == [1, 3, 2]
