"""A model of both ends of a session, over connections that break (rule 3.4)."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from openline import Message
from openline.core import session as module
from openline.core.session import Outgoing, open_at
from openline.message import StreamId

from .sessions import SLACK, Parcel, message, session

STREAMS: list[StreamId] = [*range(16), "0", "1"]


class Wire:
    """One connection: frames there, acknowledgements back, in order, until it is cut."""

    def __init__(self) -> None:
        self.there: deque[tuple[list[Message], list[tuple[StreamId, int]]]] = deque()
        self.back: deque[dict[StreamId, int]] = deque()
        self.positions: dict[StreamId, int] = {}
        self.opened: dict[StreamId, Outgoing[Parcel]] = {}
        self.openings = 0
        self.dead = False


class Ends(RuleBasedStateMachine):
    """A sender and a receiver, as docs/protocol.md has them, over connections that break.

    Streams are few and so is what is remembered, so that things are forgotten all the time.
    """

    wires = Bundle("wires")

    @initialize()
    def begin(self) -> None:
        self.limits = module.SENDER_STREAMS, module.RECEIVER_STREAMS
        module.SENDER_STREAMS, module.RECEIVER_STREAMS = 4, 8
        self.sender, self.receiver = session(), session()
        self.carrier: Wire | None = None
        self.sent: dict[StreamId, list[int]] = {}
        self.got: dict[StreamId, list[int]] = {}
        self.acked: dict[StreamId, int] = {}

    def teardown(self) -> None:
        if not hasattr(self, "limits"):
            return
        try:
            self.finish()
        finally:
            module.SENDER_STREAMS, module.RECEIVER_STREAMS = self.limits

    # What the sender does --------------------------------------------------------------------------

    @rule(target=wires)
    def connect(self) -> Wire:
        """A new connection carries from now on; the one before may still deliver."""
        wire = self.carrier = Wire()
        for stream, out in list(self.sender.unacked()):
            opens = [(stream, open_at(out))]
            wire.opened[stream] = out
            for parcel in out.unacked:
                wire.there.append((out.pending(parcel), opens))
                opens = []
        return wire

    @precondition(lambda self: self.carrier is not None and not self.carrier.dead)
    @rule(batch=st.lists(st.tuples(st.sampled_from(STREAMS), st.integers(1, 2)), min_size=1, max_size=12))
    def send(self, batch: list[tuple[StreamId, int]]) -> None:
        """Several parcels in one frame."""
        wire = self.carrier
        assert wire is not None
        messages: list[Message] = []
        opens: list[tuple[StreamId, int]] = []
        for stream, count in batch:
            try:
                out = self.sender.outgoing(stream)
            except module.Blocked:
                continue
            if wire.openings >= module.SENDER_STREAMS:
                wire.there.append((messages, opens))
                messages, opens = [], []
                wire.opened, wire.openings = {}, 0
            if wire.opened.get(stream) is not out:
                wire.opened[stream] = out
                wire.openings += 1
                opens.append((stream, out.next))
            numbers = self.sent.setdefault(stream, [])
            parcel = Parcel(*(message(len(numbers) + n, stream) for n in range(count)))
            numbers += [len(numbers) + n for n in range(count)]
            out.add(parcel, parcel.size)
            messages += parcel.messages
        wire.there.append((messages, opens))

    # What happens to connections -------------------------------------------------------------------

    @rule(wire=wires, frames=st.integers(1, 20))
    def arrive(self, wire: Wire, frames: int) -> None:
        for _ in range(min(frames, len(wire.there))):
            messages, opens = wire.there.popleft()
            self.receiver.open(wire.positions, opens)
            acks: dict[StreamId, int] = {}
            fresh = self.receiver.accept(wire.positions, messages, acks)
            for each in fresh:
                self.got.setdefault(each.stream_id, []).append(each.payload)
            if acks and not wire.dead:
                wire.back.append(acks)

    @rule(wire=wires, frames=st.integers(1, 20))
    def acknowledge(self, wire: Wire, frames: int) -> None:
        for _ in range(min(frames, len(wire.back))):
            for stream, upto in wire.back.popleft().items():
                out = self.sender.out.get(stream)
                if out is None:
                    continue
                for parcel in out.ack(upto):
                    self.acked[stream] = max(self.acked.get(stream, 0), parcel.messages[-1].payload + 1)

    @rule(wire=wires, still=st.integers(0, 5))
    def cut(self, wire: Wire, still: int) -> None:
        """What is under way arrives up to some frame; nothing comes back any more."""
        wire.dead = True
        while len(wire.there) > still:
            wire.there.pop()
        wire.back.clear()

    # What must hold --------------------------------------------------------------------------------

    @invariant()
    def once_and_in_order(self) -> None:
        for stream, numbers in getattr(self, "got", {}).items():
            assert numbers == self.sent[stream][: len(numbers)], stream

    @invariant()
    def acknowledged_means_received(self) -> None:
        for stream, upto in getattr(self, "acked", {}).items():
            assert len(self.got.get(stream, ())) >= upto

    @invariant()
    def tables_are_small(self) -> None:
        if hasattr(self, "sender"):
            assert len(self.sender.out) <= 4
            assert len(self.receiver.expected) <= 8 * SLACK

    def finish(self) -> None:
        """The last connection holds: everything arrives."""
        wire = self.connect()
        self.arrive(wire, 10**6)
        self.acknowledge(wire, 10**6)
        assert self.got == {stream: numbers for stream, numbers in self.sent.items() if numbers}
        assert not self.sender.has_unacked
        self.once_and_in_order()


TestEnds = Ends.TestCase
TestEnds.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
