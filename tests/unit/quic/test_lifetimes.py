"""Whichever way a QUIC connection ends: nothing of it is kept by a circle, on neither side (rule 3.10).

What may hold something for a while, by a timer: the closing state of QUIC (three times what a probe
waits, RFC 9000 section 10.2), and a goodbye that is not answered (``GOODBYE_WAIT``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import openline
from openline.backends.quic.framing import BINARY, HELLO, header
from openline.testing.conformance.lifetimes import lifetimes

from ..clock import elapse
from ..transport.helpers import closed_port, eventually, task
from ..transport.rawsocket import Actor
from ..transport.wire import batch
from .conftest import Dial, Make, Serve
from .rawquic import Over, RawQuic, client_configuration, unit

SOON = 30.0

Ending = Callable[[openline.Transport, RawQuic], Awaitable[object]]
BEFORE: dict[str, Ending] = {}
INSIDE: dict[str, Ending] = {}


def before(ending: Ending) -> Ending:
    """With a client whose TLS handshake is done."""
    BEFORE[getattr(ending, "__name__", "")] = ending
    return ending


def inside(ending: Ending) -> Ending:
    """With an openline peer."""
    INSIDE[getattr(ending, "__name__", "")] = ending
    return ending


@before
async def no_hello_and_gone(t: openline.Transport, client: RawQuic) -> None:
    client.leave()


@before
async def no_hello_and_silence(t: openline.Transport, client: RawQuic) -> None:
    client.close()


@before
async def half_a_hello(t: openline.Transport, client: RawQuic) -> None:
    client.write(client.control, unit(HELLO, Actor().hello(1).encode())[:50])
    client.close()


@before
async def an_invalid_hello(t: openline.Transport, client: RawQuic) -> None:
    client.write(client.control, unit(HELLO, b"nonsense"))
    await client.gone()


@before
async def a_conflict(t: openline.Transport, client: RawQuic) -> None:
    same = Actor(identity=t._node.door.identity)
    client.write(client.control, unit(HELLO, same.hello(1).encode()))
    assert (await client.gone()).code == 4002


@before
async def a_hello_and_gone(t: openline.Transport, client: RawQuic) -> None:
    await client.greet(Actor())
    client.leave()


@before
async def a_hello_and_silence(t: openline.Transport, client: RawQuic) -> None:
    await client.greet(Actor())
    client.close()


@before
async def a_wrong_proof(t: openline.Transport, client: RawQuic) -> None:
    await client.greet(Actor())
    client.prove(Actor().prove(client.transcript))
    await client.gone()


@before
async def half_a_proof(t: openline.Transport, client: RawQuic) -> None:
    await client.greet(Actor())
    client.write(client.control, unit(BINARY, client.actor.prove(client.transcript))[:30])
    client.leave()


@before
async def a_large_unit_before_the_proof(t: openline.Transport, client: RawQuic) -> None:
    await client.greet(Actor())
    client.write(client.control, header(BINARY, 10**6) + bytes(3000))
    await client.gone()


@before
async def much_before_the_proof(t: openline.Transport, client: RawQuic) -> None:
    client.write(client.track(1), header(BINARY, 10**6) + bytes(200_000))
    await elapse(0.1)
    client.close()


@inside
async def the_peer_says_goodbye(t: openline.Transport, client: RawQuic) -> None:
    client.goodbye(1000)
    await client.farewell()
    client.hang_up(1000)


@inside
async def the_peer_says_goodbye_and_no_more(t: openline.Transport, client: RawQuic) -> None:
    client.goodbye(1000)
    client.close()


@inside
async def we_say_goodbye(t: openline.Transport, client: RawQuic) -> None:
    next(iter(t._table.connections)).link.close(1000, "bye")
    await client.farewell()
    client.goodbye(1000 | 0x8000)
    await client.gone()


@inside
async def we_say_goodbye_and_hear_nothing(t: openline.Transport, client: RawQuic) -> None:
    next(iter(t._table.connections)).link.close(1000, "bye")
    client.close()


@inside
async def we_cut(t: openline.Transport, client: RawQuic) -> None:
    next(iter(t._table.connections)).link.abort()
    await client.gone()


@inside
async def the_peer_cuts(t: openline.Transport, client: RawQuic) -> None:
    client.post(task("hi"))
    await eventually(lambda: t.stats().messages_received == 1)
    client.leave()


@inside
async def the_peer_is_silent(t: openline.Transport, client: RawQuic) -> None:
    client.close()


@inside
async def half_a_unit(t: openline.Transport, client: RawQuic) -> None:
    client.write(client.track(1), header(BINARY, 10**6) + bytes(300_000))
    await elapse(0.1)
    client.leave()


@inside
async def half_a_unit_and_silence(t: openline.Transport, client: RawQuic) -> None:
    client.write(client.track(1), header(BINARY, 10**6) + bytes(300_000))
    await elapse(0.1)
    client.close()


@inside
async def bad_input(t: openline.Transport, client: RawQuic) -> None:
    client.say(client.track(1), b"\x01nonsense")
    await client.gone()


@inside
async def a_unit_over_the_limit(t: openline.Transport, client: RawQuic) -> None:
    client.write(client.track(1), header(BINARY, 2**40))
    await client.gone()


@inside
async def strangers_hold_too_much(t: openline.Transport, client: RawQuic) -> None:
    for track in (1, 2, 3):
        client.write(client.track(track), header(BINARY, 10**6) + bytes(900_000))
    await client.gone()


@inside
async def it_is_not_read(t: openline.Transport, client: RawQuic) -> None:
    next(iter(t._table.connections)).pause_reading()
    client.write(client.track(1), unit(BINARY, batch([task("x" * 50_000)], opens={"default": 1})))
    await elapse(0.1)
    client.leave()
    await eventually(lambda: not t.stats().active or t._table.connections)
    for connection in list(t._table.connections):
        connection.resume_reading()


SETTINGS: dict[str, Any] = {
    "handshake_timeout": 0.3,
    "max_idle_timeout": 1.5,
    "resume_timeout": 1.0,
    "stranger_buffer_bytes": 2**21,
}


@pytest.mark.parametrize("name", [*BEFORE, *INSIDE])
async def test_an_accepted_connection(make: Make, dial: Dial, name: str) -> None:
    t = await make("server", **SETTINGS)
    listener = await t.listen(0, host="127.0.0.1")
    with lifetimes() as counted:
        if name in BEFORE:
            await BEFORE[name](t, await dial(listener.port))
        else:
            client = await dial(listener.port, Actor())
            await eventually(lambda: t.stats().active == 1)
            await INSIDE[name](t, client)
        await counted.all_gone(SOON)


async def test_handshakes_that_come_to_nothing(make: Make, dial: Dial) -> None:
    """Half a TLS handshake, another protocol, another version, a retry; pushed out, and the door closed."""
    t = await make("server", **{**SETTINGS, "handshake_timeout": 5.0}, max_pending_handshakes=4)
    listener = await t.listen(0, host="127.0.0.1")
    with lifetimes() as counted:
        begun = [RawQuic.begin(listener.port) for _ in range(8)]
        for end in begun:
            end.mute = True
            end.start()
            end.put(end.sent[0], None)
        await eventually(lambda: t.stats().pending_handshakes)
        with contextlib.suppress(Over):
            await RawQuic.connect(listener.port, client_configuration(alpn_protocols=["other/1"]))
        await elapse(0.2)
        for end in begun:
            end.close()
        await listener.close()
        await counted.all_gone(SOON)


async def test_a_client_that_may_not_come_in(make: Make, dial: Dial) -> None:
    t = await make("server", allow=(openline.Identity().node_id,), **SETTINGS)
    listener = await t.listen(0, host="127.0.0.1")
    with lifetimes() as counted:
        client = await dial(listener.port)
        client.write(client.control, unit(HELLO, Actor().hello(1).encode()))
        assert (await client.gone()).code == 4003
        await counted.all_gone(SOON)


# Dialed ---------------------------------------------------------------------------------------------


async def fails(work: Awaitable[object]) -> None:
    """Whatever it raises is not kept."""
    with contextlib.suppress(openline.Error, TimeoutError, asyncio.CancelledError):
        await work


async def refuses(end: RawQuic, certificate: bytes) -> None:
    await end.read(0)
    end.hang_up(4003, "no")


async def is_the_wrong_one(end: RawQuic, certificate: bytes) -> None:
    await end.answer(Actor(), certificate + b"x")


async def says_nonsense(end: RawQuic, certificate: bytes) -> None:
    await end.read(0)
    end.write(end.control, unit(HELLO, b"nonsense"))


async def says_nothing(end: RawQuic, certificate: bytes) -> None:
    await end.read(0)


async def lets_in_and_cuts(end: RawQuic, certificate: bytes) -> None:
    await end.welcome(Actor(), certificate)
    end.hang_up()


async def lets_in_and_says_goodbye(end: RawQuic, certificate: bytes) -> None:
    await end.welcome(Actor(), certificate)
    end.goodbye(1000)
    await end.farewell()
    end.hang_up(1000)


async def lets_in_and_says_nonsense(end: RawQuic, certificate: bytes) -> None:
    await end.welcome(Actor(), certificate)
    end.say(end.track(1), b"\x01nonsense")


async def lets_in_and_falls_silent(end: RawQuic, certificate: bytes) -> None:
    await end.welcome(Actor(), certificate)
    end.mute = True


ANSWERS = (
    refuses,
    is_the_wrong_one,
    says_nonsense,
    says_nothing,
    lets_in_and_cuts,
    lets_in_and_says_goodbye,
    lets_in_and_says_nonsense,
    lets_in_and_falls_silent,
)


@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_dialed_connection(
    make: Make, listen: Serve, answer: Callable[[RawQuic, bytes], Awaitable[None]]
) -> None:
    server = listen()
    t = await make("client", dial_timeout=1.0, **SETTINGS)
    with lifetimes() as counted:
        dialing = asyncio.ensure_future(fails(t.connect(server.url)))
        await answer(await server.end(), server.certificate)
        await dialing
        del dialing
        await counted.all_gone(SOON)


async def test_dials_that_reach_nobody(make: Make, listen: Serve) -> None:
    t = await make("client", dial_timeout=0.5, **SETTINGS)
    server = listen()
    with lifetimes() as counted:
        await fails(t.connect(f"quic://127.0.0.1:{closed_port()}"))
        await fails(t.connect(f"127.0.0.1:{closed_port()}"))
        dialing = asyncio.ensure_future(t.connect(server.url))
        await server.end()
        dialing.cancel()
        await fails(dialing)
        del dialing
        await fails(t.connect(f"{openline.Identity().node_id}@{server.address}"))
        await counted.all_gone(SOON)


# Two transports -------------------------------------------------------------------------------------


async def test_two_that_talk_and_close(make: Make) -> None:
    one, other = await make("one", resume_timeout=1.0), await make("other", resume_timeout=1.0)
    ports = [(await t.listen(0, host="127.0.0.1")).port for t in (one, other)]
    first, second = (f"127.0.0.1:{port}" for port in ports)

    @one.on_message
    async def answer(peer: openline.Peer, message: openline.Message) -> None:
        if message.reply_to is None:
            await peer.reply(message, message.payload)

    with lifetimes() as counted:
        await asyncio.gather(one.connect(second), other.connect(first))
        for size in (1, 100_000, 3_000_000):
            await other.request(first, task("x" * size))
        await one.send_batch(second, [task(n, stream_id=n) for n in range(100)])
        await other.close()
        await one.close()
        await counted.all_gone(SOON)


async def test_a_race_that_is_lost(make: Make) -> None:
    """Both backends get through; one of the two connections is given up."""
    server, client = await make("server"), await make("client", backends=("websocket", "quic"))
    listener = await server.listen(0, host="127.0.0.1")
    with lifetimes() as counted:
        for _ in range(3):
            await asyncio.gather(
                client.connect(f"ws://127.0.0.1:{listener.port}"),
                client.connect(f"quic://127.0.0.1:{listener.port}"),
            )
            for connection in list(client._table.connections):
                connection.link.close(1000, "next")
            del connection
            await counted.all_gone(SOON)
