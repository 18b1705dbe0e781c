"""Handlers: who gets what, and in which order (rule 3.5)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest

import openline

from .conftest import Make, Open
from .helpers import Box, eventually, port_of, serve, task, tasks, within

STREAMS = ["default", "rpc", "", 0, 42, "42", -1, 2**40]


async def test_a_scoped_handler_gets_its_stream_and_a_catch_all_gets_everything(make: Make) -> None:
    a, b = await make(), await make()
    rpc, everything = Box(a, stream_id="rpc"), Box(a)
    address = await serve(a)
    for stream in ("rpc", "other", "default", "rpc"):
        await b.send(address, task(stream, stream_id=stream))
    await eventually(lambda: len(everything) == 4)
    assert rpc.payloads == ["rpc", "rpc"]
    assert everything.payloads == ["rpc", "other", "default", "rpc"]


@pytest.mark.parametrize("plain", [False, True], ids=["openline", "plain"])
async def test_a_stream_named_42_is_not_the_stream_numbered_42(make: Make, raw: Open, plain: bool) -> None:
    a, b = await make(), await make()
    number, text = Box(a, stream_id=42), Box(a, stream_id="42")
    address = await serve(a)
    if plain:
        client = await raw(port_of(address))
        await client.say("number", streamId=42)
        await client.say("text", streamId="42")
    else:
        await b.send(address, task("number", stream_id=42))
        await b.send(address, task("text", stream_id="42"))
    await eventually(lambda: number and text)
    assert (number.payloads, text.payloads) == (["number"], ["text"])
    assert [type(message.stream_id) for message in (*number, *text)] == [int, str]


@pytest.mark.parametrize("stream", STREAMS)
async def test_every_kind_of_stream_id_arrives_as_it_was(make: Make, stream: str | int) -> None:
    a, b = await make(), await make()
    box = Box(a, stream_id=stream)
    await b.send(await serve(a), task("it", stream_id=stream))
    await eventually(lambda: box.payloads == ["it"])
    assert box[0].stream_id == stream


async def test_a_plain_message_without_stream_is_on_the_default_stream(make: Make, raw: Open) -> None:
    a = await make()
    box = Box(a, stream_id="default")
    client = await raw(port_of(await serve(a)))
    await client.say(1)
    await client.say(2, streamId=None)
    await eventually(lambda: box.payloads == [1, 2])


async def test_messages_of_a_stream_stay_in_order_however_they_were_sent(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(a)
    address = await serve(a)
    messages = iter(tasks(1000))
    for _ in range(5):
        for _ in range(50):
            await b.send(address, next(messages))
        await b.send_batch(address, [next(messages) for _ in range(100)])
        await asyncio.gather(*(b.send(address, next(messages)) for _ in range(50)))
    await eventually(lambda: len(box) == 1000)
    assert box.payloads == list(range(1000))


async def test_a_batch_over_several_streams_keeps_the_order_of_each(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(a)
    await b.send_batch(await serve(a), [task(n, stream_id=n % 3) for n in range(300)])
    await eventually(lambda: len(box) == 300)
    for stream in range(3):
        got = [message.payload for message in box if message.stream_id == stream]
        assert got == list(range(stream, 300, 3))


async def test_async_handlers_of_one_stream_run_one_at_a_time_in_order(make: Make) -> None:
    a, b = await make(), await make()
    log: list[tuple[str, int]] = []

    @a.on_message
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        log.append(("begin", message.payload))
        await asyncio.sleep(0 if message.payload % 2 else 0.001)
        log.append(("end", message.payload))

    await b.send_batch(await serve(a), tasks(50))
    await eventually(lambda: len(log) == 100)
    assert log == [(edge, n) for n in range(50) for edge in ("begin", "end")]


async def test_streams_run_side_by_side(make: Make) -> None:
    a, b = await make(), await make()
    together = asyncio.Barrier(3)
    done = []

    @a.on_message
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        await within(together.wait(), 2.0)
        done.append(message.stream_id)

    address = await serve(a)
    for stream in ("a", "b", "c"):
        await b.send(address, task(stream_id=stream))
    await eventually(lambda: sorted(done) == ["a", "b", "c"])


async def test_the_same_stream_of_two_peers_runs_side_by_side(make: Make) -> None:
    a, b, c = await make(), await make(), await make()
    together = asyncio.Barrier(2)
    done = []

    @a.on_message
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        await within(together.wait(), 2.0)
        done.append(peer.node_id)

    address = await serve(a)
    await b.send(address, task())
    await c.send(address, task())
    await eventually(lambda: set(done) == {b.node_id, c.node_id})


async def test_two_async_handlers_of_one_message_both_run_and_in_order(make: Make) -> None:
    a, b = await make(), await make()
    log: list[tuple[str, int]] = []

    def add(name: str) -> None:
        @a.on_message
        async def handle(peer: openline.Peer, message: openline.Message) -> None:
            await asyncio.sleep(0)
            log.append((name, message.payload))

    add("one")
    add("two")
    await b.send_batch(await serve(a), tasks(20))
    await eventually(lambda: len(log) == 40)
    assert log == [(name, number) for number in range(20) for name in ("one", "two")]


def fail_sync(peer: openline.Peer, message: openline.Message) -> None:
    raise RuntimeError("a handler's own mistake")


async def fail_at_once(peer: openline.Peer, message: openline.Message) -> None:
    raise RuntimeError("a handler's own mistake")


async def fail_later(peer: openline.Peer, message: openline.Message) -> None:
    await asyncio.sleep(0)
    raise RuntimeError("a handler's own mistake")


async def cancel_itself(peer: openline.Peer, message: openline.Message) -> None:
    await asyncio.sleep(0)
    raise asyncio.CancelledError


async def cancel_at_once(peer: openline.Peer, message: openline.Message) -> None:
    raise asyncio.CancelledError


FAILING = [fail_sync, fail_at_once, fail_later, cancel_itself, cancel_at_once]


@pytest.mark.parametrize("handler", FAILING)
async def test_a_handler_that_fails_stops_nothing(make: Make, handler: Callable[..., Any]) -> None:
    a, b = await make(), await make()
    before = Box(a)
    a.on_message(handler)
    after = Box(a)
    await b.send_batch(await serve(a), tasks(5))
    await eventually(lambda: len(after) == 5)
    assert before.payloads == after.payloads == [0, 1, 2, 3, 4]
    assert (a.stats().handler_errors, a.stats().closed) == (5, 0)


async def test_a_handlers_exception_is_logged_with_its_traceback(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = await make(), await make()
    a.on_message(fail_later)
    await b.send(await serve(a), task())
    await eventually(lambda: a.stats().handler_errors == 1)
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "fail_later" in record.getMessage()
    assert record.exc_info is not None


async def test_a_handler_has_a_task_of_its_own_so_that_timeouts_work(make: Make) -> None:
    a, b = await make(), await make()
    log = []

    @a.on_message
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            log.append(message.payload)
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))

    await b.send_batch(await serve(a), tasks(3))
    await eventually(lambda: log == [0, 1, 2])
    assert a.stats().handler_errors == 0


async def test_a_handler_may_ask_the_peer_back_before_it_answers(make: Make) -> None:
    a, b = await make(), await make()

    @a.on_message
    async def answer(peer: openline.Peer, message: openline.Message) -> None:
        more = await peer.request(task("which?"), timeout=2.0)
        await peer.reply(message, more.payload)

    b.on_message(lambda peer, message: peer.reply(message, "this one"))
    assert (await b.request(await serve(a), task(), timeout=2.0)).payload == "this one"


async def test_a_handler_may_take_the_next_message_with_receive(make: Make) -> None:
    a, b = await make(), await make()
    home = await serve(b)
    got = []

    @a.on_message(stream_id="head")
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        got.append((await a.receive(home, "body", timeout=2.0)).payload)

    address = await serve(a)
    await b.send(address, task("head", stream_id="head"))
    await b.send(address, task("body", stream_id="body"))
    await eventually(lambda: got == ["body"])


async def test_what_a_handler_sets_in_a_context_variable_stays_in_it(make: Make) -> None:
    """As with any task: a request id for the log, say, must not show up in the next message's lines."""
    variable: ContextVar[str] = ContextVar("variable")
    variable.set("outside")
    a, b = await make(), await make()
    seen = []

    @a.on_message
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        seen.append(variable.get())
        variable.set(f"of message {message.payload}")
        if message.payload % 2:
            await asyncio.sleep(0)
        seen.append(variable.get())

    await b.send_batch(await serve(a), tasks(4))
    await eventually(lambda: len(seen) == 8)
    assert seen == [text for n in range(4) for text in ("outside", f"of message {n}")]


async def test_handlers_may_come_and_go_while_a_message_is_handled(make: Make) -> None:
    a, b = await make(), await make()
    late: list[int] = []

    def once(peer: openline.Peer, message: openline.Message) -> None:
        a.off_message(once)
        a.on_message(lambda peer, message: late.append(message.payload))

    a.on_message(once)
    box = Box(a)
    await b.send_batch(await serve(a), tasks(5))
    await eventually(lambda: len(box) == 5)
    assert late[-4:] == [1, 2, 3, 4]


async def test_a_message_that_came_before_its_handler_is_not_lost(make: Make) -> None:
    a, b = await make(), await make()
    await b.send_batch(await serve(a), tasks(3))
    await eventually(lambda: a.stats().messages_received == 3)
    box = Box(a)
    await eventually(lambda: box.payloads == [0, 1, 2])
