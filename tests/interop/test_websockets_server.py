"""A bare `websockets` server at the other end: what plain RFC 6455 peers may do (rule 3.7)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

import openline
from openline import Message

from .conftest import OpenTransport
from .helpers import Dial, Mailbox, heard, serving, stat, stream_of, task, until

pytestmark = pytest.mark.interop
Accept = Callable[..., Awaitable[str]]
Talk = Callable[[ServerConnection], Awaitable[None]]


@pytest.fixture
async def accept() -> AsyncIterator[Accept]:
    """Serves bare WebSocket connections with a function; where to dial them."""
    async with AsyncExitStack() as stack:

        async def accepting(talk: Talk, **options: Any) -> str:
            options = {"compression": None, "ping_interval": None, **options}
            server = await stack.enter_async_context(serve(talk, "127.0.0.1", 0, **options))
            return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

        yield accepting


async def echo_raw(connection: ServerConnection) -> None:
    async for frame in connection:
        await connection.send(frame)


async def test_openline_dials_a_bare_server(open_transport: OpenTransport, accept: Accept) -> None:
    frames: list[str | bytes] = []

    async def talk(connection: ServerConnection) -> None:
        frames.append(await connection.recv())
        await connection.send(json.dumps(task("back", streamId=9)))
        await connection.wait_closed()

    address = await accept(talk)
    transport = await open_transport()
    mailbox = Mailbox(transport)
    await transport.send(address, Message(id="m", payload={"n": 1}))
    peer, message = await mailbox.take()
    assert (message.payload, message.stream_id, peer.address) == ("back", 9, address)
    (frame,) = frames
    assert isinstance(frame, str)
    sent = json.loads(frame)
    assert stream_of(sent) == "default"
    assert {key: sent[key] for key in ("id", "type", "payload")} == {
        "id": "m",
        "type": "task",
        "payload": {"n": 1},
    }
    assert sent.keys() <= {"id", "type", "payload", "streamId"}


async def test_upgrade_asks_for_no_subprotocol(open_transport: OpenTransport, accept: Accept) -> None:
    asked: asyncio.Queue[Any] = asyncio.Queue()

    async def talk(connection: ServerConnection) -> None:
        assert connection.request is not None
        asked.put_nowait(connection.request.headers)
        await connection.wait_closed()

    address = await accept(talk)
    transport = await open_transport()
    await transport.send(address, Message())
    headers = await asked.get()
    assert "Sec-WebSocket-Protocol" not in headers
    assert "Sec-WebSocket-Extensions" not in headers
    assert headers["Host"] == address


@pytest.mark.parametrize("served", ["deflate", None])
async def test_compression_is_agreed_with_a_bare_server(
    open_transport: OpenTransport, accept: Accept, served: str | None
) -> None:
    agreed: asyncio.Queue[Any] = asyncio.Queue()

    async def talk(connection: ServerConnection) -> None:
        assert connection.response is not None
        agreed.put_nowait(connection.response.headers.get("Sec-WebSocket-Extensions", ""))
        await echo_raw(connection)

    address = await accept(talk, compression=served)
    transport = await open_transport(compression=True)
    mailbox = Mailbox(transport)
    bodies = ["small", "large " * 1000, "é" * 4000, ""]
    for body in bodies:
        await transport.send(address, Message(payload=body))
        assert (await mailbox.take()).message.payload == body
    assert ("permessage-deflate" in await agreed.get()) == (served is not None)


async def test_answers_out_of_order_find_their_requests(
    open_transport: OpenTransport, accept: Accept
) -> None:
    async def reversed_pairs(connection: ServerConnection) -> None:
        while True:
            pair = [await connection.recv(), await connection.recv()]
            for question in map(json.loads, reversed(pair)):
                answer = task(question["payload"], id="new", metadata={"replyTo": question["id"]})
                await connection.send(json.dumps(answer))

    address = await accept(reversed_pairs)
    transport = await open_transport()
    asking = [transport.request(address, Message(payload=n), timeout=5.0) for n in range(20)]
    assert [reply.payload for reply in await asyncio.gather(*asking)] == list(range(20))


async def test_server_pings_are_answered(open_transport: OpenTransport, accept: Accept) -> None:
    answered: asyncio.Queue[float] = asyncio.Queue()

    async def talk(connection: ServerConnection) -> None:
        for _ in range(3):
            answered.put_nowait(await (await connection.ping()))
        await connection.wait_closed()

    transport = await open_transport()
    await transport.send(await accept(talk), Message())
    async with asyncio.timeout(5.0):
        for _ in range(3):
            await answered.get()


async def test_server_that_closes_is_dialed_again(open_transport: OpenTransport, accept: Accept) -> None:
    got: asyncio.Queue[Any] = asyncio.Queue()

    async def one_message(connection: ServerConnection) -> None:
        got.put_nowait(json.loads(await connection.recv())["payload"])
        await connection.close(1001)

    address = await accept(one_message)
    transport = await open_transport()
    for n in range(5):
        receipt = await transport.send(address, Message(payload=n))
        assert (receipt.attempts, await got.get()) == (1, n)
        await until(lambda: stat(transport, "active") == 0)
    assert stat(transport, "created") == 5


async def test_server_that_refuses_the_upgrade_is_unreachable(
    open_transport: OpenTransport, accept: Accept
) -> None:
    def refuse(connection: ServerConnection, request: Any) -> Any:
        return connection.respond(403, "no\n")

    address = await accept(echo_raw, process_request=refuse)
    transport = await open_transport()
    with pytest.raises(openline.Error) as caught:
        await transport.send(address, Message())
    assert address in str(caught.value)
    assert "403" in str(caught.value)


async def test_requests_of_two_clients_behind_one_ip_stay_apart(
    open_transport: OpenTransport, dial: Dial
) -> None:
    transport = await open_transport()
    mailbox = Mailbox(transport)
    address = await serving(transport)
    clients = [await dial(address) for _ in range(3)]
    for n, client in enumerate(clients):
        await client.send(json.dumps(task(n)))
    peers = {hello.message.payload: hello.peer for hello in [await mailbox.take() for _ in clients]}
    asking = [
        asyncio.ensure_future(peers[n].request(Message(id="same", payload=n), timeout=5.0)) for n in range(3)
    ]
    questions = [await heard(client) for client in clients]
    assert [question["payload"] for question in questions] == [0, 1, 2]
    for n, client in reversed(list(enumerate(clients))):
        await client.send(json.dumps(task(f"answer {n}", id="same", type="result")))
    assert [reply.payload for reply in await asyncio.gather(*asking)] == ["answer 0", "answer 1", "answer 2"]


@pytest.fixture(autouse=True)
def quiet_server_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("CRITICAL", logger="websockets"):
        yield
