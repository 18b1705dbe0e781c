"""Sends the lines that a program writes, and reports the outcome of each."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import openline
from openline.message import StreamId

from .protocol import BadLine, Line, Record, answer_record, error_record, parse_line, sent_record

# Lines under way; while there are more, standard input is not read.
MAX_WAITING = 1024

Report = Callable[[Record], Awaitable[None]]
Route = tuple[str, StreamId]

# What one line can run into. ValueError: a request with that id is out already.
_ERRORS = (openline.Error, TimeoutError, ValueError)


class Outbox:
    """Lines to one address and stream go in order; no other line waits for them."""

    def __init__(self, transport: openline.Transport, report: Report) -> None:
        self._transport = transport
        self._report = report
        self._room = asyncio.Semaphore(MAX_WAITING)
        self._queues: dict[Route, deque[Line]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._number = 0

    async def put(self, text: bytes | None) -> None:
        """Take one line of input, None for one that was too long. Waits where too many are under way."""
        self._number += 1
        if text is not None and not text.strip():
            return
        try:
            line = self._parse(text)
        except BadLine as error:
            await self._report(error_record(error, id=error.id, line=self._number))
            return
        await self._room.acquire()
        self._enqueue(line)

    def _parse(self, text: bytes | None) -> Line:
        if text is None:
            raise BadLine("the line is too long")
        return parse_line(text)

    def _enqueue(self, line: Line) -> None:
        route = line.to, line.stream_id
        queue = self._queues.get(route)
        if queue is None:
            queue = self._queues[route] = deque()
            self._start(self._work(route, queue))
        queue.append(line)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """Until every line has had its outcome."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _work(self, route: Route, queue: deque[Line]) -> None:
        try:
            while queue:
                line = queue.popleft()
                if line.request:
                    self._start(self._request(line))
                    await asyncio.sleep(0)  # it writes, or starts to dial, before the next line
                else:
                    await self._send(line, queue)
        finally:
            del self._queues[route]

    async def _send(self, line: Line, others: deque[Line]) -> None:
        together = [line]
        try:
            receipt = await self._transport.send(line.to, line.message, timeout=line.timeout)
        except _ERRORS as error:
            if isinstance(error, openline.Unreachable | openline.Refused):
                # They have waited for the same dial: its failure is theirs too.
                together += others
                others.clear()
            for each in together:
                await self._finish(each, error_record(error, id=each.id, to=each.to))
        else:
            await self._finish(line, sent_record(line.id, line.to, receipt))

    async def _request(self, line: Line) -> None:
        try:
            answer = await self._transport.request(line.to, line.message, line.timeout)
        except _ERRORS as error:
            await self._finish(line, error_record(error, id=line.id, to=line.to))
        else:
            await self._finish(line, answer_record(line, answer))

    async def _finish(self, line: Line, record: Record) -> None:
        self._room.release()
        await self._report(record)
