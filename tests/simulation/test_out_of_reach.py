"""A send to a peer that cannot be reached: when it fails at once, and when it waits (docs/promises.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from openline import Closed, Message, Unreachable
from openline.testing import Network

from .stage import Node, Stage, eventually, gathered, simulated, task, tasks

IDLE = 6.0
DIAL = 5.0

Way = Callable[[Network, Any, Any], None]
# Why nothing reaches the peer any more, and what a dial says then, after how long at most.
FAULTS: dict[str, tuple[Way, str, float]] = {
    "refused": (Network.refuse, "ECONNREFUSED", 0.1),
    "no route": (Network.stale_route, "EHOSTUNREACH", 0.1),
    "silent": (Network.blackhole, "no answer within dial_timeout", DIAL),
}
fault = pytest.mark.parametrize("fault", list(FAULTS))


async def apart(stage: Stage, fault: str, *, under_way: bool) -> tuple[Node, Node, Any]:
    """Connected once; now the link is dead, and dials from a to b fail. What a has under way, if anything."""
    a, b = await stage.two(max_idle_timeout=IDLE)
    await a.send(b, 0)
    FAULTS[fault][0](stage.network, stage.a, stage.b)
    stage.network.silence(stage.a, stage.b)
    sending = a.send(b, 1, timeout=100.0) if under_way else None
    await eventually(lambda: not a.connections())
    await asyncio.sleep(DIAL + 1)  # nothing is being dialed for the first time
    return a, b, sending


async def seconds(stage: Stage, work: Any) -> tuple[float, Any]:
    began = stage.now
    [result] = await gathered([work])
    return stage.now - began, result


# The table ------------------------------------------------------------------------------------------


@fault
@simulated
async def test_first_contact_fails_with_its_dial(stage: Stage, fault: str) -> None:
    setting, reason, limit = FAULTS[fault]
    a, b = await stage.two()
    setting(stage.network, stage.a, stage.b)
    for sending in (a.send(b), a.begin(a.transport.request(b.address, task(), 30.0))):
        took, error = await seconds(stage, sending)
        assert isinstance(error, Unreachable)
        assert reason in str(error)
        assert took <= limit + 0.01


@fault
@simulated
async def test_nothing_under_way_it_fails_with_its_dial_though_it_was_connected(
    stage: Stage, fault: str
) -> None:
    _, reason, limit = FAULTS[fault]
    a, b, _ = await apart(stage, fault, under_way=False)
    for to in (b.address, b.transport.node_id, f"{b.transport.node_id}@{b.address}"):
        took, error = await seconds(stage, a.begin(a.transport.send(to, task())))
        assert isinstance(error, Unreachable)
        assert reason in str(error)
        assert took <= limit + 0.01


@fault
@simulated
async def test_with_something_under_way_it_waits_until_there_is_a_way(stage: Stage, fault: str) -> None:
    a, b, first = await apart(stage, fault, under_way=True)
    node_id = b.transport.node_id
    peer = await a.do(_peer(a, node_id))
    b.transport.on_message(lambda peer, message: None)
    sends = [
        a.send(b, 2),
        a.begin(a.transport.send(f"{node_id}@{b.address}", task("by id and address", stream_id="x"))),
        a.begin(a.transport.send(node_id, task("by id", stream_id="y"))),
        a.begin(peer.send(task("by peer", stream_id="z"))),
        a.begin(a.transport.send_batch(b.address, tasks(100, stream_id="batch"))),
    ]
    await asyncio.sleep(15.0)
    assert not any(sending.done() for sending in (first, *sends))
    stage.network.heal()
    receipts = await gathered([first, *sends])
    assert all(not isinstance(receipt, BaseException) for receipt in receipts), receipts
    assert b.of("default") == [0, 1, 2]
    assert b.of("batch") == list(range(100))
    assert (b.of("x"), b.of("y"), b.of("z")) == (["by id and address"], ["by id"], ["by peer"])


@fault
@simulated
async def test_so_does_a_request(stage: Stage, fault: str) -> None:
    a, b, _ = await apart(stage, fault, under_way=True)

    @b.transport.on_message(stream_id="ask")
    async def answer(peer: Any, message: Message) -> None:
        await peer.reply(message, "there")

    asking = a.begin(a.transport.request(b.address, task(stream_id="ask"), 40.0))
    await asyncio.sleep(15.0)
    stage.network.heal()
    assert (await asking).payload == "there"


@fault
@simulated
async def test_the_wait_ends_with_the_callers_bound_and_says_what_was_tried(stage: Stage, fault: str) -> None:
    a, b, _ = await apart(stage, fault, under_way=True)
    whole = [
        a.send(b, 2, timeout=12.0),
        a.send(b, 3, timeout=12.0),  # behind it in the line
        a.begin(a.transport.send_batch(b.address, tasks(3, stream_id="batch"), timeout=12.0)),
        a.begin(a.transport.request(b.address, task(stream_id="ask"), 12.0)),
    ]
    for took, error in await asyncio.gather(*(seconds(stage, sending) for sending in whole)):
        assert isinstance(error, TimeoutError)
        assert 11.9 < took < 12.1
        where = f"memory {b.address}" if fault == "silent" else f"tcp {b.address}"
        assert f"no connection to {b.address}" in str(error) or "no answer from" in str(error)
        assert f"{where}: {FAULTS[fault][1]}" in str(error)
    stage.network.heal()
    await eventually(lambda: b.payloads == [0, 1])  # what was under way; the others have not left


async def _peer(node: Node, node_id: str) -> Any:
    remote = node.transport._table.node(node_id)
    assert remote is not None
    return remote.peer


# A program that stands still ---------------------------------------------------------------------


@simulated
async def test_a_host_that_stands_still_for_longer_than_the_verdict_costs_no_send(stage: Stage) -> None:
    a, b = await stage.two(max_idle_timeout=IDLE)
    sends = []
    for number in range(100):
        if number == 10:
            stage.b.freeze()
            stage.network.clock.call_at(stage.now + 12.0, stage.b.thaw)
        sends.append(a.send(b, number))
        await asyncio.sleep(0.05)
    receipts = await gathered(sends)
    assert [r for r in receipts if isinstance(r, BaseException)] == []
    assert b.payloads == list(range(100))
    assert stage.now < 20.0


# What goes with it -------------------------------------------------------------------------------


@simulated
async def test_who_waits_leaves_in_order_and_may_give_up(stage: Stage) -> None:
    a, b, first = await apart(stage, "silent", under_way=True)
    sends = []
    for number in range(2, 12):
        sends.append(a.send(b, number, timeout=8.0 if number == 4 else None))
        await asyncio.sleep(0.3)
    sends[0].cancel()  # the one at the head of the line
    await asyncio.sleep(10.0)
    assert sends[0].cancelled()
    assert isinstance(sends[2].exception(), TimeoutError)
    stage.network.heal()
    await gathered([first, *sends])
    assert b.payloads == [0, 1, 3, 5, 6, 7, 8, 9, 10, 11]


@fault
@simulated
async def test_waiting_is_not_dialing_all_the_time(stage: Stage, fault: str) -> None:
    a, b, _ = await apart(stage, fault, under_way=True)
    before = a.stats.dials
    sends = [a.send(b, number, timeout=60.0, stream_id=number % 3) for number in range(300)]
    await gathered(sends)
    # Of each of three streams one looks again, with growing pauses, and what is under way does the same.
    assert a.stats.dials - before < 60


@simulated
async def test_a_peer_that_only_dials_in_is_waited_for(stage: Stage) -> None:
    a = await stage.start(stage.a, max_idle_timeout=IDLE)
    b = await stage.start(stage.b, listen=False, max_idle_timeout=IDLE, backoff_max=1.0)
    await b.do(b.transport.connect(a.address, keep=True))
    await eventually(lambda: a.transport.peers())
    [peer] = a.transport.peers()
    stage.network.refuse(stage.b, stage.a)
    stage.network.silence(stage.a, stage.b)
    first = a.begin(peer.send(task(1)))
    await eventually(lambda: not peer.connected)
    second = a.begin(peer.send(task(2)))
    await asyncio.sleep(5.0)
    assert not second.done()
    stage.network.heal()
    began = stage.now
    await gathered([first, second])
    assert stage.now - began < 2.0  # it was told at once
    assert b.payloads == [1, 2]


@simulated
async def test_it_goes_to_whoever_answers_there_next(stage: Stage) -> None:
    a, b, first = await apart(stage, "refused", under_way=True)
    second = a.send(b, 2)
    await asyncio.sleep(3.0)
    stage.network.heal()
    again = await stage.restart(stage.b)
    assert all(receipt.acked for receipt in await gathered([first, second]))
    assert again.payloads == [1, 2]


@simulated
async def test_another_node_at_that_place_is_not_waited_for(stage: Stage) -> None:
    a, b, _ = await apart(stage, "refused", under_way=True)
    other = f"{a.transport.node_id[:-1]}{'q' if a.transport.node_id[-1] == 'a' else 'a'}@{b.address}"
    for to in (other, "10.0.0.2:9999", "10.0.0.3:8770"):
        took, error = await seconds(stage, a.begin(a.transport.send(to, task())))
        assert isinstance(error, Unreachable)
        assert took < 6.0


@simulated
async def test_closing_ends_the_wait(stage: Stage) -> None:
    a, b, first = await apart(stage, "refused", under_way=True)
    sends = [a.send(b, number) for number in range(3)]
    await asyncio.sleep(1.0)
    took, _ = await seconds(stage, a.begin(a.transport.close()))
    assert took < 5.0
    outcomes = await gathered(sends)
    assert all(isinstance(outcome, Closed | Unreachable) for outcome in outcomes), outcomes
    assert [await gathered([first])]
