"""All state is bounded, and is forgotten in the end (rules 3.4 and 3.5)."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from openline import NotConfirmed
from openline.connection import writer as outlet
from openline.core import session
from openline.core.handshake import DEFAULT_RESUME

from .stage import Node, Puppet, Stage, arrived, eventually, gathered, simulated, task


def sizes(node: Node) -> tuple[int, int]:
    """Streams that its sessions remember: sending, receiving."""
    sessions = [s for remote in node.transport._table if (s := remote.outstanding.session) is not None]
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
