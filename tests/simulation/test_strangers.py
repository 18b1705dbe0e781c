"""Strangers come and go with keys of their own while honest peers have messages under way (rule 3.10)."""

from __future__ import annotations

import asyncio
import os
from random import Random
from typing import Any

import pytest

from openline import Config, NotConfirmed
from openline.address import Address
from openline.core.handshake import DEFAULT_RESUME
from openline.message import StreamId
from openline.peers import retention
from openline.testing import run

from .fleet import PLAIN, Fleet
from .stage import Node, Puppet, Stage, eventually, simulated, task
from .test_delivery import CONFIGS, LIMIT, play

SEEDS = int(os.environ.get("OPENLINE_SEEDS", "60")) // 4
ONE = os.environ.get("OPENLINE_SEED")
# What the strangers of these tests may make a node remember: enough for the honest peers of a fleet,
# and a tenth of what the others ask for.
SMALL = 2 * 1024 * 1024
# Streams that a throwaway key opens, and characters in the name of each.
STREAMS, NAME = 200, 1000


@pytest.fixture(autouse=True)
def small_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "STRANGERS_BYTES", SMALL)
    monkeypatch.setattr(retention, "ANSWERS_BYTES", SMALL)


def opens(number: int, streams: int = STREAMS) -> list[tuple[StreamId, int]]:
    return [(f"{number}.{index}".ljust(NAME, "x"), 1) for index in range(streams)]


# A whole fleet -----------------------------------------------------------------------------------


async def crowd(fleet: Fleet, seconds: float) -> None:
    """Throwaway keys from one host, each of which makes a node remember as much as it can, and goes."""
    host = fleet.network.host("10.0.9.9", name="z")
    random = Random(fleet.random.random())
    listening = [seat for seat in fleet.seats if seat.listens]
    end = fleet.network.now + seconds
    number = 0
    while fleet.network.now < end:
        number += 1
        seat = random.choice(listening)
        puppet = Puppet(host)
        address = Address.parse(f"{seat.host.ips[0]}:{seat.port}")
        try:
            async with asyncio.timeout(2.0):
                await host.run(puppet._backend.dial(address))
        except Exception:
            await asyncio.sleep(0.1)
            continue
        if puppet.ends:
            puppet.end.say(opens=opens(number))
            await asyncio.sleep(random.choice([0.01, 0.1, 0.3]))
            puppet.end.link.abort()


async def simulate(seed: int) -> int:
    """The number of strangers that were forgotten."""
    random = Random(seed)
    fleet = Fleet(seed, random.choice([2, 3]), random.choice(CONFIGS), PLAIN)
    try:
        await play(fleet, random, crowd)
    except BaseException as error:
        error.add_note(f"\n{fleet.network.trace}")
        raise
    return sum(program.transport.stats().forgotten for program in fleet.programs.values())


@pytest.mark.timeout(3600)
def test_a_fleet_does_not_notice_them() -> None:
    seeds = [int(ONE)] if ONE is not None else list(range(SEEDS))
    forgotten = 0
    for seed in seeds:
        try:
            forgotten += run(simulate(seed), seed=seed, limit=LIMIT)
        except BaseException as error:
            error.add_note(f"replay: OPENLINE_SEED={seed}")
            raise
    assert forgotten


# One of each kind --------------------------------------------------------------------------------


async def come_and_go(stage: Stage, node: Node, times: int, streams: int = STREAMS) -> None:
    for number in range(times):
        end = await Puppet(stage.c).dial(node)
        end.say(opens=opens(number, streams))
        await asyncio.sleep(0.05)
        end.link.abort()
        await asyncio.sleep(0.01)


def remembered(node: Node) -> int:
    return len(node.transport._node.sessions.retention.gone)


async def away(stage: Stage) -> None:
    """``b`` has had a message of ``a``'s and its acknowledgement is lost, with the connection."""
    stage.network.silence(stage.a, stage.b)
    stage.network.stale_route(stage.a, stage.b)
    stage.network.heal(stage.b, stage.b)
    await asyncio.sleep(20.0)


@simulated
async def test_who_has_sent_is_known_again_however_many_came_meanwhile(stage: Stage) -> None:
    a, b = await stage.two(send_timeout=100.0)
    await a.send(b, "first")
    stage.network.cut_one_way(stage.b, stage.a)
    sending = a.send(b, "second")
    await eventually(lambda: len(b.got) == 2)
    await away(stage)
    await come_and_go(stage, b, 60)
    assert b.transport.stats().forgotten > 40
    stage.network.heal()
    assert (await sending).acked
    assert b.payloads == ["first", "second"]


@simulated
async def test_who_is_sent_to_is_not_given_up_for_strangers(stage: Stage) -> None:
    a, b = await stage.two(send_timeout=100.0)
    await a.send(b, "first")
    stage.network.cut_one_way(stage.b, stage.a)
    sending = a.send(b, "second")
    await eventually(lambda: len(b.got) == 2)
    await away(stage)
    await come_and_go(stage, a, 60)
    assert a.transport.stats().forgotten > 40
    stage.network.heal()
    assert (await sending).acked
    assert b.payloads == ["first", "second"]


@simulated
async def test_small_ones_do_not_push_out_a_stranger_of_another_place(stage: Stage) -> None:
    """A node id costs nothing, an address does: the many small ones pay before the one that is larger."""
    a, b = await stage.two(send_timeout=200.0)
    for number in range(50):
        await a.send(b, "first", stream_id=f"stream {number}")
    stage.network.cut_one_way(stage.b, stage.a)
    sending = a.send(b, "second")
    await eventually(lambda: len(b.got) == 51)
    await away(stage)
    await come_and_go(stage, b, 600, 1)
    assert b.transport.stats().forgotten > 100
    stage.network.heal()
    assert (await sending).acked
    assert b.payloads == ["first"] * 50 + ["second"]


@simulated
async def test_a_stranger_that_stays_and_takes_too_much_is_cut(stage: Stage) -> None:
    b = await stage.start(stage.b)
    ends = []
    for number in range(20):
        end = await Puppet(stage.c).dial(b)
        end.say(opens=opens(number))
        ends.append(end)
        await asyncio.sleep(0.01)
    await eventually(lambda: any(end.closed for end in ends))
    assert b.transport.stats().forgotten == len([end for end in ends if end.closed])
    assert b.transport._node.sessions.retention._strangers.used <= SMALL


@simulated
async def test_answers_that_nobody_acknowledges_are_the_strangers(stage: Stage) -> None:
    """They ask, are answered at length, and go: answers of others, and what is known, stay."""
    b = await stage.start(stage.b, resume_timeout=100.0)

    @b.transport.on_message(stream_id="rpc")
    async def answer(peer: Any, message: Any) -> None:
        with pytest.raises(NotConfirmed):
            await peer.reply(message, "x" * 100_000)

    for _ in range(60):
        end = await Puppet(stage.c).dial(b)
        end.post(task("?", stream_id="rpc"))
        await asyncio.sleep(0.05)
        end.link.abort()
        await asyncio.sleep(0.01)
    await asyncio.sleep(1.0)
    tier = b.transport._node.sessions.retention._answers
    assert 0 < tier.used <= SMALL
    assert b.transport.stats().in_doubt == b.transport.stats().forgotten > 30


@simulated
async def test_a_stranger_is_remembered_for_as_long_as_it_asks_while_there_is_room(stage: Stage) -> None:
    b = await stage.start(stage.b, max_idle_timeout=30.0)
    await come_and_go(stage, b, 3)
    await asyncio.sleep(2 * DEFAULT_RESUME - 10.0)
    assert remembered(b) == 3
    await asyncio.sleep(30.0)
    assert remembered(b) == 0


@simulated
async def test_who_asks_to_be_remembered_for_longer_goes_first(stage: Stage) -> None:
    a, b = await stage.start(stage.a, resume_timeout=3600.0), await stage.start(stage.b)
    await a.send(b, "first")
    stage.a.kill()
    await asyncio.sleep(400.0)
    assert remembered(b) == 1
    await come_and_go(stage, b, 60, 1)
    assert remembered(b) == 61
    await come_and_go(stage, b, 20)
    assert [peer.name for peer in b.transport._node.sessions.retention.gone if peer.name] == []


@simulated
async def test_the_known_are_remembered_whatever_strangers_do(stage: Stage) -> None:
    """This program has sent to it, and nothing is unacknowledged: that is a reason all the same."""
    a, b = await stage.start(stage.a), await stage.start(stage.b)
    await b.send(a, "hello")
    await a.send(b, "hello yourself")
    stage.a.kill()
    await eventually(lambda: not b.transport.peers())
    await come_and_go(stage, b, 60)
    await come_and_go(stage, b, 300, 1)
    assert "a" in [peer.name for peer in b.transport._node.sessions.retention.gone]


def test_the_limits_are_for_all_configurations() -> None:
    assert Config().strangers_inbox_bytes >= 4 * Config().inbox_bytes
