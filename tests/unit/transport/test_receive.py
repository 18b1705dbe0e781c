"""``receive()`` and ``messages()``: who gets what, and in which order (rule 3.5)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import openline

from ..clock import Passed
from .conftest import Make, Open
from .helpers import Box, eventually, port_of, serve, task, tasks, within

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


async def test_receive_answers_at_once_and_does_not_poll(make: Make, hurried: Passed) -> None:
    a, b, at_a, at_b = await connected(make)
    took = []
    for _ in range(20):
        waiting = asyncio.ensure_future(a.receive(at_b, timeout=2.0))
        await asyncio.sleep(0)
        begin = hurried()
        await b.send(at_a, task())
        await waiting
        took.append(hurried() - begin)
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
