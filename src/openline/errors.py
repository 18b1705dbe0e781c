"""Every error openline raises. Time-outs are the built-in ``TimeoutError``."""

from __future__ import annotations

from collections.abc import Sequence


class Error(Exception):
    """Base of all errors raised by openline."""


class Closed(Error):
    """The transport, listener or iterator was closed by this program, or is another process's (fork)."""


class WrongLoop(Error, RuntimeError):
    """A call from another thread, or another event loop, than the transport belongs to; nothing was done."""


class InvalidAddress(Error, ValueError):
    """An address that cannot be parsed; the text says what is wrong and shows a valid form."""


class InvalidIdentity(Error, ValueError):
    """A node id that is none, or an identity file that cannot be used; the text says why."""


class InvalidSignature(Error):
    """A message that its key did not sign, or not like this; the text says what is wrong."""


class InvalidMessage(Error, ValueError):
    """A message that cannot be sent to this peer, such as ``bytes`` toward a plain peer."""


class MessageTooLarge(InvalidMessage):
    """A message over ``Config.max_message_size``."""


class Refused(Error):
    """The peer is not who the address says: wrong certificate, pin, node id, or no permission."""


class IdentityConflict(Error):
    """Two processes present the same identity."""


class NotConfirmed(Error):
    """Bytes of the message left, but nothing confirms that the peer has it.

    ``attempts`` is how many connections it was written to. ``acked`` is how many messages of a
    batch were confirmed before (0 for a single send).
    """

    def __init__(self, text: str, *, attempts: int = 1, acked: int = 0) -> None:
        super().__init__(text)
        self.attempts = attempts
        self.acked = acked


class RemoteError(Error):
    """The handler at the other end has raised an error, whose ``type`` (a name) and ``text`` it tells.

    Both are what the peer says: claims, cut at 100 and 1,000 characters.
    """

    def __init__(self, where: str, type: str, text: str) -> None:
        super().__init__(f"the handler at {where} failed: {type}: {text}")
        self.type = type
        self.text = text


class Unreachable(Error):
    """No path to the peer worked, and no byte of the message left.

    ``tried`` holds one ``(path, reason)`` pair of strings per path, in the order tried.
    ``sent`` is how many messages of a batch were handed over before (0 for a single send).
    """

    def __init__(
        self,
        address: str,
        tried: Sequence[tuple[str, str]],
        sent: int = 0,
        *,
        no_route: bool = False,
        died: bool = False,
    ) -> None:
        self.address = address
        self.tried = tuple(tried)
        self.sent = sent
        # Every path failed on the way (no route, no answer), none at its end (refused).
        self.no_route = no_route
        # A connection was open, and gone before it could be used: another one may fare better.
        self.died = died
        paths = "; ".join(f"{path}: {reason}" for path, reason in tried) or "nothing to try"
        super().__init__(f"cannot reach {address}: {paths}")
