"""What happened in a simulation, line by line, for reading after it has failed."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager

from ...backends.memory.link import describe_frame
from .loop import current_process

# Lines kept; the last ones tell most.
LINES = 2000


class Trace:
    """The last events, each with its virtual time and where it happened. ``str(trace)`` prints them."""

    def __init__(self, clock: Callable[[], float], lines: int = LINES) -> None:
        self._clock = clock
        self._lines: deque[tuple[float, str, str, tuple[object, ...]]] = deque(maxlen=lines)
        self._dropped = 0
        # Every frame is noted, too.
        self.frames = False

    def note(self, where: str, what: str, *details: object) -> None:
        """Add a line; ``details`` are put into ``what`` with ``%``, if it is ever read."""
        if len(self._lines) == self._lines.maxlen:
            self._dropped += 1
        self._lines.append((self._clock(), where, what, details))

    def frame(self, where: str, what: str, sock: object, frame: object) -> None:
        """Add a line for a frame or a packet, which the receiver is going to change."""
        self.note(where, what, sock, describe_frame(frame))

    def __str__(self) -> str:
        lines = [f"{at:>10.4f}  {where:<10} {what % details}" for at, where, what, details in self._lines]
        head = [f"… {self._dropped} lines before"] if self._dropped else []
        return "\n".join([*head, *lines])

    @contextmanager
    def logged(self, name: str = "openline", level: int = logging.DEBUG) -> Generator[Trace]:
        """Meanwhile, what is logged is noted as well, under the host that logged it."""
        logger, handler = logging.getLogger(name), _Handler(self)
        before, propagate = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
        try:
            yield self
        finally:
            logger.removeHandler(handler)
            logger.setLevel(before)
            logger.propagate = propagate


class _Handler(logging.Handler):
    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    def emit(self, record: logging.LogRecord) -> None:
        process = current_process()
        text = self.format(record)  # now: what it shows changes
        self._trace.note(process.name if process else "-", "%s", text)
