"""connect(keep=True): stay connected, without a stampede."""

from __future__ import annotations

import asyncio
import errno
import socket
from itertools import pairwise
from typing import Any

import pytest

import openline

from ..clock import Passed, elapse
from .conftest import Make
from .helpers import Box, Dials, closed_port, eventually, port_of, serve, task, within

# Nobody waits for what takes time in here.
pytestmark = pytest.mark.usefixtures("hurried")

# Fast enough for a test, slow enough to be told from no wait at all.
QUICK = {"backoff_min": 0.02, "backoff_max": 0.1}


async def test_keep_connects_and_gives_the_peer(make: Make) -> None:
    a, b = await make("a"), await make(**QUICK)
    peer = await b.connect(await serve(a), keep=True)
    assert peer is not None
    assert (peer.node_id, peer.connected) == (a.node_id, True)


async def test_keep_gives_none_when_the_first_attempt_fails_and_goes_on(make: Make) -> None:
    dials = Dials()
    dials.error = OSError(errno.EHOSTUNREACH, "no route")
    a, b = await make(), await make(opener=dials, **QUICK)
    address = await serve(a)
    assert await within(b.connect(address, keep=True), 1.0) is None
    await eventually(lambda: len(dials.made) >= 3)
    dials.error = None
    await eventually(lambda: a.stats().active == b.stats().active == 1)


async def test_keep_reconnects_after_the_server_has_restarted_on_its_port(make: Make) -> None:
    a, b = await make(), await make(**QUICK)
    address = await serve(a)
    await b.connect(address, keep=True)
    await a.close()
    await eventually(lambda: b.stats().active == 0)
    again = await make()
    box = Box(again)
    await again.listen(port_of(address), host="127.0.0.1")
    await eventually(lambda: again.stats().active == 1)
    await b.send(address, task("back"))
    await eventually(lambda: box.payloads == ["back"])
    assert b.stats().created == 2


async def test_keep_reconnects_again_and_again(make: Make) -> None:
    a, b = await make(), await make(**QUICK)
    await b.connect(await serve(a), keep=True)
    for number in range(5):
        await eventually(lambda: a.stats().accepted == number + 1)  # noqa: B023
        await eventually(lambda: a.peers())
        for connection in list(a.peers()[0]._remote.connections):
            connection.link.abort()
    await eventually(lambda: a.stats().active == 1)


async def test_a_kept_connection_carries_sends_of_the_other_side(make: Make) -> None:
    a, b = await make(), await make(**QUICK)
    box = Box(b)
    home = await serve(b)
    await b.connect(await serve(a), keep=True)
    for connection in list(a.peers()[0]._remote.connections):
        connection.link.abort()
    await eventually(lambda: a.stats().accepted == 2)
    assert (await a.send(home, task("hi"))).direction == "inbound"
    await eventually(lambda: box.payloads == ["hi"])


async def test_keeping_twice_keeps_one_connection(make: Make) -> None:
    a, b = await make(), await make(**QUICK)
    address = await serve(a)
    first, second = await asyncio.gather(*(b.connect(address, keep=True) for _ in range(2)))
    assert first is second is not None
    assert (a.stats().accepted, b.stats().dials) == (1, 1)


async def test_keep_stops_on_close(make: Make) -> None:
    dials = Dials()
    dials.error = OSError(errno.ECONNREFUSED, "no")
    b = await make(opener=dials, **QUICK)
    await b.connect("127.0.0.1:9", keep=True)
    await eventually(lambda: len(dials.made) >= 2)
    await b.close()
    count = len(dials.made)
    await elapse(0.25)
    assert len(dials.made) == count


async def test_close_while_the_first_attempt_hangs_ends_the_wait(make: Make) -> None:
    dials = Dials()
    dials.gate.clear()
    b = await make(opener=dials)
    connecting = asyncio.ensure_future(b.connect("127.0.0.1:9", keep=True))
    await eventually(lambda: dials.made)
    await within(b.close(), 2.0)
    result = (await within(asyncio.gather(connecting, return_exceptions=True), 1.0))[0]
    assert result is None or isinstance(result, openline.Closed)


async def test_waits_grow_and_differ(make: Make, hurried: Passed) -> None:
    """Exponential backoff with full jitter: between the bounds, growing, and not in step."""
    fleet_dials = [Dials() for _ in range(30)]
    fleet = [await make(opener=dials, backoff_min=0.03, backoff_max=0.48) for dials in fleet_dials]
    for dials in fleet_dials:
        dials.error = OSError(errno.ECONNREFUSED, "no")
    await asyncio.gather(*(t.connect("127.0.0.1:9", keep=True) for t in fleet))
    await elapse(2.0)
    await asyncio.gather(*(t.close() for t in fleet))
    waits = [[after - before for before, after in pairwise(dials.times)] for dials in fleet_dials]
    flat = [wait for one in waits for wait in one]
    assert max(flat) < 0.48 + 0.1
    first = [one[0] for one in waits]
    later = [wait for one in waits for wait in one[4:]]
    assert sum(later) / len(later) > 2 * sum(first) / len(first)
    assert max(later) - min(later) > 0.05
    assert len({round(wait, 3) for wait in later}) > 10


async def test_an_absent_peer_is_not_dialed_in_a_tight_loop(make: Make) -> None:
    dials = Dials()
    dials.error = OSError(errno.ECONNREFUSED, "no")
    b = await make(opener=dials)
    await b.connect("127.0.0.1:9", keep=True)
    await elapse(0.5)
    assert 1 <= len(dials.made) <= 6


async def test_a_peer_that_hangs_up_at_once_is_not_dialed_in_a_tight_loop(
    make: Make, raw_server: Any
) -> None:
    """It upgrades and closes, again and again: that is no success that sets the wait back to nothing."""
    b = await make(backoff_min=0.05, backoff_max=1.0)
    accepted = 0

    async def serve_and_hang_up() -> None:
        nonlocal accepted
        while True:
            (await raw_server.accept()).close()
            accepted += 1

    serving = asyncio.ensure_future(serve_and_hang_up())
    await b.connect(raw_server.address, keep=True)
    await elapse(0.6)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    assert 2 <= accepted <= 12


async def test_an_absent_peer_is_logged_once_and_not_at_every_attempt(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    dials = Dials()
    dials.error = OSError(errno.ECONNREFUSED, "no")
    b = await make(opener=dials, **QUICK)
    await b.connect("127.0.0.1:9", keep=True)
    await eventually(lambda: len(dials.made) >= 5)
    lines = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(lines) == 1
    assert "127.0.0.1:9" in lines[0].getMessage()


async def test_keep_looks_the_name_up_again_for_every_attempt(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that has moved is found where it is now."""
    a, b = await make(), await make(**QUICK)
    address = await serve(a)
    where = ["127.0.0.2"]
    looked_up = 0

    async def look_up(host: str, port: int, **kwargs: Any) -> Any:
        nonlocal looked_up
        looked_up += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (where[0], port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    assert await b.connect(f"agent.test:{port_of(address)}", keep=True) is None
    where[0] = "127.0.0.1"
    await eventually(lambda: a.stats().active == 1)
    assert looked_up >= 2


async def test_keep_uses_a_fresh_socket_each_time(make: Make) -> None:
    dials = Dials()
    a, b = await make(), await make(opener=dials, **QUICK)
    await b.connect(await serve(a), keep=True)
    [connection] = b.peers()[0]._remote.connections
    ports = [a.peers()[0]._remote.connections[0].endpoint.port]
    connection.link.abort()
    await eventually(lambda: a.stats().accepted == 2)
    await eventually(lambda: len(a.peers()[0]._remote.connections) == 1)
    ports.append(a.peers()[0]._remote.connections[0].endpoint.port)
    assert len(dials.made) == 2
    assert ports[0] != ports[1]


async def test_keep_survives_a_dial_time_out(make: Make) -> None:
    dials = Dials()
    dials.gate.clear()
    a, b = await make(), await make(opener=dials, dial_timeout=0.05, **QUICK)
    address = await serve(a)
    assert await within(b.connect(address, keep=True), 1.0) is None
    dials.gate.set()
    await eventually(lambda: a.stats().active == 1)


async def test_keep_survives_an_error_of_the_opener_that_nobody_expected(make: Make) -> None:
    """A bug below must not end the keeping without a word."""
    dials = Dials()
    dials.error = RuntimeError("unexpected")  # type: ignore[assignment]
    a, b = await make(), await make(opener=dials, **QUICK)
    address = await serve(a)
    keeping = asyncio.ensure_future(b.connect(address, keep=True))
    await eventually(lambda: len(dials.made) >= 2)
    dials.error = None
    await eventually(lambda: a.stats().active == 1)
    await asyncio.gather(keeping, return_exceptions=True)


async def test_without_keep_a_failure_is_raised_and_nothing_goes_on(make: Make) -> None:
    dials = Dials()
    b = await make(opener=dials, **QUICK)
    with pytest.raises(openline.Unreachable):
        await b.connect(f"127.0.0.1:{closed_port()}")
    await elapse(0.2)
    assert len(dials.made) == 1


async def test_connect_after_close_is_closed(make: Make) -> None:
    b = await make()
    await b.close()
    for keep in (False, True):
        with pytest.raises(openline.Closed):
            await b.connect("127.0.0.1:9", keep=keep)
