"""Streams, handlers, receive() and messages(): who gets what, and in which order."""

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


# What travels -------------------------------------------------------------------------------------


PAYLOADS = [
    *(None, True, 0, -1, 1.5, 2**63 - 1, 2**64 - 1, -(2**63), 2**100, 1e300),
    *("", "text", "ünïcödé 🚀", "\x00", "x" * 100_000),
    *([], {}, [1, [2, [3, {"four": None}]]], {"a": {"b": [1, 2]}, "": 0}, list(range(1000))),
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda value: repr(value)[:20])
async def test_any_json_value_travels_between_openline_peers(make: Make, payload: Any) -> None:
    a, b = await make(), await make()
    box = Box(a)
    sent = task(payload, type="status", metadata={"k": [payload]} if payload != 2**100 else None)
    await b.send(await serve(a), sent)
    await eventually(lambda: box)
    assert box == [sent]


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda value: repr(value)[:20])
async def test_any_json_value_travels_to_a_plain_peer_and_back(make: Make, raw: Open, payload: Any) -> None:
    a = await make()
    a.on_message(lambda peer, message: peer.reply(message, message.payload))
    client = await raw(port_of(await serve(a)))
    await client.say(payload)
    assert (await client.message())["payload"] == payload


async def test_bytes_travel_between_openline_peers(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(a)
    await b.send(await serve(a), task({"raw": b"\x00\xff", "list": [b""]}))
    await eventually(lambda: box.payloads == [{"raw": b"\x00\xff", "list": [b""]}])


@pytest.mark.parametrize("payload", [b"x", {"a": b"x"}, [[b"x"]], bytearray(b"x")])
async def test_bytes_toward_a_plain_peer_are_a_clear_error_and_nothing_is_sent(
    make: Make, raw: Open, payload: Any
) -> None:
    a = await make()
    client = await raw(port_of(await serve(a)))
    with pytest.raises(openline.InvalidMessage, match="bytes"):
        await a.send(client.address, task(payload))
    await a.send(client.address, task("next"))
    assert (await client.message())["payload"] == "next"


async def test_what_cannot_be_encoded_is_an_error_and_the_connection_lives(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(a)
    address = await serve(a)
    await b.send(address, task(1))
    with pytest.raises(openline.InvalidMessage):
        await b.send(address, task(object()))
    await b.send(address, task(2))
    await eventually(lambda: box.payloads == [1, 2])
    assert b.stats().created == 1


@pytest.mark.parametrize("plain", [False, True], ids=["openline", "plain"])
async def test_a_batch_with_a_bad_message_in_it_counts_exactly_what_left(
    make: Make, raw: Open, plain: bool
) -> None:
    a, b = await make(), await make()
    box = Box(b)
    messages = [*tasks(10), task(object()), *tasks(10)]
    if plain:
        client = await raw(port_of(await serve(a)))
        address = client.address
        await eventually(lambda: a.stats().active == 1)
    else:
        address = await serve(b)
    with pytest.raises(openline.InvalidMessage):
        await a.send_batch(address, messages)
    left = a.stats().messages_sent
    await a.send(address, task("end"))
    if plain:
        got = []
        while (payload := (await client.message())["payload"]) != "end":
            got.append(payload)
    else:
        await eventually(lambda: "end" in box.payloads)
        got = box.payloads[:-1]
    assert got == list(range(left))


async def test_a_plain_message_looks_as_agreed(make: Make, raw: Open) -> None:
    a = await make()
    client = await raw(port_of(await serve(a)))
    await a.send(client.address, openline.Message(id="1", type="status", payload={"n": 1}))
    assert await client.message() == {"id": "1", "type": "status", "payload": {"n": 1}}
    await a.send(client.address, openline.Message(id="2", metadata={"k": 1}, stream_id=42))
    assert await client.message() == {
        "id": "2",
        "type": "task",
        "payload": None,
        "metadata": {"k": 1},
        "streamId": 42,
    }


async def test_unknown_fields_of_a_plain_peer_are_kept(make: Make, raw: Open) -> None:
    a = await make()
    box = Box(a)
    client = await raw(port_of(await serve(a)))
    await client.say(1, priority=7, trace={"span": "x"})
    await eventually(lambda: box)
    await a.send(client.address, box[0])
    back = await client.message()
    assert (back["priority"], back["trace"]) == (7, {"span": "x"})


@pytest.mark.parametrize("number", [1, 1.5, -3, 2**53, 2**70])
async def test_number_forms_of_ids_are_kept(make: Make, raw: Open, number: float) -> None:
    a = await make()
    a.on_message(lambda peer, message: peer.reply(message, message.id))
    client = await raw(port_of(await serve(a)))
    await client.say(id=number)
    back = await client.message()
    assert (back["payload"], back["metadata"]["replyTo"]) == (number, number)


async def test_a_plain_peer_may_send_its_json_in_binary_frames(make: Make, raw: Open) -> None:
    a = await make()
    box = Box(a)
    client = await raw(port_of(await serve(a)))
    await client.frame(2, b'{"id": "1", "type": "task", "payload": 5}')
    await eventually(lambda: box.payloads == [5])


# Sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True], ids=["openline", "plain"])
async def test_a_message_over_the_limit_is_an_error_that_tells_the_limit(
    make: Make, raw: Open, plain: bool
) -> None:
    a, b = await make(max_message_size=10_000), await make()
    address = await serve(b)
    if plain:
        address = (await raw(port_of(await serve(a)))).address
    with pytest.raises(openline.MessageTooLarge, match="10000"):
        await a.send(address, task("x" * 10_000))
    assert (await a.send(address, task("small"))).attempts == 1
    assert a.stats().closed == 0


async def test_the_largest_message_that_a_sender_takes_is_one_that_the_receiver_takes(make: Make) -> None:
    limit = 100_000
    a, b = await make(max_message_size=limit), await make(max_message_size=limit)
    box = Box(a)
    address = await serve(a)
    sent = 0
    for size in range(limit - 200, limit):
        try:
            await b.send(address, task("x" * size))
        except openline.MessageTooLarge:
            break
        sent += 1
    assert sent > 0
    await eventually(lambda: len(box) == sent)
    assert b.stats().created == 1


async def test_a_large_message_behind_small_ones_of_the_same_turn_arrives(make: Make) -> None:
    """What shares a frame must not make one of them too large."""
    limit = 100_000
    a, b = await make(max_message_size=limit), await make(max_message_size=limit)
    box = Box(a)
    address = await serve(a)
    await b.connect(address)
    sizes = [4000] * 11 + [99_000]
    await asyncio.gather(*(b.send(address, task("x" * size)) for size in sizes))
    await eventually(lambda: len(box) == 12)
    assert (b.stats().created, a.stats().malformed) == (1, 0)


async def test_a_batch_of_messages_that_each_fit_arrives_at_a_receiver_with_a_smaller_limit(
    make: Make,
) -> None:
    a, b = await make(max_message_size=200_000), await make()
    box = Box(a)
    await b.send_batch(await serve(a), [task("x" * 100_000) for _ in range(32)])
    await eventually(lambda: len(box) == 32)
    assert (b.stats().created, a.stats().malformed) == (1, 0)


@pytest.mark.parametrize("size", [125, 126, 65_535, 65_536, 65_537, 1_000_000, 16_000_000])
async def test_sizes_around_every_boundary_arrive_whole(make: Make, raw: Open, size: int) -> None:
    a, b = await make(), await make()
    box = Box(a)
    address = await serve(a)
    await b.send(address, task("x" * size))
    client = await raw(port_of(address))
    sending = asyncio.ensure_future(client.say("y" * size))
    await eventually(lambda: len(box) == 2)
    await sending
    assert sorted(box.payloads) == ["x" * size, "y" * size]


# Handlers -----------------------------------------------------------------------------------------


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


# receive() ----------------------------------------------------------------------------------------


async def connected(make: Make) -> tuple[openline.Transport, openline.Transport, str, str]:
    """Two transports, a and b, both listening, b connected to a; and their addresses."""
    a, b = await make(), await make()
    at_a, at_b = await serve(a), await serve(b)
    await b.connect(at_a)
    return a, b, at_a, at_b


async def test_receive_takes_a_message_that_has_already_come(make: Make) -> None:
    a, b, at_a, at_b = await connected(make)
    await b.send_batch(at_a, tasks(3))
    await eventually(lambda: a.stats().messages_received == 3)
    assert [(await a.receive(at_b, timeout=1.0)).payload for _ in range(3)] == [0, 1, 2]


async def test_receive_waits_for_a_message_that_is_still_to_come(make: Make) -> None:
    a, b, at_a, at_b = await connected(make)
    waiting = asyncio.ensure_future(a.receive(at_b, timeout=2.0))
    await asyncio.sleep(0)
    await b.send(at_a, task("late"))
    assert (await within(waiting)).payload == "late"


async def test_receive_answers_at_once_and_does_not_poll(make: Make) -> None:
    a, b, at_a, at_b = await connected(make)
    loop = asyncio.get_running_loop()
    took = []
    for _ in range(20):
        waiting = asyncio.ensure_future(a.receive(at_b, timeout=2.0))
        await asyncio.sleep(0)
        begin = loop.time()
        await b.send(at_a, task())
        await waiting
        took.append(loop.time() - begin)
    assert sorted(took)[10] < 0.02


async def test_receive_times_out_with_the_builtin_error(make: Make) -> None:
    a, _, _, at_b = await connected(make)
    with pytest.raises(TimeoutError, match=at_b):
        await a.receive(at_b, timeout=0.02)


async def test_receive_before_anybody_has_connected_waits(make: Make) -> None:
    a, b = await make(), await make()
    at_a, at_b = await serve(a), await serve(b)
    waiting = asyncio.ensure_future(a.receive(at_b, timeout=2.0))
    await asyncio.sleep(0.01)
    await b.send(at_a, task("first"))
    assert (await within(waiting)).payload == "first"


async def test_receive_takes_only_its_stream(make: Make) -> None:
    a, b, at_a, at_b = await connected(make)
    await b.send(at_a, task("other", stream_id="other"))
    await b.send(at_a, task("rpc", stream_id="rpc"))
    await b.send(at_a, task("default"))
    assert (await a.receive(at_b, stream_id="rpc", timeout=1.0)).payload == "rpc"
    assert (await a.receive(at_b, timeout=1.0)).payload == "default"
    assert (await a.receive(at_b, "other", 1.0)).payload == "other"


async def test_receive_tells_42_from_its_text(make: Make) -> None:
    a, b, at_a, at_b = await connected(make)
    await b.send(at_a, task("text", stream_id="42"))
    await b.send(at_a, task("number", stream_id=42))
    assert (await a.receive(at_b, 42, 1.0)).payload == "number"
    assert (await a.receive(at_b, "42", 1.0)).payload == "text"


async def test_receive_takes_only_from_its_peer(make: Make) -> None:
    a, b, at_a, at_b = await connected(make)
    c = await make()
    at_c = await serve(c)
    await c.send(at_a, task("from c"))
    await b.send(at_a, task("from b"))
    assert (await a.receive(at_b, timeout=1.0)).payload == "from b"
    assert (await a.receive(at_c, timeout=1.0)).payload == "from c"


async def test_receive_takes_from_a_plain_peer_by_its_exact_end(make: Make, raw: Open) -> None:
    a = await make()
    port = port_of(await serve(a))
    one, two = await raw(port), await raw(port)
    await two.say("two")
    await one.say("one")
    assert (await a.receive(one.address, timeout=1.0)).payload == "one"
    assert (await a.receive(two.address, timeout=1.0)).payload == "two"


async def test_receive_takes_from_the_one_plain_peer_at_an_ip(make: Make, raw: Open) -> None:
    a = await make()
    client = await raw(port_of(await serve(a)))
    await a.send("127.0.0.1:9", task("question"))
    await client.message()
    await client.say("answer")
    assert (await a.receive("127.0.0.1:9", timeout=1.0)).payload == "answer"


async def test_receive_from_a_peer_that_was_dialed(make: Make) -> None:
    a, b = await make(), await make()
    at_b = await serve(b)
    b.on_message(lambda peer, message: peer.send(task("back")))
    await a.send(at_b, task())
    assert (await a.receive(at_b, timeout=1.0)).payload == "back"


async def test_receive_by_name_takes_from_the_address_behind_it(make: Make) -> None:
    a, b, at_a, at_b = await connected(make)
    await b.send(at_a, task("named"))
    assert (await a.receive(f"localhost:{port_of(at_b)}", timeout=1.0)).payload == "named"


async def test_several_receivers_get_one_message_each_in_the_order_of_asking(make: Make) -> None:
    a, b, at_a, at_b = await connected(make)
    waiting = []
    for _ in range(10):
        waiting.append(asyncio.ensure_future(a.receive(at_b, timeout=2.0)))
        await asyncio.sleep(0)
    await b.send_batch(at_a, tasks(10))
    assert [message.payload for message in await within(asyncio.gather(*waiting))] == list(range(10))


async def test_a_receiver_that_gives_up_loses_no_message(make: Make) -> None:
    a, b, at_a, at_b = await connected(make)
    got = []
    for number in range(30):
        waiting = asyncio.ensure_future(a.receive(at_b, timeout=2.0))
        await asyncio.sleep(0)
        await b.send(at_a, task(number))
        for _ in range(number % 5):
            await asyncio.sleep(0)
        waiting.cancel()
        [result] = await asyncio.gather(waiting, return_exceptions=True)
        if isinstance(result, openline.Message):
            got.append(result.payload)
    while len(got) < 30:
        got.append((await a.receive(at_b, timeout=1.0)).payload)
    assert got == list(range(30))


async def test_a_cancelled_receiver_leaves_the_message_to_the_next_one(make: Make) -> None:
    a, b, at_a, at_b = await connected(make)
    first = asyncio.ensure_future(a.receive(at_b, timeout=2.0))
    second = asyncio.ensure_future(a.receive(at_b, timeout=2.0))
    await asyncio.sleep(0.01)
    first.cancel()
    await b.send(at_a, task("for the second"))
    assert (await within(second)).payload == "for the second"


async def test_receivers_of_very_many_streams_all_get_their_message(make: Make) -> None:
    a, b, at_a, at_b = await connected(make)
    waiting = [asyncio.ensure_future(a.receive(at_b, number, 15.0)) for number in range(1500)]
    await asyncio.sleep(0.01)
    await b.send_batch(at_a, [task(number, stream_id=number) for number in range(1500)])
    got = await within(asyncio.gather(*waiting), 15.0)
    assert [message.payload for message in got] == list(range(1500))


async def test_receive_after_the_peer_has_gone_takes_what_it_said_before(make: Make) -> None:
    a, b, at_a, at_b = await connected(make)
    await b.send(at_a, task("last words"))
    await b.close()
    await eventually(lambda: a.stats().active == 0)
    assert (await a.receive(at_b, timeout=1.0)).payload == "last words"


async def test_a_message_goes_to_handlers_and_to_receive_where_both_are_in_use(make: Make) -> None:
    a, b, at_a, at_b = await connected(make)
    box = Box(a)
    waiting = asyncio.ensure_future(a.receive(at_b, timeout=2.0))
    await asyncio.sleep(0.01)
    await b.send_batch(at_a, tasks(3))
    got = [(await within(waiting)).payload]
    got += [(await a.receive(at_b, timeout=1.0)).payload for _ in range(2)]
    assert got == box.payloads == [0, 1, 2]


async def test_what_a_handler_took_does_not_wait_for_receive_where_that_was_not_in_use(make: Make) -> None:
    a, b, at_a, at_b = await connected(make)
    box = Box(a)
    await b.send(at_a, task("handled"))
    await eventually(lambda: box)
    with pytest.raises(TimeoutError):
        await a.receive(at_b, timeout=0.02)


async def test_receive_on_one_stream_does_not_collect_the_others(make: Make) -> None:
    a, b, at_a, at_b = await connected(make)
    box = Box(a)
    with pytest.raises(TimeoutError):
        await a.receive(at_b, "rpc", timeout=0.01)
    await b.send(at_a, task("default"))
    await eventually(lambda: box)
    with pytest.raises(TimeoutError):
        await a.receive(at_b, timeout=0.02)


# messages() ---------------------------------------------------------------------------------------


async def take(iterator: Any, count: int) -> list[Any]:
    return [(await within(anext(iterator)))[1].payload for _ in range(count)]


async def test_messages_gives_everything_with_its_peer(make: Make) -> None:
    a, b, at_a, _ = await connected(make)
    await b.send_batch(at_a, [task(0, stream_id="x"), task(1), task(2, stream_id=7)])
    iterator = a.messages()
    got = [await within(anext(iterator)) for _ in range(3)]
    assert {peer.node_id for peer, _ in got} == {b.node_id}
    assert sorted(message.payload for _, message in got) == [0, 1, 2]
    await iterator.aclose()


async def test_messages_of_one_stream_gives_only_that_in_order(make: Make) -> None:
    a, b, at_a, _ = await connected(make)
    iterator = a.messages(stream_id="rpc")
    await b.send_batch(at_a, [task(n, stream_id="rpc" if n % 2 else "other") for n in range(20)])
    assert await take(iterator, 10) == list(range(1, 20, 2))
    await iterator.aclose()


async def test_messages_ends_when_the_transport_closes(make: Make) -> None:
    a, b, at_a, _ = await connected(make)
    got: list[Any] = []

    async def read() -> None:
        async for _, message in a.messages():
            got.append(message.payload)

    reading = asyncio.ensure_future(read())
    await b.send_batch(at_a, tasks(3))
    await eventually(lambda: got == [0, 1, 2])
    await a.close()
    await within(reading)


async def test_two_iterators_of_different_streams_work_side_by_side(make: Make) -> None:
    a, b, at_a, _ = await connected(make)
    one, two = a.messages(stream_id=1), a.messages(stream_id=2)
    first = asyncio.ensure_future(take(one, 5))
    second = asyncio.ensure_future(take(two, 5))
    await asyncio.sleep(0)
    await b.send_batch(at_a, [task(n, stream_id=1 + n % 2) for n in range(10)])
    assert await within(first) == [0, 2, 4, 6, 8]
    assert await within(second) == [1, 3, 5, 7, 9]
    await one.aclose()
    await two.aclose()


async def test_after_an_iterator_has_ended_the_rest_is_for_receive(make: Make) -> None:
    a, b, at_a, at_b = await connected(make)
    await b.send_batch(at_a, tasks(3))
    iterator = a.messages()
    assert await take(iterator, 1) == [0]
    await iterator.aclose()
    assert [(await a.receive(at_b, timeout=1.0)).payload for _ in range(2)] == [1, 2]


async def test_messages_and_handlers_both_get_everything(make: Make) -> None:
    a, b, at_a, _ = await connected(make)
    box = Box(a)
    iterator = a.messages()
    taking = asyncio.ensure_future(take(iterator, 5))
    await asyncio.sleep(0.01)
    await b.send_batch(at_a, tasks(5))
    assert await within(taking) == box.payloads == [0, 1, 2, 3, 4]
    await iterator.aclose()
