"""One dial at a time to each address, and every waiter shares its result (rule 3.1)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ..address import Address
from ..core.lifecycle import State
from ..errors import Closed, Error, Unreachable
from ..peers.remote import RemoteConnection

log = logging.getLogger("openline")

# Looks at a time: each is for a plain peer that a send has just gone to.
MAX_LOOKS = 64


class _Flight:
    """One dial under way, and what its waiters wait for: its end, or a connection that comes in first."""

    def __init__(self, task: asyncio.Task[RemoteConnection], scheme: str | None) -> None:
        self.task = task
        self.scheme = scheme
        self.result: asyncio.Future[RemoteConnection] = asyncio.get_running_loop().create_future()

    def renew(self) -> None:
        """What it has brought is gone again; whoever comes now waits for the dial itself."""
        self.result = asyncio.get_running_loop().create_future()

    @property
    def stale(self) -> bool:
        """What it has brought is of no use any more."""
        result = self.result
        if not result.done() or result.cancelled() or result.exception() is not None:
            return False
        connection = result.result()
        return connection.state is not State.LIVE or connection.link.closing


class Dialer:
    """Single flight: one dial per address at a time, and every waiter shares its result.

    A connection that comes in from the same peer meanwhile is a result too.
    """

    def __init__(
        self,
        dial: Callable[[Address], Awaitable[RemoteConnection]],
        try_out: Callable[[Address], Awaitable[object]],
    ) -> None:
        """``try_out`` dials for nobody who waits: its failure is no news."""
        self._dial = dial
        self._try_out = try_out
        self._closed = False
        # Where to look soon, and where a look is under way.
        self._looking: dict[Address, asyncio.TimerHandle | asyncio.Task[None]] = {}
        self._flying: dict[tuple[object, ...], _Flight] = {}
        self._waiting: dict[asyncio.Future[RemoteConnection], Address] = {}

    async def connect(self, address: Address) -> RemoteConnection:
        """The shared result. Raises what the dial raises."""
        if self._closed:
            raise Closed("the transport is closing: nothing is dialed any more")
        flight = self._flying.get(address.dial_key)
        if flight is None:
            flight = self._take_off(address)
        elif flight.stale:
            # Settled by a connection that is gone again, while its dial is still under way.
            flight.renew()
            self._waiting[flight.result] = address
        try:
            return await asyncio.shield(flight.result)
        except Unreachable:
            if flight.scheme == address.scheme or address.scheme is not None:
                raise
        finally:
            del flight  # its result holds the error, whose traceback holds this frame
        # That dial was bound to a scheme, and this address is not: there may be other ways.
        return await self.connect(address)

    def _take_off(self, address: Address) -> _Flight:
        task: asyncio.Task[RemoteConnection] = asyncio.ensure_future(self._dial(address))
        flight = self._flying[address.dial_key] = _Flight(task, address.scheme)
        self._waiting[flight.result] = address
        task.add_done_callback(lambda _: self._landed(address, flight))
        return flight

    def _landed(self, address: Address, flight: _Flight) -> None:
        task, result = flight.task, flight.result
        if self._flying.get(address.dial_key) is flight:
            del self._flying[address.dial_key]
        self._waiting.pop(result, None)
        if result.done():
            _ = task.cancelled() or task.exception()
        elif task.cancelled():
            # Only close() does that; those who wait have not been cancelled themselves.
            result.set_exception(Closed("the transport is closed"))
            _ = result.exception()
        elif (error := task.exception()) is not None:
            result.set_exception(error)
            _ = result.exception()  # every waiter may have been cancelled; that is no news
        else:
            result.set_result(task.result())

    def waiting(self) -> list[Address]:
        return list(self._waiting.values())

    def settle(self, address: Address, connection: RemoteConnection) -> None:
        """Another connection reaches that peer now: waiters need not wait for the dial."""
        flight = self._flying.get(address.dial_key)
        if flight is not None and not flight.result.done() and connection.state is State.LIVE:
            self._waiting.pop(flight.result, None)
            flight.result.set_result(connection)

    def look(self, address: Address, after: float, wanted: Callable[[], bool]) -> None:
        """Dial in so many seconds, once, if it is still wanted then; a connection that opens is kept."""
        if address not in self._looking and len(self._looking) < MAX_LOOKS and not self._closed:
            loop = asyncio.get_running_loop()
            self._looking[address] = loop.call_later(after, self._begin_look, address, wanted)

    def _begin_look(self, address: Address, wanted: Callable[[], bool]) -> None:
        if not wanted() or address.dial_key in self._flying:
            del self._looking[address]
            return
        task = asyncio.ensure_future(self._look(address))
        self._looking[address] = task
        task.add_done_callback(lambda _: self._looking.pop(address, None))

    async def _look(self, address: Address) -> None:
        try:
            await self._try_out(address)
        except Error as error:
            log.debug("looked whether somebody listens at %s: %s", address, error)

    def stop(self) -> None:
        """Nothing is dialed any more."""
        self._closed = True
        for task in self._tasks():
            task.cancel()
        for look in self._looking.values():
            if not isinstance(look, asyncio.Task):
                look.cancel()

    def _tasks(self) -> list[asyncio.Task[Any]]:
        looks = [look for look in self._looking.values() if isinstance(look, asyncio.Task)]
        return [*(flight.task for flight in self._flying.values()), *looks]

    async def close(self) -> None:
        self.stop()
        await asyncio.gather(*self._tasks(), return_exceptions=True)
