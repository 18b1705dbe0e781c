"""Which objects of connections are alive, while nothing looks for circles (rule 3.10)."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from picows.picows import WSProtocol, WSTransport  # type: ignore[attr-defined]

from openline import admission
from openline.backends import acceptor, memlink, quic, quicdoor, quicengine, quiclink, wslink, wsreader
from openline.backends.base import Visitor
from openline.connection import Connection

from .helpers import eventually

KINDS: tuple[type[Any], ...] = (
    WSProtocol,
    WSTransport,
    wslink.WebSocketLink,
    wsreader.BoundedReader,
    acceptor._Pending,
    admission._Threshold,
    Visitor,
    Connection,
    memlink.MemoryLink,
    quiclink.QuicLink,
    quicengine.Engine,
    quicengine.Quic,
    quicdoor._Visit,
    quic._Call,
)


def alive() -> dict[str, int]:
    """How many of each kind; a proxy does not count."""
    found: Counter[str] = Counter()
    for thing in gc.get_objects():
        kind = type(thing)
        if issubclass(kind, KINDS):
            found[kind.__name__] += 1
    return dict(found)


class Lifetimes:
    """What there was at first, and what has come since."""

    def __init__(self) -> None:
        self._first = alive()

    def left(self) -> dict[str, int]:
        """What is alive now and was not at first."""
        more = Counter(alive()) - Counter(self._first)
        return dict(more)

    async def all_gone(self, deadline: float) -> None:
        """Wait until nothing is left."""
        try:
            await eventually(lambda: not self.left(), deadline)
        except AssertionError:
            raise AssertionError(f"still alive after {deadline:g} s: {self.left()}") from None


@contextmanager
def lifetimes() -> Iterator[Lifetimes]:
    """Inside, only reference counts free anything."""
    gc.collect()
    gc.disable()
    try:
        yield Lifetimes()
    finally:
        gc.enable()
