"""An asynchronous transport on the loop of ``openline.sync``, from its beginning to its end."""

from __future__ import annotations

import asyncio
import warnings

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
        self._in_use = False
        try:
            self.background = Background.enter(self)
            self.workers = Workers(self.background, workers)
        except BaseException:
            Background.withdraw(self)
            raise

    def begin(self) -> Transport:
        """Make it. Whatever interrupts that, nothing is left of it."""
        try:
            transport = self.background.ask(self._make)
            self._in_use = True
            return transport
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
        background.post(self.begin_closing)  # not undone by what interrupts the wait
        try:
            background.call(self._close)
        except Closed:
            if background.foreign or not self._closed:
                raise
        background.join()

    def drop(self) -> None:
        """Nobody can close it any more."""
        if self._in_use and not self._closed and not self.background.foreign:
            self.background.post(self.begin_closing)
            text = (
                "a transport of openline.sync was dropped without close(); use  with load_transport(...) as t"
            )
            warnings.warn(text, ResourceWarning, stacklevel=3)

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
        await asyncio.shield(self._closing)

    async def _end(self) -> None:
        try:
            if self._transport is not None:
                await self._transport.close()
        finally:
            self._closed = True
            self.workers.close()
            self.background.leave(self)
