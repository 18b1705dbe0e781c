"""QUIC on the simulated network: tracks, races with TCP, and what only datagrams suffer."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import pytest

from openline import Message, NotConfirmed, Unreachable
from openline.connection.connection import State
from openline.core.tracks import MAX_TRACKS
from openline.testing import Host, Network, run

from .stage import Node, Stage, eventually, gathered, same_one, simulated, task

BOTH, QUIC, TCP = ("quic", "memory"), ("quic",), ("memory",)


async def two(stage: Stage, *offers: tuple[str, ...], **config: Any) -> tuple[Node, Node]:
    for host, offered in zip((stage.a, stage.b), offers or (BOTH, BOTH), strict=True):
        host.offers = offered
    return await stage.two(**config)


def streams(node: Node, of: int) -> dict[Any, list[Any]]:
    """What has come, by stream."""
    found = defaultdict(list)
    for message in node.got:
        found[message.stream_id].append(message.payload)
    assert len(found) == of
    return found


# Racing -------------------------------------------------------------------------------------------


@simulated
async def test_quic_is_preferred(stage: Stage) -> None:
    a, b = await two(stage)
    receipt = await a.send(b, 1)
    assert receipt.backend == "quic"
    assert stage.now < 0.1
    assert same_one(a, b)


@pytest.mark.parametrize("fault", ["blocked", "not offered"])
@simulated
async def test_tcp_where_quic_does_not_answer(stage: Stage, fault: str) -> None:
    a, b = await two(stage, BOTH, TCP if fault == "not offered" else BOTH)
    if fault == "blocked":
        stage.network.block_udp(stage.a, stage.b)
    receipt = await a.send(b, 1)
    assert receipt.backend == "memory"
    # A refusal is heard, silence is waited for.
    assert stage.now < (0.26 if fault == "blocked" else 0.02)
    stage.network.break_links(stage.a, stage.b, spread=0.0)
    begun = stage.now
    await a.send(b, 2)
    assert stage.now - begun < 0.02, "what has worked goes first"
    stage.network.heal()
    with pytest.raises(Unreachable):
        await a.do(a.transport.send(f"quic://{stage.c.ips[0]}:1", task(1)))


@simulated
async def test_quic_that_is_asked_for_is_never_tcp(stage: Stage) -> None:
    a, b = await two(stage)
    stage.network.block_udp(stage.a, stage.b)
    with pytest.raises((Unreachable, TimeoutError)):
        await a.do(a.transport.send(f"quic://{b.address}", task(1)))
    assert not b.got
    stage.network.heal()
    receipt = await a.do(a.transport.send(f"quic://{b.address}", task(2)))
    assert receipt.backend == "quic"
    assert b.payloads == [2]


@pytest.mark.parametrize("offers", [(BOTH, BOTH[::-1]), (BOTH[::-1], BOTH)])
@simulated
async def test_both_dial_with_different_backends(stage: Stage, offers: Any) -> None:
    """QUIC stays, whoever has dialed it."""
    a, b = await two(stage, *offers)
    await asyncio.gather(*a.sends(b, range(50)), *b.sends(a, range(50)))
    await asyncio.sleep(5.0)
    assert same_one(a, b)
    assert a.connections()[0].link.backend == "quic"
    assert a.payloads == b.payloads == list(range(50))


# Tracks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [0.0, 0.2])
@simulated
async def test_streams_overtake_each_other_and_stay_in_order(stage: Stage, loss: float) -> None:
    a, b = await two(stage, QUIC, QUIC)
    stage.network.latency(stage.a, stage.b, 0.001, 0.05)
    stage.network.lose(stage.a, stage.b, loss)
    count = 2 * MAX_TRACKS
    sends = [a.send(b, number, stream_id=f"s{stream}") for number in range(10) for stream in range(count)]
    await asyncio.gather(*sends)
    found = streams(b, count)
    assert all(numbers == list(range(10)) for numbers in found.values())
    assert [message.payload for message in b.got] != sorted(message.payload for message in b.got)
    assert b.stats.malformed == 0


@simulated
async def test_what_comes_before_the_proof_waits_for_it(stage: Stage) -> None:
    a, b = await two(stage, QUIC, QUIC)
    stage.network.latency(stage.a, stage.b, 0.001, 0.2)
    stage.network.lose(stage.a, stage.b, 0.3)
    for round in range(20):
        await asyncio.gather(*(a.insist(b, round, stream_id=f"s{stream}") for stream in range(30)))
        for connection in a.connections():
            connection.link.abort()
        await asyncio.sleep(0.0)
    assert all(numbers == list(range(20)) for numbers in streams(b, 30).values())
    assert b.stats.malformed == 0


@simulated
async def test_a_goodbye_comes_after_everything_on_all_tracks(stage: Stage) -> None:
    a, b = await two(stage, QUIC, QUIC)
    await a.send(b, "first", stream_id="s0")
    stage.network.latency(stage.a, stage.b, 0.001, 0.1)
    stage.network.lose(stage.a, stage.b, 0.1)
    sends = [a.send(b, bytes(20_000), stream_id=f"s{stream}") for stream in range(40)]
    await asyncio.sleep(0)
    await a.close()
    await asyncio.gather(*sends)
    assert len(b.got) == 41
    await eventually(lambda: not b.connections())


# Faults -------------------------------------------------------------------------------------------


@simulated
async def test_udp_is_blocked_under_a_live_connection(stage: Stage) -> None:
    """Then TCP carries on, and nothing is lost or comes twice."""
    a, b = await two(stage)
    await a.send(b, 0)
    stage.network.block_udp(stage.a, stage.b)
    receipts = await asyncio.gather(*a.sends(b, range(1, 20)))
    assert {receipt.backend for receipt in receipts} == {"memory"}
    assert b.payloads == list(range(20))
    await asyncio.sleep(20)
    assert same_one(a, b)


@simulated
async def test_a_killed_server_is_found_out_at_once(stage: Stage) -> None:
    """Its kernel says that nobody listens there any more."""
    a, b = await two(stage, QUIC, QUIC)
    await a.send(b, 0)
    stage.b.kill()
    await asyncio.sleep(30.0)
    assert not a.connections()
    begun = stage.now
    b = await stage.restart(stage.b, kill=False)
    await a.send(b, 1)
    assert stage.now - begun < 5.0
    assert b.payloads == [1]


@simulated
async def test_a_client_that_has_died_is_declared_dead(stage: Stage) -> None:
    a, b = await two(stage, QUIC, QUIC)
    await a.send(b, 0)
    stage.a.kill()
    await eventually(lambda: not b.connections(), 15.1)


@simulated
async def test_a_nat_that_forgets(stage: Stage) -> None:
    a, b = await two(stage, QUIC, QUIC)
    await asyncio.gather(a.send(b, 0), b.send(a, 0))
    stage.network.silence(stage.a, stage.b)
    await asyncio.gather(a.insist(b, 1), b.insist(a, 1))
    assert a.payloads == b.payloads == [0, 1]
    await asyncio.sleep(40)
    assert same_one(a, b)


@simulated
async def test_a_frozen_program_answers_no_pings(stage: Stage) -> None:
    """There is no kernel that would."""
    a, b = await two(stage, QUIC, QUIC)
    await a.send(b, 0)
    stage.b.freeze()
    await eventually(lambda: any(c.state is State.SUSPECT for c in a.connections()), 11)
    stage.b.thaw()
    await eventually(lambda: same_one(a, b) and a.connections()[0].state is State.LIVE)
    await a.send(b, 1)
    assert b.payloads == [0, 1]


@simulated
async def test_a_saturated_link_is_not_declared_dead(stage: Stage) -> None:
    a, b = await two(stage, QUIC, QUIC, send_timeout=300.0)
    stage.network.bandwidth(stage.a, stage.b, 20_000)
    results = await gathered(a.sends(b, [bytes(100_000)] * 10))
    assert not any(isinstance(result, NotConfirmed) for result in results), results
    assert len(b.got) == 10
    assert a.stats.evictions == b.stats.evictions == 0


def test_the_same_seed_gives_the_same_run() -> None:
    """Loss and reordering, too."""
    seen: list[tuple[float, list[Any]]] = []

    async def main() -> None:
        network = Network(7)
        network.default_backends = BOTH
        a, b = network.host("10.0.0.1", name="a"), network.host("10.0.0.2", name="b")
        got: list[Any] = []
        async with a.load_transport() as alice, b.load_transport() as bob:
            bob.on_message(lambda peer, message: got.append(message.payload))
            await b.run(bob.listen(8770))
            network.lose(a, b, 0.2)
            await asyncio.gather(*(send(a, alice, number) for number in range(200)))
        seen.append((network.now, got))

    async def send(host: Host, transport: Any, number: int) -> None:
        message = Message(payload=number, stream_id=number % 50)
        await host.run(transport.send("10.0.0.2:8770", message))

    for _ in range(2):
        run(main(), seed=7)
    assert seen[0] == seen[1]


# What is large does not get through: a small MTU, and ICMP is filtered

LARGE = "x" * 100_000


@pytest.mark.parametrize("first", [BOTH, BOTH[::-1]])
@simulated
async def test_where_one_swallows_what_is_large_the_other_carries_it(
    stage: Stage, first: tuple[str, str]
) -> None:
    a, b = await two(stage, first, first)
    await a.send(b, "small")
    [before] = a.connections()
    protocol = "udp" if before.link.backend == "quic" else "tcp"
    stage.network.swallow(stage.a, stage.b, 1300, protocol)
    began = stage.now
    receipt = await a.send(b, LARGE)
    assert receipt.backend != before.link.backend
    assert stage.now - began < 5
    assert b.payloads == ["small", LARGE]
    await eventually(lambda: same_one(a, b))
    # What has been found out holds for the next dial, too.
    [connection] = a.connections()
    connection.link.abort()
    await eventually(lambda: not a.connections())
    assert (await a.send(b, LARGE)).backend == receipt.backend


@simulated
async def test_small_messages_that_pass_do_not_hide_it(stage: Stage) -> None:
    a, b = await two(stage)
    await a.send(b, 0, stream_id="small")
    stage.network.swallow(stage.a, stage.b, 1300, "udp")
    large = a.send(b, LARGE)
    count = 1
    while not large.done():
        await a.send(b, count, stream_id="small")
        count += 1
        await asyncio.sleep(0.02)
    assert (await large).backend == "memory"
    assert b.of("small") == list(range(count))
    assert b.of("default") == [LARGE]


@simulated
async def test_answers_that_do_not_get_through_take_another_way(stage: Stage) -> None:
    """The side that did not dial notices."""
    a, b = await two(stage)
    await a.send(b, "small")
    stage.network.swallow(stage.a, stage.b, 1300, "udp")
    receipt = await b.begin(b.transport.peers()[0].send(task(LARGE)))
    assert receipt.backend == "memory"
    assert a.payloads == [LARGE]
    await eventually(lambda: same_one(a, b))


@simulated
async def test_a_doubted_connection_is_trusted_again_when_its_data_gets_through(stage: Stage) -> None:
    a, b = await two(stage, TCP, TCP)
    await a.send(b, "small")
    stage.network.swallow(stage.a, stage.b, 1300, "tcp")
    large = a.send(b, LARGE)
    await eventually(lambda: any(c.stuck for c in a.connections()))
    stage.network.heal()
    await large
    await eventually(lambda: same_one(a, b) and a.connections()[0].state is State.LIVE)
    assert b.payloads == ["small", LARGE]
    assert await a.send(b, "more")


@pytest.mark.parametrize("offers", [QUIC, TCP])
@simulated
async def test_a_slow_link_is_not_doubted(stage: Stage, offers: tuple[str, ...]) -> None:
    a, b = await two(stage, offers, offers)
    await a.send(b, "small")
    stage.network.bandwidth(stage.a, stage.b, 20_000)
    large = a.send(b, LARGE, timeout=60)
    while not large.done():
        assert not any(c.stuck for c in a.connections())
        await asyncio.sleep(0.1)
    await large
    assert a.stats.suspects == 0


@simulated
async def test_a_peer_that_stands_still_is_not_doubted_over_tcp(stage: Stage) -> None:
    """Its kernel takes in what is sent."""
    a, b = await two(stage, TCP, TCP)
    await a.send(b, "small")
    stage.b.freeze()
    large = a.send(b, LARGE, timeout=60)
    await asyncio.sleep(4)
    stage.b.thaw()
    await large
    assert (a.stats.suspects, a.stats.dials) == (0, 1)


@simulated
async def test_a_send_repeated_the_moment_it_has_timed_out_does_not_stop_the_clock(stage: Stage) -> None:
    """Whoever waits is told from within the tick, and sends on the same stream and on a new one."""
    a, b = await two(stage, TCP, TCP)
    await a.send(b, "first")
    stage.network.cut(stage.a, stage.b)

    async def stubborn(number: int) -> None:
        for attempt in range(3):
            try:
                await a.transport.send(b.address, task(number), timeout=1.0)
            except (NotConfirmed, TimeoutError):
                again = task((number, attempt), stream_id=f"new {number} {attempt}")
                waiting.append(a.begin(a.transport.send(b.address, again, timeout=60)))

    waiting: list[Any] = []
    await gathered([a.begin(stubborn(number)) for number in range(5)])
    stage.network.heal()
    await gathered(waiting)
    ticks = a.transport._node.heartbeat._tick_number
    await asyncio.sleep(5)
    assert a.transport._node.heartbeat._tick_number > ticks
