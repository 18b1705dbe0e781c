"""What two openline peers tell each other about answers in pieces: on a stream of its own in the session, so
that it arrives exactly once whichever connections die, and passes where programs' streams are stopped."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from ..core.pieces import CONTROL_STREAM, Cancel, Failed, Taken, Told, as_message, read_told
from ..core.session import Blocked
from ..errors import RemoteError
from ..message import Message
from .in_flight import InFlight
from .mailbox import Mailbox
from .outstanding import BLOCKED_RETRY
from .part import Part

if TYPE_CHECKING:
    from .remote import Remote
    from .services import Services

NEVER = float("inf")
# Unacknowledged. There are three for each answer that is read at the most, as the peer sends no more parts
# before it has heard of those that were taken; and one for each request that is given up.
MAX_TOLD = 131072


class Kept(InFlight[None]):
    """Nobody waits for it; the session sends it until it is acknowledged or given up."""

    moves = False


class Control(Part):
    """Of one peer."""

    __slots__ = ("_services", "spoken")

    def __init__(self, remote: Remote, services: Services) -> None:
        super().__init__(remote)
        self._services = services
        # Does the process that its session is with read that stream?
        self.spoken = False

    def speaks(self, spoken: bool) -> None:
        self.spoken = spoken

    def tell(self, told: Told) -> None:
        """To one that reads it. One that acknowledges nothing is not told without end."""
        if not self.spoken:
            return
        session = self.remote.outstanding.session
        out = session.out.get(CONTROL_STREAM) if session is not None else None
        if out is not None and out.next - out.acked >= MAX_TOLD:
            text = "%r acknowledges nothing: it is not told what else has become of requests"
            self._services.context.log.about(self.remote, logging.WARNING, text, self.remote)
            return
        self.keep(as_message(told))

    def keep(self, message: Message) -> None:
        """Send it now, or over the next connection."""
        loop = self._services.context.loop
        try:
            self.remote.outstanding.keep(Kept(loop, [message], None, NEVER, NEVER))
        except Blocked:
            loop.call_later(BLOCKED_RETRY, self._again, message)

    def _again(self, message: Message) -> None:
        if self._ref() is not None:
            self.keep(message)

    def hear(self, message: Message) -> None:
        """It tells something. What makes no sense is counted, as is what is unknown ignored."""
        try:
            told = read_told(message)
        except msgspec.ValidationError:
            self._services.context.counters.malformed += 1
            return
        remote = self.remote
        if isinstance(told, Cancel):
            remote.answers.cancel(told.stream_id, told.id)
        elif isinstance(told, Taken):
            remote.answers.granted(told)
        elif isinstance(told, Failed):
            remote.requests.failed(told.id, RemoteError(remote.address, *told.shown))


class ControlBox(Mailbox):
    """Takes the place of a mailbox where peers tell such things. Parts that come to it are nobody's."""

    __slots__ = ()

    def deliver(self, message: Message, size: int, small: bool) -> None:
        if self.stream_id == CONTROL_STREAM:
            self.remote.control.hear(message)
