"""A hostile peer costs its own connection only (rules 3.5 and 3.6)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from openline import Error, Identity
from openline.connection.connection import State
from openline.testing import Host

from .stage import Puppet, Stage, eventually, same_one, simulated, task, tasks


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
        assert not node.transport._node.sessions._unacked
        assert not node.transport.peers()[0]._remote.outstanding.gates
