"""Answers in pieces with plain peers, both ways: messages with metadata.replyTo and metadata.more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

import openline
from openline import Message, Peer

from .conftest import Make
from .helpers import eventually, port_of, serve, task, within
from .rawsocket import PlainServer

Client = Callable[..., Awaitable[Any]]
Server = Callable[..., Awaitable[PlainServer]]


async def got(client: Any, count: int) -> list[dict[str, Any]]:
    return [json.loads(await within(client.recv())) for _ in range(count)]


def part(of: object, payload: Any, **metadata: Any) -> str:
    return json.dumps({"id": f"p-{payload}", "payload": payload, "metadata": {"replyTo": of, **metadata}})


# They ask -----------------------------------------------------------------------------------------


async def test_a_plain_peer_gets_parts_as_messages(make: Make, plain_client: Client) -> None:
    a = await make()

    @a.on_message
    async def handle(peer: Peer, message: Message) -> AsyncIterator[Any]:
        yield "one"
        yield Message("mine", "progress", 2, {"percent": 50})

    client = await plain_client(port_of(await serve(a)))
    await client.send(json.dumps({"id": "q", "type": "task", "payload": None}))
    first, second, end = await got(client, 3)
    assert (first["payload"], first["metadata"]) == ("one", {"replyTo": "q", "more": True})
    assert second["type"] == "progress"
    assert second["metadata"] == {"replyTo": "q", "more": True, "percent": 50}
    assert (end["payload"], end["type"], end["metadata"]) == (None, "result", {"replyTo": "q", "more": False})


async def test_a_plain_peer_is_told_how_a_generator_failed_and_nothing_of_other_handlers(
    make: Make, plain_client: Client
) -> None:
    a = await make()

    @a.on_message(stream_id="pieces")
    async def generator(peer: Peer, message: Message) -> AsyncIterator[Any]:
        yield 1
        raise ValueError("why")

    @a.on_message(stream_id="function")
    async def function(peer: Peer, message: Message) -> None:
        raise ValueError("why")

    client = await plain_client(port_of(await serve(a)))
    for stream in ("function", "pieces"):
        await client.send(json.dumps({"id": stream, "type": "task", "payload": None, "streamId": stream}))
    first, end = await got(client, 2)
    assert first["payload"] == 1
    assert (end["type"], end["payload"]) == ("error", {"type": "ValueError", "text": "why"})
    assert end["metadata"] == {"replyTo": "pieces", "more": False}
    assert a.stats().handler_errors == 2


async def test_replies_with_more_say_so(make: Make, plain_client: Client) -> None:
    a = await make()

    @a.on_message
    async def handle(peer: Peer, message: Message) -> None:
        await peer.reply(message, 1, more=True)
        await peer.reply(message, 2)

    client = await plain_client(port_of(await serve(a)))
    await client.send(json.dumps({"id": 7, "type": "task", "payload": None}))
    assert [message["metadata"] for message in await got(client, 2)] == [
        {"replyTo": 7, "more": True},
        {"replyTo": 7},
    ]


async def test_a_plain_peer_that_leaves_cancels_what_answers_it(make: Make, plain_client: Client) -> None:
    a = await make()
    seen: list[str] = []

    @a.on_message
    async def handle(peer: Peer, message: Message) -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(1e6)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    client = await plain_client(port_of(await serve(a)))
    await client.send(json.dumps({"id": "q", "type": "task", "payload": None}))
    await got(client, 1)
    await client.close()
    await eventually(lambda: seen == ["cancelled"])
    assert a.stats().handler_errors == 0


async def test_a_plain_peer_that_does_not_read_stops_the_generator(make: Make, plain_client: Client) -> None:
    a = await make()
    produced = 0

    @a.on_message
    async def handle(peer: Peer, message: Message) -> AsyncIterator[str]:
        nonlocal produced
        while True:
            produced += 1
            yield "x" * 100_000

    client = await plain_client(port_of(await serve(a)), max_queue=1)
    await client.send(json.dumps({"id": "q", "type": "task", "payload": None}))
    before = -1
    while produced != before:
        before = produced
        await asyncio.sleep(0.05)
    assert 0 < produced < 500
    await client.close()


# They answer --------------------------------------------------------------------------------------


async def asked(server: PlainServer, count: int = 1) -> Any:
    await eventually(lambda: len(server.got) == count)
    return server.connections[-1]


async def test_a_plain_peers_messages_are_parts(make: Make, plain_server: Server) -> None:
    t, server = await make(), await plain_server()
    parts: list[Message] = []

    async def read() -> None:
        async for each in t.stream(server.address, task(id="q")):
            parts.append(each)

    reading = asyncio.ensure_future(read())
    connection = await asked(server)
    assert server.got == [{"id": "q", "type": "task", "payload": None}]
    for number in range(3):
        await connection.send(part("q", number, more=True))
        await eventually(lambda number=number: len(parts) == number + 1)
    await connection.send(part("q", "last"))
    await within(reading)
    assert [each.payload for each in parts] == [0, 1, 2, "last"]


@pytest.mark.parametrize("end", ["end", "error", "lost"])
async def test_how_a_plain_peers_answer_ends(make: Make, plain_server: Server, end: str) -> None:
    t, server = await make(), await plain_server()
    parts: list[Any] = []

    async def read() -> None:
        async for each in t.stream(server.address, task(id="q")):
            parts.append(each.payload)

    reading = asyncio.ensure_future(read())
    connection = await asked(server)
    await connection.send(part("q", 1, more=True))
    if end == "lost":
        await connection.close()
        with pytest.raises(openline.NotConfirmed):
            await within(reading)
    elif end == "error":
        what = {"type": "KeyError", "text": "what"}
        await connection.send(
            json.dumps(
                {"id": 1, "type": "error", "payload": what, "metadata": {"replyTo": "q", "more": False}}
            )
        )
        with pytest.raises(openline.RemoteError, match="KeyError: what"):
            await within(reading)
    else:
        await connection.send(part("q", None, more=False))
        await within(reading)
    assert parts == [1]


async def test_a_plain_peer_that_answers_once_is_a_stream_of_one_part(
    make: Make, plain_server: Server
) -> None:
    t, server = await make(), await plain_server()
    reading = asyncio.ensure_future(anext(aiter(t.stream(server.address, task(id="q")))))
    connection = await asked(server)
    await connection.send(json.dumps({"id": "other", "type": "result", "payload": "says nothing"}))
    assert (await within(reading)).payload == "says nothing"


async def test_what_comes_after_the_reader_has_left_is_thrown_away(make: Make, plain_server: Server) -> None:
    t, server = await make(), await plain_server()
    handled: list[Any] = []
    t.on_message(lambda peer, message: handled.append(message.payload))
    reading = asyncio.ensure_future(anext(aiter(t.stream(server.address, task(id="q")))))
    connection = await asked(server)
    for number in range(10):
        await connection.send(part("q", number, more=True))
    assert (await within(reading)).payload == 0
    await asyncio.sleep(0)
    await connection.send(part("q", "last"))
    await connection.send(json.dumps({"id": "n", "type": "task", "payload": "new"}))
    await eventually(lambda: handled)
    assert handled == ["new"]


async def test_a_plain_peer_is_not_read_while_its_reader_is_behind(make: Make, plain_server: Server) -> None:
    t, server = await make(inbox_messages=16), await plain_server()
    stream = t.stream(server.address, task(id="q"), timeout=60.0)
    first = asyncio.ensure_future(anext(aiter(stream)))
    connection = await asked(server)
    for number in range(40):
        await connection.send(part("q", number, more=True))
    await within(first)
    [remote] = list(t._table)
    await eventually(lambda: remote.connections[0].reading_paused)
    await connection.send(part("q", "last"))
    assert [each.payload async for each in stream] == [*range(1, 40), "last"]
    assert not remote.connections[0].reading_paused
