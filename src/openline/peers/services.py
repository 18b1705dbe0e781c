"""What all remote nodes of one transport share, and whom they tell."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from ..address import Address
from ..connection.context import Context
from ..core.presence import Presence
from ..message import Message
from ..peer import PeerEventKind
from .conflicts import Conflicts
from .sessions import Sessions

if TYPE_CHECKING:
    from .remote import Remote, RemoteConnection


class Routing(Protocol):
    """Finds ways to peers; ``routing/`` does."""

    def stranded(self, remote: Remote) -> None:
        """It has unacknowledged messages and no good connection."""
        ...

    def look(self, remote: Remote) -> None:
        """Something has changed: it may be within reach again, or given up."""
        ...

    def shared(self, address: Address) -> bool:
        """Do several processes answer in turn where it is dialed?"""
        ...


class Doubting(Protocol):
    """Finds connections that carry nothing large."""

    def look(self, remote: Remote, now: float) -> None: ...


class Reports(Protocol):
    """Tells the program of messages that may not have arrived."""

    def in_doubt(self, remote: Remote, messages: Iterable[Message], why: str) -> None:
        """Nothing will ever confirm these."""
        ...


class Watching(Protocol):
    """Tells the program which peers are there; ``receiving/watchers.py`` does."""

    @property
    def watched(self) -> bool:
        """Does anybody want to know?"""
        ...

    def tell(self, remote: Remote, kind: PeerEventKind, why: str, before: Presence) -> None:
        """That has happened to a peer which was in the state ``before``."""
        ...


class Aliases(Protocol):
    """Knows which connection answers for which address."""

    def alias(self, connection: RemoteConnection, target: Address) -> None:
        """``target`` was dialed to the same node, by a connection that this one has replaced."""
        ...


class Services:
    """Made by the node, which gives the rest of it by ``bind`` as soon as there is any."""

    __slots__ = ("_aliases", "_reports", "conflicts", "context", "doubts", "routing", "sessions", "watching")

    def __init__(self, context: Context, sessions: Sessions, conflicts: Conflicts, reports: Reports) -> None:
        self.context = context
        self.sessions = sessions
        self.conflicts = conflicts
        self._reports = reports
        self._aliases: Aliases
        self.doubts: Doubting
        self.routing: Routing
        self.watching: Watching

    def bind(self, aliases: Aliases, doubts: Doubting, routing: Routing, watching: Watching) -> None:
        self._aliases, self.doubts, self.routing, self.watching = aliases, doubts, routing, watching

    def alias(self, connection: RemoteConnection, target: Address) -> None:
        self._aliases.alias(connection, target)

    def in_doubt(self, remote: Remote, messages: Iterable[Message], why: str) -> None:
        self._reports.in_doubt(remote, messages, why)
