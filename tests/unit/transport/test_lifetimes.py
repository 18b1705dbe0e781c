"""Whichever way an accepted connection ends: nothing of it is kept by a circle, on neither side (rule 3.10).

Reference counts alone must free it, so the search for circles is off. The transport lives on. What may
hold something for a while, by a timer, is over by ``SOON``: picows closes 10 ms after bad input.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import openline
from openline.core.handshake import HEADER, Transcript, split_proof
from openline.testing.conformance.lifetimes import lifetimes

from .certificates import Certificate
from .conftest import Make
from .endings import LOOPS, SOON, run
from .helpers import eventually, port_of, serve, task, within
from .rawsocket import Actor
from .wire import BINARY, CLOSE, CONTINUATION, PING, TEXT, batch, frame, header, plain, upgrade


class Client:
    """A client over TCP or TLS that says anything."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, shown: bytes | None
    ) -> None:
        self.reader = reader
        self.writer = writer
        self._shown = shown

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> str:
        return (await within(self.reader.readuntil(b"\r\n\r\n"))).decode("latin-1")

    async def upgraded(self, headers: dict[str, str] | None = None) -> str:
        await self.say(upgrade(headers))
        return await self.head()

    async def greeted(self, actor: Actor) -> Transcript:
        mine = actor.hello(1)
        head = await self.upgraded({HEADER: mine})
        assert " 101 " in head, head
        signed, _ = split_proof(header(head, HEADER))
        return Transcript(mine, signed, self._shown)

    async def entered(self, actor: Actor | None = None) -> None:
        """In as an openline peer."""
        actor = actor or Actor()
        transcript = await self.greeted(actor)
        await self.say(frame(BINARY, actor.prove(transcript)))
        await within(self.reader.readexactly(2))  # the welcome

    async def gone(self) -> None:
        """Until the other side has hung up."""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await within(self.reader.read())

    def hang_up(self) -> None:
        self.writer.transport.abort()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.hang_up()


class Host:
    """A transport that listens, and clients of it."""

    def __init__(self, t: openline.Transport, port: int, certificate: Certificate | None) -> None:
        self.t = t
        self.port = port
        self._certificate = certificate

    async def client(self) -> Client:
        if self._certificate is None:
            return Client(*await asyncio.open_connection("127.0.0.1", self.port), None)
        context = ssl.create_default_context(cafile=self._certificate.cert)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=context)
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return Client(reader, writer, shown)

    @property
    def link(self) -> Any:
        return next(iter(self.t._table.connections)).link

    async def connected(self) -> None:
        await eventually(lambda: self.t.stats().active == 1)


Ending = Callable[[Host, Client], Awaitable[object]]
ACCEPTED: dict[str, Ending] = {}


def accepted(ending: Ending) -> Ending:
    ACCEPTED[getattr(ending, "__name__", "")] = ending
    return ending


# Before the proof ---------------------------------------------------------------------------------


@accepted
async def hangs_up_before_the_upgrade(host: Host, client: Client) -> None:
    client.hang_up()


@accepted
async def half_an_upgrade(host: Host, client: Client) -> None:
    await client.say(upgrade()[:-20])
    await eventually(lambda: host.t.stats().pending_handshakes == 1)
    client.hang_up()


@accepted
async def half_an_upgrade_and_silence(host: Host, client: Client) -> None:
    await client.say(upgrade()[:-20])
    await client.gone()


@accepted
async def silence(host: Host, client: Client) -> None:
    await client.gone()


@accepted
async def headers_without_end(host: Host, client: Client) -> None:
    await client.say(upgrade()[:-2] + b"x: y\r\n" * 8000)
    await client.gone()


@accepted
async def no_http(host: Host, client: Client) -> None:
    await client.say(b"\0\1\2\3" * 100 + b"\r\n\r\n")
    await client.gone()


@accepted
async def no_upgrade(host: Host, client: Client) -> None:
    await client.say(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await client.gone()


@accepted
async def an_upgrade_that_picows_refuses_after_us(host: Host, client: Client) -> None:
    await client.say(upgrade().replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short"))
    await client.gone()


@accepted
async def an_invalid_hello(host: Host, client: Client) -> None:
    assert " 400 " in await client.upgraded({HEADER: "1; nonsense"})
    await client.gone()


@accepted
async def a_conflict(host: Host, client: Client) -> None:
    same = Actor(identity=host.t._node.door.identity)
    assert " 409 " in await client.upgraded({HEADER: same.hello(1)})
    await client.gone()


@accepted
async def a_hello_and_no_proof(host: Host, client: Client) -> None:
    await client.greeted(Actor())
    client.hang_up()


@accepted
async def a_hello_and_no_proof_in_time(host: Host, client: Client) -> None:
    await client.greeted(Actor())
    await client.gone()


@accepted
async def a_wrong_proof(host: Host, client: Client) -> None:
    actor = Actor()
    await client.greeted(actor)
    await client.say(frame(BINARY, actor.prove(Transcript("a", "b", None))))
    await client.gone()


@accepted
async def a_text_instead_of_the_proof(host: Host, client: Client) -> None:
    await client.greeted(Actor())
    await client.say(frame(TEXT, b"{}"))
    await client.gone()


@accepted
async def half_a_frame_before_the_proof(host: Host, client: Client) -> None:
    await client.greeted(Actor())
    await client.say(frame(BINARY, bytes(2000), size=4000))
    await asyncio.sleep(0)
    client.hang_up()


@accepted
async def a_large_frame_before_the_proof(host: Host, client: Client) -> None:
    await client.greeted(Actor())
    await client.say(frame(BINARY, bytes(100_000), size=16 * 2**20))
    await client.gone()


@accepted
async def half_a_message_before_the_proof(host: Host, client: Client) -> None:
    await client.greeted(Actor())
    await client.say(frame(BINARY, bytes(1000), fin=False) + frame(CONTINUATION, bytes(1000), fin=False))
    client.hang_up()


# A peer -------------------------------------------------------------------------------------------


@accepted
async def half_a_frame_of_a_plain_peer(host: Host, client: Client) -> None:
    await client.upgraded()
    await client.say(frame(TEXT, b" " * 500_000, size=2**20))
    await host.connected()
    client.hang_up()


@accepted
async def half_a_frame_of_a_proven_peer(host: Host, client: Client) -> None:
    await client.entered()
    await client.say(frame(BINARY, bytes(500_000), size=2**20))
    client.hang_up()


@accepted
async def half_a_message_of_a_plain_peer(host: Host, client: Client) -> None:
    await client.upgraded()
    await client.say(frame(TEXT, b" " * 300_000, fin=False) + frame(CONTINUATION, b" " * 300_000, size=2**20))
    await host.connected()
    client.hang_up()


@accepted
async def the_peer_says_goodbye(host: Host, client: Client) -> None:
    await client.entered()
    await client.say(frame(CLOSE, struct.pack("!H", 1000)))
    await client.gone()


@accepted
async def a_plain_peer_says_goodbye(host: Host, client: Client) -> None:
    await client.upgraded()
    await client.say(frame(TEXT, plain("hi")) + frame(CLOSE, struct.pack("!H", 1000)))
    await client.gone()


@accepted
async def we_say_goodbye(host: Host, client: Client) -> None:
    await client.entered()
    host.link.close(1000, "bye")
    await client.reader.readuntil(b"bye")
    await client.say(frame(CLOSE, struct.pack("!H", 1000)))
    await client.gone()


@accepted
async def we_cut(host: Host, client: Client) -> None:
    await client.entered()
    host.link.abort()
    await client.gone()


@accepted
async def the_peer_hangs_up(host: Host, client: Client) -> None:
    await client.entered()
    client.hang_up()


@accepted
async def the_peer_resets(host: Host, client: Client) -> None:
    await client.entered()
    client.reset()


@accepted
async def messages_and_a_reset(host: Host, client: Client) -> None:
    await client.entered()
    await client.say(frame(BINARY, batch([task("hi")], opens={"default": 1})) + frame(PING, b"x"))
    await eventually(lambda: host.t.stats().messages_received == 1)
    client.reset()


@accepted
async def bad_input(host: Host, client: Client) -> None:
    await client.entered()
    await client.say(frame(BINARY, b"\x01nonsense"))
    await client.gone()


@accepted
async def a_breach_of_the_protocol(host: Host, client: Client) -> None:
    await client.entered()
    await client.say(frame(BINARY, b"x", mask=False) + bytes(1000))
    await client.gone()


@accepted
async def a_frame_over_the_limit(host: Host, client: Client) -> None:
    await client.upgraded()
    await client.say(frame(TEXT, b"x", size=2**40))
    await client.gone()


@accepted
async def silence_until_it_is_dead(host: Host, client: Client) -> None:
    await client.entered()
    await client.gone()


@accepted
async def strangers_hold_too_much(host: Host, client: Client) -> None:
    await client.upgraded()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await client.say(frame(TEXT, b" " * 1_500_000, size=2**21))
    await client.gone()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("secure", [False, True], ids=["tcp", "tls"])
@pytest.mark.parametrize("name", ACCEPTED)
def test_an_accepted_connection(certificate: Certificate, name: str, secure: bool, loop: str) -> None:
    run(loop, check_accepted(ACCEPTED[name], certificate if secure else None))


async def check_accepted(ending: Ending, certificate: Certificate | None) -> None:
    config = openline.Config(
        backends=("websocket",),
        tls=certificate.serving() if certificate else None,
        handshake_timeout=0.3,
        max_idle_timeout=0.6 if ending is silence_until_it_is_dead else 30.0,
        stranger_buffer_bytes=2**20,
        resume_timeout=1.0,
        close_timeout=0.2,
    )
    async with openline.load_transport(config) as t:
        host = Host(t, port_of(await serve(t)), certificate)
        await check_ending(host, ending)


async def check_ending(host: Host, ending: Ending) -> None:
    with lifetimes() as counted:
        client = await host.client()
        try:
            await ending(host, client)
            await counted.all_gone(SOON)
        finally:
            client.hang_up()
            await asyncio.sleep(0)


async def test_a_client_that_may_not_come_in(make: Make) -> None:
    t = await make(backends=("websocket",), allow=(openline.Identity().node_id,))
    address = await serve(t)
    with lifetimes() as counted:
        for headers in (None, {HEADER: Actor().hello(1)}):
            client = await Host(t, port_of(address), None).client()
            assert " 403 " in await client.upgraded(headers)
            await client.gone()
            client.hang_up()
        await counted.all_gone(SOON)


@pytest.mark.parametrize(
    "said", [b"", b"\x16", b"\x16\x03\x01\x01\x00" + bytes(20), b"GET / HTTP/1.1\r\n\r\n"]
)
async def test_half_a_tls_handshake(make: Make, certificate: Certificate, said: bytes) -> None:
    t = await make(backends=("websocket",), tls=certificate.serving(), handshake_timeout=0.3)
    address = await serve(t)
    with lifetimes() as counted:
        for waits in (False, True):
            client = Client(*await asyncio.open_connection("127.0.0.1", port_of(address)), None)
            await client.say(said)
            if waits:
                await client.gone()
            client.hang_up()
            await counted.all_gone(SOON)


async def test_handshakes_that_are_pushed_out_and_a_listener_that_closes(make: Make) -> None:
    t = await make(backends=("websocket",), max_pending_handshakes=4)
    listener = await t.listen(0, host="127.0.0.1")
    with lifetimes() as counted:
        clients = []
        for said in (b"", upgrade()[:-9], upgrade({HEADER: Actor().hello(1)})) * 4:
            client = Client(*await asyncio.open_connection("127.0.0.1", listener.port), None)
            await client.say(said)
            clients.append(client)
        await eventually(lambda: t.stats().handshakes_evicted >= 6)
        await listener.close()
        for client in clients:
            client.hang_up()
        await counted.all_gone(SOON)
