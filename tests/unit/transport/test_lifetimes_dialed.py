"""Whichever way a dialed connection ends: nothing of it is kept by a circle, on neither side (rule 3.10).

Reference counts alone must free it, so the search for circles is off. The transport lives on. What may
hold something for a while, by a timer, is over by ``SOON``: picows closes 10 ms after bad input.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import openline
from openline.testing.conformance.lifetimes import lifetimes

from .certificates import Certificate
from .conftest import Make
from .endings import LOOPS, SOON, run
from .helpers import closed_port, eventually, serve, task
from .rawsocket import Actor, RawServer
from .wire import BINARY, CLOSE, switching

# Dialed -------------------------------------------------------------------------------------------


Answer = Callable[[Any, openline.Transport], Awaitable[object]]
DIALED: dict[str, Answer] = {}


def dialed(answer: Answer) -> Answer:
    DIALED[getattr(answer, "__name__", "")] = answer
    return answer


@dialed
async def hangs_up_at_once(raw: Any, t: openline.Transport) -> None:
    raw.close()


@dialed
async def says_nothing(raw: Any, t: openline.Transport) -> None:
    await raw.gone()


@dialed
async def half_an_answer(raw: Any, t: openline.Transport) -> None:
    raw.request = await raw.head()
    await raw.send(switching(raw.request)[:-4])
    raw.close()


@dialed
async def an_answer_without_end(raw: Any, t: openline.Transport) -> None:
    raw.request = await raw.head()
    with contextlib.suppress(ConnectionError):
        await raw.send(switching(raw.request)[:-2] + b"x: y\r\n" * 8000)
    await raw.gone()


@dialed
async def a_refusal(raw: Any, t: openline.Transport) -> None:
    await raw.head()
    await raw.send(b"HTTP/1.1 403 Forbidden\r\nOpenline-Refused: 1\r\nContent-Length: 2\r\n\r\nno")
    await raw.gone()


@dialed
async def another_conflict(raw: Any, t: openline.Transport) -> None:
    await raw.head()
    await raw.send(b"HTTP/1.1 409 Conflict\r\nOpenline-Refused: 1\r\nContent-Length: 2\r\n\r\nno")
    await raw.gone()


@dialed
async def no_upgrade_here(raw: Any, t: openline.Transport) -> None:
    await raw.head()
    await raw.send(b"HTTP/1.1 404 Not Found\r\n\r\n")
    await raw.gone()


@dialed
async def a_wrong_proof_of_the_server(raw: Any, t: openline.Transport) -> None:
    raw.request = await raw.head()
    answer, _ = raw.answered(Actor())
    await raw.send(answer.replace(b"proof=", b"proof=AAAA"))
    await raw.gone()


@dialed
async def in_and_cut(raw: Any, t: openline.Transport) -> None:
    raw.request = await raw.head()
    await raw.welcome(Actor())
    raw.reset()


@dialed
async def in_and_goodbye(raw: Any, t: openline.Transport) -> None:
    raw.request = await raw.head()
    await raw.welcome(Actor())
    await raw.frame(CLOSE, struct.pack("!H", 1000))
    await raw.gone()


@dialed
async def in_and_nonsense(raw: Any, t: openline.Transport) -> None:
    raw.request = await raw.head()
    await raw.welcome(Actor())
    await raw.frame(BINARY, b"\x01nonsense")
    await raw.gone()


@dialed
async def in_and_half_a_frame(raw: Any, t: openline.Transport) -> None:
    raw.request = await raw.head()
    await raw.welcome(Actor())
    await raw.frame(BINARY, bytes(300_000), size=2**20)
    raw.close()


@dialed
async def in_and_cut_by_us(raw: Any, t: openline.Transport) -> None:
    raw.request = await raw.head()
    await raw.welcome(Actor())
    await eventually(lambda: t.stats().active == 1)
    next(iter(t._table.connections)).link.abort()
    await raw.gone()


@dialed
async def plain_and_cut(raw: Any, t: openline.Transport) -> None:
    raw.request = await raw.head()
    await raw.send(switching(raw.request))
    await eventually(lambda: t.stats().active == 1)
    raw.reset()


async def fails(work: Awaitable[object]) -> None:
    """Whatever it raises is not kept."""
    with contextlib.suppress(openline.Error, TimeoutError, asyncio.CancelledError):
        await work


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", DIALED)
def test_a_dialed_connection(name: str, loop: str) -> None:
    run(loop, check_dialed(DIALED[name]))


async def check_dialed(answer: Answer) -> None:
    config = openline.Config(
        backends=("websocket",), plaintext="allow", dial_timeout=0.3, resume_timeout=1.0, close_timeout=0.2
    )
    server = RawServer()
    async with openline.load_transport(config) as t:
        with lifetimes() as counted:
            dialing = asyncio.ensure_future(fails(t.connect(server.address)))
            raw = await server.tcp()
            await answer(raw, t)
            await dialing
            del dialing
            await counted.all_gone(SOON)
        server.close_all()


async def test_dials_that_reach_nobody(make: Make, raw_server: RawServer, certificate: Certificate) -> None:
    t = await make(backends=("websocket",), dial_timeout=0.3)
    with lifetimes() as counted:
        await fails(t.connect(f"127.0.0.1:{closed_port()}"))
        await fails(t.connect("no.such.name.invalid:1"))
        dialing = asyncio.ensure_future(t.connect(raw_server.address))
        raw = await raw_server.tcp()
        await raw.head()
        dialing.cancel()
        await fails(dialing)
        del dialing
        tls = asyncio.ensure_future(fails(t.connect(f"wss://{raw_server.address}")))
        (await raw_server.tcp(tls=True)).close()
        await tls
        await counted.all_gone(SOON)


async def test_a_certificate_that_nobody_trusts(
    make: Make, certificate: Certificate, stranger: Certificate
) -> None:
    server = await make(backends=("websocket",), tls=stranger.serving())
    address = await serve(server)
    with lifetimes() as counted:
        for tls in (openline.Tls(ca=certificate.cert), openline.Tls(pins=(certificate.pin,))):
            client = await make(backends=("websocket",), tls=tls)
            await fails(client.connect(f"wss://{address}"))
            await counted.all_gone(SOON)


# Two transports -----------------------------------------------------------------------------------


@pytest.mark.parametrize("secure", [False, True], ids=["tcp", "tls"])
async def test_two_that_talk_and_close(make: Make, certificate: Certificate, secure: bool) -> None:
    tls = certificate.serving(ca=certificate.cert) if secure else None
    one = await make(backends=("websocket",), tls=tls)
    other = await make(backends=("websocket",), tls=tls)
    scheme = "wss" if secure else "ws"
    first, second = f"{scheme}://{await serve(one)}", f"{scheme}://{await serve(other)}"

    @one.on_message
    async def answer(peer: openline.Peer, message: openline.Message) -> None:
        if message.reply_to is None:
            await peer.reply(message, message.payload)

    with lifetimes() as counted:
        # Both dial at once: one connection stays, one is replaced.
        await asyncio.gather(one.connect(second), other.connect(first))
        for size in (1, 100_000, 3_000_000):
            await other.request(first, task("x" * size))
        await one.send_batch(second, [task(n, stream_id=n) for n in range(100)])
        await other.close()
        await counted.all_gone(SOON)
        await one.close()
        await counted.all_gone(SOON)
