from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import websockets

import openline
from openline.peers import paths

from ..clock import hurry
from .attacks import LIMIT, Node
from .certificates import Certificate, self_signed
from .helpers import (
    Dials,
    port_of,
    serve,
)
from .lines import Line
from .proofs import (
    Middle,
)
from .rawsocket import PlainServer, Raw, RawServer, Who

Make = Callable[..., Awaitable[openline.Transport]]
Open = Callable[..., Awaitable[Raw]]


@pytest.fixture
async def transports() -> AsyncIterator[AsyncExitStack]:
    stack = AsyncExitStack()
    yield stack
    with hurry():
        await stack.aclose()


@pytest.fixture
async def stack(transports: AsyncExitStack) -> AsyncIterator[AsyncExitStack]:
    """Everybody else, who goes first: a transport waits for the goodbye of those who are still there."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def make(transports: AsyncExitStack) -> Make:
    """Makes transports that say goodbye quickly, and closes them after the test.

    They talk in plain text to nodes played by hand, which speak no TLS; ``test_sealed.py`` is about those
    that do not.
    """

    async def made(name: str = "", *, opener: Dials | None = None, **config: Any) -> openline.Transport:
        settings = openline.Config(name=name, **{"close_timeout": 0.2, "plaintext": "allow", **config})
        loading = openline.load_transport(settings, **({"opener": opener} if opener else {}))
        return await transports.enter_async_context(loading)

    return made


@pytest.fixture
async def raw(stack: AsyncExitStack) -> Open:
    """Opens raw WebSocket clients: ``await raw(port)``, also with headers or as an ``Actor``."""

    async def opened(port: int, who: Who = None) -> Raw:
        client = await Raw.connect(port, who)
        stack.callback(client.close)
        return client

    return opened


@pytest.fixture
async def raw_server(stack: AsyncExitStack) -> RawServer:
    server = RawServer()
    stack.callback(server.close_all)
    return server


@pytest.fixture
async def plain_client(stack: AsyncExitStack) -> Callable[..., Awaitable[Any]]:
    """Opens `websockets` clients: ``await plain_client(port)``."""

    async def opened(port: int, **options: Any) -> Any:
        options = {"compression": None, "proxy": None, "ping_interval": None, **options}
        return await stack.enter_async_context(websockets.connect(f"ws://127.0.0.1:{port}", **options))

    return opened


@pytest.fixture
async def plain_server(stack: AsyncExitStack) -> Callable[..., Awaitable[PlainServer]]:
    """Starts `websockets` servers: ``await plain_server()``."""

    async def started(**options: Any) -> PlainServer:
        server = PlainServer()
        options = {"compression": None, "ping_interval": None, **options}
        running = await stack.enter_async_context(websockets.serve(server, "127.0.0.1", 0, **options))
        server.port = next(iter(running.sockets)).getsockname()[1]
        return server

    return started


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate that nobody trusts."""
    return self_signed(tmp_path_factory.mktemp("stranger"))


@pytest.fixture
async def tcp(stack: AsyncExitStack) -> Open:
    """Opens sockets on which nothing has been said yet: ``await tcp(port)``."""

    async def opened(port: int) -> Raw:
        raw = await Raw.tcp(port)
        stack.callback(raw.close)
        return raw

    return opened


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


@pytest.fixture
async def line(transports: Any) -> AsyncIterator[Callable[[str], Awaitable[Line]]]:
    """Lays lines: ``await line(address)``."""

    async def laid(address: str) -> Line:
        return await transports.enter_async_context(Line(port_of(address)))

    return laid


async def attacked(make: Make, raw: Open, **config: object) -> Node:
    settings = {"max_message_size": LIMIT, "handshake_timeout": 0.3, **config}
    t, honest = await make("node", **settings), await make("honest")
    port = port_of(await serve(t))
    await honest.connect(f"127.0.0.1:{port}")
    client = await raw(port)
    return Node(t, honest, client, port)


@pytest.fixture
async def node(make: Make, raw: Open) -> AsyncIterator[Node]:
    node = await attacked(make, raw)
    yield node
    await node.still_serves()
