"""Which connection stays where one is ws and the other wss (rules 3.3 and 3.1)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import openline
from openline.connection.connection import State

from ..clock import elapse
from .certificates import Certificate
from .conftest import Make
from .duplicates import QUICK, Between, at_rest, quiet
from .helpers import Box, Dials, eventually, port_of, serve, task, within
from .proofs import between, ids, nothing, pair, settled

# Nobody waits for what takes time in here.
pytestmark = pytest.mark.usefixtures("hurried")


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
    await elapse(1.0)
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
    await server.connect(f"ws://{back}")
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
    await server.connect(f"ws://{back}")
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
    await elapse(0.5)
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
    await elapse(0.3)  # no event says that none of them ends
    assert (await a.send(home_b, task(1))).direction == "outbound"
    assert (await b.send(home_a, task(2))).direction == "outbound"
    assert (boxes[0].payloads, boxes[1].payloads) == ([2], [1])
    assert quiet(a, b) == before
    assert len(between(a, b)) == len(between(b, a)) == 2
    assert a.stats().conflicts == b.stats().conflicts == 0
