"""Answers in pieces over links that are cut: each part once and in order, and no handler left over."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest

from openline import Closed, Message, NotConfirmed, Peer, RemoteError, Unreachable
from openline.core.pieces import CONTROL_STREAM
from openline.testing import Faults

from .stage import Node, Puppet, Stage, eventually, simulated, task

SEEDS = int(os.environ.get("OPENLINE_STREAM_SEEDS", "40"))


class Answering:
    """What answers at a node: a generator that counts; how many are at work, and how they ended."""

    def __init__(self, node: Node, pause: float = 0.0, size: int = 0) -> None:
        self.running = self.most = 0
        self.ends: list[str] = []
        # Parts produced, by the id of what they answer.
        self.produced: dict[Any, int] = {}
        self._pause, self._filler = pause, "x" * size
        node.transport.off_message(node.take)
        node.transport.on_message(self.handle)

    async def handle(self, peer: Peer, message: Message) -> AsyncIterator[Any]:
        self.running += 1
        end = "done"
        try:
            for number in range(message.payload):
                self.produced[message.id] = number + 1
                yield [number, self._filler]
                if self._pause:
                    await asyncio.sleep(self._pause)
        except asyncio.CancelledError:
            end = "cancelled"
            raise
        except GeneratorExit:
            end = "closed"
            raise
        finally:
            self.running -= 1
            self.ends.append(end)


def numbers(parts: list[Message]) -> list[int]:
    return [part.payload[0] for part in parts]


async def insist(a: Node, b: Node, count: int, until: int | None = None, **fields: Any) -> list[Message]:
    """Again and again, as long as nothing of it has left."""
    while True:
        try:
            return await read(a, b, count, until, **fields)
        except Unreachable:
            await asyncio.sleep(0.1)


async def read(a: Node, b: Node, count: int, until: int | None = None, **fields: Any) -> list[Message]:
    parts: list[Message] = []
    async for part in a.transport.stream(b.address, task(count, **fields), timeout=600.0):
        parts.append(part)
        if until is not None and len(parts) >= until:
            break
    return parts


def left_over(*nodes: Node) -> dict[str, Any]:
    """State of requests and answers that should not be there any more."""
    found = {}
    for node in nodes:
        for remote in node.transport._table:
            if remote.requests.out or remote.answers.by_id or remote.requests.budget != 16384:
                found[node.host.name] = (dict(remote.requests.out), dict(remote.answers.by_id))
    return found


@simulated
async def test_parts_come_in_order_and_their_handler_ends(stage: Stage) -> None:
    a, b = await stage.two()
    answering = Answering(b)
    parts = await a.begin(read(a, b, 5_000))
    assert numbers(parts) == list(range(5_000))
    assert answering.ends == ["done"]
    assert left_over(a, b) == {}


@simulated
async def test_a_connection_that_dies_ends_no_stream(stage: Stage) -> None:
    a, b = await stage.two()
    answering = Answering(b, pause=0.01)
    reading = a.begin(read(a, b, 400))
    for _ in range(5):
        await asyncio.sleep(0.5)
        stage.network.break_links(stage.a, stage.b)
    assert numbers(await reading) == list(range(400))
    assert answering.ends == ["done"]


@pytest.mark.parametrize("size", [0, 100, 5_000, 60_000])
@simulated
async def test_a_slow_reader_stops_its_handler(stage: Stage, size: int) -> None:
    a, b = await stage.two()
    answering = Answering(b, size=size)

    async def slowly() -> list[int]:
        seen = []
        async for part in a.transport.stream(b.address, task(100_000, id="slow")):
            seen.append(part.payload[0])
            if len(seen) == 40:
                await asyncio.sleep(100.0)
            if len(seen) == 60:
                return seen
        return seen

    reading = a.begin(slowly())
    await asyncio.sleep(50.0)
    ahead = answering.produced["slow"]
    assert ahead <= 40 + 2 * 1024
    assert (ahead - 40) * size <= 4 * 1024 * 1024
    # Others pass it by.
    assert numbers(await a.begin(read(a, b, 50, stream_id="other"))) == list(range(50))
    assert await reading == list(range(60))
    await eventually(lambda: not answering.running)
    assert left_over(a, b) == {}


@pytest.mark.parametrize("how", ["break", "cancel", "timeout", "request", "cancelled request"])
@simulated
async def test_leaving_cancels_the_handler_where_it_waits(stage: Stage, how: str) -> None:
    a, b = await stage.two()
    seen: list[str] = []
    b.transport.off_message(b.take)

    @b.transport.on_message
    async def handle(peer: Peer, message: Message) -> None:
        try:
            if "request" not in how:
                await peer.reply(message, 1, more=True)
            await asyncio.sleep(1_000.0)
        except asyncio.CancelledError:
            seen.append(f"cancelled {message.payload}")
            raise

    async def ask() -> None:
        if "request" in how:
            await a.transport.request(b.address, task("first"), timeout=1.0 if how == "request" else 60.0)
        else:
            async for _ in a.transport.stream(b.address, task("first"), 1.0 if how == "timeout" else 60.0):
                if how == "break":
                    break

    asking = a.begin(ask())
    await asyncio.sleep(0.5)
    after = a.begin(a.transport.request(b.address, task("second"), timeout=5.0))
    if "cancel" in how:
        asking.cancel()
    with contextlib.suppress(TimeoutError, asyncio.CancelledError):
        await asking
    await eventually(lambda: seen[:1] == ["cancelled first"], 2.0)
    if "request" in how:
        with pytest.raises(TimeoutError):
            await after
    else:  # one answer was asked for, and the first part is it
        assert (await after).payload == 1
    await eventually(lambda: seen == ["cancelled first", "cancelled second"], 2.0)
    assert b.stats.handler_errors == 0
    assert left_over(a, b) == {}


@simulated
async def test_what_waits_behind_another_handler_is_not_begun_once_nobody_wants_it(stage: Stage) -> None:
    a, b = await stage.two()
    begun: list[Any] = []
    gate = asyncio.Event()
    b.transport.off_message(b.take)

    @b.transport.on_message
    async def handle(peer: Peer, message: Message) -> AsyncIterator[int]:
        begun.append(message.payload)
        await gate.wait()
        yield 1

    first = a.begin(read(a, b, 0))
    second = a.begin(read(a, b, 1))
    third = a.begin(read(a, b, 2))
    await asyncio.sleep(1.0)
    second.cancel()
    await asyncio.sleep(1.0)
    gate.set()
    assert [part.payload for part in await first + await third] == [1, 1]
    assert begun == [0, 2]
    await eventually(lambda: not left_over(a, b))


@simulated
async def test_a_handler_that_raises_ends_it_with_its_text_and_type(stage: Stage) -> None:
    a, b = await stage.two()
    b.transport.off_message(b.take)

    @b.transport.on_message
    async def handle(peer: Peer, message: Message) -> AsyncIterator[int]:
        yield 1
        raise ValueError("no " + "x" * 5_000)

    stream = a.transport.stream(b.address, task())
    assert (await anext(aiter(stream))).payload == 1
    with pytest.raises(RemoteError, match="ValueError: no x") as raised:
        await anext(aiter(stream))
    assert (raised.value.type, len(raised.value.text)) == ("ValueError", 1_000)
    assert b.stats.handler_errors == 1
    with pytest.raises(RemoteError, match="no x"):
        await read(a, b, 0)


@simulated
async def test_a_request_whose_handler_raises_fails(stage: Stage) -> None:
    a, b = await stage.two()
    b.transport.off_message(b.take)

    @b.transport.on_message
    async def handle(peer: Peer, message: Message) -> None:
        await asyncio.sleep(message.payload)
        raise KeyError("what")

    for pause in (0, 1):
        with pytest.raises(RemoteError, match="KeyError: 'what'"):
            await a.transport.request(b.address, task(pause))
    # Who has only sent something hears nothing of it.
    await a.transport.send(b.address, task(0))
    await asyncio.sleep(1.0)
    assert a.got == []


@simulated
async def test_a_peer_whose_process_is_another_one_ends_it(stage: Stage) -> None:
    a, b = await stage.two()
    Answering(b, pause=1.0)
    reading = a.begin(read(a, b, 1_000))
    await asyncio.sleep(5.0)
    b = await stage.restart(stage.b, identity=b.transport._node.door.identity)
    again = Answering(b)
    a.send(b, 3)
    with pytest.raises(NotConfirmed, match="another"):
        await reading
    await asyncio.sleep(5.0)
    assert again.running == 0
    assert left_over(a, b) == {}


@simulated
async def test_a_peer_that_stays_out_of_reach_ends_it_and_its_handler(stage: Stage) -> None:
    a, b = await stage.two()
    answering = Answering(b, pause=1.0)
    reading = a.begin(read(a, b, 1_000))
    await asyncio.sleep(5.0)
    stage.network.cut(stage.a, stage.b)
    began = stage.now
    with pytest.raises(NotConfirmed, match="out of reach"):
        await reading
    assert 100.0 < stage.now - began < 200.0
    await eventually(lambda: answering.ends == ["cancelled"])
    stage.network.heal()
    assert (await a.begin(a.transport.request(b.address, task(1)))).payload[0] == 0
    await asyncio.sleep(5.0)
    assert answering.running == 0
    assert a.got == []
    assert left_over(a, b) == {}


@pytest.mark.parametrize("who", ["asker", "answerer"])
@simulated
async def test_closing_a_transport_ends_it(stage: Stage, who: str) -> None:
    a, b = await stage.two()
    answering = Answering(b, pause=0.1)
    reading = a.begin(read(a, b, 10_000))
    await asyncio.sleep(2.0)
    await (a if who == "asker" else b).close()
    with pytest.raises(Closed if who == "asker" else RemoteError, match="closed"):
        await reading
    await eventually(lambda: answering.ends == ["cancelled"], 1.0)


@pytest.mark.parametrize("seed", range(SEEDS))
@simulated
async def test_under_seeded_cuts(stage: Stage, seed: int) -> None:
    """Each part once and in order; who leaves ends its handler; and in the end nothing is left."""
    random = Random(seed)
    a, b = await stage.two(resume_timeout=3600.0)
    at_b, at_a = (Answering(node, pause=random.choice([0.0, 0.01, 0.5])) for node in (b, a))
    for node in (a, b):
        await node.do(node.transport.connect((b if node is a else a).address, keep=True))
    kinds = ("cut", "cut_one_way", "break_links", "silence", "slow", "stale_route")
    faults = Faults(stage.network, seed, kinds=kinds)
    playing = asyncio.ensure_future(faults.play(faults.plan(60.0, 12)))

    async def one(number: int) -> None:
        asks, answers = random.choice([(a, b), (b, a)])
        count = random.choice([0, 1, 5, 40, 300])
        until = random.choice([None, None, 1, 7, 20])
        await asyncio.sleep(random.uniform(0.0, 60.0))
        parts = await asks.begin(insist(asks, answers, count, until, stream_id=f"s{number % 7}"))
        assert numbers(parts) == list(range(count if until is None else min(until, count)))

    await asyncio.gather(*(one(number) for number in range(20)))
    await playing
    stage.network.heal()
    for node, other in ((a, b), (b, a)):
        assert (await node.do(node.transport.request(other.address, task(0), timeout=120.0))) is not None
    await eventually(lambda: at_a.running + at_b.running == 0, 300.0)
    await eventually(lambda: left_over(a, b) == {}, 300.0)
    assert a.stats.handler_errors + b.stats.handler_errors == 0
    assert a.got == b.got == []


# Peers that do not keep to it ----------------------------------------------------------------------


@simulated
async def test_an_older_openline_peer_sees_nothing_new(stage: Stage) -> None:
    a, puppet = await stage.start(stage.a), Puppet(stage.b)
    a.transport.off_message(a.take)

    @a.transport.on_message
    async def handle(peer: Peer, message: Message) -> AsyncIterator[str]:
        if message.payload == "fails":
            raise ValueError("of no interest")
        yield "first"
        yield "second"

    end = await puppet.dial(a)
    end.polite = True
    end.post(task("fails", id="f"), task("one", id="q"))
    await eventually(lambda: end.messages)
    await asyncio.sleep(1.0)
    assert [(m.payload, m.metadata, m.stream_id) for m in end.messages] == [
        ("first", {"replyTo": "q"}, "default")
    ]


@simulated
async def test_cancels_and_grants_of_no_use_are_harmless(stage: Stage) -> None:
    a, puppet = await stage.start(stage.a), Puppet(stage.b)
    end = await puppet.dial(a)
    end.polite = True
    for kind, payload in (
        *(("cancel", [stream_id, id]) for stream_id in ("default", "none", 3) for id in ("x", 1, 1.5)),
        *(("taken", ["x", 10**6, count]) for count in (-1, 0, 2**60)),
        *(("failed", [id, "T" * 10_000, "text"]) for id in ("x", 1)),
        *((kind, payload) for kind in ("cancel", "taken", "failed") for payload in (None, [], 1, ["x"], {})),
        ("unknown", {"a": 1}),
    ):
        end.post(Message(0, kind, payload, None, CONTROL_STREAM))
    end.post(task("after"))
    await eventually(lambda: a.payloads == ["after"])
    assert a.stats.malformed == 15
    assert end.closed is None


@simulated
async def test_one_that_sends_more_than_it_may_ends_its_own_stream(stage: Stage) -> None:
    a, puppet = await stage.start(stage.a, resume_timeout=10.0), Puppet(stage.b, caps=("streams",))
    await puppet.listen()
    parts: list[Any] = []

    async def slowly() -> None:
        async for part in a.transport.stream(puppet.address, task(id="q")):
            parts.append(part.payload)
            await asyncio.sleep(10.0)

    reading = a.begin(slowly())
    await eventually(lambda: puppet.ends and puppet.end.messages)
    puppet.end.polite = True
    puppet.end.ack("default")
    [question] = puppet.end.messages
    assert question.metadata == {"stream": 32}
    puppet.end.post(*(task(n, id=n, metadata={"replyTo": "q", "more": True}) for n in range(100)))
    with pytest.raises(RemoteError, match="more parts than it was allowed"):
        await reading
    await eventually(lambda: [m.payload for m in puppet.end.messages if m.type == "cancel"])
    puppet.end.post(task(None, metadata={"replyTo": "q", "more": False}))
    await asyncio.sleep(1.0)
    assert left_over(a) == {}
    assert a.got == []
