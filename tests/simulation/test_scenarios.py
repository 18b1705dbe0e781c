"""Rules 3.3 to 3.5 in scenes written out by hand: whole transports, virtual time, one fault at a time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from openline import Closed, Error, Identity, Message, MessageTooLarge, NotConfirmed, Peer, Unreachable
from openline.connection import writer as outlet
from openline.connection.connection import State
from openline.core import session
from openline.core.handshake import DEFAULT_RESUME
from openline.testing import Host

from .stage import Node, Puppet, Stage, eventually, gathered, same_one, simulated, task, tasks

# Sending and acknowledgements ---------------------------------------------------------------------


@simulated
async def test_send_returns_when_the_peer_has_taken_it_in_and_not_before(stage: Stage) -> None:
    a, puppet = await stage.start(stage.a), Puppet(stage.b)
    await puppet.listen()
    sending = a.send(puppet, "x")
    await eventually(lambda: puppet.ends and puppet.end.messages)
    await asyncio.sleep(4.0)
    assert not sending.done()
    puppet.end.ack("default")
    await asyncio.sleep(0.01)
    receipt = sending.result()
    assert (receipt.attempts, receipt.acked, receipt.backend) == (1, True, "memory")
    assert receipt.direction == "outbound"


@simulated
async def test_the_direction_is_that_of_the_connection_it_rode(stage: Stage) -> None:
    a, b = await stage.two()
    await a.send(b, 1)
    receipt = await b.send(a, 2)
    assert (receipt.direction, receipt.acked, receipt.attempts) == ("inbound", True, 1)
    assert b.stats.created == 0


@simulated
async def test_acknowledgements_are_cumulative(stage: Stage) -> None:
    a, puppet = await stage.start(stage.a), Puppet(stage.b)
    await puppet.listen()
    sending = a.sends(puppet, range(5))
    await eventually(lambda: puppet.ends and len(puppet.end.messages) == 5)
    puppet.end.say([], {"default": 4})
    await asyncio.sleep(0.01)
    assert [each.done() for each in sending] == [True, True, True, False, False]
    puppet.end.say([], {"default": 2})  # an old one is no news
    puppet.end.say([], {"default": 6})
    await asyncio.sleep(0.01)
    assert all(each.result().acked for each in sending)


@simulated
async def test_acknowledgements_of_a_loop_turn_share_a_frame(stage: Stage) -> None:
    stage.network.default_latency = (0.001, 0.001)
    a, puppet = await stage.start(stage.a), Puppet(stage.b)
    end = await puppet.dial(a)
    for number in range(100):
        end.post(task(number, stream_id=number % 3))
    await asyncio.sleep(1.0)
    assert len(a.got) == 100
    assert end.acks == {0: 35, 1: 34, 2: 34}
    assert len(end.batches) <= 3


@simulated
async def test_a_request_loop_needs_no_frame_of_its_own_for_acknowledgements(stage: Stage) -> None:
    a, puppet = await stage.start(stage.a), Puppet(stage.b)
    await puppet.listen()

    async def loop() -> None:
        for number in range(20):
            answer = await a.transport.request(puppet.address, task(number))
            assert answer.payload == number

    asking = a.begin(loop())
    await eventually(lambda: puppet.ends)
    end = puppet.end
    for number in range(20):
        await eventually(lambda number=number: number in end.payloads)
        end.numbers.setdefault("default", 1)
        message = end.messages[-1]
        opens = [("default", 1)] if number == 0 else []
        end.say([message.answer(message.payload)], {"default": end.positions["default"]}, opens)
    await asking
    await asyncio.sleep(1.0)
    with_messages = [batch for batch in end.batches if batch.messages]
    assert len(with_messages) == 20
    assert [dict(batch.acks).get("default") for batch in with_messages[1:]] == list(range(2, 21))
    assert len(end.batches) <= 21


@simulated
async def test_nor_does_who_answers(stage: Stage) -> None:
    a, puppet = await stage.start(stage.a), Puppet(stage.b)

    async def answer(peer: Peer, message: Message) -> None:
        await peer.reply(message, message.payload)

    a.transport.off_message(a.take)
    a.transport.on_message(answer)
    end = await puppet.dial(a)
    for number in range(20):
        opens = [("default", 1)] if number == 0 else []
        end.say([task(number)], end.positions, opens)
        await eventually(lambda number=number: number in end.payloads)
    await asyncio.sleep(1.0)
    assert [dict(batch.acks) for batch in end.batches] == [{"default": number} for number in range(2, 22)]


@simulated
async def test_nothing_is_sent_twice_while_the_connection_lives(stage: Stage) -> None:
    stage.network.default_latency = (0.001, 0.3)
    a, b = await stage.two()
    await a.do(a.transport.connect(b.address))
    sending = a.sends(b, range(200)) + b.sends(a, range(200))
    assert all(receipt.attempts == 1 for receipt in await asyncio.gather(*sending))
    assert a.stats.resent == b.stats.resent == 0
    assert a.stats.duplicates_suppressed == b.stats.duplicates_suppressed == 0


@simulated
async def test_a_batch_is_pipelined_with_one_dial_and_comes_back_in_order(stage: Stage) -> None:
    stage.network.default_latency = (0.1, 0.1)
    a, b = await stage.two()
    messages = [task(number, stream_id=number % 3) for number in range(300)]
    before = stage.now
    receipts = await a.do(a.transport.send_batch(b.address, messages))
    assert stage.now - before < 2.0
    assert len(receipts) == 300
    assert all(receipt.acked for receipt in receipts)
    assert [b.of(stream) for stream in range(3)] == [list(range(stream, 300, 3)) for stream in range(3)]
    assert (a.stats.dials, b.stats.accepted) == (1, 1)


@pytest.mark.parametrize("window", [1, 8, 64])
@simulated
async def test_no_more_messages_are_unacknowledged_than_the_window_has(stage: Stage, window: int) -> None:
    a, puppet = await stage.start(stage.a, window_messages=window), Puppet(stage.b)
    await puppet.listen()
    batch = a.begin(a.transport.send_batch(puppet.address, tasks(300), timeout=20.0))
    await eventually(lambda: puppet.ends)
    end, confirmed = puppet.end, 0
    while not batch.done():
        await asyncio.sleep(0.1)
        assert len(end.messages) - confirmed <= window
        confirmed = len(end.messages)
        end.ack("default")
    assert len(batch.result()) == 300
    assert end.payloads == list(range(300))


@simulated
async def test_single_sends_keep_to_the_window_as_well(stage: Stage) -> None:
    a, puppet = await stage.start(stage.a, window_messages=8), Puppet(stage.b)
    await puppet.listen()
    sending = a.sends(puppet, range(50))
    await eventually(lambda: puppet.ends)
    end, confirmed = puppet.end, 0
    while not all(each.done() for each in sending):
        await asyncio.sleep(0.1)
        # One may have been looking already when the window filled.
        assert len(end.messages) - confirmed <= 8 + 1
        confirmed = len(end.messages)
        end.ack("default")
    assert end.payloads == list(range(50))


@pytest.mark.parametrize("size", [10, 1000, 60_000])
@simulated
async def test_nor_more_bytes_than_the_window_and_one_frame(stage: Stage, size: int) -> None:
    a, puppet = await stage.start(stage.a, window_bytes=100_000), Puppet(stage.b)
    await puppet.listen()
    messages = [task(bytes(size)) for _ in range(300_000 // size)]
    batch = a.begin(a.transport.send_batch(puppet.address, messages, timeout=20.0))
    await eventually(lambda: puppet.ends)
    end, confirmed = puppet.end, 0
    while not batch.done():
        await asyncio.sleep(0.1)
        assert (len(end.messages) - confirmed) * size <= 100_000 + max(size, 64 * 1024)
        confirmed = len(end.messages)
        end.ack("default")
    assert len(batch.result()) == len(messages)


@simulated
async def test_a_message_larger_than_the_window_still_gets_through(stage: Stage) -> None:
    a, b = await stage.two(window_bytes=1000, window_messages=1)
    receipts = await a.do(a.transport.send_batch(b.address, [task(bytes(50_000)) for _ in range(5)]))
    assert len(receipts) == len(b.got) == 5


@simulated
async def test_a_full_window_of_one_stream_holds_up_no_other(stage: Stage) -> None:
    a, puppet = await stage.start(stage.a, window_messages=4), Puppet(stage.b)
    await puppet.listen()
    held = a.sends(puppet, range(10))
    await eventually(lambda: puppet.ends and len(puppet.end.messages) >= 4)
    other = a.send(puppet, "other", stream_id="other")
    await eventually(lambda: "other" in puppet.end.payloads)
    puppet.end.ack("other")
    assert (await other).acked
    assert not any(each.done() for each in held)
    for each in held:
        each.cancel()


@pytest.mark.parametrize("sizes", [(10, 20_000, 10), (20_000,), (10, 10_500, 10, 10)])
@simulated
async def test_a_batch_with_a_message_that_is_too_large(stage: Stage, sizes: tuple[int, ...]) -> None:
    a, b = await stage.two(max_message_size=10_000)
    with pytest.raises(MessageTooLarge):
        await a.do(a.transport.send_batch(b.address, [task(bytes(size)) for size in sizes]))
    await asyncio.sleep(1.0)
    assert all(len(payload) < 10_000 for payload in b.payloads)
    assert (await a.send(b, "after")).acked
    assert a.stats.created == 1


@simulated
async def test_to_oneself(stage: Stage) -> None:
    a = await stage.start(stage.a)
    receipts = await asyncio.gather(*a.sends(a, range(20)))
    assert all(receipt.acked for receipt in receipts)
    assert a.payloads == list(range(20))
    stage.network.break_links(stage.a, stage.a)
    await asyncio.gather(*a.sends(a, range(20, 40)))
    assert a.payloads == list(range(40))


# Changes of connection ----------------------------------------------------------------------------

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


def arrived(outcome: Any) -> bool:
    """It was acknowledged; else no byte of it left."""
    assert getattr(outcome, "acked", False) or isinstance(outcome, Unreachable), outcome
    return not isinstance(outcome, Unreachable)


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


# Giving up ----------------------------------------------------------------------------------------


@simulated
async def test_cancelled_after_it_left(stage: Stage) -> None:
    a, b = await stage.two()
    await a.send(b, "first")
    stage.network.cut(stage.a, stage.b)
    sending = a.sends(b, range(10))
    await asyncio.sleep(0.1)
    for number in (0, 4, 9):
        sending[number].cancel()
    await asyncio.sleep(0.1)
    assert [each.cancelled() for each in sending] == [number in (0, 4, 9) for number in range(10)]
    stage.network.silence(stage.a, stage.b)
    stage.network.heal()
    await gathered(sending)
    assert (await a.send(b, "last")).acked
    assert b.payloads == ["first", *range(10), "last"]  # "may get it yet", once and in its place


@simulated
async def test_timed_out_after_it_left(stage: Stage) -> None:
    a, b = await stage.two(send_timeout=2.0)
    await a.send(b, "first")
    stage.network.cut(stage.a, stage.b)
    began = stage.now
    early = a.send(b, "early", id="m-1")
    with pytest.raises(NotConfirmed) as caught:
        await early
    assert 1.9 <= stage.now - began <= 3.0
    assert (caught.value.attempts, caught.value.acked) == (1, 0)
    for part in ("m-1", b.address, "one connection", "2 s", "may have it"):
        assert part in str(caught.value)
    stage.network.heal()
    await asyncio.sleep(5.0)
    assert (await a.send(b, "later")).acked
    assert b.payloads == ["first", "early", "later"]


@simulated
async def test_timed_out_after_several_connections(stage: Stage) -> None:
    a, puppet = await stage.start(stage.a, send_timeout=8.0), Puppet(stage.b)
    await puppet.listen()
    sending = a.send(puppet, "x")
    for count in range(3):
        await eventually(lambda count=count: len(puppet.ends) > count and puppet.end.messages)
        await asyncio.sleep(0.5)
        if count < 2:
            stage.network.break_links(stage.a, stage.b)
    with pytest.raises(NotConfirmed, match="3 connections") as caught:
        await sending
    assert caught.value.attempts == 3
    assert [end.payloads for end in puppet.ends] == [["x"]] * 3
    assert len({end.messages[0].id for end in puppet.ends}) == 1


@pytest.mark.parametrize("timeout", [0.5, 7.0])
@pytest.mark.parametrize("why", ["no answer to the dial", "no room in the inbox", "no room in the window"])
@simulated
async def test_timed_out_before_it_left(stage: Stage, timeout: float, why: str) -> None:
    a = await stage.start(stage.a, window_messages=4, dial_timeout=60.0)
    b = await stage.start(stage.b, inbox_messages=4)
    b.gate = asyncio.Event()
    before: list[Any] = []
    if why == "no answer to the dial":
        stage.network.blackhole(stage.a, stage.b)
    elif why == "no room in the inbox":
        before = a.sends(b, range(12), timeout=100.0)
        await asyncio.sleep(1.0)
    else:
        await a.send(b, "first")
        stage.network.cut(stage.a, stage.b)
        before = a.sends(b, range(4), timeout=100.0)
        await asyncio.sleep(0.1)
    began = stage.now
    with pytest.raises(TimeoutError) as caught:
        await a.send(b, "never", timeout=timeout)
    assert not isinstance(caught.value, Error)
    assert timeout - 0.01 <= stage.now - began <= timeout + 0.1
    stage.network.heal()
    b.gate.set()
    await asyncio.gather(*before)
    await a.send(b, "after")
    await asyncio.sleep(60.0)
    assert "never" not in b.payloads
    assert b.payloads[-1] == "after"


@simulated
async def test_a_timeout_bounds_the_whole_send(stage: Stage) -> None:
    """Waiting for a connection, and for the acknowledgement, together."""
    a, puppet = await stage.start(stage.a, dial_timeout=60.0), Puppet(stage.b)
    await puppet.listen()
    stage.network.blackhole(stage.a, stage.b)
    began = stage.now
    sending = a.send(puppet, "x", timeout=6.0)
    await asyncio.sleep(2.0)
    stage.network.heal()
    with pytest.raises(NotConfirmed):
        await sending
    assert stage.now - began <= 6.5


@simulated
async def test_what_of_a_batch_is_confirmed(stage: Stage) -> None:
    a, puppet = await stage.start(stage.a, send_timeout=3.0), Puppet(stage.b)
    await puppet.listen()
    batch = a.begin(a.transport.send_batch(puppet.address, tasks(10)))
    await eventually(lambda: puppet.ends and len(puppet.end.messages) == 10)
    puppet.end.say([], {"default": 6})  # five of them
    with pytest.raises(NotConfirmed) as caught:
        await batch
    assert caught.value.acked == 5


@simulated
async def test_a_request_that_is_given_up_is_not_asked_twice(stage: Stage) -> None:
    a, b = await stage.two()
    await a.send(b, "first")
    stage.network.cut(stage.a, stage.b)
    with pytest.raises(TimeoutError):
        await a.do(a.transport.request(b.address, task("question"), timeout=1.0))
    stage.network.heal()
    await a.send(b, "last")
    await asyncio.sleep(5.0)
    assert b.payloads == ["first", "question", "last"]


@simulated
async def test_given_up_for_good_after_resume_timeout(stage: Stage) -> None:
    a, b = await stage.two(resume_timeout=30.0, send_timeout=100.0)
    await a.send(b, "first")
    stage.network.cut(stage.a, stage.b)
    cut_at = stage.now
    single, batch = a.send(b, "single"), a.begin(a.transport.send_batch(b.address, tasks(3)))
    asking = a.begin(a.transport.request(b.address, task("question", stream_id="rpc"), timeout=300.0))
    for given_up in (single, batch, asking):
        with pytest.raises(NotConfirmed, match="resume_timeout=30"):
            await given_up
    assert 30.0 < stage.now - cut_at < 30.0 + 20.0
    assert sorted(map(str, (payload for payload, _ in a.undelivered))) == [
        "0",
        "1",
        "2",
        "question",
        "single",
    ]
    assert all("resume_timeout" in why for _, why in a.undelivered)
    assert a.stats.in_doubt == 5
    stage.network.heal()
    assert (await a.insist(b, "later")).acked
    await asyncio.sleep(60.0)
    assert b.payloads == ["first", "later"]
    assert a.stats.in_doubt == 5


LENGTHS = [0.5, 0.9, 1.0, 1.1, 1.5, 1.9, 2.0, 2.5, 3.0, 3.5, 4.0, 6.0]


@pytest.mark.parametrize("outage", LENGTHS)
@pytest.mark.parametrize("kind", ["cut", "cut there", "cut back"])
@simulated
async def test_an_outage_of_any_length_loses_and_doubles_nothing_new(
    stage: Stage, kind: str, outage: float
) -> None:
    """In units of resume_timeout: the sender gives up after one, the receiver forgets after more than two."""
    a, b = await stage.two(resume_timeout=20.0, max_idle_timeout=12.0, send_timeout=15.0)
    await asyncio.gather(a.send(b, "a1"), b.send(a, "b1", stream_id="back"))
    begin = {"cut": stage.network.cut}.get(kind, stage.network.cut_one_way)
    begin(*((stage.b, stage.a) if kind == "cut back" else (stage.a, stage.b)))
    during = [
        a.send(b, "a2"),
        b.send(a, "b2", stream_id="back"),
        a.send(b, "a3"),
        b.send(a, "b3", stream_id="back"),
    ]
    await asyncio.sleep(outage * 20.0)
    stage.network.heal()
    for payload in "45":
        await asyncio.gather(a.insist(b, f"a{payload}"), b.insist(a, f"b{payload}", stream_id="back"))
    outcome = await gathered(during)
    await asyncio.sleep(150.0)
    for node, who in ((b, "a"), (a, "b")):
        got = node.payloads
        assert len(set(got)) == len(got)
        assert [each for each in got if each[1] not in "23"] == [f"{who}1", f"{who}4", f"{who}5"]
        assert got == sorted(got)
    for receipt, payload, node in zip(outcome, ("a2", "b2", "a3", "b3"), (b, a, b, a), strict=True):
        if isinstance(receipt, Unreachable):
            assert payload not in node.payloads
        elif not isinstance(receipt, NotConfirmed):
            assert receipt.acked
            assert payload in node.payloads
    assert same_one(a, b)


@pytest.mark.parametrize("seconds", [60.0, 200.0, 400.0, 3600.0])
@pytest.mark.parametrize("how", ["asleep", "frozen"])
@pytest.mark.parametrize("who", ["sender", "receiver"])
@simulated
async def test_a_machine_that_stands_still_for_long(stage: Stage, who: str, how: str, seconds: float) -> None:
    """What was received, and whose acknowledgement was lost, is not handed over again."""
    a, b = await stage.two(resume_timeout=60.0)
    await a.send(b, "first")
    stage.network.cut_one_way(stage.b, stage.a)
    sending = a.send(b, "second")
    await eventually(lambda: len(b.got) == 2)
    host = stage.a if who == "sender" else stage.b
    host.sleep(seconds) if how == "asleep" else host.freeze()
    await asyncio.sleep(min(seconds, 50.0))
    stage.network.heal()
    await asyncio.sleep(seconds)
    if how == "frozen":
        host.thaw()
    await asyncio.sleep(100.0)
    await gathered([sending])
    assert (await a.send(b, "third")).acked
    await asyncio.sleep(60.0)
    assert b.payloads == ["first", "second", "third"]


# Forward by less than resume_timeout: by more it cannot be told from a sleep of the machine.
@pytest.mark.parametrize("seconds", [50.0, -3600.0, -200.0])
@pytest.mark.parametrize("who", ["sender", "receiver"])
@simulated
async def test_a_clock_that_is_set_costs_nothing(stage: Stage, who: str, seconds: float) -> None:
    """While messages are under way, and while the peer is gone for a moment; nothing is doubled either."""
    stage.network.default_latency = (0.4, 0.4)
    a, b = await stage.two()
    await a.do(a.transport.connect(b.address))
    host = stage.a if who == "sender" else stage.b
    sending = a.sends(b, range(5))
    await asyncio.sleep(0.5)
    host.jump_clock(seconds)
    await asyncio.sleep(2.0)
    sending += a.sends(b, range(5, 10))
    await asyncio.sleep(0.5)  # they have arrived, and are not acknowledged
    stage.network.break_links(stage.a, stage.b, 0.0)
    stage.network.cut(stage.a, stage.b)
    await asyncio.sleep(0.5)
    host.jump_clock(seconds)
    await asyncio.sleep(2.0)
    stage.network.heal()
    receipts = await asyncio.gather(*sending)
    assert all(receipt.acked for receipt in receipts)
    assert b.payloads == list(range(10))
    assert a.stats.in_doubt == 0


# Restarts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "power off"])
@simulated
async def test_a_receiver_restarts_with_its_identity(stage: Stage, kill: bool) -> None:
    a, b = await stage.two()
    await a.send(b, "first")
    stage.network.cut(stage.a, stage.b)
    sending = a.sends(b, range(5)) + a.sends(b, "xyz", stream_id="other")
    asking = a.begin(a.transport.request(b.address, task("question", stream_id="rpc")))
    await asyncio.sleep(0.5)
    if not kill:
        stage.b.power_off()
    stage.network.heal()
    again = await stage.restart(stage.b, kill=kill)
    again.transport.on_message(lambda peer, message: peer.reply(message, "answer"), stream_id="rpc")
    receipts = await asyncio.gather(*sending)
    assert all(receipt.acked and receipt.attempts > 1 for receipt in receipts)
    assert again.of("default") == list(range(5))
    assert again.of("other") == list("xyz")
    assert b.payloads == ["first"]
    assert (await asking).payload == "answer"
    await asyncio.sleep(30.0)
    assert len(again.got) == 9
    assert same_one(a, again)


@pytest.mark.parametrize("window", [1, 4, 1000])
@simulated
async def test_another_node_takes_the_address_over(stage: Stage, window: int) -> None:
    """What was sent to the address and not acknowledged is the new one's, and so is what waits behind it."""
    a, b = await stage.two(window_messages=window)
    await a.send(b, "first")
    stage.network.cut(stage.a, stage.b)
    sending = a.sends(b, range(20))
    await asyncio.sleep(0.5)
    stage.b.kill()
    stage.network.heal()
    stage.b.restart()
    other = await stage.start(stage.b, identity=Identity())
    began = stage.now
    receipts = await asyncio.gather(*sending)
    assert stage.now - began < 10.0
    assert all(receipt.acked for receipt in receipts)
    assert other.payloads == list(range(20))
    assert a.stats.in_doubt == 0


@simulated
async def test_a_request_goes_on_with_the_node_that_takes_the_address_over(stage: Stage) -> None:
    a, b = await stage.two()
    await a.send(b, "first")
    stage.network.cut(stage.a, stage.b)
    asking = a.begin(a.transport.request(b.address, task("question"), timeout=25.0))
    await asyncio.sleep(0.5)
    stage.b.kill()
    stage.network.heal()
    stage.b.restart()
    other = await stage.start(stage.b, identity=Identity())
    other.transport.on_message(lambda peer, message: peer.reply(message, "answer"))
    assert (await asking).payload == "answer"
    assert a.got == []


@pytest.mark.parametrize("to", ["node id and address", "the peer in hand"])
@simulated
async def test_what_was_sent_to_a_node_is_not_given_to_another_one(stage: Stage, to: str) -> None:
    a, b = await stage.two(send_timeout=20.0)
    await a.send(b, "first")
    peer = a.transport.peers()[0]
    stage.network.cut(stage.a, stage.b)
    named = f"{b.transport.node_id}@{b.address}"
    if to == "the peer in hand":
        sending = a.begin(peer.send(task("secret")))
    else:
        sending = a.begin(a.transport.send(named, task("secret")))
    await asyncio.sleep(0.5)
    stage.b.kill()
    stage.network.heal()
    stage.b.restart()
    other = await stage.start(stage.b, identity=Identity())
    assert (await a.send(other, "open")).acked
    with pytest.raises(NotConfirmed):
        await sending
    await asyncio.sleep(60.0)
    assert other.payloads == ["open"]


@simulated
async def test_a_sender_restarts(stage: Stage) -> None:
    """At least once: what its program sends again with the same id comes again, and nothing else does."""
    a, b = await stage.two()
    for number in range(3):
        await a.send(b, number, id=f"m-{number}")
    again = await stage.restart(stage.a)
    for number in range(1, 5):
        assert (await again.send(b, number, id=f"m-{number}")).acked
    await asyncio.sleep(30.0)
    assert [message.id for message in b.got] == ["m-0", "m-1", "m-2", "m-1", "m-2", "m-3", "m-4"]
    assert same_one(again, b)


@simulated
async def test_a_sender_restarts_in_the_middle(stage: Stage) -> None:
    """Numbers of the dead process, late on its connection, do not get mixed up with those of the new one."""
    stage.network.default_latency = (0.3, 0.3)
    a, b = await stage.two()
    a.sends(b, range(10))
    await asyncio.sleep(1.5)
    a.sends(b, range(10, 20))
    await asyncio.sleep(0.1)
    again = await stage.restart(stage.a)
    await asyncio.gather(*again.sends(b, range(100, 110)))
    await asyncio.sleep(30.0)
    old = [payload for payload in b.payloads if payload < 100]
    assert old == list(range(len(old)))
    assert [payload for payload in b.payloads if payload >= 100] == list(range(100, 110))


@simulated
async def test_restarts_of_both_again_and_again(stage: Stage) -> None:
    a, b = await stage.two()
    for round in range(6):
        there, back = a.sends(b, [f"{round}-{n}" for n in range(5)]), b.sends(a, range(5))
        receipts = await asyncio.gather(*there, *back)
        assert all(receipt.acked for receipt in receipts)
        if round % 2:
            a = await stage.restart(stage.a)
        else:
            b = await stage.restart(stage.b)
    assert a.stats.conflicts == b.stats.conflicts == 0


# Flow control -------------------------------------------------------------------------------------


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


# Handlers -----------------------------------------------------------------------------------------


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
            peer.connections[0].link.abort()
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


# Leaving ------------------------------------------------------------------------------------------


@simulated
async def test_close_acknowledges_what_was_taken_in(stage: Stage) -> None:
    """Every message is either acknowledged and handed over, or goes to the next process."""
    a, b = await stage.two()
    for round, delay in enumerate((0.0, 0.001, 0.002, 0.003, 0.005, 0.01)):
        sending = a.sends(b, ((round, number) for number in range(50)))
        await asyncio.sleep(delay)
        closing = b.begin(b.transport.close())
        sending += a.sends(b, ((round, number) for number in range(50, 80)))
        await asyncio.sleep(0.3)
        await closing
        again = await stage.restart(stage.b)
        await gathered(sending)
        await asyncio.sleep(10.0)
        got = b.payloads + again.payloads
        for number, each in enumerate(sending):
            if each.exception() is None:
                assert got.count([round, number]) == 1
            else:
                assert isinstance(each.exception(), Unreachable)
                assert [round, number] not in got
        assert b.payloads == sorted(b.payloads)
        assert again.payloads == sorted(again.payloads)
        b = again


@simulated
async def test_close_waits_for_its_own_acknowledgements(stage: Stage) -> None:
    stage.network.default_latency = (0.5, 0.5)
    a, b = await stage.two(close_timeout=3.0)
    await a.do(a.transport.connect(b.address))
    sending = a.sends(b, range(10))
    await asyncio.sleep(0.01)
    await a.close()
    assert all(each.result().acked for each in sending)
    assert b.payloads == list(range(10))


@simulated
async def test_close_with_a_peer_that_never_acknowledges(stage: Stage) -> None:
    a, puppet = await stage.start(stage.a, close_timeout=2.0), Puppet(stage.b)
    await puppet.listen()
    sending = a.send(puppet, "x")
    await asyncio.sleep(0.5)
    began = stage.now
    await a.close()
    assert 1.9 < stage.now - began < 3.0
    with pytest.raises(NotConfirmed):
        await sending
    assert [payload for payload, _ in a.undelivered] == ["x"]


@simulated
async def test_close_while_a_peer_is_out_of_reach(stage: Stage) -> None:
    """Nothing can be drained there: what is unacknowledged is in doubt, and says so."""
    a, b = await stage.two(close_timeout=20.0, send_timeout=100.0)
    await a.send(b, "first")
    stage.network.stale_route(stage.a, stage.b)
    stage.network.stale_route(stage.b, stage.a)
    stage.network.cut_one_way(stage.b, stage.a)
    sending = a.sends(b, range(3))
    await asyncio.sleep(0.5)
    stage.network.forget(stage.a, stage.b)
    await asyncio.sleep(1.0)
    began = stage.now
    await a.close()
    assert stage.now - began < 3.0
    for each in sending:
        with pytest.raises(NotConfirmed, match="closed"):
            await each
    assert [payload for payload, _ in a.undelivered] == [0, 1, 2]


@simulated
async def test_close_while_a_peer_keeps_sending_says_goodbye(stage: Stage) -> None:
    a = await stage.start(stage.a, window_messages=64, send_timeout=60.0)
    b = await stage.start(stage.b, close_timeout=1.0, inbox_messages=32)
    b.pause = 0.002
    batch = a.begin(a.transport.send_batch(b.address, tasks(5000)))
    await asyncio.sleep(1.0)
    reasons: list[str] = []
    lost = a.transport._board.on_lost
    a.transport._board.on_lost = lambda connection, end: (reasons.append(end.text), lost(connection, end))  # type: ignore
    await b.close()
    await asyncio.sleep(0.01)
    assert reasons == ["the peer closed it (1001: closing)"]
    again = await stage.restart(stage.b)
    outcome = (await gathered([batch]))[0]
    await asyncio.sleep(30.0)
    got = b.payloads + again.payloads
    assert len(set(got)) == len(got)
    assert got == sorted(got)
    sent = 5000 if isinstance(outcome, list) else outcome.sent if isinstance(outcome, Unreachable) else 0
    assert len(got) >= sent


@pytest.mark.parametrize("who", ["keeper", "recovery"])
@simulated
async def test_peers_do_not_dial_at_once_after_a_goodbye(stage: Stage, who: str) -> None:
    a = await stage.start(stage.a, send_timeout=60.0)
    puppet = Puppet(stage.b)
    door = await puppet.listen()
    if who == "keeper":
        await a.do(a.transport.connect(puppet.address, keep=True))
    else:
        sending = a.send(puppet, "x")
    await eventually(lambda: puppet.ends)
    puppet.end.link.close(1001, "closing")
    said = stage.now
    await eventually(lambda: len(puppet.ends) == 2)
    assert 0.9 <= stage.now - said <= 4.0
    if who == "recovery":
        puppet.end.polite = True
        await eventually(lambda: puppet.end.payloads == ["x"])
        puppet.end.ack("default")
        assert (await sending).attempts == 2
    await door.close()


@simulated
async def test_what_comes_after_close_began_goes_to_the_next_process(stage: Stage) -> None:
    a, b = await stage.two(close_timeout=5.0, send_timeout=60.0)
    b.gate = asyncio.Event()
    await a.send(b, "before")
    closing = b.begin(b.transport.close())  # its handler is busy
    await asyncio.sleep(1.0)
    after = a.sends(b, ["after 1", "after 2"])
    await asyncio.sleep(1.0)
    b.gate.set()
    await closing
    again = await stage.restart(stage.b)
    assert all(receipt.acked for receipt in await asyncio.gather(*after))
    assert (b.payloads, again.payloads) == (["before"], ["after 1", "after 2"])


@simulated
async def test_a_request_of_a_handler_is_answered_while_closing(stage: Stage) -> None:
    """Within the grace time handlers finish, also those that wait for an answer."""
    a, b = await stage.two(close_timeout=5.0)
    seen: list[Any] = []

    async def handler(peer: Peer, message: Message) -> None:
        answer = await peer.request(task("question", stream_id="back"))
        seen.append(answer.payload)

    async def answer(peer: Peer, message: Message) -> None:
        await asyncio.sleep(1.0)
        await peer.reply(message, "answer")

    for node, function in ((b, handler), (a, answer)):
        node.transport.off_message(node.take)
        node.transport.on_message(function)
    await a.send(b, "x")
    await asyncio.sleep(0.1)
    await b.close()
    assert seen == ["answer"]


@simulated
async def test_sends_after_close_are_closed(stage: Stage) -> None:
    a, b = await stage.two(close_timeout=3.0)
    await a.send(b, 1)
    b.gate = asyncio.Event()
    a_peer = b.transport.peers()[0]
    await a.close()
    for work in (a.transport.send(b.address, task()), a.transport.send_batch(b.address, tasks(2))):
        with pytest.raises(Closed):
            await a.do(work)
    assert a_peer.state == "gone"


# Bounded state ------------------------------------------------------------------------------------


def sizes(node: Node) -> tuple[int, int]:
    """Streams that its sessions remember: sending, receiving."""
    sessions = [peer.session for peer in node.transport._table if peer.session is not None]
    return sum(len(s.out) for s in sessions), sum(len(s.expected) for s in sessions)


@simulated
async def test_a_busy_stream_beside_very_many_short_ones(stage: Stage) -> None:
    a, b = await stage.two()
    for number in range(6000):
        burst = a.sends(b, [(number, k) for k in range(3)], stream_id="busy")
        burst.append(a.send(b, None, stream_id=number))
        burst += a.sends(b, [(number, k) for k in range(3, 6)], stream_id="busy")
        if number % 2:
            await asyncio.sleep(0)
        await asyncio.gather(*burst)
    assert [tuple(payload) for payload in b.of("busy")] == [(n, k) for n in range(6000) for k in range(6)]
    assert (a.stats.created, a.stats.resent, b.stats.malformed) == (1, 0, 0)
    assert sizes(a)[0] <= 4096
    assert sizes(b)[1] <= 8192 + 8192 // 4


@simulated
async def test_one_that_is_always_unacknowledged_beside_very_many(stage: Stage) -> None:
    a, b = await stage.two()
    ahead: Any = None
    for number in range(13_000):
        following = a.send(b, number, stream_id="busy")
        await asyncio.sleep(0)
        if ahead is not None:
            await ahead
        ahead = following
        await a.send(b, None, stream_id=number)
    await ahead
    assert b.of("busy") == list(range(13_000))
    assert (a.stats.created, a.stats.resent, b.stats.malformed) == (1, 0, 0)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few streams are remembered."""
    for module in (session, outlet):
        monkeypatch.setattr(module, "SENDER_STREAMS", 16)
    monkeypatch.setattr(session, "RECEIVER_STREAMS", 32)


@pytest.mark.parametrize("seed", range(8))
@simulated
async def test_more_streams_at_a_time_than_are_remembered(stage: Stage, small: None, seed: int) -> None:
    """Some have to wait until others have been acknowledged; nothing is lost or doubled by that."""
    chance = Random(seed)
    stage.network.default_latency = (0.005, 0.05)
    a, b = await stage.two(send_timeout=100.0)

    async def one(stream: int) -> None:
        await asyncio.sleep(chance.random())
        for number in range(5):
            await a.insist(b, number, stream_id=stream)

    sending = [a.begin(one(stream)) for stream in range(60)]
    for _ in range(4):
        await asyncio.sleep(chance.random())
        chance.choice([stage.network.break_links, stage.network.silence])(stage.a, stage.b)
    await asyncio.gather(*sending)
    for stream in range(60):
        assert b.of(stream) == list(range(5))
    assert sizes(a)[0] <= 16
    assert sizes(b)[1] <= 32 + 32 // 4
    assert a.stats.created <= 1 + 4


@pytest.mark.parametrize("seed", range(8))
@simulated
async def test_busy_and_short_streams_while_connections_change(stage: Stage, small: None, seed: int) -> None:
    chance = Random(seed)
    stage.network.default_latency = (0.001, 0.02)
    a, b = await stage.two(send_timeout=100.0)
    sending: list[Any] = []
    counts: dict[Any, int] = {}
    changes = 0
    for round in range(300):
        for _ in range(chance.randint(1, 6)):
            stream = chance.choice(["busy", "also busy", chance.randint(0, 100), round])
            sending.append(a.send(b, counts.get(stream, 0), stream_id=stream))
            counts[stream] = counts.get(stream, 0) + 1
        await asyncio.sleep(chance.choice([0.0, 0.001, 0.01]))
        if chance.random() < 0.02:
            changes += 1
            stage.network.break_links(stage.a, stage.b)
    outcomes = await gathered(sending)
    assert len(b.got) == sum(map(arrived, outcomes)) > 500
    for stream, count in counts.items():
        assert b.of(stream) == sorted(set(b.of(stream)))
        assert len(b.of(stream)) == count or not all(map(arrived, outcomes))
    assert a.stats.created <= 1 + changes


@simulated
async def test_peers_that_come_and_go_are_forgotten(stage: Stage) -> None:
    b = await stage.start(stage.b, resume_timeout=10.0, max_idle_timeout=6.0)
    for number in range(200):
        puppet = Puppet(stage.a)
        end = await puppet.dial(b)
        for stream in range(20):
            end.post(task(number, stream_id=stream))
        await eventually(lambda end=end: len(end.acks) == 20)
        end.link.abort()
    await asyncio.sleep(1.0)
    assert len(b.got) == 4000
    assert b.stats.active == 0
    await asyncio.sleep(2 * DEFAULT_RESUME + 2.0)  # what the puppets' hellos say
    assert list(b.transport._table) == []
    assert sizes(b) == (0, 0)


@simulated
async def test_a_peer_whose_old_process_outlives_its_new_one_is_forgotten_too(stage: Stage) -> None:
    a, b = await stage.two(resume_timeout=20.0)
    await a.send(b, "first")
    stage.network.silence(stage.a, stage.b)
    stage.b.power_off()
    again = await stage.restart(stage.b, kill=False)
    await again.send(a, "again")
    sending = a.begin(a.transport.peers()[0].send(task("lost")))
    stage.b.kill()
    await asyncio.sleep(2 * DEFAULT_RESUME + 50.0)
    assert [payload for payload, _ in a.undelivered] == ["lost"]
    assert list(a.transport._table) == []
    with pytest.raises(NotConfirmed):
        await sending


# Hostile peers ------------------------------------------------------------------------------------


def bad_frames() -> dict[str, Callable[[Any], None]]:
    huge = 2**63
    return {
        "ack of what was never sent": lambda end: end.say([], {"default": 1000}),
        "huge ack": lambda end: end.say([], {"default": huge}),
        "negative open": lambda end: end.say([], None, [("x", -1)]),
        "huge open": lambda end: end.say([task(stream_id="x")], None, [("x", 2**64 - 1)]),
        "large open": lambda end: end.say([task(stream_id="x")], None, [("x", 2**53)]),
        "message without open": lambda end: end.say([task(stream_id="unopened")]),
        "gap": lambda end: end.say([task(stream_id="x")], None, [("x", 3), ("x", 9), ("x", 12)]) or gap(end),
        "too long a name": lambda end: end.say([], None, [("n" * 1_000_000, 1)]),
        "message on too long a name": lambda end: end.say([task(stream_id="n" * 1_000_000)]),
        "stop for too long a name": lambda end: end.flow("n" * 1_000_000, True),
        "a second proof": lambda end: end.raw(b"\x04\x92\xc4\x00\x90"),
        "nonsense": lambda end: end.raw(b"\x01\xc1\xc1"),
        "an ack that is no number": lambda end: end.raw(b"\x01\x92\x90\x91\x92\xa1x\xa1y"),
    }


def gap(end: Any) -> None:
    """Goes back behind what was received, and then over it."""
    end.say([], None, [("y", 1)])
    end.say([task(1, stream_id="y")])
    # Two more numbers pass without their messages: only a broken peer opens anew within a connection.
    end.raw(b"\x01\x93\x91\x95\xa1i\xa4task\x01\xc0\xa1z\x90\x90")


@pytest.mark.parametrize("what", bad_frames())
@simulated
async def test_a_hostile_peer_costs_its_own_connection_only(stage: Stage, what: str) -> None:
    a, c = await stage.start(stage.a), await stage.start(stage.c)
    await c.send(a, "before")
    puppet = Puppet(stage.b)
    end = await puppet.dial(a)
    await asyncio.sleep(0.1)
    peer = next(peer for peer in a.transport.peers() if peer.node_id == puppet.node_id)
    sending = a.begin(peer.send(task("to the puppet")))
    await asyncio.sleep(0.1)
    bad_frames()[what](end)
    await asyncio.sleep(1.0)
    assert end.closed is not None
    assert "1002" in end.closed
    assert a.stats.malformed == 1
    assert not sending.done()
    assert (await c.send(a, "after")).acked
    assert (await a.send(c, "back")).acked
    assert a.of("default")[:1] == ["before"]
    again = await puppet.dial(a)
    again.polite = True
    assert (await sending).acked


@pytest.mark.parametrize("seed", range(40))
@simulated
async def test_any_notes_and_messages(stage: Stage, seed: int) -> None:
    """Whatever a proven peer says: nothing is raised in the loop, and honest peers are served."""
    chance = Random(seed)
    a, c = await stage.start(stage.a, window_messages=5), await stage.start(stage.c)
    await c.send(a, "before")
    puppet = Puppet(stage.b)
    streams: list[Any] = ["s", "t", 0, 1, -1, 2**64 - 1]
    numbers = [*range(6), -1, 2**31, 2**63, 2**64 - 1]
    for _ in range(15):
        end = await puppet.dial(a)
        await asyncio.sleep(0.01)
        peer = next(peer for peer in a.transport.peers() if peer.node_id == puppet.node_id)
        for _ in range(10):
            if chance.random() < 0.3:
                a.begin(_quietly(peer.send(task(stream_id=chance.choice(streams)))))
            end.say(
                [task("bad", stream_id=chance.choice(streams)) for _ in range(chance.choice([0, 0, 1, 3]))],
                {chance.choice(streams): chance.choice(numbers) for _ in range(chance.choice([0, 0, 1, 3]))},
                [(chance.choice(streams), chance.choice(numbers)) for _ in range(chance.choice([0, 1, 3]))],
            )
            if chance.random() < 0.2:
                end.flow(chance.choice(streams), chance.random() < 0.5)
            await asyncio.sleep(chance.choice([0.0, 0.001, 0.01]))
            if end.closed is not None:
                break
    assert (await c.send(a, "after")).acked
    assert (await a.send(c, "back")).acked
    assert [payload for payload in a.payloads if payload != "bad"] == ["before", "after"]


async def _quietly(work: Coroutine[Any, Any, Any]) -> None:
    with suppress(Error, TimeoutError):
        await work


@pytest.mark.parametrize("first", [0, 1, 2**40, 2**53 - 1])
@simulated
async def test_streams_may_begin_anywhere(stage: Stage, first: int) -> None:
    a = await stage.start(stage.a)
    end = await Puppet(stage.b).dial(a)
    end.say(tasks(3), None, [("default", first)])
    await asyncio.sleep(0.1)
    assert a.payloads == [0, 1, 2]
    assert end.acks == {"default": first + 3}


@simulated
async def test_negative_and_old_acknowledgements_are_no_news(stage: Stage) -> None:
    a, puppet = await stage.start(stage.a), Puppet(stage.b)
    await puppet.listen()
    sending = a.send(puppet, "x")
    await eventually(lambda: puppet.ends and puppet.end.messages)
    for upto in (-(2**63), -1, 0, 1):
        puppet.end.say([], {"default": upto, "other": upto, 5: upto})
    await asyncio.sleep(0.1)
    assert puppet.end.closed is None
    assert not sending.done()
    puppet.end.ack("default")
    assert (await sending).acked


@simulated
async def test_messages_before_a_bad_one_in_the_same_frame_are_not_lost(stage: Stage) -> None:
    """An honest sender whose frame was spoilt, as by a bug elsewhere, sends it again."""
    a, puppet = await stage.start(stage.a), Puppet(stage.b)
    end = await puppet.dial(a)
    good = [task(number, stream_id="good") for number in range(3)]
    end.say([*good, task("bad", stream_id="unopened")], None, [("good", 1)])
    await asyncio.sleep(1.0)
    assert end.closed is not None
    again = await puppet.dial(a)
    again.say(good, None, [("good", 1)])
    await asyncio.sleep(1.0)
    assert again.acks == {"good": 4}
    assert a.of("good") == [0, 1, 2]


@simulated
async def test_a_puppet_that_opens_far_ahead_and_goes_back(stage: Stage) -> None:
    """What it has skipped is its own loss; what it sends again is not handed over again."""
    a = await stage.start(stage.a)
    end = await Puppet(stage.b).dial(a)
    end.say([task("one")], None, [("default", 1)])
    end.say([task("ten")], None, [("default", 10)])
    end.say([task("again")], None, [("default", 1)])
    await asyncio.sleep(0.1)
    assert a.payloads == ["one", "ten"]
    assert end.acks == {"default": 11}
    assert a.stats.duplicates_suppressed == 1


@simulated
async def test_two_connections_of_one_process_share_the_numbers(stage: Stage) -> None:
    a, puppet = await stage.start(stage.a), Puppet(stage.b)
    one = await puppet.dial(a)
    one.say([task(1), task(2)], None, [("default", 1)])
    await asyncio.sleep(0.1)
    other = await puppet.dial(a)
    other.say([task(2), task(3)], None, [("default", 2)])
    await asyncio.sleep(0.1)
    one.say([task(3), task(4)])  # late on the old one: the second of them is new
    await asyncio.sleep(0.1)
    assert a.payloads == [1, 2, 3, 4]


@simulated
async def test_a_second_process_with_that_identity_begins_with_new_numbers(stage: Stage) -> None:
    a = await stage.start(stage.a)
    identity = Identity()
    old = await Puppet(stage.b, identity).dial(a)
    old.say(tasks(3), None, [("default", 1)])
    await asyncio.sleep(0.1)
    old.link.abort()
    new = await Puppet(stage.b, identity).dial(a)
    new.say(tasks(3), None, [("default", 1)])
    await asyncio.sleep(0.1)
    assert a.payloads == [0, 1, 2, 0, 1, 2]


def alive(host: Host) -> bool:
    return host.process.alive


@simulated
async def test_after_quiet_everything_is_at_rest(stage: Stage) -> None:
    a, b = await stage.two()
    sending = a.sends(b, range(100)) + b.sends(a, range(100))
    for _ in range(5):
        stage.network.break_links(stage.a, stage.b)
        await asyncio.sleep(0.3)
    await asyncio.gather(*sending)
    await a.send(b)
    await asyncio.sleep(60.0)
    assert same_one(a, b)
    for node in (a, b):
        assert alive(node.host)
        assert [c.state for c in node.connections()] == [State.LIVE]
        assert not node.transport._board.unacked
        assert not node.transport.peers()[0].stopped
