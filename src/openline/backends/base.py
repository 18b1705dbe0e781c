"""The interface between a connection and what carries its bytes.

A backend opens links (``dial``, ``listen``) and hands each one over when it is up. From then on
it calls the link's ``LinkEvents`` straight from the socket callback, and the connection calls the
link's methods. Methods of a link never raise for a dead peer: the next event says it is gone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from ..core.liveness import Progress
from ..core.selection import Endpoint

# Larger messages leave in pieces of this size, so that pings and pongs get in between.
FRAGMENT = 64 * 1024


class LinkEvents(Protocol):
    """What a connection is told. ``data`` is valid only during the call."""

    def on_text(self, data: memoryview) -> None: ...
    def on_binary(self, data: memoryview) -> None: ...
    def on_ping(self, payload: bytes) -> None: ...
    def on_pong(self, payload: bytes) -> None: ...
    def on_writable(self) -> None:
        """The write buffer has drained below its low-water mark."""
        ...

    def on_closed(self, reason: str) -> None:
        """The link is gone. Called exactly once, after which nothing is called."""
        ...


class Link(ABC):
    """One live full-duplex link."""

    backend: str
    endpoint: Endpoint
    events: LinkEvents
    # Too much is waiting to be written; read on every send, so an attribute.
    congested: bool = False

    @property
    @abstractmethod
    def closing(self) -> bool:
        """Nothing more can be written."""

    @abstractmethod
    def write_text(self, data: bytes) -> None:
        """Send one text message."""

    @abstractmethod
    def write_binary(self, buffer: bytearray) -> None:
        """Send ``buffer[HEADROOM:]`` as one binary message; the link owns the buffer afterwards."""

    @abstractmethod
    def ping(self, payload: bytes) -> None: ...

    @abstractmethod
    def pong(self, payload: bytes) -> None: ...

    @abstractmethod
    def close(self, code: int, reason: str) -> None:
        """Say goodbye after what is buffered; ``on_closed`` follows when the peer agrees."""

    @abstractmethod
    def abort(self) -> None:
        """Cut the link now; ``on_closed`` follows."""

    @abstractmethod
    def pause_reading(self) -> None: ...

    @abstractmethod
    def resume_reading(self) -> None: ...

    @abstractmethod
    def broken(self) -> bool:
        """Does the kernel already know that the link is gone, though no event has come yet?"""

    @abstractmethod
    def progress(self) -> Progress | None:
        """The kernel's counters, or None where it does not tell."""


# Called with a link that is up; returns its events. Raises ``Refused`` to turn it away.
LinkUp = Callable[[Link], LinkEvents]
