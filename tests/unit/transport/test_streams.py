"""Answers in pieces over real sockets: t.stream(), generators as handlers, reply(more=True)."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

import openline
from openline import Message, Peer

from .conftest import Make
from .helpers import Box, eventually, serve, task, within

Backend = pytest.mark.parametrize("backend", ["websocket", "quic"])


async def read(t: openline.Transport, address: str, payload: Any = None, **fields: Any) -> list[Any]:
    return [part.payload async for part in t.stream(address, task(payload, **fields), timeout=60.0)]


class Counting:
    """A handler that yields numbers, and what has become of it."""

    def __init__(self, t: openline.Transport, *, waits: bool = False) -> None:
        self.waits = waits
        self.produced = 0
        self.ends: list[str] = []
        t.on_message(self.handle)

    async def handle(self, peer: Peer, message: Message) -> AsyncIterator[int]:
        try:
            for number in range(message.payload):
                self.produced = number + 1
                yield number
                if self.waits:
                    await asyncio.sleep(1e6)
            self.ends.append("done")
        except (asyncio.CancelledError, GeneratorExit) as error:
            self.ends.append(type(error).__name__)
            raise


@Backend
async def test_a_generator_answers_in_pieces(make: Make, backend: str) -> None:
    a, b = await make(backends=(backend,)), await make(backends=(backend,))
    counting = Counting(a)
    assert await within(read(b, await serve(a), 3_000), 60.0) == list(range(3_000))
    assert counting.ends == ["done"]


@Backend
async def test_replies_with_more_are_parts_and_one_without_is_the_last(make: Make, backend: str) -> None:
    a, b = await make(backends=(backend,)), await make(backends=(backend,))
    receipts: list[openline.Receipt] = []

    @a.on_message
    async def handle(peer: Peer, message: Message) -> None:
        for number in range(100):
            receipts.append(await peer.reply(message, number, more=True))
        receipts.append(await peer.reply(message, "last", type="end"))

    parts = [part async for part in b.stream(await serve(a), task())]
    assert [part.payload for part in parts] == [*range(100), "last"]
    assert [part.type for part in parts[-2:]] == ["result", "end"]
    assert {part.reply_to for part in parts} == {parts[0].reply_to}
    await eventually(lambda: len(receipts) == 101)
    assert (receipts[0].acked, receipts[-1].acked, receipts[0].backend) == (False, True, backend)


async def test_a_handler_that_answers_once_is_a_stream_of_one_part(make: Make) -> None:
    a, b = await make(), await make()
    a.on_message(lambda peer, message: peer.reply(message, "only"))
    assert await read(b, await serve(a)) == ["only"]


async def test_a_generator_that_yields_nothing_is_an_empty_stream(make: Make) -> None:
    a, b = await make(), await make()
    Counting(a)
    assert await read(b, await serve(a), 0) == []


async def test_a_message_that_is_yielded_is_sent_as_it_is(make: Make) -> None:
    a, b = await make(), await make()

    @a.on_message
    async def handle(peer: Peer, message: Message) -> AsyncIterator[Message]:
        yield Message("mine", "progress", b"\x00", {"percent": 50}, "elsewhere")

    [part] = [part async for part in b.stream(await serve(a), task(id="q"))]
    assert (part.id, part.type, part.payload, part.stream_id) == ("mine", "progress", b"\x00", "default")
    assert part.metadata == {"percent": 50, "replyTo": "q", "more": True}


async def test_a_request_to_a_generator_gets_its_first_part_and_it_is_closed(make: Make) -> None:
    a, b = await make(), await make()
    counting, box = Counting(a), Box(b)
    answer = await within(b.request(await serve(a), task(5)))
    assert (answer.payload, answer.metadata) == (0, {"replyTo": answer.reply_to})
    await eventually(lambda: counting.ends == ["GeneratorExit"])
    assert box == []


async def test_a_peer_in_hand_is_asked_in_the_same_way(make: Make) -> None:
    a, b = await make(), await make()
    Counting(a)
    peer = await b.connect(await serve(a))
    assert peer is not None
    assert [part.payload async for part in peer.stream(task(3))] == [0, 1, 2]


async def test_both_ends_ask_each_other_over_one_connection(make: Make) -> None:
    a, b = await make(), await make()
    Counting(a, waits=False)
    Counting(b)
    there, back = await serve(a), await serve(b)
    await b.connect(there)
    results = await within(asyncio.gather(*(read(t, to, 200) for t, to in ((b, there), (a, back)))))
    assert results == [list(range(200))] * 2
    assert a.stats().created + b.stats().created == 1


@pytest.mark.parametrize("how", ["break", "aclose", "garbage", "error in the loop"])
async def test_leaving_cancels_the_handler(make: Make, how: str) -> None:
    a, b = await make(), await make()
    counting = Counting(a, waits=True)
    address = await serve(a)

    async def leave() -> None:
        if how == "aclose":
            async with aclosing(b.stream(address, task(9))) as parts:  # type: ignore[type-var]
                async for _ in parts:
                    return
        elif how == "garbage":
            parts = b.stream(address, task(9))
            assert (await anext(aiter(parts))).payload == 0
        else:
            async for _ in b.stream(address, task(9)):
                if how == "break":
                    break
                raise ValueError(how)

    try:
        await leave()
    except ValueError:
        assert how == "error in the loop"
    gc.collect()
    await eventually(lambda: counting.ends == ["CancelledError"])
    assert (counting.produced, a.stats().handler_errors) == (1, 0)


async def test_a_generator_that_waits_for_its_reader_is_cancelled_at_its_yield(make: Make) -> None:
    a, b = await make(), await make()
    counting = Counting(a)
    address = await serve(a)
    async for part in b.stream(address, task(10**9)):
        if part.payload == 10:
            await eventually(lambda: counting.produced > 20)
            break
    await eventually(lambda: counting.ends == ["CancelledError"])
    assert counting.produced < 5_000


async def test_a_handler_may_clean_up_after_it_was_cancelled(make: Make) -> None:
    a, b = await make(), await make()
    seen: list[str] = []

    @a.on_message
    async def handle(peer: Peer, message: Message) -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(1e6)
        finally:
            await asyncio.sleep(0)
            seen.append("clean")

    async for _ in b.stream(await serve(a), task()):
        break
    await eventually(lambda: seen == ["clean"])


async def test_whoever_replies_outside_of_a_handler_is_told_as_well(make: Make) -> None:
    a, b = await make(), await make()
    seen: list[str] = []
    working: list[asyncio.Task[None]] = []

    async def work(peer: Peer, message: Message) -> None:
        try:
            while True:
                await peer.reply(message, "part", more=True)
        except asyncio.CancelledError:
            seen.append("cancelled")
        with pytest.raises(asyncio.CancelledError):
            await peer.reply(message, "once more", more=True)
        seen.append("again")

    @a.on_message
    def handle(peer: Peer, message: Message) -> None:
        working.append(asyncio.ensure_future(work(peer, message)))

    async for _ in b.stream(await serve(a), task()):
        break
    await eventually(lambda: seen == ["cancelled", "again"])


async def test_a_message_that_cannot_be_encoded_fails_its_handler(make: Make) -> None:
    a, b = await make(), await make()
    seen: list[str] = []

    @a.on_message
    async def handle(peer: Peer, message: Message) -> AsyncIterator[Any]:
        try:
            yield 1
            yield object()
            await asyncio.sleep(0.01)
            yield 2
        except GeneratorExit:
            seen.append("closed")
            raise

    parts = []
    stream = b.stream(await serve(a), task())
    parts.append((await anext(aiter(stream))).payload)
    with pytest.raises(openline.RemoteError, match="InvalidMessage"):
        await anext(aiter(stream))
    assert parts == [1]
    assert seen == ["closed"]


async def test_the_same_message_may_be_asked_again(make: Make) -> None:
    a, b = await make(), await make()
    Counting(a)
    address, question = await serve(a), task(3)
    for _ in range(3):
        assert [part.payload async for part in b.stream(address, question)] == [0, 1, 2]
    assert question.metadata is None


async def test_an_id_that_is_too_long_is_refused(make: Make) -> None:
    a, b = await make(), await make()
    with pytest.raises(openline.InvalidMessage, match="256"):
        await read(b, await serve(a), id="x" * 257)


@pytest.mark.parametrize("streams", [500])
async def test_thousands_at_once_with_few_streams_allowed(make: Make, streams: int) -> None:
    """Handlers that wait for their askers do not stop the peer whose word they wait for."""
    a, b = await make(max_streams=64), await make()
    counting = Counting(a)
    address = await serve(a)
    parts = [b.stream(address, task(40, stream_id=n), timeout=60.0) for n in range(streams)]
    firsts = await within(asyncio.gather(*(anext(aiter(part)) for part in parts)), 60.0)
    assert {first.payload for first in firsts} == {0}

    async def rest(each: AsyncIterator[Message]) -> list[int]:
        return [part.payload async for part in each]

    assert await within(asyncio.gather(*map(rest, parts)), 60.0) == [list(range(1, 40))] * streams
    assert counting.ends == ["done"] * streams


async def test_nothing_is_left_of_a_stream(make: Make) -> None:
    a, b = await make(), await make()
    Counting(a)
    address = await serve(a)

    def objects() -> int:
        gc.collect()
        kinds = ("Stream", "Answer", "Grants", "Window", "Kept")
        return sum(type(each).__name__ in kinds for each in gc.get_objects())

    async def once() -> None:
        async for part in b.stream(address, task(100)):
            if part.payload == 50:
                break
        await read(b, address, 10)

    await once()
    await eventually(lambda: not any(remote.answers.by_id for remote in a._table))
    before = objects()
    for _ in range(20):
        await once()
    await eventually(lambda: objects() <= before + 2)
