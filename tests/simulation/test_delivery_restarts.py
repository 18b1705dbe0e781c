"""A process that restarts: at least once across a crash (rule 3.4)."""

from __future__ import annotations

import asyncio

import pytest

from openline import Identity, NotConfirmed

from .stage import Stage, same_one, simulated, task


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
