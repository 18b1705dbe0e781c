"""How the peer was recognised: ``Receipt.matched``, ``explain()``, and the warning about an IP alone."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from typing import Any

import pytest

import openline
from openline.routing import dialer as dialing
from openline.routing import router

from .conftest import Make, Open
from .helpers import Box, Dials, closed_port, eventually, port_of, serve, task, tasks
from .rawsocket import Actor, Raw, RawServer


async def test_by_what_was_dialed_or_by_the_node_id_in_the_address(make: Make) -> None:
    a, b = await make(), await make()
    home = await serve(b)
    for address, matched in (
        (home, "exact address"),
        (f"ws://{home}", "exact address"),
        (f"{b.node_id}@{home}", "node id"),
        (b.node_id, "node id"),
    ):
        assert (await a.send(address, task())).matched == matched
        assert (await a.send(address, task())).matched == matched
        assert {receipt.matched for receipt in await a.send_batch(address, tasks(100))} == {matched}
        assert (a.explain(address).matched, matched in str(a.explain(address))) == (matched, True)
    assert a.explain("127.0.0.1:9").matched is None


async def test_by_the_port_that_a_node_claims(make: Make) -> None:
    a, b = await make(), await make()
    home = await serve(b)
    await b.connect(await serve(a))
    for address, matched in ((home, "claimed port"), (f"{b.node_id}@{home}", "node id")):
        assert (await a.send(address, task())).matched == matched
        assert (await a.send(address, task())).matched == matched
        assert a.explain(address).matched == matched
    assert (a.stats().created, a.stats().dials) == (0, 0)


async def test_of_a_peer_in_hand(make: Make, raw: Open) -> None:
    a, b = await make(), await make()
    box = Box(a)
    address = await serve(a)
    await b.send(address, task())
    client = await raw(port_of(address))
    await client.say("hi")
    await eventually(lambda: len(box) == 2)
    node, plain = box.peers
    assert (await node.send(task())).matched == "node id"
    assert (await node.reply(box[0])).matched == "node id"
    assert (await plain.send(task())).matched == "exact address"
    assert (await plain.reply(box[1])).matched == "exact address"
    assert (await a.send(client.address, task())).matched == "exact address"
    assert (await a.send(node.address, task())).matched == "exact address"


async def test_a_second_attempt_says_it_too_and_a_measured_round_trip_does_not_change_it(
    make: Make, raw_server: RawServer
) -> None:
    a, actor = await make(), Actor()
    dialing = asyncio.ensure_future(a.connect(raw_server.address))
    first = await raw_server.accept(actor)
    await dialing
    first.reset()
    sending = asyncio.ensure_future(a.send(f"{actor.node_id}@{raw_server.address}", task()))
    second = await raw_server.accept(actor)
    receipt = await second.takes(sending)
    assert (receipt.attempts, receipt.matched) == (2, "node id")
    rtt = await second.takes(a.ping(raw_server.address))
    receipt = await second.takes(a.send(raw_server.address, task()))
    assert (receipt.rtt, receipt.matched) == (pytest.approx(rtt, rel=0.5), "exact address")


# By the IP alone ------------------------------------------------------------------------------------


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "by its IP alone" in r.getMessage()]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "LOOK_AFTER", 0.01)


async def one_client(make: Make, raw: Open, **config: Any) -> tuple[openline.Transport, Raw]:
    """A plain peer is connected, and nothing is known of it."""
    a = await make(**config)
    client = await raw(port_of(await serve(a)))
    await eventually(lambda: a.stats().active == 1)
    return a, client


async def test_the_ip_alone_is_told_and_warned_of_once(
    make: Make, raw: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="openline")
    a, client = await one_client(make, raw)
    home = f"127.0.0.1:{closed_port()}"
    assert a.explain(home).matched == "ip alone"
    assert warnings(caplog) == []
    for number in range(3):
        assert (await a.send(home, task(number))).matched == "ip alone"
        assert (await client.message())["payload"] == number
    client.reset()
    await eventually(lambda: a.stats().active == 0)
    client_again = await raw(port_of(a._listeners[0].address))
    await eventually(lambda: a.stats().active == 1)
    assert (await a.send(home, task("again"))).matched == "ip alone"
    assert (await client_again.message())["payload"] == "again"
    [warning] = warnings(caplog)
    assert all(text in warning for text in (home, client.address, 'plain_reuse="never"', "NODEID@"))


async def test_who_listens_there_is_found_in_the_background_and_gets_what_is_sent_from_then_on(
    make: Make, raw: Open, plain_server: Callable[..., Any], soon: None
) -> None:
    """A dashboard is connected from the machine on which an agent listens."""
    a, dashboard = await one_client(make, raw)
    agent = await plain_server()
    assert (await a.send(agent.address, task("first"))).matched == "ip alone"
    assert (await dashboard.message())["payload"] == "first"
    await eventually(lambda: a.explain(agent.address).matched == "exact address")
    receipt = await a.send(agent.address, task("second"))
    assert (receipt.direction, receipt.matched) == ("outbound", "exact address")
    await eventually(lambda: agent.payloads == ["second"])
    assert (a.stats().dials, a.stats().created, a.stats().dial_failures) == (1, 1, 0)
    # Not either when that connection is gone; and no other port is its by its IP without a dial.
    await agent.connections[0].close()
    await eventually(lambda: a.stats().active == 1)
    await a.send(agent.address, task("third"))
    await eventually(lambda: agent.payloads == ["second", "third"])
    other = await plain_server()
    await a.send(other.address, task("other"))
    await eventually(lambda: other.payloads == ["other"])
    await a.close()
    assert b"third" not in await dashboard.gone()


async def test_where_nobody_can_be_dialed_its_messages_stay_on_its_socket(
    make: Make, raw: Open, soon: None
) -> None:
    """The route is stale: the case that this is for."""
    dials = Dials()
    dials.error = OSError(errno.EHOSTUNREACH, "no route")
    a, client = await one_client(make, raw, opener=dials)
    for number in range(20):
        receipt = await a.send("127.0.0.1:9", task(number))
        assert (receipt.attempts, receipt.direction, receipt.matched) == (1, "inbound", "ip alone")
        if number == 10:
            await eventually(lambda: dials.made and not a._node.dialer._looking)
    assert [(await client.message())["payload"] for _ in range(20)] == list(range(20))
    assert len(dials.made) == 1
    assert (a.stats().created, a.stats().dials, a.stats().dial_failures) == (0, 0, 0)


async def test_nobody_looks_for_a_peer_that_is_gone_by_then(
    make: Make, raw: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "LOOK_AFTER", 0.05)
    dials = Dials()
    a, client = await one_client(make, raw, opener=dials)
    await a.send("127.0.0.1:9", task())
    client.reset()
    await eventually(lambda: a.stats().active == 0 and not a._node.dialer._looking)
    assert dials.made == []


async def test_closing_does_not_wait_for_a_look(make: Make, raw: Open, soon: None) -> None:
    dials = Dials()
    dials.gate.clear()
    a, _ = await one_client(make, raw, opener=dials)
    await a.send("127.0.0.1:9", task())
    await eventually(lambda: dials.made)
    await a.close()
    assert not a._node.dialer._looking


async def test_looks_are_bounded(make: Make, raw: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialing, "MAX_LOOKS", 1)
    a, client = await one_client(make, raw)
    await a.send("127.0.0.1:9", task())
    client.reset()
    await eventually(lambda: a.stats().active == 0)
    again = await raw(port_of(a._listeners[0].address))
    await eventually(lambda: a.stats().active == 1)
    await a.send("127.0.0.1:9", task("again"))
    assert (await again.message())["payload"] == "again"
    assert len(a._node.dialer._looking) == 1
