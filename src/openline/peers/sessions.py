"""All sessions of one transport: who owes acknowledgements, and how long those gone are remembered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..address import Address
from ..backends.base import POLICY, End
from ..connection.context import Context
from ..core.session import Session
from .retention import Retention

if TYPE_CHECKING:
    from .outstanding import Sent
    from .remote import Remote

# While closing: how often to look whether everything has been acknowledged.
DRAIN_LOOK = 0.005


class Sessions:
    """``forgotten(remote)`` is called when nothing is remembered of a peer any more."""

    def __init__(
        self, context: Context, wall_clock: Callable[[], float], forgotten: Callable[[Remote], None]
    ) -> None:
        self._context = context
        self._forgotten = forgotten
        self._unacked: dict[Remote, None] = {}
        self.retention = Retention(self._push_out, context.loop.call_soon)
        # The last reading of the clock that goes on while the machine sleeps; and its progress.
        self._wall_clock = wall_clock
        self._wall, self._awake = wall_clock(), 0.0
        # New sessions begin above all numbers of those that have been forgotten.
        self._floor = 1
        self._limits = context.config.window_messages, context.config.window_bytes

    def begin(self, process: str, floor: int | None = None) -> Session[Sent]:
        return Session(process, self._limits, self._floor if floor is None else floor)

    def has_unacked(self, remote: Remote) -> None:
        """Something is unacknowledged that was sent to it."""
        self._unacked[remote] = None

    def nothing_unacked(self, remote: Remote) -> None:
        self._unacked.pop(remote, None)

    def unacked(self) -> list[Remote]:
        """Peers with something unacknowledged."""
        return [remote for remote in self._unacked if remote.outstanding.has_unacked]

    def left(self, remote: Remote) -> None:
        """Its last connection has ended; its session waits for it, within bounds."""
        session = remote.outstanding.session
        if session is None or not (session.out or session.expected or remote.outstanding.former):
            self.forget(remote, "nothing was exchanged")
            return
        self.retention.left(remote, self._awake)

    def forget(self, remote: Remote, why: str) -> None:
        """The end of a session: numbers, and what has been received, are no longer known."""
        self.retention.ended(remote)
        if remote.outstanding.session is None:
            return
        remote.lose(why)
        remote.outstanding.unconfirmed(why)
        session = remote.outstanding.end()
        if session is not None:
            self._floor = max(self._floor, session.floor)
        self._forgotten(remote)

    def _push_out(self, remote: Remote, why: str) -> None:
        """It has to make room for others."""
        self._context.counters.forgotten += 1
        remote.forgotten(why)
        for connection in list(remote.connections):
            connection.link.close(POLICY, why)
            connection.link.abort()
            connection.on_closed(End.by_us(POLICY, why))
        self.forget(remote, why)

    # Time ----------------------------------------------------------------------------------------

    def tick(self, now: float, wall: float) -> None:
        """Give up what has waited too long, and forget peers that have been gone too long.

        ``wall`` is the time on the clock that goes on while the machine sleeps.
        """
        self._note_clock(wall)
        for remote in list(self._unacked):
            remote.look_for_doubt(now)
            if not remote.outstanding.has_unacked:
                del self._unacked[remote]
                remote.outstanding.not_noted()
                self.retention.look(remote)
                continue
            if not remote.known:
                self.retention.look(remote)
            # Who waits is told at once, and may send again from there.
            for sent in [sent for sent in remote.outstanding.unacked() if sent.deadline <= now]:
                sent.overdue()
        self.retention.tick(self._awake)
        self._forget_overdue()

    def _forget_overdue(self) -> None:
        patience = self._context.config.resume_timeout
        for remote, since in list(self.retention.gone.items()):
            gone = self._awake - since
            if gone < patience:
                break  # the one that is gone longest comes first
            why = f"the peer was out of reach for resume_timeout={patience:g} s"
            remote.lose(why)  # it will not come back in time
            if remote.outstanding.has_unacked:
                remote.outstanding.unconfirmed(why)
            session = remote.outstanding.session
            if session is not None and gone > max(patience, session.remembered_for):
                self.forget(remote, f"gone for {gone:.0f} s")

    def look_at_the_clock(self) -> None:
        """Has this process stood still for longer than peers remember it?"""
        self._note_clock(self._wall_clock())

    def _note_clock(self, wall: float) -> None:
        away = max(0.0, wall - self._wall)  # one that can be set may go back
        self._wall, self._awake = wall, self._awake + away
        if away > self._context.config.resume_timeout:
            why = f"this side stood still for {away:.0f} s, longer than peers remember"
            for remote in self.unacked():
                remote.outstanding.unconfirmed(why)

    # The end -------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Wait until everything is acknowledged by the peers that are there; the caller bounds the time."""
        while any(remote.connections for remote in self.unacked()):  # noqa: ASYNC110 - once, and bounded
            await asyncio.sleep(DRAIN_LOOK)

    def close(self) -> None:
        """Nothing is sent again from now on."""
        for remote in self.unacked():
            remote.outstanding.unconfirmed("this side was closed")

    def moved(self, target: Address, new: Remote) -> list[Remote]:
        """A dial of ``target`` has reached ``new``: what was sent there to nodes that are gone is its.

        Returns those that something was taken from.
        """
        return [remote for remote in self.unacked() if remote.move_to(new, target)]
