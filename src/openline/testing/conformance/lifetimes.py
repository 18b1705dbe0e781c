"""Which objects of connections are alive, while nothing looks for circles (rule 3.10).

with lifetimes() as counted:
    ...                            # connections come and go
    await counted.all_gone(5.0)    # by reference counts alone
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from picows.picows import WSProtocol, WSTransport  # type: ignore[attr-defined]

from ...backends.base import Visitor
from ...backends.memory import backend as memory
from ...backends.memory import link as memlink
from ...backends.quic.client import ClientPath
from ...backends.quic.core import Handshake, Qh3Core
from ...backends.quic.dial import Dial
from ...backends.quic.engine import Engine
from ...backends.quic.incoming import Incoming
from ...backends.quic.link import QuicLink
from ...backends.quic.listener import PendingHandshake
from ...backends.quic.ports import Ids
from ...backends.websocket import link as wslink
from ...backends.websocket import listener as acceptor
from ...backends.websocket import reader as wsreader
from ...backends.websocket.bare import BareDial
from ...backends.websocket.tunnel import Tunnel
from ...connection import admission
from ...connection.connection import Connection

KINDS: tuple[type[Any], ...] = (
    WSProtocol,
    WSTransport,
    wslink.WebSocketLink,
    wsreader.BoundedReader,
    acceptor._Pending,
    Tunnel,
    BareDial,
    admission._Threshold,
    Visitor,
    Connection,
    memlink.MemoryLink,
    memory._Visit,
    memory._Call,
    QuicLink,
    Incoming,
    Engine,
    Qh3Core,
    Handshake,
    PendingHandshake,
    Ids,
    ClientPath,
    Dial,
)
POLL = 0.01


def alive() -> Counter[str]:
    """How many there are of each kind. A proxy is none."""
    found = Counter[str]()
    for kind, count in Counter(map(type, gc.get_objects())).items():
        if issubclass(kind, KINDS):
            found[kind.__name__] += count
    return found


class Lifetimes:
    """What there was at first, and what has come since."""

    def __init__(self) -> None:
        self._first = alive()

    @property
    def left(self) -> dict[str, int]:
        """What is alive now and was not at first."""
        return dict(alive() - self._first)

    async def all_gone(self, deadline: float, poll: float = POLL) -> None:
        """Wait until nothing is left, looking every ``poll`` seconds. Raises ``AssertionError``."""
        loop = asyncio.get_running_loop()
        until = loop.time() + deadline
        while left := self.left:
            assert loop.time() < until, f"still alive after {deadline:g} s: {left}"
            await asyncio.sleep(poll)


@contextmanager
def lifetimes() -> Iterator[Lifetimes]:
    """Inside, only reference counts free anything."""
    gc.collect()
    gc.disable()
    before = logging.root.manager.disable
    logging.disable()  # what collects log records keeps what they speak of
    try:
        yield Lifetimes()
    finally:
        logging.disable(before)
        gc.enable()
