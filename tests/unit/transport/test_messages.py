"""What a message may carry, and how large it may be (rule 3.7)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import openline

from .conftest import Make, Open
from .helpers import Box, eventually, port_of, serve, task, tasks

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
