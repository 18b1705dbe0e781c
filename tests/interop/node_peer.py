"""A Python handle on one node process that holds a real agentic-flow transport (see peer.mjs)."""

from __future__ import annotations

import asyncio
import json
import signal
import tempfile
from asyncio.subprocess import PIPE, Process
from collections import defaultdict
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

SCRIPT = Path(__file__).with_name("peer.mjs")
DEADLINE = 10.0
LONGEST_LINE = 1 << 26

Message = dict[str, Any]


class PeerError(Exception):
    """agentic-flow rejected the call."""


class PeerDied(Exception):
    """The node process ended while it was needed."""


class Heard(NamedTuple):
    address: str
    message: Message


class NodePeer:
    def __init__(self, process: Process, log: IO[bytes]) -> None:
        self._process = process
        self._log = log
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._events: defaultdict[str, asyncio.Queue[dict[str, Any]]] = defaultdict(asyncio.Queue)
        self._reader = asyncio.create_task(self._read())
        self._calls = 0
        self.port = 0

    @classmethod
    async def start(cls, package: Path, **config: Any) -> NodePeer:
        loader = package / "dist" / "transport" / "quic-loader.js"
        return await cls.run(SCRIPT, loader, json.dumps(config))

    @classmethod
    async def run(cls, *arguments: object, folder: Path | None = None) -> Self:
        """Start a script, in ``folder``; it says ``ready``."""
        log = tempfile.TemporaryFile()  # noqa: SIM115 - the process writes to it until stop()
        process = await asyncio.create_subprocess_exec(
            "node", *map(str, arguments), stdin=PIPE, stdout=PIPE, stderr=log, limit=LONGEST_LINE, cwd=folder
        )
        peer = cls(process, log)
        try:
            await peer.event("ready")
        except BaseException:
            await peer.stop()
            raise
        return peer

    async def call(self, op: str, *, deadline: float = DEADLINE, **details: Any) -> Any:
        self._calls += 1
        answer = self._answers[self._calls] = asyncio.get_running_loop().create_future()
        line = json.dumps({"id": self._calls, "op": op, **details})
        async with asyncio.timeout(deadline):
            await self._write(line.encode() + b"\n")
            return await answer

    async def listen(self, port: int, host: str = "127.0.0.1") -> None:
        await self.call("listen", port=port, host=host)
        self.port = port

    async def send(self, address: str, message: Message) -> None:
        await self.call("send", address=address, message=message)

    async def stats(self) -> dict[str, int]:
        return dict(await self.call("getStats"))

    async def hear(self, handler: str = "all", deadline: float = DEADLINE) -> Heard:
        """The next message that reached the handler of that name."""
        event = await self.event(f"message:{handler}", deadline)
        return Heard(event["address"], event["message"])

    async def hear_many(self, count: int, deadline: float = DEADLINE) -> list[Message]:
        async with asyncio.timeout(deadline):
            return [(await self.hear(deadline=deadline)).message for _ in range(count)]

    async def event(self, kind: str, deadline: float = DEADLINE) -> dict[str, Any]:
        queue = self._events[kind]
        if self._reader.done() and queue.empty():
            raise PeerDied(self._log_tail())
        async with asyncio.timeout(deadline):
            event = await queue.get()
        if event.get("event") == "end":
            raise PeerDied(self._log_tail())
        return event

    def unheard(self) -> list[Message]:
        """Messages that have been reported and not yet taken by hear()."""
        queue = self._events["message:all"]
        return [queue.get_nowait()["message"] for _ in range(queue.qsize())]

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reader
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._log.close()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self._take(json.loads(line))
        self._end()

    async def _write(self, line: bytes) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(line)
            await stdin.drain()
        except ConnectionError as error:
            raise PeerDied(self._log_tail()) from error

    def _take(self, line: dict[str, Any]) -> None:
        if "event" not in line:
            self._settle(line)
        elif line["event"] == "message":
            self._events[f"message:{line['handler']}"].put_nowait(line)
        else:
            self._events[line["event"]].put_nowait(line)

    def _settle(self, line: dict[str, Any]) -> None:
        answer = self._answers.pop(line["id"])
        if answer.done():
            return
        if "error" in line:
            answer.set_exception(PeerError(line["error"]))
        else:
            answer.set_result(line["result"])

    def _end(self) -> None:
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(PeerDied(self._log_tail()))
        for queue in self._events.values():
            queue.put_nowait({"event": "end"})

    def _log_tail(self) -> str:
        self._log.seek(0)
        return self._log.read()[-2000:].decode(errors="replace")
