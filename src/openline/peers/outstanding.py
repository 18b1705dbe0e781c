"""What has been sent to one peer and is not acknowledged (rule 3.4): window, gates, resending.

Each openline peer has one session per process of it. When the connection that carries it changes,
what is not acknowledged is sent again over the new one, and the receiving side hands nothing over twice.
"""

from __future__ import annotations

import logging
from asyncio import Future
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..address import Address
from ..core.frames import FRAME_BYTES, Batched, encode_batch
from ..core.handshake import STREAMS
from ..core.lifecycle import State
from ..core.pieces import RESERVED
from ..core.session import Outgoing, Session, open_at
from ..errors import Error, InvalidMessage, MessageTooLarge
from ..message import Message, Receipt, StreamId
from .gate import Gates
from .in_flight import InFlight, Send
from .part import Part

if TYPE_CHECKING:
    from .remote import Remote, RemoteConnection
    from .services import Services

# Processes with one key that are remembered for a peer: two of them make a conflict soon.
MAX_FORMER = 4

# Where a peer's session takes nothing just now: until the next look, and how many look even so.
BLOCKED_RETRY = 0.1
BLOCKED_LOOK = 64

Sent = InFlight[Any]


class Outstanding(Part):
    """Of one peer."""

    __slots__ = ("_blocked", "_last", "_last_frame", "_noted", "_services", "former", "gates", "session")

    def __init__(self, remote: Remote, services: Services) -> None:
        super().__init__(remote)
        self._services = services
        # What has been sent last by ``Sender.send``, and in which frame it gathers.
        self._last: Send | None = None
        self._last_frame = 0
        # Those who wait because the session took nothing.
        # A list, as an empty deque takes 760 bytes, and each peer has one.
        self._blocked: list[Future[None]] = []
        # Do sessions know that something may be unacknowledged?
        self._noted = False
        # None for a plain peer, and for one of which nothing is remembered.
        self.session: Session[Sent] | None = None
        # Those of other processes with its key, by ``Hello.process``: one of them may come back.
        self.former: dict[str, Session[Sent]] = {}
        # Streams we may not send on now, because the peer has asked us to stop or because too much
        # is unacknowledged; and who waits for it.
        self.gates = Gates()

    # Sessions ------------------------------------------------------------------------------------

    def joined(self, connection: RemoteConnection) -> None:
        """A connection to a proven node is open: it belongs to the session with that process."""
        hello = connection.endpoint.hello
        assert hello is not None
        sessions = self._services.sessions
        sessions.look_at_the_clock()  # nothing goes out again that peers may have forgotten
        session = self.session
        if session is not None and hello.is_copy(session.process, *self.former):
            # Its process has come while it was dialed: this one shares nothing, and is cut (``Paths``).
            connection.enter(sessions.begin(hello.process))
            return
        if session is None:
            session = self.session = sessions.begin(hello.process)
        elif session.process != hello.process:
            session = self._restarted(session, hello.process)
        # A sender that was cut off for longer than it says has given up.
        session.remember_for(2.0 * hello.resume)
        self.remote.control.speaks(STREAMS in hello.caps)
        connection.enter(session)
        sessions.retention.back(self.remote)

    def _restarted(self, old: Session[Sent], process: str) -> Session[Sent]:
        """Another process with that identity: what the old one has not acknowledged is the new one's."""
        log, remote = self._services.context.log, self.remote
        log.about(remote, logging.INFO, "%r is another process than before", remote)
        session = self.former.pop(process, None) or self._services.sessions.begin(process, old.floor)
        self.former[old.process] = old
        if len(self.former) > MAX_FORMER:
            del self.former[next(iter(self.former))]
        self.session = session
        remote.paths.no_carrier()
        remote.lose("its process is another one than before", arrived=True)
        for stream_id, out in old.unacked():
            moving = [sent for sent in out.unacked if sent.moves]
            if moving:
                session.outgoing(stream_id).take_over(out, moving)
            out.give_up()
        return session

    def disown(self, process: str) -> None:
        """Somebody has only said that he is that process."""
        self.former.pop(process, None)

    def end(self) -> Session[Sent] | None:
        """The session is over: numbers, and what has been received, are no longer known."""
        session, self.session = self.session, None
        self.former.clear()
        return session

    # Sending -------------------------------------------------------------------------------------

    def post(self, sent: Sent, connection: RemoteConnection) -> bool:
        """Number messages in their stream, and write them to the carrier. False: nothing of them left.

        Of several messages the first are kept, as many as fit in a frame and in the window. Raises
        ``Blocked`` and ``InvalidMessage``; then they have no numbers.
        """
        writer, session = connection.writer, connection.session
        # Where something has come in this very turn of the loop, the kernel need not be asked.
        if connection.link.closing or (not writer.acks and not writer.alive()):
            return False
        assert session is not None
        messages = sent.messages
        stream_id = messages[0].stream_id
        out = session.out.get(stream_id)
        if out is None:
            out = session.outgoing(stream_id)
        if len(messages) == 1:
            size = writer.write(stream_id, out, messages[0], writer.tx == connection.tx_heard)
        else:
            del messages[out.room :]
            size = writer.write_many(stream_id, out, messages)
        if not self._noted:
            self.note()
        if out.add(sent, size):
            self.gates.fill(stream_id)
        return True

    def keep(self, sent: Sent) -> None:
        """As ``post``; and where nothing can be written now, the next connection takes it. Does nothing where
        there is no session. Raises as ``post`` does."""
        carrier, session = self.remote.paths.carrier, self.session
        if session is None or (carrier is not None and self.post(sent, carrier)):
            return
        messages = sent.messages
        stream_id = messages[0].stream_id
        out = session.outgoing(stream_id)
        del messages[out.room :]
        size = len(encode_batch(messages))
        limit = self._services.context.config.max_message_size
        if size > max(limit, FRAME_BYTES):
            if len(messages) == 1:
                raise MessageTooLarge(f"message {messages[0].id!r} takes {size} bytes, over {limit}")
            del messages[1:]
            size = len(encode_batch(messages))
        self.note()
        if out.add(sent, size):
            self.gates.fill(stream_id)

    async def unblocked(self) -> None:
        """Wait where the session has taken nothing just now, for ``BLOCKED_RETRY`` seconds at the least."""
        loop = self._services.context.loop
        waiter: Future[None] = loop.create_future()
        self._blocked.append(waiter)
        if len(self._blocked) == 1:
            loop.call_later(BLOCKED_RETRY, self._unblock)
        await waiter

    def _unblock(self) -> None:
        """As many as there is room for look again, those first who have waited longest."""
        room = self.session.streams_left() if self.session is not None else 0
        count = max(BLOCKED_LOOK, room)
        looking, self._blocked = self._blocked[:count], self._blocked[count:]
        for waiter in looking:
            if not waiter.done():
                waiter.set_result(None)
        if self._blocked:
            self._services.context.loop.call_later(BLOCKED_RETRY, self._unblock)

    def note(self) -> None:
        """Sessions look after peers with something unacknowledged."""
        self._noted = True
        self._services.sessions.has_unacked(self.remote)

    def not_noted(self) -> None:
        """Nothing was unacknowledged when they looked."""
        self._noted = False

    def gathers(self, send: Send, connection: RemoteConnection) -> None:
        """What is sent behind it in this turn of the loop may share its way."""
        self._last, self._last_frame = send, connection.writer.frames

    def join(self, message: Message, target: Address, connection: RemoteConnection) -> Future[Receipt] | None:
        """Send one more message in the frame that gathers now; None where there is none, or another stream's.

        Raises ``Blocked`` and ``InvalidMessage``; then nothing has changed.
        """
        last, writer = self._last, connection.writer
        if last is None or writer.frames != self._last_frame or last.address is not target:
            return None
        out, stream_id = last.out, message.stream_id
        if (
            out is None
            or stream_id != last.messages[0].stream_id
            or not out.unacked
            or out.unacked[-1] is not last
        ):
            return None
        if out.extend(last, writer.write(stream_id, out, message, False)):
            self.gates.fill(stream_id)
        future: Future[Receipt] = last.join(message, connection.receipts)
        return future

    def resume(self, connection: RemoteConnection) -> None:
        """Carry the session on over this connection: open its streams anew, send what is not acknowledged.

        Streams in which something waits that may not travel here stay closed.
        """
        session, writer = connection.session, connection.writer
        assert session is not None
        writer.reopen()
        for stream_id, out in session.unacked():
            if not all(self.remote.paths.may_carry(sent, connection) for sent in out.unacked):
                writer.bar(stream_id)
                continue
            writer.select(stream_id)
            writer.open(stream_id, out, open_at(out))
            for sent in out.unacked:
                self._send_again(connection, stream_id, out, sent)
        writer.flush()

    def _forward(self, stream_id: StreamId, out: Outgoing[Sent], sent: list[Sent]) -> None:
        """Send what has just been numbered in this session, and comes from another one."""
        carrier = self.remote.paths.carrier
        if carrier is None or (carrier.writer.barred and stream_id in carrier.writer.barred):
            return  # with what waits there
        writer = carrier.writer
        writer.select(stream_id)
        if not writer.is_open(stream_id, out):
            writer.open(stream_id, out, sent[0].first)
        for each in sent:
            self._send_again(carrier, stream_id, out, each)
        writer.flush()

    def _send_again(
        self, connection: RemoteConnection, stream_id: StreamId, out: Outgoing[Sent], sent: Sent
    ) -> None:
        messages, writer = out.pending(sent), connection.writer
        sent.rewritten()
        context = self._services.context
        context.counters.resent += len(messages)
        try:
            while messages:
                part = messages.copy()
                writer.write_frame(part)
                messages = messages[len(part) :]
        except InvalidMessage as error:
            # The program has changed it meanwhile. Its numbers are skipped.
            sent.fail(error)
            text = "message changed while it was on its way: %s"
            context.log.about(self.remote, logging.ERROR, text, error)
            writer.open(stream_id, out, sent.end)
            writer.pin(stream_id)

    # Acknowledgements ----------------------------------------------------------------------------

    def on_notes(self, connection: RemoteConnection, batch: Batched) -> bool:
        """Streams that go on over this connection, and acknowledgements. Raises ``Malformed``.

        True where something has been acknowledged that had not been.
        """
        news = False
        session = connection.session
        assert session is not None
        if batch.opens and connection.positions is not None:
            self._opened(connection, session.open(connection.positions, batch.opens))
        for stream_id, upto in batch.acks:
            out = session.out.get(stream_id)
            if out is None:
                continue
            before = out.acked
            done = out.ack(upto)
            if out.acked == before and not done:
                continue
            news = True
            if done and self.gates and out.roomy:
                self.gates.make_room(stream_id)
            for sent in done:
                sent.acknowledged(connection.receipts)
        return news

    def _opened(self, connection: RemoteConnection, forgotten: list[StreamId]) -> None:
        for other in self.remote.connections if forgotten else ():
            if other.session is connection.session:
                for stream_id in forgotten:
                    (other.positions or {}).pop(stream_id, None)
        self._services.sessions.retention.weigh(self.remote)

    # Giving up -----------------------------------------------------------------------------------

    def unacked(self) -> list[Sent]:
        """All of it, stream by stream."""
        return [sent for _, out in self.session.unacked() for sent in out.unacked] if self.session else []

    @property
    def has_unacked(self) -> bool:
        return self.session is not None and self.session.has_unacked

    @property
    def stranded(self) -> bool:
        """Does something unacknowledged wait for a connection?"""
        session, carrier = self.session, self.remote.paths.carrier
        if session is None or not session.has_unacked:
            return False
        if carrier is None or carrier.state is not State.LIVE:
            return True
        barred = carrier.writer.barred or ()
        return any(stream_id in barred for stream_id, _ in session.unacked())

    @property
    def out_of_reach(self) -> bool:
        """Is something under way to the peer, and no good connection there? One that is not as an address
        asks (``wss``, a pin) is one all the same: then nobody has to wait for the peer."""
        carrier = self.remote.paths.carrier
        return self.stranded and (carrier is None or carrier.state is not State.LIVE)

    def drop(self, error: Callable[[Sent], Error], why: str) -> None:
        """Fail all that is unacknowledged; a later message to that process begins a new session."""
        session, carrier = self.session, self.remote.paths.carrier
        assert session is not None
        if carrier is not None:
            carrier.writer.pin_unacked()
        for stream_id, out in list(session.unacked()):
            pending = [out.pending(sent) for sent in out.unacked]
            reasons = [error(sent) for sent in out.unacked]
            given_up = out.give_up()
            self.gates.make_room(stream_id)
            for sent, reason, messages in zip(given_up, reasons, pending, strict=True):
                sent.fail(reason)
                if stream_id not in RESERVED:
                    self._services.in_doubt(self.remote, messages, why)
        self._services.sessions.nothing_unacked(self.remote)
        self._noted = False

    def unconfirmed(self, why: str) -> None:
        """Fail all of it, as nobody will ever confirm it."""
        self.drop(lambda sent: sent.unconfirmed(why), why)

    def move_to(self, new: Remote, target: Address) -> bool:
        """What was sent to ``target``, without naming a node, is that one's. True where there was any."""
        session, into = self.session, new.outstanding
        assert session is not None
        assert into.session is not None
        moved = False
        for stream_id, out in list(session.unacked()):
            mine = [p for p in out.unacked if p.address == target and target.node_id is None]
            if mine:
                moved = True
                out.remove(mine)
                there = into.session.outgoing(stream_id)
                there.take_over(out, mine)
                into._forward(stream_id, there, mine)
                self.gates.make_room(stream_id)
                for sent in mine:
                    sent.moved(self.remote, new)
        return moved
