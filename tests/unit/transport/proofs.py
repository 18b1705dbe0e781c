"""What hostile peers and men in the middle do to hellos and proofs."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec

import openline

from .helpers import Box, eventually, task
from .rawsocket import Actor, Raw
from .wire import (
    BINARY,
    batch,
    header,
    switching,
    upgrade,
)

HELLO = "Openline-Hello"
PROOF, WELCOME = 4, 5
SEPARATOR = "; proof="

# Fields of a hello, each with another value that is as valid; of a node id, see ``altered``.
FIELDS = {
    "nonce": "N" * 32,
    "instance": "I" * 22,
    "listen": "4711",
    "name": "mallory",
    "dial": "77",
    "caps": "all",
}


def signed(role: str, client: str, server: str, certificate: bytes | None = None) -> bytes:
    """The bytes that ``role`` signs, written down again, so that they do not change by accident."""
    digest = hashlib.sha256(certificate).digest() if certificate else b""
    data = b"openline hello 1\n"
    for part in (client.encode(), server.encode(), digest):
        data += len(part).to_bytes(4, "big") + part
    return data + role.encode()


def altered(hello: str, field: str, value: str | None = None) -> str:
    """The same hello with another value in one field, which is put in where there is none."""
    value = FIELDS[field] if value is None else value
    if f"; {field}=" in hello:
        return re.sub(rf"; {field}=[^;]*", f"; {field}={value}", hello, count=1)
    version, _, rest = hello.partition(";")
    return f"{version}; {field}={value};{rest}"


def proof_frame(signature: bytes, lost: list[bytes] | None = None) -> bytes:
    return bytes([PROOF]) + msgspec.msgpack.encode([signature, lost or []])


class Spoken:
    """A handshake by hand up to the client's proof, which has not been sent."""

    def __init__(self, raw: Raw, actor: Actor, client: str, value: str) -> None:
        self.raw = raw
        self.actor = actor
        self.client = client
        # The server's hello without its proof, and its signature.
        self.server, _, self.text = value.rpartition(SEPARATOR)

    def proof(self, *, certificate: bytes | None = None, **other: Any) -> bytes:
        """The right one, but for ``role``, ``client``, ``server`` or ``identity``."""
        identity: openline.Identity = other.pop("identity", self.actor.identity)
        said = {"role": "client", "client": self.client, "server": self.server, **other}
        return identity.sign(signed(**said, certificate=certificate))

    async def prove(self, signature: bytes | None = None) -> None:
        await self.raw.frame(BINARY, proof_frame(self.proof() if signature is None else signature))


async def speak(raw: Raw, actor: Actor, hello: str | None = None) -> Spoken:
    """Say hello over a connected socket, and hear the answer."""
    mine = hello or actor.hello(next(actor.dials))
    await raw.send(upgrade({HELLO: mine}))
    head = await raw.head()
    assert " 101 " in head, head
    return Spoken(raw, actor, mine, header(head, HELLO))


async def turned_away(port: int, headers: dict[str, str] | None = None) -> str:
    """What a client that says this is answered instead of an upgrade: the head and the body."""
    raw = await Raw.tcp(port)
    try:
        await raw.send(upgrade(headers))
        return (await raw.gone()).decode()
    finally:
        raw.close()


async def answer(raw: Raw, value: str) -> None:
    """The upgrade of the client whose request is in ``raw.request``, with that for a hello."""
    await raw.send(switching(raw.request, {HELLO: value}))


Change = Callable[[str], str]


def same(value: str) -> str:
    return value


Step = Callable[[str], Awaitable[None]]


async def _at_once(name: str) -> None:
    """No step waits."""


class Middle:
    """A man in the middle: passes everything on, but for what it changes in the two heads.

    ``asks`` is the TLS context it serves with, ``dials`` the one it dials with. A ``blind`` one
    changes nothing, so that TLS passes through. ``step(name)`` is awaited before the request, the
    answer and the proof of the first connection go on: "request", "response" and "proof".
    """

    def __init__(
        self,
        target: int,
        *,
        request: Change = same,
        response: Change = same,
        asks: ssl.SSLContext | None = None,
        dials: ssl.SSLContext | None = None,
        blind: bool = False,
        step: Step = _at_once,
    ) -> None:
        self.target = target
        self._request = request
        self._response = response
        self._asks = asks
        self._dials = dials
        self._blind = blind
        self._step = step
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0
        self.connections = 0
        # What clients have said after their request.
        self.said = b""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Middle:
        self._server = await asyncio.start_server(self._begin, "127.0.0.1", 0, ssl=self._asks)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        self.cut()
        for running in list(self._tasks):
            running.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset what is open."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def freeze(self) -> None:
        """Hold everything that comes, on all connections, until ``thaw``."""
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        step = self._step if self.connections == 1 else _at_once
        task = asyncio.ensure_future(self._serve(reader, writer, step))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, step: Step) -> None:
        self._writers.append(writer)
        first = b"" if self._blind or self._asks else await reader.read(1)
        if first == b"\x16":
            self.connections -= 1
            writer.transport.abort()  # it speaks no TLS
            return
        try:
            onward, back = await asyncio.open_connection("127.0.0.1", self.target, ssl=self._dials)
        except OSError:
            writer.transport.abort()
            return
        self._writers.append(back)
        with suppress(OSError, asyncio.IncompleteReadError):
            if not self._blind:
                await self._head(reader, back, self._request, step, "request", first)
            up, down = self._upward(reader, back, step), self._downward(onward, writer, step)
            await asyncio.gather(up, down, return_exceptions=True)
        for end in (writer, back):
            end.close()

    async def _head(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        change: Change,
        step: Step,
        name: str,
        first: bytes = b"",
    ) -> None:
        head = first + await reader.readuntil(b"\r\n\r\n")
        await step(name)
        writer.write(change(head.decode("latin-1")).encode("latin-1"))

    async def _upward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, step: Step) -> None:
        try:
            while data := await reader.read(65536):
                await step("proof")
                await self._flowing.wait()
                self.said += data
                writer.write(data)
        finally:
            writer.close()

    async def _downward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, step: Step) -> None:
        try:
            if not self._blind:
                await self._head(reader, writer, self._response, step, "response")
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
        finally:
            writer.close()


def with_hello(change: Change) -> Change:
    """Changes the value of the hello in an HTTP head; an empty one takes the header out."""

    def changed(head: str) -> str:
        lines = []
        for line in head.split("\r\n"):
            name, _, value = line.partition(": ")
            if name.lower() == HELLO.lower():
                new = change(value)
                if new:
                    lines.append(f"{name}: {new}")
            else:
                lines.append(line)
        return "\r\n".join(lines)

    return changed


strip = with_hello(lambda value: "")


# Looking at transports ------------------------------------------------------------------------------


def between(here: openline.Transport, there: openline.Transport) -> list[Any]:
    """The connections of ``here`` to the node ``there``."""
    return [c for peer in here.peers() if peer.node_id == there.node_id for c in peer._remote.connections]


def ids(here: openline.Transport, there: openline.Transport) -> list[bytes]:
    return [connection.endpoint.connection_id for connection in between(here, there)]


def settled(one: openline.Transport, other: openline.Transport) -> bool:
    """Exactly one connection, and the same one on both sides."""
    ours = ids(one, other)
    return len(ours) == 1 and ours == ids(other, one)


def greater(one: openline.Identity, other: openline.Identity) -> tuple[openline.Identity, openline.Identity]:
    """The two, that with the greater public key first."""
    return (one, other) if one.public_key > other.public_key else (other, one)


def pair() -> tuple[openline.Identity, openline.Identity]:
    """Two new identities, that with the greater public key first."""
    return greater(openline.Identity(), openline.Identity())


async def nothing(sending: Awaitable[Any]) -> BaseException:
    """What ``sending`` raises; it must."""
    try:
        result = await sending
    except BaseException as error:
        return error
    raise AssertionError(f"it returned {result!r}")


FIRST = batch([task("forged")], opens={"default": 1})


def in_base64(signature: bytes) -> str:
    return base64.urlsafe_b64encode(signature).decode().rstrip("=")


def out_of_base64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "==")


async def alone(server: openline.Transport, box: Box) -> None:
    """Nobody has got in at ``server``, nothing has been handed over, and it still takes who is right."""
    assert (server.peers(), server.stats().active, server.stats().accepted) == ([], 0, 0)
    assert not box
    port = server._listeners[0].port
    good = await Raw.connect(port, Actor())
    try:
        await good.post(task("good"))
        await eventually(lambda: box.payloads == ["good"])
    finally:
        good.close()


def right(actor: Actor, mine: str, **other: Any) -> tuple[str, bytes]:
    """A server's hello and its signature, right but for what is given."""
    said = actor.hello()
    return said, actor.identity.sign(signed(**{"role": "server", "client": mine, "server": said, **other}))


def value(said: str, signature: bytes) -> str:
    return said + SEPARATOR + in_base64(signature)
