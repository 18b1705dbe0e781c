"""A remote node, as programs see it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine
from typing import Any, Literal, Protocol, TypeVar, overload

import msgspec

from .message import STREAM, Message, Receipt
from .typed import TypedMessage, answer, parts

T = TypeVar("T")


class Remote(Protocol):
    """What is known of the node; ``peers/remote.py`` keeps it."""

    @property
    def node_id(self) -> str | None: ...
    @property
    def name(self) -> str: ...
    @property
    def plain(self) -> bool: ...
    @property
    def address(self) -> str: ...
    @property
    def connected(self) -> bool: ...
    @property
    def state(self) -> str: ...


class Sends(Protocol):
    """Sends to a node in hand; ``sending/sender.py`` does."""

    def send_to(self, remote: Any, message: Message) -> Coroutine[Any, Any, Receipt]: ...
    def request_of(
        self, remote: Any, message: Message, timeout: float | None = None
    ) -> Coroutine[Any, Any, Message]: ...
    def stream(
        self, to: Any, message: Message, timeout: float | None = None
    ) -> AsyncGenerator[Message, None]: ...
    def part_to(
        self, remote: Any, message: Message, payload: Any, kind: str, more: bool
    ) -> Coroutine[Any, Any, Receipt]: ...


class Peer:
    """A remote node, as seen from here. Handlers get one; ``Transport.peers()`` lists them.

    As long as a program keeps one, it is the same object whenever its node comes back. Times are seconds.
    """

    __slots__ = ("__weakref__", "_remote", "_sends")

    def __init__(self, remote: Remote, sends: Sends) -> None:
        self._remote = remote
        self._sends = sends

    @property
    def address(self) -> str:
        """Where to send to reach it again."""
        return self._remote.address

    @property
    def node_id(self) -> str | None:
        """Its proven node id; a plain peer has none."""
        return self._remote.node_id

    @property
    def name(self) -> str:
        """What it calls itself, a claim: in its hello, or a plain peer in ``metadata.sourceNodeId``."""
        return self._remote.name

    @property
    def plain(self) -> bool:
        """Is it one that has said no openline hello?"""
        return self._remote.plain

    @property
    def proven(self) -> bool:
        """Is it known who this is? True for every openline peer."""
        return self._remote.node_id is not None

    @property
    def connected(self) -> bool:
        """Does a live connection reach it now?"""
        return self._remote.connected

    @property
    def state(self) -> str:
        """``live``, ``congested``, ``suspect``, ``draining`` or ``gone``: the best connection's."""
        return self._remote.state

    def __repr__(self) -> str:
        return repr(self._remote)

    def send(self, message: Message) -> Coroutine[Any, Any, Receipt]:
        """Send to this peer, over whatever reaches it. Raises as ``Transport.send`` does."""
        return self._sends.send_to(self._remote, message)

    @overload
    def request(self, message: Message, timeout: float | None = None) -> Coroutine[Any, Any, Message]: ...
    @overload
    def request(
        self, message: Message, timeout: float | None = None, *, returns: type[T]
    ) -> Coroutine[Any, Any, TypedMessage[T]]: ...
    def request(
        self, message: Message, timeout: float | None = None, *, returns: Any = None
    ) -> Coroutine[Any, Any, Message]:
        """Send and wait for the answer. As ``Transport.request``."""
        asking = self._sends.request_of(self._remote, message, timeout)
        return asking if returns is None else answer(asking, returns, self)

    @overload
    def stream(self, message: Message, timeout: float | None = None) -> AsyncGenerator[Message, None]: ...
    @overload
    def stream(
        self, message: Message, timeout: float | None = None, *, returns: type[T]
    ) -> AsyncGenerator[TypedMessage[T], None]: ...
    def stream(
        self, message: Message, timeout: float | None = None, *, returns: Any = None
    ) -> AsyncGenerator[Message, None]:
        """Send, and get the answer part by part. As ``Transport.stream``."""
        stream = self._sends.stream(self._remote, message, timeout)
        return stream if returns is None else parts(stream, returns, self)

    def reply(
        self, message: Message, payload: Any = None, *, type: str = "result", more: bool = False
    ) -> Coroutine[Any, Any, Receipt]:
        """Answer ``message``: same stream, ``metadata.replyTo`` set to its id.

        With ``more`` it is one part of several; the last one is said without. A part returns when it may
        leave, which is when whoever reads has taken enough of those before, and raises ``CancelledError``
        once nobody reads any more. Where only one answer was asked for (``request()``), the first part is
        it, and the handler is cancelled. Raises as ``Transport.send`` does.
        """
        if more or (message.metadata is not None and STREAM in message.metadata):
            return self._sends.part_to(self._remote, message, payload, type, more)
        return self._sends.send_to(self._remote, message.answer(payload, type))


PeerEventKind = Literal["connected", "suspect", "recovered", "moved", "gone"]


class PeerEvent(msgspec.Struct, frozen=True):
    """What has become of a peer, for ``Transport.on_peer`` and ``Transport.peer_events``.

    ``connected``: a connection reaches it, and none did. ``suspect``: none of its connections is good any
    more, one at least does not answer. ``recovered``: one is good again. ``moved``: what reaches it is
    another address of its, or another backend. ``gone``: none is left, or its process is another one, which
    is ``connected`` next.

    ``why`` is a text for people. ``at`` is when it happened, in seconds since 1970 as ``time.time()`` tells
    them. ``missed``: so many events were left out for this handler or iterator since the one before,
    because it was too slow; what is told of each peer is a whole story all the same.
    """

    kind: PeerEventKind
    peer: Peer
    why: str
    at: float
    missed: int = 0
