from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest
from websockets.asyncio.client import ClientConnection, connect

import openline

from .certificates import Certificate, self_signed
from .helpers import Dial
from .node_peer import NodePeer
from .npm_peers import VERSIONS, PeersUnavailable, fetch, fetch_canonicalize
from .signer import Signer

REUSING = "2.1.3"


class Package(NamedTuple):
    version: str
    folder: Path

    @property
    def answers_inbound(self) -> bool:
        """Whether its sends ride sockets that others opened, and it probes them: both came with 2.1.3."""
        return self.version == REUSING


def _package(version: str) -> Package:
    try:
        return Package(version, fetch(version))
    except PeersUnavailable as reason:
        _unavailable(f"agentic-flow {version}: {reason}")


def _unavailable(reason: str) -> NoReturn:
    if os.environ.get("OPENLINE_REQUIRE_INTEROP") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session", params=VERSIONS)
def package(request: pytest.FixtureRequest) -> Package:
    """Each agentic-flow version in turn."""
    return _package(request.param)


@pytest.fixture(scope="session")
def reusing_package() -> Package:
    """The version that replies on inbound sockets and probes its connections."""
    return _package(REUSING)


@pytest.fixture(scope="session")
def javascript() -> Signer:
    """Signs and verifies in JavaScript."""
    try:
        return Signer(fetch_canonicalize())
    except PeersUnavailable as reason:
        _unavailable(f"canonicalize: {reason}")


OpenTransport = Callable[..., Awaitable[openline.Transport]]
StartNode = Callable[..., Awaitable[NodePeer]]


@pytest.fixture
async def open_transport() -> AsyncIterator[OpenTransport]:
    """Opens transports by configuration; closes them after the test."""
    async with AsyncExitStack() as stack:

        async def opened(**config: Any) -> openline.Transport:
            return await stack.enter_async_context(openline.load_transport(openline.Config(**config)))

        yield opened


@pytest.fixture
async def start_node() -> AsyncIterator[StartNode]:
    """Starts node processes that hold an agentic-flow transport; ends them after the test."""
    async with AsyncExitStack() as stack:

        async def started(package: Package, **config: Any) -> NodePeer:
            peer = await NodePeer.start(package.folder, **config)
            stack.push_async_callback(peer.stop)
            return peer

        yield started


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate that nobody in the test trusts."""
    return self_signed(tmp_path_factory.mktemp("stranger"))


@pytest.fixture
async def dial() -> AsyncIterator[Dial]:
    async with AsyncExitStack() as stack:

        async def dialed(address: str, **options: Any) -> ClientConnection:
            url = f"ws://{address.removeprefix('ws://')}"
            options = {"compression": None, "proxy": None, "ping_interval": None, **options}
            return await stack.enter_async_context(connect(url, **options))

        yield dialed
