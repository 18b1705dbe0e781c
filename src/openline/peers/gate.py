"""A stream on which nothing may be sent now, and those who wait until it may."""

from __future__ import annotations

import asyncio

from ..message import StreamId


class Gate:
    """Of one stream."""

    __slots__ = ("_waiters", "answers", "full", "halted")

    def __init__(self) -> None:
        # By the peer, whose inbox is full; and by the window of what is unacknowledged.
        self.halted = self.full = False
        # The first does not hold for answers.
        self.answers = False
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def open(self) -> bool:
        return not (self.halted or self.full)

    def passes(self, answer: bool) -> bool:
        """May a message, or an answer, be sent now?"""
        return not self.full and (not self.halted or (answer and self.answers))

    async def wait(self, answer: bool) -> None:
        if not self.passes(answer):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def let_pass(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


class Gates(dict[StreamId, Gate]):
    """Of one peer: the streams that are held up; empty nearly always."""

    __slots__ = ()

    def halt(self, stream_id: StreamId, answers: bool = False) -> None:
        """The peer has no more room for this stream, except perhaps for answers to its requests."""
        gate = self.setdefault(stream_id, Gate())
        gate.halted, gate.answers = True, answers
        if answers:
            gate.let_pass()

    def heed(self, halts: dict[StreamId, bool], stream_id: StreamId) -> None:
        """``halts`` holds what the peer has stopped, and whether answers pass: apply it to one stream."""
        if stream_id in halts:
            self.halt(stream_id, halts[stream_id])
        else:
            self.go_on(stream_id)

    def fill(self, stream_id: StreamId) -> None:
        """As much as may be unacknowledged is."""
        self.setdefault(stream_id, Gate()).full = True

    def go_on(self, stream_id: StreamId) -> None:
        """The peer has room again."""
        gate = self.get(stream_id)
        if gate is not None:
            gate.halted = False
            self._let_pass(stream_id, gate)

    def make_room(self, stream_id: StreamId) -> None:
        """Less is unacknowledged."""
        gate = self.get(stream_id)
        if gate is not None:
            gate.full = False
            self._let_pass(stream_id, gate)

    def _let_pass(self, stream_id: StreamId, gate: Gate) -> None:
        if gate.open:
            del self[stream_id]
            gate.let_pass()
        elif not gate.full and gate.answers:
            gate.let_pass()  # answers may go on, and whoever else waits looks again
