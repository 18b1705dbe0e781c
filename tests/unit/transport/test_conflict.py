"""One connection per pair of nodes, and one process per identity (rule 3.3)."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

import openline
from openline.connection.connection import CHALLENGE, State
from openline.peers import conflicts, paths

from .certificates import Certificate
from .conftest import Make, Open
from .helpers import (
    CLOSE,
    PING,
    PONG,
    Actor,
    Box,
    Dials,
    Raw,
    RawServer,
    eventually,
    port_of,
    serve,
    task,
    tasks,
    within,
)
from .proofs import Middle, between, ids, nothing, pair, settled

REPLACED, CONFLICT = 4001, 4002
QUICK = {"backoff_min": 0.02, "backoff_max": 0.1}


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection that lost is closed soon, so that tests need not wait."""
    monkeypatch.setattr(paths, "DRAIN_GRACE", 0.05)


@pytest.fixture
async def middle(stack: AsyncExitStack) -> Callable[..., Awaitable[Middle]]:
    async def made(target: int | str, **how: Any) -> Middle:
        port = target if isinstance(target, int) else port_of(target)
        return await stack.enter_async_context(Middle(port, **how))

    return made


Between = Callable[..., Awaitable[Middle]]


async def two(make: Make, **config: Any) -> tuple[openline.Transport, openline.Transport]:
    """Two transports, that with the greater public key first."""
    high, low = pair()
    return (
        await make("high", identity=high, **config),
        await make("low", identity=low, **config),
    )


def quiet(*transports: openline.Transport) -> list[tuple[int, int, int]]:
    """What rises when somebody dials."""
    return [(t.stats().dials, t.stats().created, t.stats().accepted) for t in transports]


def at_rest(one: openline.Transport, other: openline.Transport) -> bool:
    """Settled, and no dial is under way any more: one that was overtaken still comes to its end."""
    stats = one.stats(), other.stats()
    return settled(one, other) and all(s.dials == s.created + s.dial_failures for s in stats)


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


# Two that dial each other ---------------------------------------------------------------------------


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
    await asyncio.sleep(1.0)
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
    await asyncio.sleep(2.5)
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


# A node played by hand ------------------------------------------------------------------------------


async def rivals(t: openline.Transport, actor: Actor, raw_server: RawServer, raw: Open) -> tuple[Raw, Raw]:
    """Two connections of ``t`` and the actor: one that ``t`` dials, then one that the actor dials."""
    home = await serve(t)
    connecting = asyncio.ensure_future(t.connect(raw_server.address))
    theirs = await raw_server.accept(actor)
    await within(connecting)
    ours = await raw(port_of(home), actor)
    return theirs, ours


async def test_the_greater_key_closes_the_other_ones_dial_after_a_grace_and_says_why(
    make: Make, raw_server: RawServer, raw: Open
) -> None:
    high, low = pair()
    t, actor = await make(identity=high), Actor(identity=low)
    box = Box(t)
    winner, loser = await rivals(t, actor, raw_server, raw)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    # The actor has not noticed yet: what it still says there is taken in, and acknowledged there.
    await loser.post(task("on the loser"))
    await eventually(lambda: box.payloads == ["on the loser"])
    for number in range(3):
        receipt = await winner.takes(t.send(actor.node_id, task(number)))
        assert receipt.direction == "outbound"
    assert await within(loser.closed()) == REPLACED
    assert 0.5 < loop.time() - begin < 3.0
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
    connecting = asyncio.ensure_future(t.connect(raw_server.address, keep=True))
    loser = await raw_server.accept(actor)
    await within(connecting)
    winner = await raw(port_of(home), actor)
    await eventually(lambda: t.stats().active == 2)
    assert (await winner.takes(t.send(raw_server.address, task("inbound")))).direction == "inbound"
    await asyncio.sleep(1.5)
    assert t.stats().active == 2, "it is not the one to close"
    await loser.frame(CLOSE, REPLACED.to_bytes(2, "big") + b"another connection stays")
    await within(loser.gone())
    await eventually(lambda: t.stats().active == 1)
    await asyncio.sleep(0.5)
    assert len(dials.made) == 1
    await winner.takes(t.send(raw_server.address, task("still")))
    assert winner.payloads == ["inbound", "still"]
    assert "reaches the node that this address was dialed to" in t.explain(raw_server.address).why
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
    await asyncio.sleep(1.2)
    assert (t.stats().active, t.stats().replaced, t.stats().conflicts) == (4, 0, 0)
    assert len(ends) == 4


# ws and wss -----------------------------------------------------------------------------------------


@pytest.fixture
def secure(make: Make, certificate: Certificate) -> Any:
    """``await secure(greater)``: a client of ``wss``, and a server with its ``wss`` address."""

    async def made(client_is_greater: bool, dials: Dials | None = None) -> tuple[Any, Any, str]:
        high, low = pair()
        keys = (high, low) if client_is_greater else (low, high)
        only = {"backends": ("websocket",), **QUICK}
        client = await make("client", identity=keys[0], tls=openline.Tls(ca=certificate.cert), **only)
        server = await make("server", identity=keys[1], tls=certificate.serving(), opener=dials, **only)
        return client, server, await serve(server)

    return made


@pytest.mark.parametrize("order", ["wss first", "ws first", "at once"])
@pytest.mark.parametrize("client_is_greater", [True, False])
async def test_wss_beats_ws_whoever_has_the_greater_key(
    secure: Any, short_grace: None, client_is_greater: bool, order: str
) -> None:
    client, server, home = await secure(client_is_greater)
    back = await serve(client)
    over_tls, plain = (lambda: client.connect(f"wss://{home}")), (lambda: server.connect(back))
    if order == "at once":
        await asyncio.gather(over_tls(), plain())
    elif order == "ws first":
        await plain()
        await eventually(lambda: settled(client, server))
        await over_tls()
    else:
        await over_tls()
        await eventually(lambda: settled(client, server))
        await plain()
    await eventually(lambda: at_rest(client, server))
    await eventually(lambda: all(c.endpoint.secure for c in between(client, server)))
    assert [c.endpoint.secure for c in between(client, server)] == [True]
    assert [c.endpoint.secure for c in between(server, client)] == [True]
    before = quiet(client, server)
    boxes = Box(client), Box(server)
    assert (await client.send(f"wss://{home}", task(1))).acked
    assert (await server.send(back, task(2))).acked
    assert (await client.send(server.node_id, task(3))).acked
    assert (boxes[0].payloads, boxes[1].payloads) == ([2], [1, 3])
    assert quiet(client, server) == before


@pytest.mark.parametrize("client_is_greater", [True, False])
async def test_wss_and_ws_that_are_both_kept_do_not_fight(
    secure: Any, short_grace: None, client_is_greater: bool
) -> None:
    client, server, home = await secure(client_is_greater)
    back = await serve(client)
    await asyncio.gather(client.connect(f"wss://{home}", keep=True), server.connect(back, keep=True))
    await eventually(lambda: at_rest(client, server))
    await eventually(lambda: all(c.endpoint.secure for c in between(client, server)))
    kept, before = ids(client, server), quiet(client, server)
    await asyncio.sleep(1.0)
    assert (ids(client, server), quiet(client, server)) == (kept, before)


@pytest.mark.parametrize("client_is_greater", [True, False])
async def test_a_wss_address_is_never_answered_by_ws_after_its_connection_is_lost(
    secure: Any, middle: Between, short_grace: None, client_is_greater: bool
) -> None:
    client, server, home = await secure(client_is_greater)
    box, back = Box(server), await serve(client)
    path = await middle(home, blind=True)
    to = f"wss://{path.address}"
    await client.send(to, task("secret 1"))
    path.target = 1  # whoever dials it now gets nowhere
    path.cut()
    await eventually(lambda: not client.peers() and not server.peers())
    await server.connect(back)
    await eventually(lambda: settled(client, server))
    assert not any(c.endpoint.secure for c in between(client, server))
    assert client.explain(to).chosen is None
    assert isinstance(await nothing(within(client.send(to, task("secret 2")))), openline.Unreachable)
    assert (await client.send(server.node_id, task("by node id"))).acked
    path.target = port_of(home)
    assert (await within(client.send(to, task("secret 3")))).acked
    assert all(
        c.endpoint.secure for c in between(client, server) if c is client.peers()[0]._remote.paths.carrier
    )
    assert box.payloads == ["secret 1", "by node id", "secret 3"]


@pytest.mark.parametrize("client_is_greater", [True, False])
async def test_ws_that_replaces_a_suspect_wss_does_not_take_over_its_address(
    secure: Any, middle: Between, short_grace: None, client_is_greater: bool
) -> None:
    client, server, home = await secure(client_is_greater)
    box, back = Box(server), await serve(client)
    path = await middle(home, blind=True)
    to = f"wss://{path.address}"
    await client.send(to, task("secret 1"))
    path.freeze()
    path.target = 1
    for connection in [*between(client, server), *between(server, client)]:
        connection.set_state(State.SUSPECT)  # as liveness would
    await server.connect(back)
    await eventually(lambda: any(c.state.value == "live" for c in between(client, server)))
    error = await nothing(within(client.send(to, task("secret 2"), timeout=1.0)))
    assert isinstance(error, openline.Unreachable | TimeoutError | openline.NotConfirmed)
    explained = client.explain(to)
    assert explained.chosen is None or "outbound" in explained.chosen
    path.cut()
    await eventually(lambda: len(between(client, server)) == 1)
    assert not between(client, server)[0].endpoint.secure
    assert client.explain(to).chosen is None
    assert isinstance(await nothing(within(client.send(to, task("secret 3")))), openline.Unreachable)
    assert box.payloads == ["secret 1"]


@pytest.mark.parametrize("client_is_greater", [True, False])
async def test_only_the_client_finds_its_wss_suspect_and_ws_does_not_inherit_its_address(
    secure: Any, middle: Between, short_grace: None, client_is_greater: bool
) -> None:
    """The server believes in it still; its own dial had begun before."""
    dials = Dials()
    client, server, home = await secure(client_is_greater, dials)
    box, back = Box(server), await serve(client)
    dials.gate.clear()
    dialing = asyncio.ensure_future(server.connect(back))
    await eventually(lambda: dials.made)
    path = await middle(home, blind=True)
    to = f"wss://{path.address}"
    await client.send(to, task("secret 1"))
    path.freeze()
    path.target = 1
    between(client, server)[0].set_state(State.SUSPECT)
    dials.gate.set()
    await within(dialing)
    await eventually(lambda: any(c.state is State.LIVE for c in between(client, server)))
    explained = client.explain(to)
    assert explained.chosen is None or "outbound" in explained.chosen
    path.cut()
    await eventually(lambda: len(between(client, server)) == len(between(server, client)) == 1)
    assert client.explain(to).chosen is None
    assert isinstance(await nothing(within(client.send(to, task("secret 2")))), openline.Unreachable)
    assert (await within(client.send(server.node_id, task("by node id")))).acked
    assert box.payloads == ["secret 1", "by node id"]


@pytest.mark.parametrize("client_is_greater", [True, False])
async def test_what_is_under_way_to_a_wss_address_is_never_sent_again_over_ws(
    secure: Any, middle: Between, short_grace: None, client_is_greater: bool
) -> None:
    client, server, home = await secure(client_is_greater)
    box, back = Box(server), await serve(client)
    path = await middle(home, blind=True)
    to = f"wss://{path.address}"
    await client.send(to, task("secret 1"))
    path.freeze()
    sending = asyncio.ensure_future(client.send(to, task("secret 2")))
    await eventually(lambda: client.stats().messages_sent == 2)
    path.target = 1
    path.cut()
    await eventually(lambda: not client.peers())
    await eventually(lambda: not server.peers())
    await server.connect(back)
    await eventually(lambda: len(between(server, client)) == 1)
    await asyncio.sleep(0.5)
    assert not sending.done()
    assert box.payloads == ["secret 1"], "it went over ws"
    path.thaw()
    path.target = port_of(home)
    assert (await within(sending)).acked
    assert box.payloads == ["secret 1", "secret 2"]
    await eventually(lambda: settled(client, server))
    assert between(client, server)[0].endpoint.secure


async def test_what_waits_for_wss_does_not_hold_up_other_streams_that_may_take_ws(
    secure: Any, middle: Between, short_grace: None
) -> None:
    """Streams are independent: a way that is closed to one message is not closed to the others."""
    client, server, home = await secure(True)
    box, back = Box(server), await serve(client)
    path = await middle(home, blind=True)
    await client.send(f"wss://{path.address}", task("secret 1"))
    path.freeze()
    sending = asyncio.ensure_future(client.send(f"wss://{path.address}", task("secret 2", stream_id="s")))
    await eventually(lambda: client.stats().messages_sent == 2)
    path.target = 1
    path.cut()
    await eventually(lambda: not client.peers() and not server.peers())
    await server.connect(back)
    await eventually(lambda: between(client, server))
    receipt = await client.send(server.node_id, task("status", stream_id="status"), timeout=2.0)
    assert receipt.acked
    assert box.payloads == ["secret 1", "status"]
    assert not sending.done()
    sending.cancel()


async def test_of_connections_that_were_asked_for_a_certificate_each_side_keeps_its_own(
    make: Make, certificate: Certificate, short_grace: None
) -> None:
    """On the connection that one side has dialed, the other one has not shown it any certificate."""
    high, low = pair()
    tls = certificate.serving(ca=certificate.cert)
    a, b = await make(identity=high, tls=tls), await make(identity=low, tls=tls)
    boxes = Box(a), Box(b)
    home_a, home_b = f"wss://{await serve(a)}", f"wss://{await serve(b)}"
    await asyncio.gather(a.connect(home_b), b.connect(home_a))
    await eventually(lambda: len(between(a, b)) == len(between(b, a)) == 2)
    before = quiet(a, b)
    await asyncio.sleep(0.3)  # no event says that none of them ends
    assert (await a.send(home_b, task(1))).direction == "outbound"
    assert (await b.send(home_a, task(2))).direction == "outbound"
    assert (boxes[0].payloads, boxes[1].payloads) == ([2], [1])
    assert quiet(a, b) == before
    assert len(between(a, b)) == len(between(b, a)) == 2
    assert a.stats().conflicts == b.stats().conflicts == 0


# Messages meanwhile ---------------------------------------------------------------------------------


class Talk:
    """One side sends numbered messages on several streams, one after the other on each."""

    def __init__(self, t: openline.Transport, to: list[str], streams: int = 3) -> None:
        self._t = t
        self._to = itertools.cycle(to)
        self.sent = Counter[str]()
        self.stop = False
        self._tasks = [asyncio.ensure_future(self._run(f"s{n}")) for n in range(streams)]

    async def _run(self, stream: str) -> None:
        while not self.stop:
            try:
                await self._t.send(next(self._to), task(self.sent[stream], stream_id=stream))
            except openline.Unreachable:
                await asyncio.sleep(0.005)  # no byte has left: the same one again
            else:
                self.sent[stream] += 1
                await asyncio.sleep(0)

    async def end(self) -> None:
        self.stop = True
        await within(asyncio.gather(*self._tasks), 10.0)


def check(talk: Talk, box: Box) -> None:
    """Each stream has come whole, in order, and once."""
    by_stream: dict[str, list[int]] = {stream: [] for stream in talk.sent}
    for message in box:
        by_stream[str(message.stream_id)].append(message.payload)
    assert by_stream == {stream: list(range(count)) for stream, count in talk.sent.items()}


@pytest.mark.parametrize("grace", [0.0, 0.05])
async def test_nothing_is_lost_doubled_or_reordered_while_both_dial_again_and_again(
    make: Make, middle: Between, monkeypatch: pytest.MonkeyPatch, grace: float
) -> None:
    """Each round adds a dial in each direction, at once, over paths of their own."""
    monkeypatch.setattr(paths, "DRAIN_GRACE", grace)
    a, b = await two(make)
    boxes = Box(a), Box(b)
    home_a, home_b = await serve(a), await serve(b)
    talks = Talk(a, [home_b]), Talk(b, [home_a])
    await eventually(lambda: len(boxes[0]) > 10 and len(boxes[1]) > 10)
    for _ in range(25):
        there, back = await middle(home_b), await middle(home_a)
        await within(asyncio.gather(a.connect(there.address), b.connect(back.address)))
        count = len(boxes[0]), len(boxes[1])
        await eventually(lambda: len(boxes[0]) > count[0] + 5 and len(boxes[1]) > count[1] + 5)  # noqa: B023
    for talk in talks:
        await talk.end()
    await eventually(lambda: settled(a, b))
    check(talks[0], boxes[1])
    check(talks[1], boxes[0])
    for t in (a, b):
        stats = t.stats()
        assert (stats.malformed, stats.conflicts, stats.in_doubt, stats.active) == (0, 0, 0, 1)


async def test_nothing_is_lost_doubled_or_reordered_while_connections_are_also_cut(
    make: Make, middle: Between, short_grace: None
) -> None:
    a, b = await two(make, **QUICK)
    boxes = Box(a), Box(b)
    home_a, home_b = await serve(a), await serve(b)
    paths = [await middle(home_b), await middle(home_b)], [await middle(home_a), await middle(home_a)]
    talks = Talk(a, [p.address for p in paths[0]]), Talk(b, [p.address for p in paths[1]])
    for turn in range(40):
        count = len(boxes[0]), len(boxes[1])
        await eventually(lambda: len(boxes[0]) > count[0] + 3 and len(boxes[1]) > count[1] + 3)  # noqa: B023
        paths[turn % 2][turn // 2 % 2].cut()
        if turn % 3 == 0:
            paths[1 - turn % 2][turn // 2 % 2].cut()
    for talk in talks:
        await talk.end()
    await eventually(lambda: settled(a, b))
    check(talks[0], boxes[1])
    check(talks[1], boxes[0])
    assert (a.stats().malformed, b.stats().malformed) == (0, 0)
    assert (a.stats().in_doubt, b.stats().in_doubt) == (0, 0)


async def test_requests_get_their_answers_while_connections_replace_each_other(
    make: Make, middle: Between, short_grace: None
) -> None:
    a, b = await two(make)
    for t in (a, b):
        t.on_message(lambda peer, message: peer.reply(message, message.payload * 2))
    home_a, home_b = await serve(a), await serve(b)
    stop = False

    async def ask(t: openline.Transport, to: str) -> int:
        for number in itertools.count():
            reply = await t.request(to, task(number), timeout=5.0)
            assert reply.payload == 2 * number
            if stop:
                return number
        return 0

    asking = [asyncio.ensure_future(ask(a, home_b)) for _ in range(4)]
    asking += [asyncio.ensure_future(ask(b, home_a)) for _ in range(4)]
    for _ in range(20):
        there, back = await middle(home_b), await middle(home_a)
        await within(asyncio.gather(a.connect(there.address), b.connect(back.address)))
    stop = True
    assert min(await within(asyncio.gather(*asking))) > 5
    await eventually(lambda: settled(a, b))


async def test_large_messages_survive_the_end_of_the_connection_that_carries_them(
    make: Make, middle: Between, short_grace: None
) -> None:
    """Some are longer than the grace time."""
    a, b = await two(make)
    boxes = Box(a), Box(b)
    home_a, home_b = await serve(a), await serve(b)
    body = "x" * 3_000_000
    sending = [asyncio.ensure_future(a.send(home_b, task([n, body]))) for n in range(6)]
    sending += [asyncio.ensure_future(b.send(home_a, task([n, body]))) for n in range(6)]
    for _ in range(6):
        there, back = await middle(home_b), await middle(home_a)
        await within(asyncio.gather(a.connect(there.address), b.connect(back.address)))
    receipts = await within(asyncio.gather(*sending), 15.0)
    assert all(receipt.acked for receipt in receipts)
    for box in boxes:
        assert [n for n, _ in box.payloads] == list(range(6))


class Stage:
    """Lets the first connection of a middle go on step by step."""

    def __init__(self) -> None:
        self._gates = {name: asyncio.Event() for name in ("request", "response", "proof")}
        self._left = list(self._gates)
        self.reached: set[str] = set()

    async def __call__(self, name: str) -> None:
        self.reached.add(name)
        await self._gates[name].wait()

    async def advance(self) -> None:
        name = self._left.pop(0)
        # A step behind one that was cut, or spared, is never reached.
        for _ in range(50):
            if name in self.reached:
                break
            await asyncio.sleep(0.001)
        self._gates[name].set()
        for _ in range(20):
            await asyncio.sleep(0)

    def open(self) -> None:
        for gate in self._gates.values():
            gate.set()


ORDERS = sorted(set(itertools.permutations("AAABBB")))
CRASHES = [None, *((at, who) for at in range(7) for who in "AB")]


async def interleaved(make: Make, order: tuple[str, ...], crash: tuple[int, str] | None) -> None:
    """Two dials whose steps come in that order, and a crash of one of them before one of the steps."""
    a, b = await two(make, **QUICK)
    boxes = Box(a), Box(b)
    stages = {"A": Stage(), "B": Stage()}
    async with (
        Middle(port_of(await serve(b)), step=stages["A"]) as there,
        Middle(port_of(await serve(a)), step=stages["B"]) as back,
    ):
        paths = {"A": there, "B": back}
        keeping = asyncio.gather(a.connect(there.address, keep=True), b.connect(back.address, keep=True))
        talks = Talk(a, [there.address], 2), Talk(b, [back.address], 2)
        for at, who in enumerate([*order, ""]):
            if crash is not None and crash[0] == at:
                paths[crash[1]].cut()
            if who:
                await stages[who].advance()
        for stage in stages.values():
            stage.open()
        await within(keeping)
        counts = len(boxes[0]), len(boxes[1])
        await eventually(lambda: len(boxes[0]) > counts[0] + 3 and len(boxes[1]) > counts[1] + 3)
        for talk in talks:
            await talk.end()
        await eventually(lambda: settled(a, b))
        check(talks[0], boxes[1])
        check(talks[1], boxes[0])
        kept = ids(a, b)
        await asyncio.sleep(0.2)
        assert (ids(a, b), ids(b, a)) == (kept, kept)
        for t in (a, b):
            assert (t.stats().active, t.stats().conflicts) == (1, 0)
            assert t.stats().in_doubt == 0


@pytest.mark.parametrize("order", ORDERS, ids=["".join(order) for order in ORDERS])
async def test_any_interleaving_of_two_dials_and_a_crash_ends_with_one_connection_and_every_message_once(
    make: Make, short_grace: None, order: tuple[str, ...]
) -> None:
    """A step is the request, the answer or the proof of one of the two dials."""
    found = await asyncio.gather(
        *(interleaved(make, order, crash) for crash in CRASHES), return_exceptions=True
    )
    wrong = {crash: error for crash, error in zip(CRASHES, found, strict=True) if error is not None}
    assert not wrong


# Two processes with one key -------------------------------------------------------------------------


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
    await asyncio.sleep(2.0)
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
    await asyncio.sleep(3.0)
    assert third.stats().accepted == 2
    assert third.stats().conflicts == 1
    assert one.stats().dials + other.stats().dials <= 20


async def test_both_that_keep_and_stay_meet_less_and_less(make: Make, hold: Any) -> None:
    hold(0.2)
    third, _, one, other = await fight(make, keep=True, **QUICK)
    await eventually(lambda: told(third, one, other))
    await asyncio.sleep(4.0)
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
    await asyncio.sleep(1.0)
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
    await asyncio.sleep(1.0)
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
    await asyncio.sleep(0.3)
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


# Waiting for a dial while the same node comes in ---------------------------------------------------------


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
    await asyncio.sleep(0.2)
    assert not any(waiting.done() for waiting in sending.values())
    for waiting in sending.values():
        assert isinstance(await nothing(within(waiting)), openline.Unreachable)
    assert (boxes[0], boxes[1], client._buffer) == ([], [], b"")


def live(one: openline.Transport, other: openline.Transport) -> list[bytes]:
    return [c.endpoint.connection_id for c in between(one, other) if c.state is State.LIVE]


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
