"""The ``openline`` command as a user runs it: real processes on loopback, waited for by what they print."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable
from typing import Any

import openline

DEADLINE = 15.0
# Who runs the tests may have an identity; two programs at once must not. And the ports of tests are used
# again by other nodes, which is nobody's business.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "OPENLINE_IDENTITY"}
ENVIRONMENT["OPENLINE_KNOWN_PEERS"] = "off"


class Program:
    """A running ``openline`` command."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.port = 0
        self.node_id = ""

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            return (await self.process.stdout.readline()).decode()

    async def record(self) -> dict[str, Any]:
        line = await self.line()
        assert line, "it has ended"
        return dict(json.loads(line))

    def write(self, *lines: dict[str, Any] | str) -> None:
        assert self.process.stdin is not None
        for line in lines:
            text = line if isinstance(line, str) else json.dumps(line)
            self.process.stdin.write(text.encode() + b"\n")

    def close_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def end(self, signal_number: int | None = None) -> tuple[int, str, str]:
        """Its exit code, the rest of its output, and what it said on stderr."""
        if signal_number is not None:
            self.process.send_signal(signal_number)
        async with asyncio.timeout(DEADLINE):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, (out or b"").decode(), (err or b"").decode()


Start = Callable[..., Awaitable[Program]]


def _obey_signals() -> None:
    """Tests may themselves run under nohup or as a background job, and what is ignored is inherited."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Here:
    """A peer in this process: as good as another one, and there at once."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.received: asyncio.Queue[tuple[openline.Peer, openline.Message]] = asyncio.Queue()

    async def next(self) -> tuple[openline.Peer, openline.Message]:
        async with asyncio.timeout(DEADLINE):
            return await self.received.get()
