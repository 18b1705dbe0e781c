"""Finding a way to peers that have lost their connection while something is unacknowledged."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import msgspec

from ..address import Address
from ..core.backoff import full_jitter
from ..errors import Error
from ..peers.delivery import stranded
from ..peers.table import Peer
from .waiting import Waiting, out_of_reach

if TYPE_CHECKING:
    from ..node import Switchboard

log = logging.getLogger("openline")

# A peer said goodbye: it is not dialed by ourselves for so long, plus up to as much again by chance.
GOODBYE_PAUSE = 1.0


class Recovery:
    """One task per stranded peer: dials where its messages were sent to, until something is back."""

    def __init__(self, board: Switchboard) -> None:
        self._board = board
        self._tasks: dict[Peer, asyncio.Task[None]] = {}
        self.waiting = Waiting()

    def stranded(self, peer: Peer) -> None:
        """It has unacknowledged messages and no good connection."""
        if self._board.closing:
            return
        if peer not in self.waiting and out_of_reach(peer):
            self.waiting.add(peer, self._addresses(peer))
        if peer not in self._tasks:
            task = self._tasks[peer] = self._board.loop.create_task(self._run(peer))
            task.add_done_callback(lambda _: self._ended(peer))

    def _ended(self, peer: Peer) -> None:
        del self._tasks[peer]
        if stranded(peer):
            self.stranded(peer)  # again, before this was called
        else:
            self.waiting.remove(peer)

    def said_goodbye(self, peer: Peer) -> None:
        pause = GOODBYE_PAUSE * (1 + self._board.random.random())
        peer.not_before = max(peer.not_before, self._board.loop.time() + pause)

    async def close(self) -> None:
        self.waiting.close()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, peer: Peer) -> None:
        failures = 0
        while stranded(peer):
            now = self._board.loop.time()
            if now < peer.not_before:
                await asyncio.sleep(peer.not_before - now)
                continue
            await self._try(peer)
            if stranded(peer):
                failures += 1
                config = self._board.config
                chance = self._board.random.random()
                await asyncio.sleep(full_jitter(failures, config.backoff_min, config.backoff_max, chance))

    async def _try(self, peer: Peer) -> None:
        for address in self._addresses(peer):
            try:
                connection, _ = await self._board.router.find(address)
            except Error as error:
                log.debug("recovering %r: %s", peer, error)
                continue
            except Exception:
                text = "recovering %r: unexpected; will go on trying"
                self._board.log.about(peer, logging.ERROR, text, peer, exc_info=True)
                continue
            if self._board.router.answers_by_dial(address, connection):
                self._board.delivery.move(peer, address, connection.peer)
            if not stranded(peer):
                return

    def _addresses(self, peer: Peer) -> list[Address]:
        """Where its messages were sent to, then where it is known to listen."""
        assert peer.session is not None
        found: dict[Address, None] = {}
        for _, out in peer.session.unacked():
            for parcel in out.unacked:
                if parcel.address is not None:
                    found[parcel.address] = None
        if peer.node_id is not None:
            found.update(dict.fromkeys(self._board.router.book.of(peer.node_id)))
            own = peer.dial_address
            if own is not None and own.node_id is None:
                found[msgspec.structs.replace(own, node_id=peer.node_id)] = None
        return list(found)
