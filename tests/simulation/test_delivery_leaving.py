"""Messages under way while a transport closes (rule 3.4)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from openline import Closed, Message, NotConfirmed, Peer, Unreachable

from .stage import Puppet, Stage, eventually, gathered, simulated, task, tasks


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
    lost = a.transport._node.on_lost
    a.transport._node.on_lost = lambda connection, end: (reasons.append(end.text), lost(connection, end))  # type: ignore
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
