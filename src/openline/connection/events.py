"""What a connection tells, and to whom: the contracts with the rooms above this one.

``R`` is what those rooms keep for each remote node; a connection knows no more of it than ``Owner`` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from ..core.selection import Endpoint

if TYPE_CHECKING:
    from ..backends.base import End
    from ..core.frames import Batched, Flow
    from ..message import Message
    from .connection import Connection
    from .writer import Writer


class Owner(Protocol):
    """The remote node that a connection reaches."""

    @property
    def node_id(self) -> str | None: ...
    @property
    def endpoint(self) -> Endpoint: ...
    @property
    def address(self) -> str: ...
    @property
    def known(self) -> bool:
        """Has this program a reason to know it? Else what it takes is paid from the strangers' share."""
        ...


R = TypeVar("R", bound=Owner)
R_contra = TypeVar("R_contra", bound=Owner, contravariant=True)


class Turn(Protocol):
    """What is put off until the end of what is being done, or of this turn of the loop."""

    @property
    def dispatching(self) -> bool:
        """Is a received frame being handled? Then what handlers send gathers until its end."""
        ...

    @property
    def gathered(self) -> list[Writer]:
        """Those that have something to flush when the frame has been handled."""
        ...


class Arrivals(Protocol[R]):
    """Takes what connections have received. All may raise ``Malformed``, which costs the connection."""

    def on_messages(self, connection: Connection[R], messages: list[Message], size: int, more: int) -> None:
        """Of a plain peer. Decoded they take ``more`` bytes than the ``size`` they came in."""
        ...

    def on_batch(self, connection: Connection[R], batch: Batched, size: int, more: int) -> None:
        """A frame of an openline peer's session; sizes as above."""
        ...

    def on_flow(self, connection: Connection[R], flow: Flow) -> None:
        """The peer's inbox of a stream is full, or has room again."""
        ...


class Lifecycle(Protocol[R]):
    """Is told what becomes of connections."""

    def on_state(self, connection: Connection[R]) -> None: ...
    def on_lost(self, connection: Connection[R], end: End) -> None: ...
    def on_far_end_lost(self, connection: Connection[R], lost: list[bytes]) -> None:
        """The far ends of these connections (their ids) are gone."""
        ...

    def on_challenge_met(self, connection: Connection[R]) -> None:
        """The process behind it has answered that it is still there."""
        ...

    def on_listening(self, connection: Connection[R], ports: tuple[int, ...]) -> None: ...
    def on_moved(self, connection: Connection[R], ip: str, port: int) -> None: ...
    def changed(self) -> None:
        """What a send may depend on is not as it was."""
        ...


class Liveness(Protocol[R]):
    """Watches connections (rule 3.2)."""

    def owes(self, connection: Connection[R]) -> None:
        """What the peer is owed waits until it reads."""
        ...

    def paused(self, connection: Connection[R]) -> None:
        """It is not read from now on."""
        ...

    def resumed(self, connection: Connection[R]) -> None: ...
    def doubt(self, connection: Connection[R]) -> None:
        """Its link has probed in vain."""
        ...

    def trust(self, connection: Connection[R]) -> None:
        """Its link has had an answer."""
        ...


class Later(Protocol[R]):
    """Does soon, for all connections together, what comes too often."""

    def add(self, connection: Connection[R]) -> None: ...
