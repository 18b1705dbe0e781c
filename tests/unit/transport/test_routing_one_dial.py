"""One dial per peer at a time, and every waiter shares its result (rule 3.1)."""

from __future__ import annotations

import asyncio
import errno

import pytest

import openline

from .conftest import Make, Open
from .helpers import Box, Dials, eventually, port_of, serve, task, tasks, within
from .rawsocket import Actor, RawServer


async def test_a_batch_of_50_to_a_new_peer_opens_one_connection(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(b)
    receipts = await a.send_batch(await serve(b), tasks(50))
    assert len(receipts) == 50
    await eventually(lambda: box.payloads == list(range(50)))
    assert (a.stats().created, a.stats().dials, b.stats().accepted) == (1, 1, 1)


async def test_50_concurrent_sends_to_a_new_peer_share_one_dial(make: Make) -> None:
    dials = Dials()
    a, b = await make(opener=dials), await make()
    box = Box(b)
    address = await serve(b)
    receipts = await asyncio.gather(*(a.send(address, message) for message in tasks(50)))
    assert {receipt.attempts for receipt in receipts} == {1}
    await eventually(lambda: len(box) == 50)
    assert sorted(box.payloads) == list(range(50))
    assert (len(dials.made), a.stats().created, b.stats().accepted) == (1, 1, 1)


@pytest.mark.parametrize("form", ["ws://127.0.0.1:{}", "ws://127.0.0.1:{}/", "127.0.0.1:{}"])
async def test_spellings_of_one_address_share_one_dial(make: Make, form: str) -> None:
    a, b = await make(), await make()
    address = await serve(b)
    other = form.format(port_of(address))
    await asyncio.gather(a.send(address, task()), a.send(other, task()), a.connect(other))
    assert (a.stats().dials, b.stats().accepted) == (1, 1)


async def test_a_name_and_its_address_share_one_connection(make: Make) -> None:
    a, b = await make(), await make()
    address = await serve(b)
    await a.send(f"localhost:{port_of(address)}", task())
    await a.send(address, task())
    assert (a.stats().created, b.stats().accepted) == (1, 1)


async def test_all_waiters_get_the_failure_of_a_shared_dial(make: Make) -> None:
    dials = Dials()
    dials.error = OSError(errno.EHOSTUNREACH, "no route")
    dials.gate.clear()
    a = await make(opener=dials)
    sends = [asyncio.ensure_future(a.send("127.0.0.1:9", message)) for message in tasks(50)]
    await eventually(lambda: dials.made)
    dials.gate.set()
    results = await within(asyncio.gather(*sends, return_exceptions=True))
    assert {type(result) for result in results} == {openline.Unreachable}
    assert all("EHOSTUNREACH" in str(result) for result in results)
    assert (len(dials.made), a.stats().dials, a.stats().dial_failures) == (1, 1, 1)


async def test_after_a_failed_dial_the_next_send_dials_again(make: Make) -> None:
    dials = Dials()
    a, b = await make(opener=dials), await make()
    address = await serve(b)
    dials.error = OSError(errno.ENETDOWN, "down")
    with pytest.raises(openline.Unreachable):
        await a.send(address, task())
    dials.error = None
    assert (await a.send(address, task())).attempts == 1


async def test_every_dial_has_a_time_out(make: Make) -> None:
    dials = Dials()
    dials.gate.clear()
    a = await make(opener=dials, dial_timeout=0.1)
    with pytest.raises(openline.Unreachable, match=r"127\.0\.0\.1:9"):
        await within(a.send("127.0.0.1:9", task()), 2.0)


async def test_a_server_that_never_answers_the_upgrade_is_unreachable(
    make: Make, raw_server: RawServer
) -> None:
    a = await make(dial_timeout=0.1)
    with pytest.raises(openline.Unreachable, match=raw_server.address):
        await within(a.send(raw_server.address, task()), 2.0)
    assert a.stats().active == 0


async def test_one_waiter_that_gives_up_does_not_take_the_dial_from_the_others(make: Make) -> None:
    dials = Dials()
    dials.gate.clear()
    a, b = await make(opener=dials), await make()
    address = await serve(b)
    impatient = asyncio.ensure_future(a.send(address, task(), timeout=0.05))
    patient = asyncio.ensure_future(a.send(address, task()))
    with pytest.raises(TimeoutError):
        await impatient
    dials.gate.set()
    assert (await within(patient)).attempts == 1
    assert len(dials.made) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_connection_that_comes_in_while_a_dial_hangs_releases_the_waiters(
    make: Make, host: str
) -> None:
    dials = Dials()
    dials.gate.clear()
    a, b = await make(opener=dials), await make()
    box = Box(b)
    home = f"{host}:{port_of(await serve(b))}"
    sends = [asyncio.ensure_future(a.send(home, message)) for message in tasks(3)]
    await eventually(lambda: dials.made)
    await b.connect(await serve(a))
    receipts = await within(asyncio.gather(*sends), 1.0)
    assert {receipt.direction for receipt in receipts} == {"inbound"}
    await eventually(lambda: sorted(box.payloads) == [0, 1, 2])
    assert a.stats().created == 0


async def test_a_plain_connection_that_comes_in_while_a_dial_hangs_releases_the_waiters(
    make: Make, raw: Open
) -> None:
    dials = Dials()
    dials.gate.clear()
    a = await make(opener=dials)
    sending = asyncio.ensure_future(a.send("127.0.0.1:9", task("hi")))
    await eventually(lambda: dials.made)
    client = await raw(port_of(await serve(a)))
    assert (await within(sending, 1.0)).direction == "inbound"
    assert (await client.message())["payload"] == "hi"


async def test_a_stranger_that_comes_in_while_a_dial_hangs_gets_nothing(make: Make, raw: Open) -> None:
    dials = Dials()
    dials.gate.clear()
    a = await make(opener=dials, dial_timeout=0.3)
    sending = asyncio.ensure_future(a.send("127.0.0.1:9", task("secret")))
    await eventually(lambda: dials.made)
    stranger = await raw(port_of(await serve(a)), Actor(10))
    with pytest.raises(openline.Unreachable):
        await within(sending)
    await a.close()
    assert b"secret" not in await stranger.gone()
