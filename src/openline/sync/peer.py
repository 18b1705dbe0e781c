"""A remote node, as programs without ``async`` see it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar, overload

import msgspec

from ..message import Message, Receipt
from ..peer import Peer as AsyncPeer
from ..peer import PeerEvent as AsyncPeerEvent
from ..peer import PeerEventKind
from ..typed import TypedMessage
from .background import Background

T = TypeVar("T")


class Peer:
    """A remote node, as seen from here. Handlers get one; ``Transport.peers()`` lists them.

    Two that stand for the same node are equal, and good as keys of a dict. Any thread may use it.
    Times are seconds.
    """

    __slots__ = ("_background", "_peer")

    def __init__(self, peer: AsyncPeer, background: Background) -> None:
        self._peer = peer
        self._background = background

    @property
    def address(self) -> str:
        """Where to send to reach it again."""
        return self._peer.address

    @property
    def node_id(self) -> str | None:
        """Its proven node id; a plain peer has none."""
        return self._peer.node_id

    @property
    def name(self) -> str:
        """What it calls itself, a claim: in its hello, or a plain peer in ``metadata.sourceNodeId``."""
        return self._peer.name

    @property
    def plain(self) -> bool:
        """Is it one that has said no openline hello?"""
        return self._peer.plain

    @property
    def proven(self) -> bool:
        """Is it known who this is? True for every openline peer."""
        return self._peer.proven

    @property
    def connected(self) -> bool:
        """Does a live connection reach it now?"""
        return self._peer.connected

    @property
    def state(self) -> str:
        """``live``, ``congested``, ``suspect``, ``draining`` or ``gone``: the best connection's."""
        return self._peer.state

    def __repr__(self) -> str:
        return repr(self._peer)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Peer) and other._peer is self._peer

    def __hash__(self) -> int:
        return hash(self._peer)

    def send(self, message: Message) -> Receipt:
        """Send to this peer, over whatever reaches it. Raises as ``Transport.send`` does."""
        return self._background.call(self._peer.send, message)

    @overload
    def request(self, message: Message, timeout: float | None = None) -> Message: ...
    @overload
    def request(
        self, message: Message, timeout: float | None = None, *, returns: type[T]
    ) -> TypedMessage[T]: ...
    def request(self, message: Message, timeout: float | None = None, *, returns: Any = None) -> Message:
        """Send and wait for the answer. As ``Transport.request``."""
        if returns is None:
            return self._background.call(self._peer.request, message, timeout)
        return self._background.call(self._peer.request, message, timeout, returns=returns)

    @overload
    def stream(self, message: Message, timeout: float | None = None) -> Iterator[Message]: ...
    @overload
    def stream(
        self, message: Message, timeout: float | None = None, *, returns: type[T]
    ) -> Iterator[TypedMessage[T]]: ...
    def stream(
        self, message: Message, timeout: float | None = None, *, returns: Any = None
    ) -> Iterator[Message]:
        """Send, and get the answer part by part. As ``Transport.stream``."""
        return self._background.each(self._peer.stream(message, timeout, returns=returns))

    def reply(
        self, message: Message, payload: Any = None, *, type: str = "result", more: bool = False
    ) -> Receipt:
        """Answer ``message``: same stream, ``metadata.replyTo`` set to its id.

        With ``more`` it is one part of several; the last one is said without. A part returns when it may
        leave, which is when whoever reads has taken enough of those before, and raises
        ``asyncio.CancelledError`` once nobody reads any more. Where only one answer was asked for
        (``request()``), the first part is it. Raises as ``Transport.send`` does.
        """
        return self._background.call(self._peer.reply, message, payload, type=type, more=more)


class PeerEvent(msgspec.Struct, frozen=True):
    """What has become of a peer, for ``Transport.on_peer`` and ``Transport.peer_events``.

    As ``openline.PeerEvent``, whose fields it has; ``peer`` is one of ``openline.sync``.
    """

    kind: PeerEventKind
    peer: Peer
    why: str
    at: float
    missed: int = 0

    @classmethod
    def of(cls, event: AsyncPeerEvent, background: Background) -> PeerEvent:
        """What the loop tells, for programs without ``async``."""
        return cls(event.kind, Peer(event.peer, background), event.why, event.at, event.missed)
