"""What has been received, one frame at a time: acknowledgements, answers to requests, and the rest."""

from __future__ import annotations

from ..address import Address
from ..connection.context import Context
from ..connection.writer import Writer
from ..core.frames import Batched, Flow, Malformed
from ..core.lifecycle import Phase
from ..core.pieces import LARGE_FRAME
from ..core.rate import NO_NEWS
from ..core.selection import Rank, Reject, Want, match
from ..core.session import too_long
from ..message import Message
from ..peers.in_flight import Request
from ..peers.remote import Remote, RemoteConnection
from ..peers.requests import PlainRequests
from ..peers.table import Table
from ..runtime.home import Home
from .inbox import Inbox

OPEN = Phase.OPEN


class Dispatcher:
    """Connections report here what has come (``connection.events.Arrivals`` and ``Turn``)."""

    def __init__(
        self,
        context: Context,
        inbox: Inbox,
        table: Table,
        plain_requests: PlainRequests,
        home: Home,
    ) -> None:
        self._context = context
        self._inbox = inbox
        self._table = table
        self._plain_requests = plain_requests
        self._home = home
        # Is a received frame being handled? And who has gathered something meanwhile.
        self.dispatching = False
        self.gathered: list[Writer] = []
        # Connections with acknowledgements that nothing has carried yet.
        self._owing: dict[Writer, None] = {}
        self._flushing = False

    # Frames --------------------------------------------------------------------------------------

    def on_batch(self, connection: RemoteConnection, batch: Batched, size: int, more: int) -> None:
        """A frame of an openline peer's session; decoded, it takes so many bytes ``more``."""
        self.dispatching = True
        try:
            messages, opens, remote = batch.messages, batch.opens, connection.remote
            news = bool(batch.acks or opens) and remote.outstanding.on_notes(connection, batch)
            if (not messages and not news) or (opens and len(opens) > len(messages)):
                connection.says_nothing(len(opens), len(messages), news)
            if messages and (self._home.phase is OPEN or not self._refuses(connection)):
                counters = self._context.counters
                counters.messages_received += len(messages)
                counters.bytes_received += size
                session, positions = connection.session, connection.positions
                assert session is not None
                assert positions is not None
                count = len(messages)
                messages = session.accept(positions, messages, connection.writer.acks)
                if len(messages) != count:
                    counters.duplicates_suppressed += count - len(messages)
                if remote.requests.out:
                    self._hand_out(remote, messages, size + more)
                else:
                    self._inbox.feed(remote, messages, size + more)
        finally:
            self.dispatching = False
            if self.gathered:
                gathered, self.gathered = self.gathered, []
                for writer in gathered:
                    writer.flush()
        if connection.writer.acks:
            self._owe(connection.writer)

    def on_messages(
        self, connection: RemoteConnection, messages: list[Message], size: int, more: int
    ) -> None:
        """Of a plain peer."""
        counters = self._context.counters
        counters.messages_received += len(messages)
        counters.bytes_received += size
        if self._home.closed:
            counters.undelivered += len(messages)
            return
        remote = connection.remote
        name = connection.take_hint(messages[0])
        if name is not None:
            remote.call(name)
        self.dispatching = True
        try:
            if remote.requests.out or connection.endpoint.ip in self._plain_requests:
                remote.requests.note(size, size + more)
                messages = [m for m in messages if not self._claim(connection, m)]
            self._inbox.feed(remote, messages, size + more)
        finally:
            self.dispatching = False
            if self.gathered:
                gathered, self.gathered = self.gathered, []
                for writer in gathered:
                    writer.flush()

    def on_flow(self, connection: RemoteConnection, flow: Flow) -> None:
        """The peer's inbox for a stream is full, or has room again."""
        remote = connection.remote
        if too_long(flow.stream_id):
            raise Malformed("the name of a stopped stream is too long")
        session = connection.session
        if session is None or flow.stream_id not in session.out:
            connection.allows(NO_NEWS)
            return  # nothing goes out on that stream
        # The peer says it over all its connections; what counts is what it has said over the carrier.
        halts = connection.halts
        before = halts.get(flow.stream_id)
        if not flow.paused:
            halts.pop(flow.stream_id, None)
        elif len(halts) < self._context.config.max_streams or flow.stream_id in halts:
            halts[flow.stream_id] = flow.answers
        if halts.get(flow.stream_id) is before:
            connection.allows(NO_NEWS)
        elif connection is remote.paths.carrier:
            remote.outstanding.gates.heed(halts, flow.stream_id)

    # Answers -------------------------------------------------------------------------------------

    def _hand_out(self, remote: Remote, messages: list[Message], size: int) -> None:
        """Answers to those who wait for them, everything else to the inbox, and all of it in order."""
        each = size // len(messages) if messages else 0
        if size > LARGE_FRAME:
            remote.requests.note(size, each)
        if len(messages) > 1:
            messages = remote.requests.in_pieces(messages)
        run: list[Message] = []
        for message in messages:
            request = remote.requests.answered(message)
            if request is None:
                run.append(message)
                continue
            if run:
                self._inbox.feed(remote, run, each * len(run))
                run = []
            request.settle(message)
        if run:
            self._inbox.feed(remote, run, each * len(run))
        if size > LARGE_FRAME:
            remote.requests.note(0, 0)

    def _claim(self, connection: RemoteConnection, message: Message) -> bool:
        """Is it the answer to a request? A plain peer may also send that over another socket."""
        if connection.remote.requests.claim(message, connection.plain, self._context.now):
            return True
        if not connection.plain:
            return False
        return self._plain_requests.claim(
            connection.endpoint.ip, message, lambda request: self._may_be(connection, request)
        )

    def _may_be(self, connection: RemoteConnection, request: Request) -> bool:
        """Would a send to where the request went be allowed on this plain connection?"""
        asked = request.connection
        if asked is None:
            return False
        address = Address(asked.endpoint.ip, asked.endpoint.port)
        want = Want(address, (asked.endpoint.ip,))
        ends = [candidate.endpoint for candidate in self._table.candidates(want)]
        verdict = match(want, connection.endpoint, ends)
        # Some answer over a socket of their own although they were dialed.
        return isinstance(verdict, Rank) or verdict in (Reject.DIAL_FIRST, Reject.PLAIN_NOT_THERE)

    def _refuses(self, connection: RemoteConnection) -> bool:
        """While closing: what is not taken in is not acknowledged, and goes to whoever comes next.

        As long as handlers wait for answers of this peer, everything of it is taken in.
        """
        if self._home.leaving and not connection.remote.requests.out:
            connection.refuse()
        return connection.positions is None

    # The end of a turn ---------------------------------------------------------------------------

    def _owe(self, writer: Writer) -> None:
        """It has acknowledgements to send: with the next frame, or at the end of this loop turn."""
        self._owing[writer] = None
        if not self._flushing:
            self._flushing = True
            self._context.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write the acknowledgements that no frame has carried."""
        self._flushing = False
        owing, self._owing = self._owing, {}
        for writer in owing:
            writer.flush()
