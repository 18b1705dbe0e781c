"""Two processes with one key: ``IdentityConflict``, and no endless fight (rule 3.3)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

import openline
from openline.connection.connection import CHALLENGE
from openline.peers import conflicts

from ..clock import elapse
from .conftest import Make, Open
from .duplicates import CONFLICT, QUICK, REPLACED, Talk, check
from .helpers import Box, Dials, eventually, port_of, serve, task, tasks, within
from .proofs import nothing, settled
from .rawsocket import Actor, Raw, RawServer
from .wire import CLOSE, PING, PONG

# Nobody waits for what takes time in here.
pytestmark = pytest.mark.usefixtures("hurried")


async def test_two_processes_with_one_key_that_dial_each_other_both_learn_it(make: Make) -> None:
    identity = openline.Identity()
    one, other = await make("one", identity=identity), await make("other", identity=identity)
    boxes = Box(one), Box(other)
    addresses = await serve(one), await serve(other)
    for t, to in ((one, addresses[1]), (other, addresses[0])):
        for use in (
            t.send(to, task()),
            t.connect(to),
            t.request(to, task(), timeout=2.0),
            t.send_batch(to, [task()]),
            t.send(f"{identity.node_id}@{to}", task()),
        ):
            error = await nothing(within(use))
            assert isinstance(error, openline.IdentityConflict), error
            assert identity.node_id in str(error)
            assert to in str(error)
    assert (boxes[0], boxes[1], one.peers(), other.peers()) == ([], [], [], [])
    assert (one.stats().created, other.stats().created) == (0, 0)


async def test_two_processes_with_one_key_that_keep_dialing_each_other_do_it_seldom(make: Make) -> None:
    identity, dials = openline.Identity(), (Dials(), Dials())
    one = await make("one", identity=identity, opener=dials[0])
    other = await make("other", identity=identity, opener=dials[1])
    addresses = await serve(one), await serve(other)
    assert await one.connect(addresses[1], keep=True) is None
    assert await other.connect(addresses[0], keep=True) is None
    await elapse(2.0)
    assert len(dials[0].made) < 12
    assert len(dials[1].made) < 12
    assert (one.peers(), other.peers()) == ([], [])


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    return lambda seconds: monkeypatch.setattr(conflicts, "CONFLICT_HOLD", seconds)


async def fight(
    make: Make, *, keep: bool = False, **config: Any
) -> tuple[openline.Transport, str, openline.Transport, openline.Transport]:
    """A third node to which two processes with one key have connected, one after the other."""
    identity = openline.Identity()
    third = await make("third")
    home = await serve(third)
    one = await make("one", identity=identity, **config)
    other = await make("other", identity=identity, **config)
    await one.connect(home, keep=keep)
    await eventually(lambda: third.peers())
    await other.connect(home, keep=keep)
    return third, home, one, other


def told(*transports: openline.Transport) -> bool:
    return all(t.stats().conflicts >= 1 for t in transports)


async def test_a_third_node_finds_the_conflict_and_tells_both(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "openline"):
        third, home, one, other = await fight(make)
        await eventually(lambda: told(third, one, other))
    await eventually(lambda: not third.peers() and not one.peers() and not other.peers())
    for t in (one, other):
        for use in (t.send(home, task()), t.connect(home), t.request(home, task(), timeout=2.0)):
            error = await nothing(within(use))
            assert isinstance(error, openline.IdentityConflict), error
            assert one.node_id in str(error)
    assert (third.stats().conflicts, third.stats().accepted) == (1, 2)
    errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert [one.node_id in text for text in errors] == [True] * 3
    assert not any(r.exc_info for r in caplog.records)


async def test_who_waits_for_an_acknowledgement_or_an_answer_learns_of_the_conflict(make: Make) -> None:
    identity, third = openline.Identity(), await make("third")
    home, gate = await serve(third), asyncio.Event()
    third.on_message(lambda peer, message: None)

    async def slow(peer: Any, message: Any) -> None:
        await gate.wait()

    third.on_message(slow, stream_id="rpc")
    one, other = await make("one", identity=identity), await make("other", identity=identity)
    asking = asyncio.ensure_future(one.request(home, task(stream_id="rpc"), timeout=10.0))
    await eventually(lambda: third.stats().messages_received == 1)
    await other.connect(home)
    await eventually(lambda: told(third, one, other))
    assert isinstance(await nothing(within(asking, 2.0)), openline.IdentityConflict)
    gate.set()


async def test_what_the_third_has_under_way_to_either_ends_with_the_conflict(make: Make, raw: Open) -> None:
    third, identity = await make("third"), openline.Identity()
    home = await serve(third)
    one = await raw(port_of(home), Actor(identity=identity))
    sending = asyncio.ensure_future(third.send(identity.node_id, task("for whom?")))
    asking = asyncio.ensure_future(third.request(identity.node_id, task("for whom?"), timeout=10.0))
    await eventually(lambda: third.stats().messages_sent == 2)
    other = await raw(port_of(home), Actor(identity=identity))
    ends = asyncio.gather(one.closed(), other.closed())
    # Both answer pings, and acknowledge nothing before the conflict is found.
    assert set(await within(ends)) == {CONFLICT}
    for waiting in (sending, asking):
        if not waiting.done() or waiting.exception() is not None:
            assert isinstance(await nothing(within(waiting, 2.0)), openline.IdentityConflict)
    later = await nothing(within(third.send(identity.node_id, task())))
    assert isinstance(later, openline.IdentityConflict | openline.Unreachable)


async def test_both_that_keep_do_not_fight_for_ever(make: Make) -> None:
    """With the real hold: whoever comes while it lasts is turned away before it is a connection."""
    third, _, one, other = await fight(make, keep=True, **QUICK)
    await eventually(lambda: told(third, one, other))
    await elapse(3.0)
    assert third.stats().accepted == 2
    assert third.stats().conflicts == 1
    assert one.stats().dials + other.stats().dials <= 20


async def test_both_that_keep_and_stay_meet_less_and_less(make: Make, hold: Any) -> None:
    hold(0.2)
    third, _, one, other = await fight(make, keep=True, **QUICK)
    await eventually(lambda: told(third, one, other))
    await elapse(4.0)
    # 0.2, 0.4, 0.8, 1.6 and 3.2 s: at most five times two connections.
    assert third.stats().accepted <= 10
    assert 1 <= third.stats().conflicts <= 5


async def test_it_heals_when_one_of_them_is_gone(make: Make, hold: Any) -> None:
    hold(0.4)
    third, home, one, other = await fight(make, keep=True, **QUICK)
    box, at_other = Box(third), Box(other)
    await eventually(lambda: told(third, one, other))
    await one.close()
    await eventually(lambda: third.peers() and other.peers())
    await within(other.send(home, task("alone now")))
    assert (await within(third.send(other.node_id, task("good")))).acked
    assert (box.payloads[-1], at_other.payloads) == ("alone now", ["good"])
    count = third.stats().conflicts
    await elapse(1.0)
    assert third.stats().conflicts == count
    assert settled(third, other)


async def test_without_keep_a_send_after_the_hold_gets_through(make: Make, hold: Any) -> None:
    hold(0.3)
    third, home, one, other = await fight(make)
    box = Box(third)
    await eventually(lambda: told(third, one, other))
    await one.close()

    async def try_again() -> None:
        while True:
            try:
                await other.send(home, task("through"))
                return
            except openline.IdentityConflict:
                await asyncio.sleep(0.05)

    await within(try_again(), 3.0)
    assert box.payloads == ["through"]


async def test_other_nodes_do_not_notice_a_conflict(make: Make) -> None:
    third, home, one, other = await fight(make)
    box, friend = Box(third), await make("friend")
    talk = Talk(friend, [home])
    await eventually(lambda: told(third, one, other))
    await eventually(lambda: len(box) > 20)
    await talk.end()
    check(talk, box)
    assert (friend.stats().conflicts, friend.stats().created) == (0, 1)


async def test_a_conflict_is_found_as_well_where_the_third_dialed_one_of_them(make: Make, hold: Any) -> None:
    hold(0.5)
    identity = openline.Identity()
    third = await make("third", **QUICK)
    one, other = await make("one", identity=identity), await make("other", identity=identity)
    home = await serve(third)
    await third.connect(await serve(one), keep=True)
    await other.connect(home)
    await eventually(lambda: told(third, one, other))
    await other.close()
    await eventually(lambda: settled(third, one))


async def test_a_conflict_is_found_as_well_where_the_third_dials_both(make: Make) -> None:
    identity = openline.Identity()
    third = await make("third")
    one, other = await make("one", identity=identity), await make("other", identity=identity)
    await third.connect(await serve(one))
    await third.connect(await serve(other))
    await eventually(lambda: told(third, one, other))
    await eventually(lambda: not third.peers())


@pytest.mark.parametrize("messages", [0, 3])
async def test_a_process_that_is_still_there_answers_and_both_are_closed(
    make: Make, raw: Open, messages: int
) -> None:
    """Also when it has been quiet."""
    third, identity = await make("third"), openline.Identity()
    box, home = Box(third), await serve(third)
    one = await raw(port_of(home), Actor(identity=identity))
    for number in range(messages):
        await one.post(task(number))
    await eventually(lambda: len(box) == messages)
    other = await raw(port_of(home), Actor(identity=identity))
    codes = await within(asyncio.gather(one.closed(), other.closed()))
    assert codes == [CONFLICT, CONFLICT]
    assert third.stats().conflicts == 1


@pytest.mark.parametrize("how", ["never reads", "was cut off", "has hung up"])
async def test_a_restarted_process_is_no_conflict(make: Make, raw: Open, how: str) -> None:
    """The connection of the process that is gone is half open, and does not answer any more."""
    third, identity = await make("third", max_idle_timeout=3.0), openline.Identity()
    box, home = Box(third), await serve(third)
    old = await raw(port_of(home), Actor(identity=identity))
    await old.post(task("before"))
    await eventually(lambda: box.payloads == ["before"])
    if how == "was cut off":
        old.reset()
    elif how == "has hung up":
        old.sock.shutdown(1)
    new = await make("new", identity=identity)
    at_new = Box(new)
    await within(new.send(home, task("after")))
    assert (await within(third.send(identity.node_id, task("to the new one")))).acked
    await elapse(1.0)
    for number in range(3):
        await new.send(home, task(number))
        await third.send(identity.node_id, task(number))
    assert box.payloads == ["before", "after", 0, 1, 2]
    assert at_new.payloads == ["to the new one", 0, 1, 2]
    assert (third.stats().conflicts, new.stats().conflicts, new.stats().created) == (0, 0, 1)
    await eventually(lambda: settled(third, new))


async def test_what_the_old_process_did_not_acknowledge_is_the_new_ones(make: Make, raw: Open) -> None:
    third, identity = await make("third"), openline.Identity()
    home = await serve(third)
    await raw(port_of(home), Actor(identity=identity))  # never reads
    sending = [asyncio.ensure_future(third.send(identity.node_id, m)) for m in tasks(5)]
    await eventually(lambda: third.stats().messages_sent == 5)
    new = await make("new", identity=identity)
    box = Box(new)
    await new.connect(home)
    assert all(receipt.acked for receipt in await within(asyncio.gather(*sending)))
    assert box.payloads == list(range(5))
    assert third.stats().conflicts == 0


async def test_a_process_that_is_restarted_many_times_is_no_conflict(make: Make) -> None:
    third, identity = await make("third"), openline.Identity()
    box, home = Box(third), await serve(third)
    for number in range(10):
        process = await make(f"p{number}", identity=identity)
        await within(process.send(home, task(number)))
        await process.close()
    assert box.payloads == list(range(10))
    assert (third.stats().conflicts, third.stats().accepted) == (0, 10)


async def test_a_process_that_crashes_many_times_is_no_conflict(make: Make, raw: Open) -> None:
    third, identity = await make("third"), openline.Identity()
    box, home = Box(third), await serve(third)
    for number in range(20):
        process = await raw(port_of(home), Actor(identity=identity))
        await process.post(task(number))
        await eventually(lambda: len(box) == number + 1)  # noqa: B023
        if number % 2:
            process.reset()  # the others hang
    assert box.payloads == list(range(20))
    assert third.stats().conflicts == 0


async def test_a_process_that_was_frozen_and_thaws_beside_its_replacement_is_a_conflict(
    make: Make, raw: Open
) -> None:
    """It is there again: two processes with one key."""
    third, identity = await make("third"), openline.Identity()
    home = await serve(third)
    frozen = await raw(port_of(home), Actor(identity=identity))
    new = await make("new", identity=identity)
    await new.connect(home)
    await elapse(0.3)
    assert third.stats().conflicts == 0
    assert await within(frozen.closed()) == CONFLICT
    await eventually(lambda: told(third, new))


async def test_a_pong_that_nobody_asked_for_is_no_conflict(make: Make, raw: Open) -> None:
    third = await make("third")
    box, home = Box(third), await serve(third)
    plain, actor = await raw(port_of(home)), await raw(port_of(home), Actor())
    for end in (plain, actor):
        await end.frame(PONG, CHALLENGE)
        await end.frame(PING, CHALLENGE)
    await actor.post(task("goes on"))
    await plain.say("as well")
    await eventually(lambda: sorted(box.payloads) == ["as well", "goes on"])
    assert (third.stats().conflicts, third.stats().active) == (0, 2)


async def test_a_lost_connection_that_was_lost_on_one_side_only_is_no_conflict(make: Make, raw: Open) -> None:
    """The same process comes back while this side still holds its old connection."""
    third, actor = await make("third"), Actor()
    box, home = Box(third), await serve(third)
    old = await raw(port_of(home), actor)
    await old.post(task(0))
    await eventually(lambda: box.payloads == [0])
    new = await Raw.tcp(port_of(home))
    try:
        await new.enter(actor, lost=[old.connection_id])
        await new.post(task(1))
        await eventually(lambda: box.payloads == [0, 1])
        assert await within(old.closed()) == REPLACED
        await eventually(lambda: third.stats().active == 1)
        assert third.stats().conflicts == 0
    finally:
        new.close()


async def test_told_of_a_conflict_by_a_peer_the_node_goes_on_with_everybody_else(
    make: Make, raw_server: RawServer
) -> None:
    """A peer may lie; it only loses this node."""
    t, friend = await make("t"), await make("friend")
    at_friend = await serve(friend)
    await t.send(at_friend, task())
    sending = asyncio.ensure_future(t.send(raw_server.address, task("secret")))
    liar = await raw_server.accept(Actor())
    await eventually(lambda: t.stats().messages_sent == 2)
    await liar.frame(CLOSE, CONFLICT.to_bytes(2, "big") + b"identity conflict")
    error = await nothing(within(sending))
    assert isinstance(error, openline.IdentityConflict)
    assert t.node_id in str(error)
    assert (await t.send(at_friend, task())).acked
    assert t.stats().conflicts == 1


async def test_conflicts_that_are_remembered_are_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conflicts, "MAX_CONFLICTS", 3)
    third = await make("third")
    home = await serve(third)
    for _ in range(8):
        identity = openline.Identity()
        ends = [await Raw.connect(port_of(home), Actor(identity=identity)) for _ in range(2)]
        try:
            await within(asyncio.gather(*(end.closed() for end in ends)))
        finally:
            for end in ends:
                end.close()
    assert third.stats().conflicts == 8
    assert len(third._node.conflicts._held) <= 3


@pytest.mark.parametrize("how", ["reset", "never reads"])
async def test_a_second_process_that_died_at_once_leaves_the_first_one_in_peace(
    make: Make, raw: Open, how: str
) -> None:
    """Both must answer to be a conflict: a program started twice by mistake that ends at once is none."""
    identity = openline.Identity()
    third, one = await make("third", max_idle_timeout=1.5), await make("one", identity=identity, **QUICK)
    box, at_one, home = Box(third), Box(one), await serve(third)
    await one.connect(home, keep=True)
    await one.send(home, task(1))
    other = await raw(port_of(home), Actor(identity=identity))
    if how == "reset":
        other.reset()
    await within(one.send(home, task(2)))

    async def reached() -> None:
        while True:
            try:
                return await third.send(identity.node_id, task("to one"), timeout=5.0)
            except openline.Unreachable:
                await asyncio.sleep(0.01)

    await within(reached(), 8.0)
    await within(one.send(home, task(3)))
    assert (box.payloads, at_one.payloads) == ([1, 2, 3], ["to one"])
    await eventually(lambda: settled(third, one))
    assert third.stats().conflicts == one.stats().conflicts == 0


async def test_what_one_has_handed_over_is_not_handed_over_again_because_of_another(
    make: Make, raw: Open
) -> None:
    """Exactly once while both processes live, also if a second one with the same key comes and goes."""
    identity, third = openline.Identity(), await make("third")
    box, home = Box(third), await serve(third)
    one = Actor(identity=identity)
    first = await raw(port_of(home), one)
    await first.post(*tasks(3))
    await eventually(lambda: len(box) == 3)
    first.reset()  # and with it the acknowledgement
    passing = await raw(port_of(home), Actor(identity=identity))
    passing.reset()
    await eventually(lambda: not third.peers())
    one.numbers["default"] = 1
    again = await raw(port_of(home), one)
    await again.post(*tasks(4))
    await eventually(lambda: 3 in box.payloads)
    assert box.payloads == [0, 1, 2, 3]
