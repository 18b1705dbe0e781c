"""Programs, peers and addresses for the tests of the command."""

from __future__ import annotations

import asyncio
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import openline

from .programs import ENVIRONMENT, Here, Program, Start, _obey_signals


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts ``openline`` with arguments; whatever still runs at the end is killed."""
    running: list[Process] = []

    async def start(*args: object, python: tuple[str, ...] = ("-m", "openline.cli"), **how: Any) -> Program:
        channels = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE, "preexec_fn": _obey_signals}
        channels |= {"env": ENVIRONMENT, **how}
        process = await asyncio.create_subprocess_exec(sys.executable, *python, *map(str, args), **channels)
        running.append(process)
        return Program(process)

    yield start
    for process in running:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
async def listen(start: Start) -> Start:
    """Starts ``openline listen --json``, on a free port if none is given, and waits until it listens."""

    async def listen(*args: object, port: int = 0, **how: Any) -> Program:
        program = await start("listen", port, "--host", "127.0.0.1", "--json", *args, **how)
        first = await program.record()
        program.port, program.node_id = first["listening"], first["nodeId"]
        return program

    return listen


@pytest.fixture
async def here() -> AsyncIterator[Here]:
    async with openline.load_transport() as t:
        listener = await t.listen(0, "127.0.0.1")
        here = Here(f"127.0.0.1:{listener.port}")
        t.on_message(lambda peer, message: here.received.put_nowait((peer, message)))
        yield here


@pytest.fixture
def closed_port() -> Iterator[str]:
    """An address where nobody listens, and nobody can begin to."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"
