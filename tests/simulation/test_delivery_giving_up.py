"""Sends that are given up: what is not confirmed, and what is unreachable (rule 3.4)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from openline import Error, NotConfirmed, Unreachable

from .stage import Puppet, Stage, eventually, gathered, same_one, simulated, task, tasks


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
