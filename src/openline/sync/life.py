"""An asynchronous transport on the loop of ``openline.sync``, from its beginning to its end."""

from __future__ import annotations

import asyncio

from ..config import Config
from ..errors import Closed
from ..transport import Transport
from .background import Background
from .workers import Workers


class Life:
    """Of one transport: it uses the loop from before it is made until after it is closed."""

    def __init__(self, config: Config, workers: int) -> None:
        self._config = config
        self._transport: Transport | None = None
        self._closing: asyncio.Task[None] | None = None
        self._closed = False
        self.background = Background.enter(self)
        self.workers = Workers(self.background, workers)

    def begin(self) -> Transport:
        """Make it. Whatever interrupts that, nothing is left of it."""
        try:
            return self.background.ask(self._make)
        except BaseException:
            self.background.post(self.begin_closing)
            raise

    def _make(self) -> Transport:
        self._transport = Transport(self._config)
        return self._transport

    def end(self) -> None:
        """Close it and wait. Raises ``Closed`` in a child that came by fork."""
        background = self.background
        if self._closed and not background.foreign:
            return
        self.workers.let_go()
        try:
            background.call(self._close)
        except Closed:
            if background.foreign or not self._closed:
                raise
        background.join()

    # On the loop ---------------------------------------------------------------------------------

    @property
    def longest_close(self) -> float:
        """Seconds."""
        return self._config.close_timeout

    def begin_closing(self) -> None:
        """Close it, and leave the loop."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._end())

    async def _close(self) -> None:
        self.begin_closing()
        assert self._closing is not None
        await asyncio.shield(self._closing)  # Ctrl-C in close() interrupts the wait, not the closing

    async def _end(self) -> None:
        try:
            if self._transport is not None:
                await self._transport.close()
        finally:
            self._closed = True
            self.workers.close()
            self.background.leave(self)
