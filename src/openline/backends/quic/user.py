"""Whom an engine tells of its connection, and who stands in for them before and after."""

from __future__ import annotations

from typing import Any, Protocol

from .parts import Addr, Outlet, Owner


class User(Protocol):
    """What an engine tells, always out of callbacks of the loop. A link."""

    def on_handshake(self) -> None: ...
    def on_pong(self, uid: int) -> None: ...
    def on_alive(self) -> None: ...
    def on_moved(self, addr: Addr) -> None:
        """The other end has shown that this is its address now (RFC 9000 section 9.3)."""
        ...

    def on_silent(self) -> None:
        """Several probes in a row have gone unanswered."""
        ...

    def on_sent(self, waiting: int) -> None:
        """Something may have left; so many bytes have not."""
        ...

    def on_too_small(self) -> None:
        """This host does not even send the smallest datagrams there that QUIC needs."""
        ...

    def on_over(self, code: int, by_program: bool, reason: str) -> None:
        """The peer has closed it, or nothing came for too long. Once; nothing follows."""
        ...


class Reader(Protocol):
    """What an engine tells of streams. Of a link, what it reads."""

    def take(self, stream: int, data: bytes, end: bool) -> None: ...
    def on_kept(self, size: int) -> None:
        """So many bytes have come that cannot be handed over yet."""
        ...


class _NoReader:
    """In place of a reader that is over."""

    def take(self, stream: int, data: bytes, end: bool) -> None: ...
    def on_kept(self, size: int) -> None: ...


class _NoUser:
    """In place of a user that has been told of the end, for nothing follows."""

    def on_handshake(self) -> None: ...
    def on_pong(self, uid: int) -> None: ...
    def on_alive(self) -> None: ...
    def on_moved(self, addr: Addr) -> None: ...
    def on_silent(self) -> None: ...
    def on_sent(self, waiting: int) -> None: ...
    def on_over(self, code: int, by_program: bool, reason: str) -> None: ...
    def on_too_small(self) -> None: ...


class _NoOwner:
    """In place of an owner that has been told that nothing is left."""

    def on_id(self, cid: bytes, issued: bool) -> None: ...
    def on_silence(self) -> None: ...
    def on_finished(self) -> None: ...
    def on_gone(self) -> None: ...


class _NoOutlet:
    """Where datagrams of a connection go of which nothing is left."""

    def send(self, batch: list[Any], addr: Addr) -> int:
        return 0


NO_USER: User = _NoUser()
NO_READER: Reader = _NoReader()
NO_OWNER: Owner = _NoOwner()
NO_OUTLET: Outlet[Any] = _NoOutlet()
