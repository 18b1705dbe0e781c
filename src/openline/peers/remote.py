"""One remote node: the one owner of all that is known of it.

What belongs together is kept together: ``paths`` (its connections, and which of them carries its session),
``outstanding`` (what it has not acknowledged), ``requests``, ``mailboxes`` (what has come from it),
``presence`` (whether it is there).
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Coroutine
from typing import Any

from ..address import Address, join
from ..connection.connection import Connection
from ..core.selection import Endpoint
from ..message import Message, Receipt
from ..peer import Peer, Sends
from .answers import Answers
from .control import Control
from .in_flight import InFlight
from .mailboxes import Mailboxes
from .outstanding import Outstanding
from .owner import Owner as Consumers
from .paths import Paths
from .presence import PeerPresence
from .requests import Requests
from .services import Services

RemoteConnection = Connection["Remote"]


class Remote:
    """A remote node, and perhaps this very process (``own``), which has dialed itself."""

    __slots__ = (
        "__weakref__",
        "_by_name",
        "_peer",
        "_sends",
        "_services",
        "answers",
        "control",
        "endpoint",
        "key",
        "known",
        "mailboxes",
        "name",
        "node_id",
        "outstanding",
        "own",
        "paths",
        "plain",
        "presence",
        "requests",
    )

    def __init__(
        self,
        services: Services,
        sends: Sends,
        consumers: Consumers,
        key: object,
        endpoint: Endpoint,
        own: bool = False,
    ) -> None:
        hello, config = endpoint.hello, services.context.config
        self._services = services
        self._sends = sends
        self._peer: weakref.ref[Peer] | None = None
        self.key = key
        self.node_id: str | None = hello.node_id if hello else None
        self.name = hello.name if hello else ""
        self.plain = hello is None
        self.own = own
        # The last known far end, also after the connection is gone.
        self.endpoint = endpoint
        # Has this program a reason to know it: dialed it, sent to it of its own accord, or allows it by
        # name? Else what it takes is paid from the strangers' share (rule 3.10).
        self.known = self.node_id in (config.allow or ())
        # quic:// asks for a certificate here, so that its address is written with its node id instead.
        self._by_name = config.certified
        self.paths = Paths(self, services)
        self.outstanding = Outstanding(self, services)
        self.requests = Requests()
        self.mailboxes = Mailboxes(self, consumers)
        self.answers = Answers(self, services)
        self.control = Control(self, services)
        self.presence = PeerPresence(self, services)

    def __repr__(self) -> str:
        who = "plain peer" if self.node_id is None else f"peer {self.node_id[:8]}"
        claim = f" calling itself {self.name!r}" if self.name else ""
        return f"<{who}{claim} at {self.address}, {self.state}>"

    @property
    def peer(self) -> Peer:
        """What programs get; the same one for as long as anybody keeps it."""
        peer = self._peer() if self._peer is not None else None
        if peer is None:
            peer = Peer(self, self._sends)
            self._peer = weakref.ref(peer)
        return peer

    # What is known of it -------------------------------------------------------------------------

    def know(self) -> None:
        """This program has a reason to know it."""
        self.known = True

    def call(self, name: str) -> None:
        """What it calls itself now."""
        self.name = name

    @property
    def connections(self) -> list[RemoteConnection]:
        """Those that are live."""
        return self.paths.connections

    @property
    def connected(self) -> bool:
        return bool(self.paths.connections)

    @property
    def state(self) -> str:
        best = max(self.connections, key=lambda c: c.quality, default=None)
        return best.status if best else "gone"

    @property
    def address(self) -> str:
        end = self.endpoint
        if end.target is not None:
            return str(end.target)
        if end.hello is not None and end.hello.ports:
            return join(end.ip, end.hello.ports[0])
        if end.protocol == "tcp":
            return end.remote
        # A UDP port: a bare ip:port would mean TCP's of that number.
        return f"{self.node_id}@{end.remote}" if self._by_name else f"quic://{end.remote}"

    @property
    def dial_address(self) -> Address | None:
        """Where a new connection could be made; None for one that only ever dialed in."""
        end = self.endpoint
        if end.target is not None:
            return end.target
        return Address(end.ip, end.hello.ports[0]) if end.hello is not None and end.hello.ports else None

    # Connections ---------------------------------------------------------------------------------

    def attach(self, connection: RemoteConnection) -> None:
        """A connection to it is open."""
        end = connection.endpoint
        if end.hello is not None:
            self.name = end.hello.name
        self.paths.connections.append(connection)
        self.endpoint = end if end.target is not None or self.endpoint.target is None else self.endpoint
        connection.join(self)

    def detach(self, connection: RemoteConnection) -> None:
        """A connection to it has ended, or is used no more."""
        if connection in self.paths.connections:
            self.paths.connections.remove(connection)

    # Sending -------------------------------------------------------------------------------------

    def post(self, sent: InFlight[Any], chosen: RemoteConnection) -> bool:
        """Write messages to it. ``chosen`` reaches it; the carrier takes them where it may.

        False: nothing of them left. Of several messages the first are kept, as many as fit. Raises
        ``Blocked`` and ``InvalidMessage``.
        """
        paths = self.paths
        if paths.carrier is not chosen:
            chosen = paths.carrier_for(chosen, sent)
        return self.outstanding.post(sent, chosen)

    def send(self, message: Message) -> Coroutine[Any, Any, Receipt]:
        """As programs do."""
        return self._sends.send_to(self, message)

    def lose(self, why: str, *, arrived: bool = False) -> None:
        """The process there is gone, and with it who reads answers in pieces or gives them; ``arrived``: what
        it has not had yet is its successor's."""
        self.requests.lose(why, arrived)
        self.answers.lose()

    def move_to(self, new: Remote, target: Address) -> bool:
        """A dial of ``target`` has reached ``new``, and this node is gone: what was sent there is that one's.

        Unless both are alive and answer there in turn: then each gets its own. True where something moved.
        """
        mine, theirs = self.outstanding.session, new.outstanding.session
        if mine is None or theirs is None or self is new or self.connections:
            return False
        if self._services.routing.shared(target) or not self.outstanding.move_to(new, target):
            return False
        text = "%r answers at %s in place of %r: it gets what was not acknowledged"
        self._services.context.log.about(new, logging.INFO, text, new, target, self)
        new.outstanding.note()
        self._services.routing.look(self)
        return True

    def forgotten(self, why: str) -> None:
        """It has to make room for others."""
        self._services.context.log.about(self, logging.INFO, "forgotten: %r: %s", self, why)

    def look_for_doubt(self, now: float) -> None:
        """Does what is sent to it get through?"""
        self._services.doubts.look(self, now)
