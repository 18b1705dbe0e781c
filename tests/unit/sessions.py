"""What the tests of sessions share."""

from __future__ import annotations

from typing import Any

from openline import Message
from openline.core.session import Outgoing, Session
from openline.message import StreamId

LIMITS = (1000, 1_000_000)
# A receiver may keep this much more than it has to, for speed.
SLACK = 1.25


class Parcel:
    """Messages that were sent together."""

    def __init__(self, *messages: Message, size: int = 1) -> None:
        self.messages = list(messages)
        self.first = self.end = 0
        self.size = size


def message(payload: Any = None, stream_id: StreamId = "s") -> Message:
    return Message(payload=payload, stream_id=stream_id)


def sent(out: Outgoing[Parcel], *sizes: int) -> list[Parcel]:
    """Parcels of so many messages, of ten bytes each."""
    parcels = [Parcel(*(message(n) for n in range(size)), size=10 * size) for size in sizes]
    for parcel in parcels:
        out.add(parcel, parcel.size)
    return parcels


def session() -> Session[Parcel]:
    return Session("instance", LIMITS)
