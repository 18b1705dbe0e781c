"""Answers in pieces, on the answering side: what handlers yield, or reply with ``more=True``.

Where a peer has asked for pieces, each answer may have so many parts under way as the asker says
(``core/pieces.py``); then its handler waits. Parts are messages of the ordinary session: no connection has
to be there for them, and one that dies ends nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from ..core.frames import FRAME_BYTES
from ..core.pieces import (
    ERROR,
    MORE,
    REPLY_TO,
    Failed,
    Id,
    Taken,
    Window,
    allowed_by,
    as_part,
    error_of,
    lane_of,
)
from ..core.session import Blocked
from ..errors import Error, InvalidMessage
from ..message import STREAM, Message, Receipt, StreamId, new_id
from ..typed import InvalidPayload
from .control import NEVER, Kept
from .in_flight import Send
from .part import Part

if TYPE_CHECKING:
    from .remote import Remote
    from .services import Services

# Parts that gather for the first frame; later ones are sized by what those took.
FIRST_CHUNK = 4
# Answers of one peer that do not count against ``Config.max_streams``: handlers that wait for their asker
# have to hear of it, so the peer is read on.
MAX_ANSWERS = 16384

Generator = AsyncGenerator[Any, None]


class Answer:
    """To one message of an openline peer that has asked for it in pieces."""

    __slots__ = (
        "_answers",
        "_chunk",
        "_count",
        "_error",
        "_loop",
        "_metadata",
        "_pending",
        "_pusher",
        "_soon",
        "_stream_id",
        "_waiter",
        "_waiting",
        "closed",
        "left",
        "message",
        "window",
    )

    def __init__(self, answers: Answers, message: Message, allowed: int) -> None:
        self._answers = answers
        self._loop = answers.loop
        self.message = message
        self.window = Window(allowed)
        self._metadata: dict[str, Any] = {REPLY_TO: message.id, MORE: True}
        # Parts that have not left.
        self._pending: list[Message] = []
        self._stream_id, self._count = lane_of(message.id), 0
        self._chunk = FIRST_CHUNK
        self._soon = self._waiting = False
        self._waiter: asyncio.Future[None] | None = None
        self._pusher: asyncio.Task[None] | None = None
        self._error: InvalidMessage | None = None
        # The asker has left; nothing more is sent.
        self.left = self.closed = False

    def add(self, payload: Any, kind: str = "result") -> bool:
        """One part more, which leaves with others of this turn of the loop. True where it is time to wait.

        Raises ``InvalidMessage`` for one before that cannot be sent, and ``CancelledError`` once the asker
        has left.
        """
        if self.left or self._error is not None:
            raise self._error or asyncio.CancelledError
        pending = self._pending
        if isinstance(payload, Message):
            pending.append(as_part(payload, self._metadata, self._stream_id))
        else:
            self._count = count = self._count + 1
            pending.append(Message(count, kind, payload, self._metadata, self._stream_id))
        if len(pending) >= self._chunk:
            self.flush()
            return bool(pending)
        if not self._soon:
            self._soon = True
            self._loop.call_soon(self._flush_soon)
        return False

    def flush(self) -> None:
        """Send what has gathered, as far as it may leave. Raises ``InvalidMessage``."""
        pending, most = self._pending, self._chunk
        window = self.window
        while pending and (room := window.room):
            if room < most and room < len(pending) and not window.roomy:
                return  # it is worth waiting for more
            chunk = pending[: min(room, most)]
            try:
                sent = self._answers.post(chunk)
            except InvalidMessage:
                if len(chunk) == 1:
                    del pending[0]
                    raise
                most = 1  # those before it may leave
                continue
            if sent is None:
                return
            count = len(sent.messages)
            del pending[:count]
            window.add(count, sent.size)
            if sent.size:
                self._chunk = max(1, min(count * FRAME_BYTES // sent.size, window.half))

    @property
    def _small(self) -> bool:
        """Does it wait for its asker?"""
        room = self.window.room
        return room < self._chunk and room < len(self._pending) and not self.window.roomy

    def _flush_soon(self) -> None:
        self._soon = False
        self.push()

    def push(self) -> None:
        """Send what may leave now; what is held up by something else than the asker, soon."""
        if self.closed or self._waiting:
            return
        try:
            self.flush()
        except InvalidMessage as error:
            self._error = error
        if self._pending and not self._small and self._pusher is None:
            self._pusher = self._loop.create_task(self._push())

    async def _push(self) -> None:
        try:
            await self.drained()
        except InvalidMessage as error:
            self._error = error
        finally:
            self._pusher = None

    async def drained(self) -> None:
        """Wait until all parts have left. Raises as ``add`` does."""
        while self._pending and not self.closed:
            if self.left:
                raise asyncio.CancelledError
            self.flush()
            if self._pending:
                self._waiting = True
                try:
                    await self._room()
                finally:
                    self._waiting = False
        if self._error is not None:
            raise self._error

    async def _room(self) -> None:
        """Wait for what holds it up."""
        if self._small:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        else:
            await self._answers.room(self._stream_id)

    def granted(self, taken: int, allowed: int) -> None:
        """The asker has taken parts."""
        self.window.grant(taken, allowed)
        if self._waiter is None:
            self.push()
        elif self.window.roomy and not self._waiter.done():
            self._waiter.set_result(None)

    def leave(self) -> None:
        """The asker does not want any more."""
        self.left = True
        self._pending.clear()

    def interrupt(self) -> None:
        """Whoever replies in pieces outside of a handler sees it where it waits."""
        if self._waiter is not None:
            self._waiter.cancel()

    def close(self) -> None:
        """It is over."""
        self.closed = self.left = True
        self._pending.clear()
        if self._pusher is not None:
            self._pusher.cancel()


class Answers(Part):
    """All answers in pieces to one peer."""

    __slots__ = ("_plain", "_services", "by_id")

    def __init__(self, remote: Remote, services: Services) -> None:
        super().__init__(remote)
        self._services = services
        self.by_id: dict[Id, Answer] = {}
        # Generators that answer a plain peer: the stream and id of what they answer.
        self._plain: dict[tuple[StreamId, Id], None] = {}

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._services.context.loop

    # Handlers ------------------------------------------------------------------------------------

    def generate(self, message: Message, generator: Generator) -> Coroutine[Any, Any, None]:
        """Answer with what a handler yields."""
        if self.remote.plain:
            return self._to_plain(message, generator)
        if STREAM not in (message.metadata or {}):
            return self._only_first(message, generator)
        return self._in_pieces(generator, self._begin(message))

    async def _in_pieces(self, generator: Generator, answer: Answer) -> None:
        message = answer.message
        async with aclosing(generator):
            await self._run(generator, answer, message)

    async def _run(self, generator: Generator, answer: Answer, message: Message) -> None:
        try:
            async for part in generator:
                if answer.add(part):
                    await answer.drained()
            await answer.drained()
        except asyncio.CancelledError as error:
            await _cancel(generator)
            self._end(message, error)
            raise
        except Exception as error:
            await answer.drained()
            self._end(message, error)
            raise
        self._end(message, None)

    async def _only_first(self, message: Message, generator: Generator) -> None:
        """It was asked with ``request()``, or has only been sent."""
        async with aclosing(generator):
            await self.remote.send(_answer(message, await anext(generator, None)))

    async def _to_plain(self, message: Message, generator: Generator) -> None:
        key = message.stream_id, message.id
        self._plain[key] = None
        try:
            async with aclosing(generator):
                async for part in generator:
                    answer = as_part(_answer(message, part), {MORE: True}, message.stream_id)
                    if not await self._tell_plain(answer):
                        return
        except asyncio.CancelledError:
            await _cancel(generator)
            raise
        except Exception as error:
            await self._tell_plain(_end_of(message, error))
            raise
        finally:
            self._plain.pop(key, None)
        await self._tell_plain(_end_of(message, None))

    async def _tell_plain(self, message: Message) -> bool:
        """False where it has gone, or takes nothing within ``Config.send_timeout``."""
        try:
            await self.remote.send(message)
        except InvalidMessage:
            raise
        except (Error, TimeoutError):
            return False
        return True

    async def reply(self, message: Message, payload: Any, kind: str, more: bool) -> Receipt:
        """``peer.reply`` with ``more``, or to a message that asks for pieces."""
        answer = _answer(message, payload, kind)
        remote = self.remote
        if remote.plain:
            return await remote.send(as_part(answer, {MORE: True}, message.stream_id) if more else answer)
        if STREAM not in (message.metadata or {}):
            receipt = await remote.send(answer)
            if more:  # who has asked for one answer has it, and waits no longer
                remote.mailboxes.cancel(message.stream_id, message.id)
            return receipt
        return await self._reply_in_pieces(message, answer, more)

    async def _reply_in_pieces(self, message: Message, answer: Message, more: bool) -> Receipt:
        if allowed_by(message) is None:
            raise asyncio.CancelledError("nobody waits for this answer any more")
        state = self._begin(message)
        if not more:
            await state.drained()
            self._close(message)
            return await self._last(as_part(answer, {}, lane_of(message.id)))
        state.add(answer)
        await state.drained()
        carrier = self.remote.paths.carrier
        if carrier is None:
            return Receipt(0, False, "", "")
        return Receipt(1, False, carrier.link.backend, carrier.endpoint.direction)

    async def _last(self, answer: Message) -> Receipt:
        send = Send(self.loop, [answer], None, NEVER, NEVER)
        while True:
            try:
                self.remote.outstanding.keep(send)
            except Blocked:
                await self.remote.outstanding.unblocked()
            else:
                return await send

    # Their state ---------------------------------------------------------------------------------

    def _begin(self, message: Message) -> Answer:
        answer = self.by_id.get(message.id)
        if answer is None or answer.message is not message:
            if answer is not None:
                self._end(answer.message, asyncio.CancelledError())  # the same id again
            allowed = allowed_by(message)
            answer = Answer(self, message, 1 if allowed is None else allowed)
            if allowed is None:
                answer.leave()
            else:
                self.by_id[message.id] = answer
                self.remote.mailboxes.waits_for_asker()
        return answer

    def _close(self, message: Message) -> bool:
        """Nothing follows. False where that was so before."""
        if allowed_by(message) is None:
            return False
        assert message.metadata is not None
        message.metadata[STREAM] = None
        answer = self.by_id.get(message.id)
        if answer is not None and answer.message is message:
            del self.by_id[message.id]
            answer.close()
        return True

    def _end(self, message: Message, error: BaseException | None) -> None:
        """Nothing follows, and the asker hears of it."""
        if self._close(message) and self.remote.outstanding.session is not None:
            self.remote.control.keep(as_part(_end_of(message, error), {}, lane_of(message.id)))

    def failed(self, message: Message, error: BaseException) -> None:
        """A handler has raised an error, or has been cancelled."""
        if self.remote.plain:
            if isinstance(error, InvalidPayload) and message.type != ERROR and message.reply_to is None:
                self._tell_later(_end_of(message, error))
            return
        if STREAM in (message.metadata or {}):
            self._end(message, error)
        elif not isinstance(error, asyncio.CancelledError):
            self.remote.control.tell(Failed(message.id, *error_of(error)))

    def _tell_later(self, message: Message) -> None:
        """To a plain peer, if it takes it now: nobody waits for that."""
        connection = next(iter(self.remote.connections), None)
        if connection is not None and not connection.link.congested:
            connection.writer.send(message)

    # The asker -----------------------------------------------------------------------------------

    def granted(self, told: Taken) -> None:
        """The asker has taken parts."""
        answer = self.by_id.get(told.id)
        if answer is not None:
            answer.granted(told.taken, told.allowed)

    def cancel(self, stream_id: StreamId, id: Id) -> None:
        """The asker has left. What is not known, or over, is no matter."""
        answer = self.by_id.get(id)
        if answer is not None and answer.message.stream_id == stream_id:
            answer.leave()
        handled = self.remote.mailboxes.cancel(stream_id, id)
        if answer is not None and not handled:
            answer.interrupt()
            self._end(answer.message, asyncio.CancelledError("the asker has left"))

    def cut(self, error: Error) -> None:
        """This side closes: their askers are told so."""
        for answer in list(self.by_id.values()):
            self._end(answer.message, error)
            if not self.remote.mailboxes.cancel(answer.message.stream_id, answer.message.id):
                answer.interrupt()

    def lose(self) -> None:
        """The asker is gone, and does not come back."""
        mailboxes = self.remote.mailboxes
        for stream_id, id in list(self._plain):
            mailboxes.cancel(stream_id, id)
        for answer in list(self.by_id.values()):
            self._close(answer.message)
            if not mailboxes.cancel(answer.message.stream_id, answer.message.id):
                answer.interrupt()

    # Sending -------------------------------------------------------------------------------------

    def post(self, parts: list[Message]) -> Kept | None:
        """Send parts of one answer, as many as fit; None where none may leave. Raises ``InvalidMessage``."""
        remote = self.remote
        gate = remote.outstanding.gates.get(parts[0].stream_id)
        if gate is not None and not gate.passes(True):
            return None
        carrier = remote.paths.carrier
        if carrier is not None and carrier.link.congested and not carrier.link.closing:
            return None
        sent = Kept(self.loop, parts, None, NEVER, NEVER)
        try:
            remote.outstanding.keep(sent)
        except Blocked:
            return None
        return sent

    async def room(self, stream_id: StreamId) -> None:
        """Wait for what holds parts up: too much that is unacknowledged, or a link that is full."""
        remote = self.remote
        gate, carrier = remote.outstanding.gates.get(stream_id), remote.paths.carrier
        if gate is not None and not gate.passes(True):
            await gate.wait(True)
        elif carrier is not None and carrier.link.congested and not carrier.link.closing:
            await carrier.writer.room()
        else:
            await remote.outstanding.unblocked()


def _answer(message: Message, payload: Any, kind: str = "result") -> Message:
    if not isinstance(payload, Message):
        return message.answer(payload, kind)
    return as_part(payload, {REPLY_TO: message.id}, message.stream_id)


def _end_of(message: Message, error: BaseException | None) -> Message:
    """What ends the answer to a message."""
    metadata = {REPLY_TO: message.id, MORE: False}
    if error is None:
        return Message(new_id(), "result", None, metadata, message.stream_id)
    kind, text = error_of(error)
    return Message(new_id(), ERROR, {"type": kind, "text": text}, metadata, message.stream_id)


async def _cancel(generator: Generator) -> None:
    """Where it waits for its asker it sees the cancellation, too. Elsewhere it has."""
    with suppress(asyncio.CancelledError, StopAsyncIteration):
        await generator.athrow(asyncio.CancelledError())
