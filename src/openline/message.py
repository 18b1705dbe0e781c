"""What travels: ``Message``, and ``Receipt``, what a sender gets back."""

from __future__ import annotations

import itertools
import os
import secrets
from typing import Any

import msgspec

DEFAULT_STREAM = "default"

StreamId = str | int

# In the metadata of a message that asks for its answer in pieces (``core/pieces.py``).
STREAM = "stream"

# How a peer was recognised (rule 3.1): what ``Receipt.matched`` and ``explain()`` say.
BY_NODE_ID = "node id"
BY_ADDRESS = "exact address"
BY_CLAIM = "claimed port"
BY_IP = "ip alone"

# A random prefix per process and a counter: unique across machines, far cheaper than a UUID each.
_prefix = secrets.token_hex(8)
_next = itertools.count(1).__next__


def _renew_prefix() -> None:
    global _prefix
    _prefix = secrets.token_hex(8)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_prefix)


def new_id() -> str:
    """A message id that no other process makes."""
    return f"{_prefix}-{_next():x}"


class Message(msgspec.Struct, array_like=True):
    """One message. ``payload`` is any JSON value; between openline peers ``bytes`` too.

    ``type`` is free text; task, result, status, coordination and heartbeat are seen in the field.
    ``stream_id`` names an independent FIFO: ``42`` and ``"42"`` differ. ``extra`` keeps the fields
    of a plain peer's message that openline does not know, and is sent along with it again.
    """

    id: str | int | float = msgspec.field(default_factory=new_id)
    type: str = "task"
    payload: Any = None
    metadata: dict[str, Any] | None = None
    stream_id: StreamId = DEFAULT_STREAM
    extra: dict[str, Any] | None = None

    @property
    def reply_to(self) -> object:
        """The id of the message this one answers, from ``metadata.replyTo``."""
        return self.metadata.get("replyTo") if self.metadata else None

    def answer(self, payload: Any, type: str = "result") -> Message:
        """A message that answers this one: same stream, ``metadata.replyTo`` set to its id."""
        return Message(new_id(), type, payload, {"replyTo": self.id}, self.stream_id)


def move_to_stream(messages: list[Message], stream_id: StreamId) -> None:
    """They have travelled on another one."""
    for message in messages:
        message.stream_id = stream_id


class Receipt(msgspec.Struct, frozen=True):
    """How a message left.

    ``attempts`` is the number of connections tried, ``acked`` whether the peer's transport has
    taken responsibility (never toward a plain peer, which cannot confirm), ``backend`` such as
    ``"websocket"``, ``direction`` ``"inbound"`` or ``"outbound"``: who opened the connection it
    rode. ``rtt`` is the connection's last measured round trip in seconds, None where not measured.
    ``matched`` says how the peer was recognised: by its ``"node id"``, which it has proven; by the
    ``"exact address"``, dialed or its remote end; by a ``"claimed port"`` in its hello; or by its
    ``"ip alone"``, a plain peer's.
    """

    attempts: int
    acked: bool
    backend: str
    direction: str
    rtt: float | None = None
    matched: str = BY_ADDRESS


class Receipts(dict[str, Receipt]):
    """Of one connection, for messages that left at the first attempt: by how the peer was recognised.

    Made when they are first asked for, as most connections need one kind.
    """

    __slots__ = ("_acked", "_backend", "_direction", "rtt")

    def __init__(self, acked: bool, backend: str, direction: str) -> None:
        self._acked, self._backend, self._direction = acked, backend, direction
        self.rtt: float | None = None

    def __missing__(self, matched: str) -> Receipt:
        made = self[matched] = self.after(1, matched)
        return made

    def after(self, attempts: int, matched: str) -> Receipt:
        return Receipt(attempts, self._acked, self._backend, self._direction, self.rtt, matched)

    def measured(self, rtt: float) -> None:
        self.rtt = rtt
        self.clear()
