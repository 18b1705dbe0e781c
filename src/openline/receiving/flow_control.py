"""Tells senders to stop where their messages wait, and to go on (rule 3.5)."""

from __future__ import annotations

from ..peers.mailbox import Mailbox
from ..peers.remote import Remote


def regulate(remote: Remote, mailbox: Mailbox | None) -> None:
    """A mailbox, or the peer as a whole (None), has become full, or roomy: tell the sender.

    An openline peer is told per stream. A plain peer, and an openline peer that fills very
    many streams or does not listen, is stopped by not reading its connections.
    """
    if mailbox is not None:
        _tell_sender(remote, mailbox)
    unreadable = remote.mailboxes.unreadable
    for connection in remote.connections:
        if unreadable:
            connection.pause_reading()
        else:
            connection.resume_reading()


def welcome_answers(remote: Remote) -> None:
    """A request goes out to a peer that was told to stop: its answer is welcome all the same."""
    for mailbox in list(remote.mailboxes.full):
        if not mailbox.answers:
            _tell_sender(remote, mailbox)


def _tell_sender(remote: Remote, mailbox: Mailbox) -> None:
    mailbox.welcome(bool(remote.requests.out))
    for connection in remote.connections:
        if not connection.plain:
            connection.writer.tell_flow(mailbox.stream_id, mailbox.paused, mailbox.answers)
