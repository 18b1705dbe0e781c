"""Each message once and in order, whichever connections die in between (rules 3.3 and 3.4)."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from openline import Message, Peer, Unreachable

from .stage import Node, Stage, arrived, eventually, gathered, same_one, simulated, task, tasks

Change = Callable[[Stage, Node, Node], Coroutine[Any, Any, None]]


async def reset(stage: Stage, a: Node, b: Node) -> None:
    stage.network.break_links(a.host, b.host, 0.0)


async def reset_noticed_late(stage: Stage, a: Node, b: Node) -> None:
    stage.network.break_links(a.host, b.host, 2.0)


async def many_resets(stage: Stage, a: Node, b: Node) -> None:
    for _ in range(30):
        stage.network.break_links(a.host, b.host, 0.02)
        await asyncio.sleep(0.02)


async def sender_forgets(stage: Stage, a: Node, b: Node) -> None:
    stage.network.forget(a.host, b.host)


async def receiver_forgets(stage: Stage, a: Node, b: Node) -> None:
    stage.network.forget(b.host, a.host)


async def silent(stage: Stage, a: Node, b: Node) -> None:
    stage.network.silence(a.host, b.host)


async def short_cut(stage: Stage, a: Node, b: Node) -> None:
    stage.network.cut(a.host, b.host)
    await asyncio.sleep(3.0)
    stage.network.heal()


async def long_cut(stage: Stage, a: Node, b: Node) -> None:
    stage.network.cut(a.host, b.host)
    await asyncio.sleep(21.0)
    stage.network.heal()


async def cut_there(stage: Stage, a: Node, b: Node) -> None:
    stage.network.cut_one_way(a.host, b.host)
    await asyncio.sleep(21.0)
    stage.network.heal()


async def cut_back(stage: Stage, a: Node, b: Node) -> None:
    stage.network.cut_one_way(b.host, a.host)
    await asyncio.sleep(21.0)
    stage.network.heal()


async def replaced_by_the_receivers_dial(stage: Stage, a: Node, b: Node) -> None:
    """The sender may not dial any more; the receiver comes in, from another port."""
    stage.network.stale_route(a.host, b.host)
    stage.network.break_links(a.host, b.host, 0.0)
    await b.do(b.transport.connect(a.address))
    stage.network.heal()


async def suspect_link_replaced(stage: Stage, a: Node, b: Node) -> None:
    """The receiver dials anew while the sender has not noticed that the old one is silent."""
    stage.network.silence(a.host, b.host)
    stage.network.forget(b.host, a.host)
    await b.do(b.transport.connect(a.address))


async def frozen(stage: Stage, a: Node, b: Node) -> None:
    b.host.freeze()
    await asyncio.sleep(20.0)
    b.host.thaw()


CHANGES = [
    *(reset, reset_noticed_late, many_resets, sender_forgets, receiver_forgets, silent, short_cut, long_cut),
    *(cut_there, cut_back, replaced_by_the_receivers_dial, suspect_link_replaced, frozen),
]
# While these last there may be no way at all for longer than a dial takes.
OUTAGES = (many_resets, long_cut, cut_there, cut_back, frozen)
changes = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


@changes
@simulated
async def test_single_sends_through_changes(stage: Stage, change: Change) -> None:
    """What was acknowledged came once, what was unreachable not at all, and all in order."""
    stage.network.default_latency = (0.005, 0.02)
    a, b = await stage.two(send_timeout=100.0)
    sending: list[Any] = []
    changing = asyncio.ensure_future(_three_times(change, stage, a, b))
    while not changing.done() or len(sending) < 300:
        number = len(sending) // 2
        sending.append(a.send(b, number))
        sending.append(a.send(b, number, stream_id="other"))
        await asyncio.sleep(0.01 if len(sending) < 2000 else 1.0)
    await changing
    outcomes = await gathered(sending)
    await asyncio.sleep(30.0)
    assert b.of("default") == [index // 2 for index in range(0, len(outcomes), 2) if arrived(outcomes[index])]
    assert b.of("other") == [index // 2 for index in range(1, len(outcomes), 2) if arrived(outcomes[index])]
    assert sum(map(arrived, outcomes)) > 200
    assert change in OUTAGES or all(map(arrived, outcomes))
    await a.insist(b)
    assert same_one(a, b)


async def _three_times(change: Change, stage: Stage, a: Node, b: Node) -> None:
    await asyncio.sleep(0.2)
    for _ in range(3):
        await change(stage, a, b)
        await asyncio.sleep(0.3)


@changes
@simulated
async def test_one_after_the_other_through_changes(stage: Stage, change: Change) -> None:
    a, b = await stage.two(send_timeout=100.0)
    changing = asyncio.ensure_future(_three_times(change, stage, a, b))

    async def loop() -> int:
        for number in itertools.count():
            assert (await a.insist(b, number)).acked
            if changing.done() and number > 100:
                return number
            await asyncio.sleep(0.005)
        raise AssertionError

    last = await a.do(loop())
    assert b.payloads == list(range(last + 1))


@changes
@simulated
async def test_a_batch_through_changes(stage: Stage, change: Change) -> None:
    a, b = await stage.two(send_timeout=100.0, window_messages=64)
    stage.network.latency(stage.a, stage.b, 0.01, 0.03)
    changing = asyncio.ensure_future(_three_times(change, stage, a, b))
    receipts = await a.do(insisting_batch(a, b, tasks(3000)))
    await changing
    assert all(receipt.acked for receipt in receipts)
    assert len(receipts) == 3000 or change in OUTAGES
    assert max(receipt.attempts for receipt in receipts) > 1 or change in (
        short_cut,
        cut_there,
        cut_back,
        frozen,
    )
    assert b.payloads == list(range(3000))


async def insisting_batch(node: Node, to: Node, messages: list[Message]) -> list[Any]:
    """``send_batch``, again with what has not left; the receipts of the last part."""
    while True:
        try:
            return await node.transport.send_batch(to.address, messages)
        except Unreachable as error:
            messages = messages[error.sent :]
            await asyncio.sleep(0.1)


@changes
@simulated
async def test_both_ways_through_changes(stage: Stage, change: Change) -> None:
    a, b = await stage.two(send_timeout=100.0, window_messages=32)
    stage.network.latency(stage.a, stage.b, 0.005, 0.02)
    changing = asyncio.ensure_future(_three_times(change, stage, a, b))
    there = a.begin(insisting_batch(a, b, tasks(2000)))
    back = b.begin(insisting_batch(b, a, tasks(2000)))
    await asyncio.gather(there, back, changing)
    assert stage.now > 1.0
    await asyncio.sleep(30.0)
    assert a.payloads == b.payloads == list(range(2000))
    await a.insist(b)
    assert same_one(a, b)


@changes
@simulated
async def test_requests_through_changes(stage: Stage, change: Change) -> None:
    """The answer comes, and the handler has run once."""
    a, b = await stage.two(send_timeout=100.0, request_timeout=100.0)
    handled: list[Any] = []

    async def answer(peer: Peer, message: Message) -> None:
        handled.append(message.payload)
        await asyncio.sleep(0.05)
        await peer.reply(message, message.payload)

    b.transport.off_message(b.take)
    b.transport.on_message(answer)
    changing = asyncio.ensure_future(_three_times(change, stage, a, b))

    async def ask(number: int) -> Any:
        await asyncio.sleep(number * 0.02)
        while True:
            try:
                return (await a.transport.request(b.address, task(number, stream_id=number % 7))).payload
            except Unreachable:
                await asyncio.sleep(0.1)

    asked = [a.begin(ask(number)) for number in range(200)]
    assert await asyncio.gather(*asked) == list(range(200))
    await changing
    assert sorted(handled) == list(range(200))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.01])
@simulated
async def test_a_large_message_through_a_reset(stage: Stage, share: float) -> None:
    a, b = await stage.two(send_timeout=100.0)
    stage.network.bandwidth(stage.a, stage.b, 1_000_000.0)
    await a.send(b, "before")
    large = a.send(b, bytes(10_000_000))
    behind = a.send(b, "behind")
    await asyncio.sleep(10.0 * share)
    stage.network.break_links(stage.a, stage.b)
    receipt = await large
    assert (await behind).acked
    assert [len(payload) for payload in b.payloads] == [6, 10_000_000, 6]
    assert receipt.attempts == 2 or share > 1
    assert a.stats.resent <= 2


@pytest.mark.parametrize("when", ["before it is handled", "while it is handled", "before the answer arrives"])
@simulated
async def test_a_request_whose_connection_dies(stage: Stage, when: str) -> None:
    stage.network.default_latency = (0.1, 0.1)
    a, b = await stage.two()
    handled: list[Any] = []

    async def answer(peer: Peer, message: Message) -> None:
        handled.append(message.payload)
        await asyncio.sleep(1.0)
        await peer.reply(message, "answer")

    b.transport.off_message(b.take)
    b.transport.on_message(answer)
    await a.do(a.transport.connect(b.address))
    asking = a.begin(a.transport.request(b.address, task("question")))
    await asyncio.sleep({"before it is handled": 0.05, "while it is handled": 0.6}.get(when, 1.15))
    assert len(handled) == (when != "before it is handled")
    stage.network.break_links(stage.a, stage.b, 0.0)
    assert (await asking).payload == "answer"
    await asyncio.sleep(5.0)
    assert handled == ["question"]


@simulated
async def test_the_counters_tell_what_was_resent_and_what_came_twice(stage: Stage) -> None:
    a, b = await stage.two()
    await a.send(b, "first")
    stage.network.cut_one_way(stage.b, stage.a)  # b gets them, and its acknowledgements are lost
    sending = a.sends(b, range(10))
    await asyncio.sleep(1.0)
    assert len(b.got) == 11
    stage.network.silence(stage.a, stage.b)
    stage.network.heal()
    receipts = await asyncio.gather(*sending)
    assert [receipt.attempts for receipt in receipts] == [2] * 10
    assert a.stats.resent == b.stats.duplicates_suppressed == 10
    assert b.payloads == ["first", *range(10)]


@simulated
async def test_concurrent_sends_keep_their_order_where_nothing_is_there_yet(stage: Stage) -> None:
    """They wait for one dial, which fails first; then for the window, and for a change."""
    a = await stage.start(stage.a, window_messages=3, send_timeout=100.0)
    b = await stage.start(stage.b, listen=False)
    stage.network.blackhole(stage.a, stage.b)
    sending = a.sends(b, range(20))
    await asyncio.sleep(1.0)
    await b.do(b.transport.listen(8770))
    sending += a.sends(b, range(20, 30))
    stage.network.heal()
    await asyncio.sleep(3.0)
    sending += a.sends(b, range(30, 60))
    await asyncio.sleep(0.002)
    stage.network.break_links(stage.a, stage.b)
    sending += a.sends(b, range(60, 90))
    await asyncio.gather(*sending)
    assert b.payloads == list(range(90))


@pytest.mark.parametrize("limit", [2, 5])
@simulated
async def test_concurrent_sends_keep_their_order_while_an_inbox_stops_them(stage: Stage, limit: int) -> None:
    a = await stage.start(stage.a, send_timeout=200.0)
    b = await stage.start(stage.b, inbox_messages=limit)
    b.pause = 0.05
    sending: list[Any] = []
    for number in range(300):
        sending.append(a.send(b, number))
        if number % 40 == 39:
            stage.network.break_links(stage.a, stage.b)
        await asyncio.sleep(0.004)
    await asyncio.gather(*sending)
    await eventually(lambda: len(b.got) == 300)
    assert b.payloads == list(range(300))


@simulated
async def test_an_answer_does_not_overtake_what_was_sent_before_it_on_its_stream(stage: Stage) -> None:
    a, b = await stage.two()
    seen: list[Any] = []

    async def progress(peer: Peer, message: Message) -> None:
        sending = [asyncio.ensure_future(peer.send(task(number))) for number in range(5)]
        await asyncio.sleep(0)
        await peer.reply(message, "answer")
        await asyncio.gather(*sending)

    b.transport.off_message(b.take)
    b.transport.on_message(progress)
    a.transport.off_message(a.take)
    a.transport.on_message(lambda peer, message: seen.append(message.payload))

    async def ask() -> None:
        for _ in range(5):
            seen.append((await a.transport.request(b.address, task())).payload)

    await a.do(ask())
    assert seen == [0, 1, 2, 3, 4, "answer"] * 5


@simulated
async def test_a_peer_that_only_ever_dials_in(stage: Stage) -> None:
    """As behind a NAT: what was sent to it waits until it comes back."""
    a, b = await stage.start(stage.a, send_timeout=100.0), await stage.start(stage.b, listen=False)
    stage.network.stale_route(stage.a, stage.b)
    await b.do(b.transport.connect(a.address, keep=True))
    await eventually(a.transport.peers)
    peer = a.transport.peers()[0]
    sending = [a.begin(peer.send(task(number))) for number in range(5)]
    for number in range(5, 50, 5):
        stage.network.break_links(stage.a, stage.b)
        sending += [a.begin(a.transport.send(peer.node_id or "", task(number + n))) for n in range(5)]
        await asyncio.sleep(1.0)
    outcomes = await gathered(sending)
    assert b.payloads == [number for number in range(50) if arrived(outcomes[number])]
    assert len(b.payloads) >= 10
    assert a.stats.created == 0


@simulated
async def test_a_node_called_by_its_name_moves_to_another_address(stage: Stage) -> None:
    a, b = await stage.two(send_timeout=100.0)
    name = b.transport.node_id
    await a.do(a.transport.send(f"{name}@{b.address}", task(0)))
    stage.network.cut(stage.a, stage.b)
    waiting = a.begin(a.transport.send(name, task(1)))
    await asyncio.sleep(1.0)
    other = stage.network.host("10.0.0.9", name="elsewhere")
    identity = stage.b.identity
    stage.b.kill()
    moved = await stage.start(other, identity=identity, listen=False)
    await moved.do(moved.transport.connect(a.address))
    assert (await waiting).acked
    assert moved.payloads == [1]
