"""Which message answers which request. Never somebody else's answer."""

from __future__ import annotations

from collections.abc import Callable

from ..core.pieces import FIRST_PARTS, LEAST_PARTS, PEER_PARTS
from ..errors import InvalidMessage
from ..message import Message, StreamId
from .in_flight import Request

# How long a request that was given up may still be answered, and how many are remembered.
LATE_FOR = 60.0
MAX_LATE = 256


class PlainRequests:
    """Requests out to plain peers, by IP: some answer over a socket of their own making.

    Only a message that names its request counts there, and only on a socket that rule 3.1 takes
    for the peer that was asked.
    """

    def __init__(self) -> None:
        self._by_ip: dict[str, dict[object, list[Request]]] = {}

    def __contains__(self, ip: str) -> bool:
        return ip in self._by_ip

    def add(self, ip: str, request: Request) -> None:
        self._by_ip.setdefault(ip, {}).setdefault(request.id, []).append(request)

    def remove(self, ip: str, request: Request) -> None:
        by_id = self._by_ip.get(ip, {})
        same = by_id.get(request.id, [])
        if request in same:
            same.remove(request)
        if not same:
            by_id.pop(request.id, None)
        if not by_id:
            self._by_ip.pop(ip, None)

    def claim(self, ip: str, message: Message, is_peer_of: Callable[[Request], bool]) -> bool:
        for request in self._by_ip.get(ip, {}).get(_named(message, plain=True), []):
            if not request.done() and is_peer_of(request):
                request.settle(message)
                return True
        return False


_ID_TYPES = frozenset({str, int, float})


def _named(message: Message, plain: bool) -> object:
    """The request a message says it answers; a plain peer may say so by giving its id back."""
    metadata = message.metadata
    if metadata is not None:
        reply_to = metadata.get("replyTo")
        if type(reply_to) in _ID_TYPES:
            return reply_to
    return message.id if plain else None


class Requests:
    """The requests out to one peer, and those given up whose answer may still come."""

    __slots__ = ("_late", "_left", "budget", "frame", "out", "size")

    def __init__(self) -> None:
        self.out: dict[object, Request] = {}
        # Answers in pieces: parts that may be let be under way; of those that come now, the bytes of their
        # frame if it is large, and of each; and those that nobody reads, which are thrown away.
        self.budget = PEER_PARTS
        self.frame = self.size = 0
        self._left: dict[object, Request] = {}
        # Newest last: id → (stream, when to forget it).
        self._late: dict[object, tuple[StreamId, float]] = {}

    def add(self, request: Request) -> None:
        if request.id in self.out:
            if not request.in_pieces or request.id not in self._left:
                raise InvalidMessage(f"a request with id {request.id!r} is already out to this peer")
            request.rename()
        self.out[request.id] = request

    def remove(self, request: Request, now: float | None = None) -> None:
        """It is over. With ``now`` it went unanswered, and its answer may come late."""
        if self.out.get(request.id) is not request:
            return
        del self.out[request.id]
        if now is not None:
            self._late[request.id] = request.stream_id, now + LATE_FOR
            if len(self._late) > MAX_LATE:
                del self._late[next(iter(self._late))]

    def answered(self, message: Message) -> Request | None:
        """The request that an openline peer's message answers, by ``metadata.replyTo``; it is out no more."""
        metadata = message.metadata
        if metadata is None:
            return None
        reply_to = metadata.get("replyTo")
        return self.out.pop(reply_to, None) if type(reply_to) in _ID_TYPES else None

    def claim(self, message: Message, plain: bool, now: float) -> bool:
        """Give ``message`` to the request it answers; False if it answers none.

        By ``metadata.replyTo``; from a plain peer also by the same id, or as the only one out.
        """
        request = self.out.pop(_named(message, plain), None)
        if request is None:
            return plain and self._claim_only_one(message, now)
        if not request.done():
            request.settle(message)
        return True

    def _claim_only_one(self, message: Message, now: float) -> bool:
        """The next message on a stream where exactly one request is out.

        Not one that says it answers something else, and not while an earlier request there was
        given up: the message may be its answer, coming late.
        """
        if message.reply_to is not None or self._is_late(message, now):
            return False
        on_stream = [p for p in self.out.values() if p.stream_id == message.stream_id]
        if len(on_stream) != 1:
            return False
        del self.out[on_stream[0].id]
        if not on_stream[0].done():
            on_stream[0].settle(message)
        return True

    def _is_late(self, message: Message, now: float) -> bool:
        """Takes one message for each request that was given up, the oldest first."""
        if message.id in self._late:
            del self._late[message.id]
            return True
        for key, (stream_id, forget_at) in list(self._late.items()):
            if forget_at < now:
                del self._late[key]
            elif stream_id == message.stream_id:
                del self._late[key]
                return True
        return False

    # Answers in pieces ---------------------------------------------------------------------------

    def allow(self, most: int) -> int:
        """How many parts of one more answer may be under way."""
        allowed = max(LEAST_PARTS, min(FIRST_PARTS, most, self.budget))
        self.budget -= allowed
        return allowed

    def spend(self, parts: int) -> None:
        self.budget -= parts

    def release(self, parts: int) -> None:
        self.budget += parts

    def note(self, frame: int, size: int) -> None:
        """Messages of a large frame come now, of so many bytes each; 0: that is over."""
        self.frame, self.size = frame, size

    def in_pieces(self, messages: list[Message]) -> list[Message]:
        """Hand out the parts of answers that ``messages`` begins with; returns the others."""
        while messages:
            metadata = messages[0].metadata
            reply_to = metadata.get("replyTo") if metadata is not None else None
            request = self.out.get(reply_to) if type(reply_to) in _ID_TYPES else None
            if request is None or not request.in_pieces or not (count := request.settle_run(messages)):
                break
            messages = messages[count:]
        return messages

    def keep(self, request: Request) -> None:
        """More of its answer follows."""
        self.out[request.id] = request

    def leave(self, request: Request) -> None:
        """Nobody reads its answer any more: what still comes of it is thrown away."""
        if self.out.get(request.id) is not request:
            return
        self._left[request.id] = request
        for id, left in list(self._left.items()):
            if self.out.get(id) is not left:
                del self._left[id]
            elif len(self._left) > MAX_LATE:
                del self._left[id], self.out[id]
            else:
                break

    def failed(self, id: object, error: Exception) -> None:
        """The peer says that its handler has failed."""
        request = self.out.pop(id, None)
        if request is not None:
            request.fail(error)

    def lose(self, why: str, arrived: bool) -> None:
        """The process that was answering in pieces is gone; with ``arrived`` only what it has had was its."""
        for request in [request for request in self.out.values() if request.in_pieces]:
            if request.arrived or not arrived:
                del self.out[request.id]
                request.fail(request.unconfirmed(why))
        self._left.clear()

    def close(self, error: Exception) -> None:
        """Answers in pieces are read no more."""
        for request in [request for request in self.out.values() if request.in_pieces]:
            request.fail(error)

    def fail_all(self, error: Exception) -> None:
        """No answer can come any more."""
        for request in list(self.out.values()):
            request.fail(error)
        self.out.clear()

    def fail(self, connection: object, error: Exception) -> None:
        """The connection of a plain peer is gone: its answers cannot come any more."""
        for request in [p for p in self.out.values() if p.connection is connection]:
            del self.out[request.id]
            if not request.done():
                request.fail(error)
