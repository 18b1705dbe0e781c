"""Where the demo plays: two hosts in network namespaces, or loopback with the faults injected."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from openline.testing.netns import ADDRESS, HostName, TwoHosts

PORT = 8770
ANSWER_WITHIN = 60.0
CHUNK = 65536
ENDED_EARLY = "one of the two programs ended early"


class ProgramError(RuntimeError):
    """One of the two programs could not do what it was asked."""


class Program:
    """One of the two openline processes, seen from the demo."""

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

    async def event(self, timeout: float = ANSWER_WITHIN, **expected: Any) -> dict[str, Any]:
        """The next event that has these values; those before it are dropped."""
        try:
            return await asyncio.wait_for(self._next_event(expected), timeout)
        except TimeoutError:
            raise TimeoutError(f"no {expected} within {timeout:.0f} s") from None

    async def _next_event(self, expected: dict[str, Any]) -> dict[str, Any]:
        while True:
            event = await self._events.get()
            if event["event"] == "ended":
                raise ProgramError(ENDED_EARLY)
            if event.items() >= expected.items():
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


class Stage(Protocol):
    """Two places to run a program, the line between them, and what can go wrong with it."""

    injected: bool
    programs: dict[HostName, Program]
    # Where each program listens, and where A reaches B.
    listening: dict[HostName, tuple[str, int]]
    b_from_a: tuple[str, int]

    async def open(self) -> None: ...
    async def close(self) -> None:
        """End and undo everything; also right after an `open` that failed halfway."""
        ...

    async def break_route(self) -> None: ...
    def cut(self) -> None: ...
    def heal(self) -> None: ...


class Namespaces:
    """Two network namespaces and a virtual cable."""

    injected = False

    def __init__(self, idle_timeout: float) -> None:
        self._idle_timeout = idle_timeout
        self._hosts = TwoHosts()
        self.programs: dict[HostName, Program] = {}
        self.listening: dict[HostName, tuple[str, int]] = {name: (ip, PORT) for name, ip in ADDRESS.items()}
        self.b_from_a = self.listening["B"]

    async def open(self) -> None:
        self._hosts.__enter__()
        for name, (ip, port) in self.listening.items():
            argv = self._hosts.command(name, node_command(name, ip, port, self._idle_timeout))
            self.programs[name] = await Program.start(argv)
            await self.programs[name].event(event="listening")

    async def close(self) -> None:
        await end_all(self.programs)
        self._hosts.close()

    async def break_route(self) -> None:
        self._hosts.break_route("B", to="A", port=PORT)

    def cut(self) -> None:
        self._hosts.cut()

    def heal(self) -> None:
        self._hosts.heal()


class Loopback:
    """One machine: B's dialer is told to fail, and A reaches B through a relay that can go silent."""

    injected = True

    def __init__(self, idle_timeout: float) -> None:
        self._idle_timeout = idle_timeout
        self._relay = Relay()
        self.programs: dict[HostName, Program] = {}
        self.listening: dict[HostName, tuple[str, int]] = {}
        self.b_from_a = ("", 0)

    async def open(self) -> None:
        names: tuple[HostName, HostName] = ("A", "B")
        for name in names:
            program = await Program.start(node_command(name, "127.0.0.1", 0, self._idle_timeout))
            self.programs[name] = program
            self.listening[name] = ("127.0.0.1", (await program.event(event="listening"))["port"])
        self.b_from_a = await self._relay.open(self.listening["B"])

    async def close(self) -> None:
        await end_all(self.programs)
        await self._relay.close()

    async def break_route(self) -> None:
        host, port = self.listening["A"]
        await self.programs["B"].ask("refuse", host=host, port=port)

    def cut(self) -> None:
        self._relay.flowing.clear()

    def heal(self) -> None:
        self._relay.flowing.set()


class Relay:
    """Passes TCP connections on to one target while `flowing` is set; keeps still otherwise."""

    def __init__(self) -> None:
        self.flowing = asyncio.Event()
        self.flowing.set()
        self._target = ("", 0)
        self._server: asyncio.Server | None = None
        self._passing: set[asyncio.Task[None]] = set()

    async def open(self, target: tuple[str, int]) -> tuple[str, int]:
        self._target = target
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return host, port

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._pass(reader, writer))
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            await self.flowing.wait()
            onward_reader, onward_writer = await asyncio.open_connection(*self._target)
            with contextlib.closing(onward_writer):
                await first_done(self._copy(reader, onward_writer), self._copy(onward_reader, writer))

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(CHUNK):
            await self.flowing.wait()
            sink.write(data)
            await sink.drain()
        await self.flowing.wait()


async def first_done(*coroutines: Any) -> None:
    """Run all until one ends, then stop the others."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def node_command(name: str, host: str, port: int, idle_timeout: float) -> list[str]:
    return [sys.executable, "-m", "openline.cli.demo_node", name, host, str(port), str(idle_timeout)]


async def end_all(programs: dict[HostName, Program]) -> None:
    for program in programs.values():
        await program.end()
