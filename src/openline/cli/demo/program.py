"""The openline processes of the demo, seen from the demo."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from openline.config import BackendName
from openline.testing.lab.netns import HostName

ANSWER_WITHIN = 60.0
ENDED_EARLY = "one of the programs ended early"


class ProgramError(RuntimeError):
    """One of the programs could not do what it was asked."""


class Program:
    """One openline process: takes commands, tells events."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, argv: Sequence[str]) -> Program:
        pipe = asyncio.subprocess.PIPE
        # Its own session: Ctrl-C is for the demo, which then ends its programs in order.
        process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, start_new_session=True)
        return cls(process)

    async def ask(self, do: str, **arguments: Any) -> Any:
        """Have it carry out one command; the result."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": number, "do": do, **arguments}).encode() + b"\n")
        return await asyncio.wait_for(answer, ANSWER_WITHIN)

    async def event(
        self, timeout: float = ANSWER_WITHIN, since: float = 0.0, **expected: Any
    ) -> dict[str, Any]:
        """The next event that has these values, seen no earlier than that; those before it are dropped."""
        try:
            return await asyncio.wait_for(self._next_event(since, expected), timeout)
        except TimeoutError:
            raise TimeoutError(f"no {expected} within {timeout:.0f} s") from None

    async def _next_event(self, since: float, expected: dict[str, Any]) -> dict[str, Any]:
        while True:
            event = await self._events.get()
            if event["event"] == "ended":
                raise ProgramError(ENDED_EARLY)
            if event["at"] >= since and event.items() >= expected.items():
                return event

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reader

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            said = json.loads(line)
            if "event" in said:
                self._events.put_nowait(said)
            else:
                self._settle(said["id"], said.get("result"), said.get("error"))
        for number in list(self._answers):
            self._settle(number, None, ENDED_EARLY)
        self._events.put_nowait({"event": "ended"})

    def _settle(self, number: int, result: Any, error: str | None) -> None:
        answer = self._answers.pop(number)
        if answer.done():  # whoever asked has been stopped
            return
        if error is not None:
            answer.set_exception(ProgramError(error))
        else:
            answer.set_result(result)


@dataclass
class Pair:
    """A program on each host, joined by one line of one backend."""

    backend: BackendName
    programs: dict[HostName, Program] = field(default_factory=dict)
    # Where each program listens, and where A reaches B.
    listening: dict[HostName, tuple[str, int]] = field(default_factory=dict)
    b_from_a: tuple[str, int] = ("", 0)


def node_command(name: HostName, pair: Pair, host: str, port: int, idle_timeout: float) -> list[str]:
    module = "openline.cli.demo.node"
    return [sys.executable, "-m", module, name, pair.backend, host, str(port), str(idle_timeout)]


async def end_all(pairs: Iterable[Pair]) -> None:
    for pair in pairs:
        for program in pair.programs.values():
            await program.end()
