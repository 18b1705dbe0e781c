"""Handlers of one peer and stream run one at a time, in order; streams run side by side (rule 3.5)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from openline import Error, Message, NotConfirmed, Peer

from .stage import Node, Puppet, Stage, eventually, gathered, simulated, task, tasks


async def with_handler(stage: Stage, handler: Any, **config: Any) -> tuple[Node, Puppet, Any]:
    """A node with that handler only, and a puppet that is connected to it."""
    a, puppet = await stage.start(stage.a, **config), Puppet(stage.b)
    a.transport.off_message(a.take)
    a.transport.on_message(handler)
    return a, puppet, await puppet.dial(a)


@simulated
async def test_a_timeout_in_a_handler_around_a_send_that_nobody_acknowledges(stage: Stage) -> None:
    seen: list[Any] = []

    async def handler(peer: Peer, message: Message) -> None:
        began = stage.now
        task_before = asyncio.current_task()
        try:
            async with asyncio.timeout(1.0):
                await peer.send(task("never"))
        except TimeoutError:
            seen.append((message.payload, round(stage.now - began, 2)))
        assert asyncio.current_task() is task_before
        await asyncio.sleep(0.5)  # a cancellation that comes late would hit here
        seen.append((message.payload, "end"))

    a, _, end = await with_handler(stage, handler)
    end.post(*tasks(5))
    await asyncio.sleep(30.0)
    assert seen == [entry for number in range(5) for entry in ((number, 1.0), (number, "end"))]
    assert a.stats.handler_errors == 0


@simulated
async def test_a_task_group_in_a_handler_whose_child_fails_meanwhile(stage: Stage) -> None:
    seen: list[Any] = []

    async def fails() -> None:
        await asyncio.sleep(0.3)
        raise ValueError("child")

    async def handler(peer: Peer, message: Message) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fails())
                await peer.send(task("never"))
        except* ValueError:
            seen.append(message.payload)
        await asyncio.sleep(0.1)
        seen.append("end")

    a, _, end = await with_handler(stage, handler)
    end.post(*tasks(3))
    await asyncio.sleep(10.0)
    assert seen == [0, "end", 1, "end", 2, "end"]
    assert a.stats.handler_errors == 0


@simulated
async def test_sends_side_by_side_in_a_handler(stage: Stage) -> None:
    seen: list[Any] = []

    async def handler(peer: Peer, message: Message) -> None:
        receipts = await asyncio.gather(*(peer.send(task(n, stream_id=n)) for n in range(5)))
        seen.append((message.payload, [receipt.acked for receipt in receipts]))

    _, _, end = await with_handler(stage, handler)
    end.polite = True
    end.post(*tasks(10))
    await asyncio.sleep(5.0)
    assert seen == [(number, [True] * 5) for number in range(10)]


@simulated
async def test_a_handler_that_requests_from_the_peer_it_was_called_by(stage: Stage) -> None:
    a, b = await stage.two()
    answers: list[Any] = []

    async def asks_back(peer: Peer, message: Message) -> None:
        answer = await peer.request(task(message.payload, stream_id="back"))
        await peer.reply(message, answer.payload + 1)

    async def answer(peer: Peer, message: Message) -> None:
        await peer.reply(message, message.payload * 10)

    for node, handler in ((b, asks_back), (a, answer)):
        node.transport.off_message(node.take)
        node.transport.on_message(handler)

    async def loop() -> None:
        for number in range(20):
            answers.append((await a.transport.request(b.address, task(number))).payload)

    await a.do(loop())
    assert answers == [number * 10 + 1 for number in range(20)]


@pytest.mark.parametrize("waits", [False, True])
@simulated
async def test_a_handler_that_fails_after_its_send(stage: Stage, waits: bool) -> None:
    seen: list[Any] = []

    async def handler(peer: Peer, message: Message) -> None:
        await peer.send(task(message.payload))
        if waits:
            await asyncio.sleep(0)
        seen.append(message.payload)
        raise ValueError("handler")

    a, _, end = await with_handler(stage, handler)
    end.polite = True
    end.post(*tasks(10))
    await asyncio.sleep(1.0)
    assert seen == list(range(10))
    assert a.stats.handler_errors == 10
    assert end.closed is None


@simulated
async def test_close_while_handlers_wait_for_acknowledgements(stage: Stage) -> None:
    """They are cancelled when the grace time is over, each one once, and may clean up."""
    seen: list[Any] = []

    async def handler(peer: Peer, message: Message) -> None:
        try:
            await peer.send(task("never"))
        except asyncio.CancelledError:
            seen.append(message.stream_id)
            await asyncio.sleep(0)
            raise
        except NotConfirmed:
            seen.append(message.stream_id)

    a, _, end = await with_handler(stage, handler, close_timeout=2.0)
    end.post(*(task(n, stream_id=n) for n in range(100)))
    await asyncio.sleep(1.0)
    began = stage.now
    await a.close()
    assert 1.9 < stage.now - began < 3.0
    assert sorted(seen) == list(range(100))


@pytest.mark.parametrize("how", ["close", "close in a task", "abort the connection", "reset"])
@simulated
async def test_a_handler_that_ends_what_it_stands_on(stage: Stage, how: str) -> None:
    seen: list[Any] = []
    a, b = await stage.two(close_timeout=1.0)

    async def handler(peer: Peer, message: Message) -> None:
        if how == "close":
            await b.transport.close()
        elif how == "close in a task":
            closing.append(asyncio.ensure_future(b.transport.close()))
        elif how == "abort the connection":
            peer._remote.connections[0].link.abort()
        else:
            stage.network.break_links(stage.a, stage.b, 0.0)
        try:
            await peer.send(task("reply"))
            seen.append("sent")
        except Error as error:
            seen.append(type(error).__name__)

    closing: list[Any] = []
    b.transport.off_message(b.take)
    b.transport.on_message(handler)
    sending = a.send(b, "x", timeout=20.0)
    await asyncio.sleep(30.0)
    await gathered([sending, *closing])
    if how in ("abort the connection", "reset"):
        assert sending.result().acked
        assert seen == ["sent"]
        assert a.payloads == ["reply"]
        assert b.stats.handler_errors == 0
    assert (await gathered([b.do(b.transport.close())])) == [None]


@simulated
async def test_a_handler_that_sends_to_its_own_node(stage: Stage) -> None:
    a, b = await stage.two()
    seen: list[Any] = []

    async def handler(peer: Peer, message: Message) -> None:
        seen.append(message.payload)
        if message.payload > 0:
            await b.transport.send(b.address, task(message.payload - 1, stream_id=f"s{message.payload}"))

    b.transport.off_message(b.take)
    b.transport.on_message(handler)
    await a.send(b, 20)
    await eventually(lambda: len(seen) == 21)
    assert seen == list(range(20, -1, -1))
