"""``connect(address, keep=True)``: stay connected, without a stampede."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ..address import Address
from ..connection.connection import Connection, State
from ..core.backoff import full_jitter
from ..errors import Error
from ..runtime.ratelog import RateLog

log = logging.getLogger("openline")


class Keeper:
    """One task per address that is to stay connected. ``reach`` finds or dials a connection."""

    def __init__(
        self,
        reach: Callable[[Address], Awaitable[Connection]],
        low: float,
        high: float,
        random: Callable[[], float],
        log: RateLog,
    ) -> None:
        self._reach = reach
        self._low = low
        self._high = high
        self._random = random
        self._log = log
        self._tasks: dict[Address, tuple[asyncio.Task[None], asyncio.Future[Connection | None]]] = {}

    async def keep(self, address: Address) -> Connection | None:
        """Start keeping; returns after the first attempt, with its connection if it succeeded."""
        if address not in self._tasks:
            first: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
            self._tasks[address] = asyncio.ensure_future(self._run(address, first)), first
        return await asyncio.shield(self._tasks[address][1])

    async def close(self) -> None:
        tasks = [task for task, _ in self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, address: Address, first: asyncio.Future[Connection | None]) -> None:
        failures = 0
        try:
            while True:
                connection = await self._attempt(address, failures)
                if not first.done():
                    first.set_result(connection)
                if connection is None or connection.state is not State.LIVE:
                    failures += 1
                    await asyncio.sleep(full_jitter(failures, self._low, self._high, self._random()))
                else:
                    failures = 0
                    await _until_not_live(connection)
                    # Peers that lost the same network come back spread out.
                    pause = connection.peer.not_before - asyncio.get_running_loop().time()
                    await asyncio.sleep(max(pause, full_jitter(1, 0.0, self._low, self._random())))
        finally:
            if not first.done():
                first.set_result(None)

    async def _attempt(self, address: Address, failures: int) -> Connection | None:
        try:
            return await self._reach(address)
        except Error as error:
            # Once aloud, then quietly: an absent peer must not fill the log.
            text = "keep %s: %s; will go on trying"
            if failures:
                log.debug(text, address, error)
            else:
                self._log.line(str(address), True, logging.WARNING, text, address, error)
            return None
        except Exception:
            text = "keep %s: unexpected; will go on trying"
            self._log.line(str(address), True, logging.ERROR, text, address, exc_info=True)
            return None


async def _until_not_live(connection: Connection) -> None:
    """Until it is gone, or suspect: then a replacement is dialed before the verdict."""
    changed = asyncio.Event()
    connection.when_changed(changed.set)
    while connection.state is State.LIVE:
        await changed.wait()
        changed.clear()
