"""Standard input and output for a program that must go on answering pings meanwhile.

Reading and writing happen in threads: that works for files, pipes, terminals and ``/dev/null``
alike, and does not make a descriptor non-blocking that other programs share. The threads are
daemons, so that one that hangs in a read does not hold up the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import stat
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable

CHUNK = 64 * 1024
# Output that may wait before those who print have to wait.
HIGH_WATER = 1024 * 1024
# How long close() waits for a reader that has stopped reading.
CLOSE_TIMEOUT = 2.0
FOREGROUND_CHECK = 0.5


class Input:
    """Standard input in lines. Read one at a time, so what nobody takes stays in the pipe."""

    def __init__(self, max_line: int) -> None:
        self._fd = sys.stdin.fileno()
        self._max_line = max_line
        self._line = bytearray()
        self._too_long = False
        self.is_terminal = os.isatty(self._fd)
        self.was_empty = True
        if self.is_terminal:
            # A read that is under way when the job goes into the background would stop it.
            signal.signal(signal.SIGTTIN, signal.SIG_IGN)

    async def lines(self) -> AsyncIterator[bytes | None]:
        """Every line, without its end; None for one that is too long."""
        async for chunk in self._chunks():
            self.was_empty = False
            *ended, rest = chunk.split(b"\n")
            for piece in ended:
                yield self._end_line(piece)
            self._add(rest)
        if self._line or self._too_long:
            yield self._end_line(b"")

    def _add(self, piece: bytes) -> None:
        self._too_long = self._too_long or len(self._line) + len(piece) > self._max_line
        self._line += b"" if self._too_long else piece

    def _end_line(self, piece: bytes) -> bytes | None:
        self._add(piece)
        line = None if self._too_long else bytes(self._line)
        self._line.clear()
        self._too_long = False
        return line

    async def _chunks(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[bytes] = asyncio.Queue()
        room = threading.Semaphore(1)
        _start(_pump, self._fd, room, lambda data: loop.call_soon_threadsafe(chunks.put_nowait, data))
        while chunk := await chunks.get():
            yield chunk
            room.release()


def _pump(fd: int, room: threading.Semaphore, hand_over: Callable[[bytes], object]) -> None:
    with contextlib.suppress(RuntimeError):  # the event loop has closed
        while room.acquire():
            data = _read(fd)
            hand_over(data)
            if not data:
                return


def _read(fd: int) -> bytes:
    """The next bytes; none at the end. A background job waits until it is in the foreground."""
    while True:
        while _in_background(fd):
            time.sleep(FOREGROUND_CHECK)
        try:
            return os.read(fd, CHUNK)
        except BlockingIOError:  # another program that shares it has made it non-blocking
            select.select([fd], [], [])
        except OSError:
            if not _in_background(fd):
                return b""


def _in_background(fd: int) -> bool:
    try:
        return os.tcgetpgrp(fd) != os.getpgrp()
    except OSError:  # no terminal, or not ours
        return False


class Output:
    """Standard output. ``write`` waits while whoever reads it is far behind."""

    def __init__(self) -> None:
        self._fd = sys.stdout.fileno()
        self._loop = asyncio.get_running_loop()
        self._waiting = bytearray()
        self._work = threading.Condition()
        self._closing = False
        self._room = asyncio.Event()
        self._room.set()
        self._done = asyncio.Event()
        # Done as soon as nothing can be written any more; an exception says why.
        self.broken: asyncio.Future[None] = self._loop.create_future()
        _start(self._run)
        kind = os.fstat(self._fd).st_mode
        if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
            _start(self._watch_reader)

    async def write(self, data: bytes) -> None:
        if self.broken.done():
            return
        with self._work:
            self._waiting += data
            self._work.notify()
            if len(self._waiting) > HIGH_WATER:
                self._room.clear()
        await self._room.wait()

    async def close(self) -> bool:
        """Let what waits be written, within ``CLOSE_TIMEOUT``; False where that was not enough."""
        with self._work:
            self._closing = True
            self._work.notify()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._done.wait()
        self._break(None)
        return self._done.is_set()

    def _break(self, error: OSError | None) -> None:
        self._room.set()
        if self.broken.done():
            return
        if error is None or isinstance(error, BrokenPipeError):
            self.broken.set_result(None)
        else:
            self.broken.set_exception(error)

    # In threads

    def _watch_reader(self) -> None:
        """Notice that whoever reads has gone, even while there is nothing to write."""
        poll = select.poll()
        poll.register(self._fd, 0)
        poll.poll()
        with contextlib.suppress(RuntimeError):  # the event loop has closed
            self._loop.call_soon_threadsafe(self._break, BrokenPipeError())

    def _run(self) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has closed
            try:
                while data := self._next():
                    _write_all(self._fd, data)
                    self._loop.call_soon_threadsafe(self._room.set)
            except OSError as error:
                self._loop.call_soon_threadsafe(self._break, error)
            self._loop.call_soon_threadsafe(self._done.set)

    def _next(self) -> bytearray:
        """All that waits, as soon as there is something; nothing after ``close``."""
        with self._work:
            self._work.wait_for(lambda: self._waiting or self._closing)
            data, self._waiting = self._waiting, bytearray()
            return data


def _write_all(fd: int, data: bytearray) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:  # as in _read
            select.select([], [fd], [])


def _start(function: Callable[..., None], *args: object) -> None:
    threading.Thread(target=function, args=args, daemon=True).start()
