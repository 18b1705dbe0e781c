"""Two nodes that dial each other keep one connection (rule 3.3)."""

from __future__ import annotations

import asyncio

import pytest

import openline

from ..clock import Passed, elapse
from .certificates import Certificate
from .conftest import Make, Open
from .duplicates import QUICK, REPLACED, Between, at_rest, live, quiet, two
from .helpers import Box, Dials, eventually, port_of, serve, task, tasks, within
from .proofs import between, ids, nothing, pair, settled
from .rawsocket import Actor, Raw, RawServer
from .wire import CLOSE

# Nobody waits for what takes time in here.
pytestmark = pytest.mark.usefixtures("hurried")


async def meet(one: openline.Transport, other: openline.Transport, gates: tuple[Dials, Dials]) -> None:
    """Both dial, and neither has a connection before both have begun."""
    addresses = await serve(one), await serve(other)
    for gate in gates:
        gate.gate.clear()
    dialing = asyncio.gather(one.connect(addresses[1]), other.connect(addresses[0]))
    await eventually(lambda: all(gate.made for gate in gates))
    for gate in gates:
        gate.gate.set()
    await within(dialing)


# Two that dial each other -------------------------------------------------------------------------


async def test_two_that_dial_each_other_at_once_keep_one_that_of_the_greater_key(
    make: Make, short_grace: None
) -> None:
    for _ in range(15):
        high, low = pair()
        gates = Dials(), Dials()
        a = await make("high", identity=high, opener=gates[0])
        b = await make("low", identity=low, opener=gates[1])
        await meet(a, b, gates)
        await eventually(lambda: at_rest(a, b))  # noqa: B023
        assert [c.endpoint.direction for c in between(a, b)] == ["outbound"]
        assert [c.endpoint.direction for c in between(b, a)] == ["inbound"]
        assert (a.stats().created, b.stats().created) == (1, 1)
        assert a.stats().replaced == 1
        for t in (a, b):
            assert (t.stats().conflicts, t.stats().malformed, len(t.peers())) == (0, 0, 1)
        await a.close()
        await b.close()


async def test_the_one_that_stays_carries_both_ways_by_every_name(make: Make, short_grace: None) -> None:
    high, low = pair()
    gates = Dials(), Dials()
    a = await make("high", identity=high, opener=gates[0])
    b = await make("low", identity=low, opener=gates[1])
    at_a, at_b = Box(a), Box(b)
    await meet(a, b, gates)
    await eventually(lambda: at_rest(a, b))
    before = quiet(a, b)
    home_a, home_b = (f"127.0.0.1:{t._listeners[0].port}" for t in (a, b))
    for number in range(10):
        for to in (home_b, f"ws://{home_b}", b.node_id, f"{b.node_id}@{home_b}"):
            assert (await a.send(to, task(number))).acked
        for to in (home_a, f"ws://{home_a}", a.node_id, f"{a.node_id}@{home_a}"):
            assert (await b.send(to, task(number))).acked
    assert at_a.payloads == at_b.payloads == [n for n in range(10) for _ in range(4)]
    assert quiet(a, b) == before
    assert settled(a, b)
    explained = b.explain(home_a)
    assert explained.chosen is not None
    assert "inbound" in explained.chosen


@pytest.mark.parametrize("keepers", ["both", "high", "low"])
async def test_the_loser_is_not_dialed_again_by_whoever_keeps(
    make: Make, short_grace: None, keepers: str
) -> None:
    high, low = pair()
    gates = Dials(), Dials()
    a = await make("high", identity=high, opener=gates[0], **QUICK)
    b = await make("low", identity=low, opener=gates[1], **QUICK)
    home_a, home_b = await serve(a), await serve(b)
    for gate in gates:
        gate.gate.clear()
    dialing = asyncio.gather(
        a.connect(home_b, keep=keepers != "low"), b.connect(home_a, keep=keepers != "high")
    )
    await eventually(lambda: all(gate.made for gate in gates))
    for gate in gates:
        gate.gate.set()
    await within(dialing)
    await eventually(lambda: at_rest(a, b))
    kept, before = ids(a, b), quiet(a, b)
    await elapse(1.0)
    assert (ids(a, b), ids(b, a), quiet(a, b)) == (kept, kept, before)
    assert [len(gate.made) for gate in gates] == [1, 1]


async def test_whoever_keeps_dials_when_the_one_that_stayed_is_lost(make: Make, short_grace: None) -> None:
    """The loser's address is still kept, though another connection stood for it."""
    a, b = await two(make, **QUICK)
    home_a, home_b = await serve(a), await serve(b)
    await asyncio.gather(a.connect(home_b, keep=True), b.connect(home_a, keep=True))
    for _ in range(5):
        await eventually(lambda: settled(a, b))
        before = live(a, b)
        for connection in between(a, b):
            connection.link.abort()
        await eventually(lambda: settled(a, b) and live(a, b) != before)  # noqa: B023
    await eventually(lambda: settled(a, b))
    assert (a.stats().conflicts, a.stats().malformed, b.stats().malformed) == (0, 0, 0)


async def test_both_that_keep_stay_on_one_connection_for_long(make: Make) -> None:
    """With the real grace time."""
    a, b = await two(make, **QUICK)
    home_a, home_b = await serve(a), await serve(b)
    await asyncio.gather(a.connect(home_b, keep=True), b.connect(home_a, keep=True))
    await eventually(lambda: at_rest(a, b))
    kept, before = ids(a, b), quiet(a, b)
    await elapse(2.5)
    assert (ids(a, b), ids(b, a), quiet(a, b)) == (kept, kept, before)


@pytest.mark.parametrize("first", ["high", "low"])
async def test_a_connection_that_is_there_spares_the_second_dial(make: Make, first: str) -> None:
    a, b = await two(make)
    home_a, home_b = await serve(a), await serve(b)
    await (a.connect(home_b) if first == "high" else b.connect(home_a))
    await eventually(lambda: settled(a, b))
    await asyncio.gather(a.connect(home_b), b.connect(home_a), a.connect(b.node_id), b.connect(a.node_id))
    assert a.stats().dials + b.stats().dials == 1


@pytest.mark.parametrize("dialer", ["high", "low"])
async def test_a_second_dial_in_the_same_direction_replaces_the_first(
    make: Make, middle: Between, short_grace: None, dialer: str
) -> None:
    a, b = await two(make)
    near, far = (a, b) if dialer == "high" else (b, a)
    box, home = Box(far), await serve(far)
    first, second = await middle(home), await middle(home)
    await near.connect(first.address)
    await eventually(lambda: settled(near, far))
    old = ids(near, far)
    await near.connect(second.address)
    await eventually(lambda: settled(near, far) and ids(near, far) != old)
    assert [c.endpoint.target.port for c in between(near, far)] == [second.port]
    assert near.stats().replaced + far.stats().replaced == 1
    before = quiet(near, far)
    for to in (first.address, second.address, home):
        assert (await near.send(to, task(to))).acked
    assert box.payloads == [first.address, second.address, home]
    assert quiet(near, far) == before
    assert "reaches the node that this address was dialed to" in near.explain(first.address).why


@pytest.mark.parametrize("dialer", ["high", "low"])
async def test_a_first_dial_that_comes_late_does_not_replace_the_second(
    make: Make, middle: Between, short_grace: None, dialer: str
) -> None:
    """Not the order in which they open counts, which the two may see differently."""
    a, b = await two(make)
    near, far = (a, b) if dialer == "high" else (b, a)
    home = await serve(far)
    go = asyncio.Event()

    async def wait(name: str) -> None:
        await go.wait()

    slow, fast = await middle(home, step=wait), await middle(home)
    late = asyncio.ensure_future(near.connect(slow.address))
    await eventually(lambda: slow.connections)
    await near.connect(fast.address)
    await eventually(lambda: settled(near, far))
    kept = ids(near, far)
    go.set()
    await within(late)
    await eventually(lambda: near.stats().replaced + far.stats().replaced == 1)
    await eventually(lambda: settled(near, far))
    assert ids(near, far) == kept


# A node played by hand ----------------------------------------------------------------------------


async def rivals(t: openline.Transport, actor: Actor, raw_server: RawServer, raw: Open) -> tuple[Raw, Raw]:
    """Two connections of ``t`` and the actor: one that ``t`` dials, then one that the actor dials."""
    home = await serve(t)
    connecting = asyncio.ensure_future(t.connect(raw_server.address))
    theirs = await raw_server.accept(actor)
    await within(connecting)
    ours = await raw(port_of(home), actor)
    return theirs, ours


async def test_the_greater_key_closes_the_other_ones_dial_after_a_grace_and_says_why(
    make: Make, raw_server: RawServer, raw: Open, hurried: Passed
) -> None:
    high, low = pair()
    t, actor = await make(identity=high), Actor(identity=low)
    box = Box(t)
    winner, loser = await rivals(t, actor, raw_server, raw)
    begin = hurried()
    # The actor has not noticed yet: what it still says there is taken in, and acknowledged there.
    await loser.post(task("on the loser"))
    await eventually(lambda: box.payloads == ["on the loser"])
    for number in range(3):
        receipt = await winner.takes(t.send(actor.node_id, task(number)))
        assert receipt.direction == "outbound"
    assert await within(loser.closed()) == REPLACED
    assert 0.5 < hurried() - begin < 3.0
    assert (winner.payloads, loser.payloads) == ([0, 1, 2], [])
    assert loser.acked == {"default": 2}
    await eventually(lambda: t.stats().active == 1)
    assert t.stats().replaced == 1


async def test_the_lesser_key_leaves_it_to_the_other_and_does_not_dial_again(
    make: Make, raw_server: RawServer, raw: Open
) -> None:
    high, low = pair()
    dials = Dials()
    t, actor = await make(identity=low, opener=dials, **QUICK), Actor(identity=high)
    home = await serve(t)
    there = f"ws://{raw_server.address}"
    connecting = asyncio.ensure_future(t.connect(there, keep=True))
    loser = await raw_server.accept(actor)
    await within(connecting)
    winner = await raw(port_of(home), actor)
    await eventually(lambda: t.stats().active == 2)
    assert (await winner.takes(t.send(there, task("inbound")))).direction == "inbound"
    await elapse(1.5)
    assert t.stats().active == 2, "it is not the one to close"
    await loser.frame(CLOSE, REPLACED.to_bytes(2, "big") + b"another connection stays")
    await within(loser.gone())
    await eventually(lambda: t.stats().active == 1)
    await elapse(0.5)
    assert len(dials.made) == 1
    await winner.takes(t.send(there, task("still")))
    assert winner.payloads == ["inbound", "still"]
    assert "reaches the node that this address was dialed to" in t.explain(there).why
    assert len(dials.made) == 1


async def test_told_that_it_is_replaced_by_something_that_is_not_there_it_dials_again(
    make: Make, raw_server: RawServer
) -> None:
    """A peer that says so has lost the other one by now, or lies; either way it is only a lost connection."""
    t, actor = await make(**QUICK), Actor()
    connecting = asyncio.ensure_future(t.connect(raw_server.address, keep=True))
    for number in range(3):
        end = await raw_server.accept(actor)
        await within(connecting)
        await end.takes(t.send(raw_server.address, task(number)))
        await end.frame(CLOSE, REPLACED.to_bytes(2, "big"))
        await within(end.gone())
    assert t.stats().created == 3


async def test_what_was_not_acknowledged_on_the_loser_is_sent_again_on_the_winner_in_order(
    make: Make, raw_server: RawServer, raw: Open
) -> None:
    high, low = pair()
    t, actor = await make(identity=low), Actor(identity=high)
    home = await serve(t)
    connecting = asyncio.ensure_future(t.connect(raw_server.address))
    loser = await raw_server.accept(actor)
    await within(connecting)
    sending = [asyncio.ensure_future(t.send(raw_server.address, m)) for m in tasks(5)]
    await eventually(lambda: t.stats().messages_sent == 5)  # nobody reads them there
    winner = await raw(port_of(home), actor)
    sending += [asyncio.ensure_future(t.send(raw_server.address, m)) for m in tasks(3, stream_id="x")]
    receipts = await winner.takes(asyncio.gather(*sending))
    assert all(receipt.acked for receipt in receipts)
    assert [m.payload for m in winner.got if m.stream_id == "default"] == list(range(5))
    assert [m.payload for m in winner.got if m.stream_id == "x"] == list(range(3))
    assert [r.attempts for r in receipts] == [2] * 5 + [1] * 3
    loser.close()


async def test_the_same_message_on_both_connections_is_handed_over_once(
    make: Make, raw_server: RawServer, raw: Open
) -> None:
    high, low = pair()
    t, actor = await make(identity=high), Actor(identity=low)
    box = Box(t)
    winner, loser = await rivals(t, actor, raw_server, raw)
    await loser.post(*tasks(4))
    await eventually(lambda: len(box) == 4)
    actor.numbers["default"] = 2  # it knows of the first one's acknowledgement only
    await winner.post(*tasks(6)[1:])
    await eventually(lambda: len(box) == 6)
    assert box.payloads == list(range(6))
    assert t.stats().duplicates_suppressed == 3


async def test_only_proven_nodes_replace_each_other(make: Make, raw: Open) -> None:
    """Plain peers, and nodes at one IP with different keys, each keep their own."""
    t = await make()
    address = await serve(t)
    ends = [await raw(port_of(address), who) for who in (None, None, Actor(8770), Actor(8770))]
    await eventually(lambda: t.stats().active == 4)
    await elapse(1.2)
    assert (t.stats().active, t.stats().replaced, t.stats().conflicts) == (4, 0, 0)
    assert len(ends) == 4


# Waiting for a dial while the same node comes in --------------------------------------------------


async def test_who_waits_for_a_dial_is_served_by_the_node_itself_coming_in(make: Make) -> None:
    dials = Dials()
    a, b = await make("a", opener=dials), await make("b")
    box, home, there = Box(b), await serve(a), await serve(b)
    dials.gate.clear()
    targets = [there, f"{b.node_id}@{there}", f"ws://{b.node_id}@{there}"]
    sending = [asyncio.ensure_future(a.send(to, task(to))) for to in targets]
    await eventually(lambda: dials.made)
    await b.connect(home)
    receipts = await within(asyncio.gather(*sending))
    assert {r.direction for r in receipts} == {"inbound"}
    assert sorted(box.payloads) == sorted(targets)


async def test_who_waits_for_a_dial_is_not_served_by_somebody_else(
    make: Make, raw: Open, certificate: Certificate
) -> None:
    """Not by another node, not by a plain client, and where ``wss`` was asked for not by ``ws``."""
    dials = Dials()
    a = await make("a", opener=dials, tls=openline.Tls(ca=certificate.cert), dial_timeout=1.0)
    b, c = await make("b"), await make("c")
    home, there = await serve(a), await serve(b)
    boxes = Box(b), Box(c)
    dials.gate.clear()
    sending = {
        "wss": asyncio.ensure_future(a.send(f"wss://{there}", task("secret"))),
        "wss by node id": asyncio.ensure_future(a.send(f"wss://{b.node_id}@{there}", task("secret"))),
        "somebody": asyncio.ensure_future(a.send(f"{Actor().node_id}@{there}", task("secret"))),
    }
    await eventually(lambda: len(dials.made) == 3)
    await b.connect(home)
    await c.connect(home)
    client = await raw(port_of(home))
    await client.say("hi")
    await elapse(0.2)
    assert not any(waiting.done() for waiting in sending.values())
    for waiting in sending.values():
        assert isinstance(await nothing(within(waiting)), openline.Unreachable)
    assert (boxes[0], boxes[1], client._buffer) == ([], [], b"")


async def test_a_node_that_crashes_and_comes_back_while_both_dial_is_no_conflict(
    make: Make, short_grace: None
) -> None:
    """Each time both dial at once, and what the last process left behind is half open.

    By WebSocket: a QUIC connection that is not read from still answers, as its process is there.
    """
    only = {"backends": ("websocket",), **QUICK}
    third, identity = await make("third", **only), openline.Identity()
    box, home = Box(third), await serve(third)
    port = 0
    for number in range(10):
        process = await make(f"p{number}", identity=identity, **only)
        at_process = Box(process)
        port = (await process.listen(port, host="127.0.0.1")).port
        if not number:
            await third.connect(f"127.0.0.1:{port}", keep=True)
        await within(process.connect(home, keep=True))
        assert (await within(process.send(home, task(number)))).acked
        assert (await within(third.send(identity.node_id, task(number)))).acked
        await eventually(lambda: live(third, process) == live(process, third))  # noqa: B023
        assert len(live(third, process)) == 1
        assert at_process.payloads == [number]
        # A crash: nothing is said, and nothing answers any more, nor is anything still being dialed.
        await process._node.kept.close()
        await process._node.dialer.close()
        for listener in list(process._listeners):
            await listener.close()
        for connection in between(process, third):
            connection.link.abort() if number % 2 else connection.link.pause_reading()
    assert box.payloads == list(range(10))
    assert third.stats().conflicts == 0
