"""The core of a dial: what the server shows is judged, and its ticket kept for the next dial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qh3._hazmat import QuicConnectionCore
from qh3.quic import events as qh3events
from qh3.tls import SessionTicket

from ...address import Address
from .core import Handshake, Qh3Core, broken
from .tls import Remembered, Trust


class Qh3ClientCore(Qh3Core):
    """Keeps TLS until the server has given its ticket, which it does with its first packets."""

    __slots__ = (
        "_keep",
        "_resumed",
        "_ticket",
        "_trust",
        "_trusted",
        "certificate",
        "early_data_accepted",
        "session_resumed",
    )

    def __init__(
        self,
        quic: Handshake,
        resumed: Remembered | None,
        trust: Callable[[], Trust],
        keep: Callable[[SessionTicket, bytes], None],
    ) -> None:
        """``keep(ticket, certificate)`` is called once, if at all, and not before ``trust_it``."""
        super().__init__(quic)
        quic.tell_of_tickets(self._on_ticket)
        self._resumed = resumed
        self._trust = trust
        self._keep = keep
        self._ticket: SessionTicket | None = None
        self._trusted = False
        self.certificate = b""
        self.session_resumed = self.early_data_accepted = False

    @property
    def resumes(self) -> bool:
        return self._resumed is not None

    def check(self, address: Address) -> None:
        quic = self._quic
        self._trust().check(address, self.certificate, quic.get_issuercerts() if quic is not None else [])

    def trust_it(self) -> None:
        self._trusted = True
        self._keep_ticket()

    def _on_handshake(self, event: qh3events.HandshakeCompleted) -> None:
        self.session_resumed = event.session_resumed
        self.early_data_accepted = event.early_data_accepted
        if event.session_resumed and self._resumed is not None:
            self.certificate = self._resumed.certificate
        elif self._quic is not None and (shown := self._quic.get_peercert()) is not None:
            self.certificate = bytes(shown.public_bytes())
        self._resumed = None
        super()._on_handshake(event)

    def _done_with_tls(self) -> None:
        """Not yet: what the server shows has to be judged, and its ticket to come."""

    def _on_ticket(self, ticket: SessionTicket) -> None:
        self._ticket = ticket

    def _keep_ticket(self) -> None:
        if self._ticket is not None and self._trusted:
            self._keep(self._ticket, self.certificate)
            self._ticket, self.certificate = None, b""
            self._let_go_of_tls()

    def _on_crypto(self, core: QuicConnectionCore, event: tuple[Any, ...]) -> None:
        """A ticket. Of further ones nothing is wanted."""
        quic = self._quic
        if quic is None:
            return
        try:
            quic.take_event(event)
        except BaseException as error:
            raise broken(error) from None
        self._look_for_the_end(quic)
        self._keep_ticket()
