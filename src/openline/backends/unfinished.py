"""One limit for all input of strangers that has not come whole (rule 3.10).

A stranger is a peer that this program has no reason to know: a plain client, a node with a key of its
own, and everybody whose proof has not come yet. What counts is what only more input can free: the
beginning of a frame, the fragments of a message, a unit that is not complete. Over the limit the
connection that holds the most is cut, of several the one that has held it longest: of the origin
that holds the most, so that many small ones from one place do not have those of others cut.
"""

from __future__ import annotations

import asyncio
import logging

from ..core.fairshare import FairShare
from ..core.origin import origin
from .base import TOO_BIG, Link
from .pages import trim

log = logging.getLogger("openline")

# A connection may hold so much without being counted: a frame of that size is not worth the look at
# every read. Connections are bounded by themselves.
FREE = 16 * 1024
# When connections end that held so much, what is free of the heap goes back to the system: at most once
# in so many seconds, as that takes milliseconds.
TRIM_FROM = 1024 * 1024
TRIM_EVERY = 0.25
# Seconds between two warnings; each says how many have been cut since the one before.
WARN_EVERY = 60.0


class Unfinished:
    """What links of strangers hold, in bytes."""

    def __init__(self, limit: int) -> None:
        self._share: FairShare[Link] = FairShare(limit)
        # Connections cut so far, and how many of them have been told of.
        self.cut = 0
        self._told = 0
        self._warned_at = float("-inf")
        self._trim: asyncio.TimerHandle | None = None

    @property
    def used(self) -> int:
        return self._share.used

    def set(self, link: Link, size: int) -> None:
        """``link`` holds so much now. May cut it, or another one."""
        share = self._share
        if size <= FREE or link.events.known:
            share.remove(link)
            return
        share.set(link, share.origin_of(link) or origin(link.endpoint.ip), size)
        while (victim := share.excess()) is not None:
            share.remove(victim)
            if not victim.events.known:  # it may have become so since it was counted
                self._cut(victim)

    def remove(self, link: Link) -> None:
        """It has ended."""
        held = self._share.held_by(link)
        self._share.remove(link)
        if held >= TRIM_FROM:
            self._trim_soon()

    def _trim_soon(self) -> None:
        if self._trim is None:
            self._trim = asyncio.get_running_loop().call_later(TRIM_EVERY, self._trim_now)

    def _trim_now(self) -> None:
        self._trim = None
        trim()

    def _cut(self, link: Link) -> None:
        self.cut += 1
        self._trim_soon()
        limit = self._share.limit
        link.cut(TOO_BIG, f"strangers hold more than {limit} bytes of unfinished messages here")
        now = asyncio.get_running_loop().time()
        if now >= self._warned_at + WARN_EVERY:
            log.warning(
                "strangers hold more than stranger_buffer_bytes=%d of unfinished messages: cut %d of them, "
                "the last one %s",
                limit,
                self.cut - self._told,
                link.endpoint.remote,
            )
            self._warned_at, self._told = now, self.cut
