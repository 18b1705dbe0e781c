"""Dialing again by ourselves: for ``connect(address, keep=True)``, and for what is stranded (rule 3.4)."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

import msgspec

from ..address import Address
from ..connection.context import Context
from ..core.backoff import full_jitter
from ..core.lifecycle import State
from ..errors import Error
from ..peers.remote import Remote, RemoteConnection
from ..runtime.home import Home
from ..runtime.ratelog import RateLog
from .out_of_reach import OutOfReach
from .router import Router

log = logging.getLogger("openline")

# A peer said goodbye: it is not dialed by ourselves for so long, plus up to as much again by chance.
GOODBYE_PAUSE = 1.0


class Kept:
    """One task per address that is to stay connected. ``reach`` finds or dials a connection."""

    def __init__(
        self,
        reach: Callable[[Address], Awaitable[RemoteConnection]],
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
        self._tasks: dict[Address, tuple[asyncio.Task[None], asyncio.Future[RemoteConnection | None]]] = {}

    async def keep(self, address: Address) -> RemoteConnection | None:
        """Start keeping; returns after the first attempt, with its connection if it succeeded."""
        if address not in self._tasks:
            first: asyncio.Future[RemoteConnection | None] = asyncio.get_running_loop().create_future()
            self._tasks[address] = asyncio.ensure_future(self._run(address, first)), first
        return await asyncio.shield(self._tasks[address][1])

    async def close(self) -> None:
        tasks = [task for task, _ in self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, address: Address, first: asyncio.Future[RemoteConnection | None]) -> None:
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
                    pause = connection.remote.paths.not_before - asyncio.get_running_loop().time()
                    await asyncio.sleep(max(pause, full_jitter(1, 0.0, self._low, self._random())))
        finally:
            if not first.done():
                first.set_result(None)

    async def _attempt(self, address: Address, failures: int) -> RemoteConnection | None:
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


async def _until_not_live(connection: RemoteConnection) -> None:
    """Until it is gone, or suspect: then a replacement is dialed before the verdict."""
    changed = asyncio.Event()
    connection.when_changed(changed.set)
    while connection.state is State.LIVE:
        await changed.wait()
        changed.clear()


class Recovery:
    """One task per stranded remote: dials where its messages were sent to, until something is back."""

    def __init__(self, context: Context, home: Home, router: Router, chance: random.Random) -> None:
        self._context = context
        self._home = home
        self._router = router
        self._random = chance
        self._tasks: dict[Remote, asyncio.Task[None]] = {}
        self.out_of_reach = OutOfReach()

    def stranded(self, remote: Remote) -> None:
        """It has unacknowledged messages and no good connection."""
        if self._home.closing:
            return
        if remote not in self.out_of_reach and remote.outstanding.out_of_reach:
            self.out_of_reach.add(remote, self._addresses(remote))
        if remote not in self._tasks:
            task = self._tasks[remote] = self._context.loop.create_task(self._run(remote))
            task.add_done_callback(lambda _: self._ended(remote))

    def _ended(self, remote: Remote) -> None:
        del self._tasks[remote]
        if remote.outstanding.stranded:
            self.stranded(remote)  # again, before this was called
        else:
            self.out_of_reach.remove(remote)

    def look(self, remote: Remote) -> None:
        """Something about it has changed: is it within reach again, or given up?"""
        self.out_of_reach.look(remote)

    def shared(self, address: Address) -> bool:
        """Do several processes answer in turn where it is dialed?"""
        return self._router.shared(address)

    def said_goodbye(self, remote: Remote) -> None:
        pause = GOODBYE_PAUSE * (1 + self._random.random())
        remote.paths.stay_away(self._context.loop.time() + pause)

    async def close(self) -> None:
        self.out_of_reach.close()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, remote: Remote) -> None:
        failures = 0
        while remote.outstanding.stranded:
            now = self._context.loop.time()
            if now < remote.paths.not_before:
                await asyncio.sleep(remote.paths.not_before - now)
                continue
            await self._try(remote)
            if remote.outstanding.stranded:
                failures += 1
                config = self._context.config
                chance = self._random.random()
                await asyncio.sleep(full_jitter(failures, config.backoff_min, config.backoff_max, chance))

    async def _try(self, remote: Remote) -> None:
        for address in self._addresses(remote):
            try:
                connection, _ = await self._router.find(address)
            except Error as error:
                log.debug("recovering %r: %s", remote, error)
                continue
            except Exception:
                text = "recovering %r: unexpected; will go on trying"
                self._context.log.about(remote, logging.ERROR, text, remote, exc_info=True)
                continue
            if self._router.answers_by_dial(address, connection):
                remote.move_to(connection.remote, address)
            if not remote.outstanding.stranded:
                return

    def _addresses(self, remote: Remote) -> list[Address]:
        """Where its messages were sent to, then where it is known to listen."""
        found: dict[Address, None] = {}
        for sent in remote.outstanding.unacked():
            if sent.address is not None:
                found[sent.address] = None
        if remote.node_id is not None:
            found.update(dict.fromkeys(self._router.known_nodes.of(remote.node_id)))
            own = remote.dial_address
            if own is not None and own.node_id is None:
                found[msgspec.structs.replace(own, node_id=remote.node_id)] = None
        return list(found)
