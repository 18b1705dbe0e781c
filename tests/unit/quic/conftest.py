from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

import openline
from openline.peers import paths

from ..transport.certificates import Certificate, self_signed
from ..transport.conftest import certificate, raw, raw_server, stack, stranger, transports
from ..transport.rawsocket import Actor
from .rawquic import RawQuic, RawQuicServer

__all__ = ["certificate", "raw", "raw_server", "stack", "stranger", "transports"]

Make = Callable[..., Awaitable[openline.Transport]]
Dial = Callable[..., Awaitable[RawQuic]]
Serve = Callable[..., RawQuicServer]


@pytest.fixture
async def make(transports: AsyncExitStack) -> Make:
    """Makes transports that say goodbye quickly, and closes them after the test."""

    async def made(
        name: str = "", *, loading: dict[str, Any] | None = None, **config: Any
    ) -> openline.Transport:
        settings = openline.Config(name=name, **{"close_timeout": 0.2, **config})
        return await transports.enter_async_context(openline.load_transport(settings, **(loading or {})))

    return made


@pytest.fixture
async def dial(stack: AsyncExitStack) -> Dial:
    """Raw QUIC clients, up to the end of TLS, or let in: ``await dial(port, Actor())``."""

    async def dialed(port: int, actor: Actor | None = None, *args: Any, **how: Any) -> RawQuic:
        end = await RawQuic.connect(port, *args, **how)
        stack.callback(end.leave)
        if actor is not None:
            await end.enter(actor)
        return end

    return dialed


@pytest.fixture
async def listen(stack: AsyncExitStack) -> Serve:
    """Raw QUIC servers: ``listen()``."""

    def listening(*args: Any, **options: Any) -> RawQuicServer:
        server = RawQuicServer(*args, **options)
        stack.callback(server.leave)
        return server

    return listening


@pytest.fixture
async def problems() -> AsyncIterator[list[dict[str, Any]]]:
    """What the loop complains of: exceptions that nobody has caught."""
    found: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: found.append(context))
    yield found
    loop.set_exception_handler(None)


@pytest.fixture(scope="session")
def expired(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("expired"), days=-1)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that has lost against another is read for a second; nothing is lost on loopback."""
    monkeypatch.setattr(paths, "DRAIN_GRACE", 0.1)
