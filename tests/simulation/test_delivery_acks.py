"""Sending and acknowledgements (rule 3.4), in scenes written out by hand."""

from __future__ import annotations

import asyncio

import pytest

from openline import Message, MessageTooLarge, Peer

from .stage import Puppet, Stage, eventually, simulated, task, tasks


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
