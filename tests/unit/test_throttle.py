"""Who is held back where strangers have too much waiting."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from openline.peers.mailbox import GRAIN
from openline.peers.mailboxes import Mailboxes
from openline.receiving.throttle import PATIENCE, Throttle

LIMIT = 100_000


class _Peer(SimpleNamespace):
    __hash__ = object.__hash__
    mailboxes: _Mailboxes


class _Mailboxes(Mailboxes):
    """Says what it is told."""

    def __init__(self, peer: Any, said: list[tuple[str, str]]) -> None:
        owner: Any = SimpleNamespace(
            note=lambda peer: None,
            flow=lambda peer, _: said.append(("shut" if self.unread else "go on", peer.name)),
        )
        super().__init__(peer, owner)
        self._said = said

    def stop(self) -> None:
        self._said.append(("stop", self.remote.name))


class Strangers:
    """A throttle, and what it has said."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []
        self.throttle = Throttle(LIMIT, self._drop)

    def peer(self, name: str, ip: str = "10.0.0.1", plain: bool = False) -> Any:
        peer = _Peer(
            name=name,
            endpoint=SimpleNamespace(ip=ip),
            plain=plain,
            known=False,
            connections=["one"],
            kept=0,
        )
        peer.mailboxes = _Mailboxes(peer, self.said)
        return peer

    def holds(self, peer: Any, size: int) -> None:
        more = size - peer.mailboxes.load
        if more > 0:
            peer.mailboxes.charge(more, peer.known)
        else:
            peer.mailboxes.release(-more)
        self.throttle.note(peer)

    def _drop(self, peer: Any) -> None:
        self.said.append(("drop", peer.name))
        self.holds(peer, peer.kept)


@pytest.fixture
def strangers() -> Strangers:
    return Strangers()


def test_the_one_that_holds_the_most_is_told_to_stop(strangers: Strangers) -> None:
    small, large = strangers.peer("small"), strangers.peer("large")
    strangers.holds(small, 10_000)
    strangers.holds(large, 90_000)
    assert strangers.said == []
    strangers.holds(large, 100_000)
    assert strangers.said == [("stop", "large")]
    assert not small.mailboxes.throttled


def test_one_that_does_not_stop_is_not_read_any_more(strangers: Strangers) -> None:
    deaf = strangers.peer("deaf")
    strangers.holds(deaf, LIMIT + 1)
    strangers.holds(deaf, PATIENCE * LIMIT)
    assert strangers.said == [("stop", "deaf")]
    strangers.holds(deaf, PATIENCE * LIMIT + 1)
    assert strangers.said[1:] == [("shut", "deaf")]


def test_a_plain_one_is_not_read_at_once(strangers: Strangers) -> None:
    plain = strangers.peer("plain", plain=True)
    strangers.holds(plain, LIMIT + 1)
    assert strangers.said == [("shut", "plain")]


def test_all_go_on_when_it_has_drained(strangers: Strangers) -> None:
    one, other = strangers.peer("one"), strangers.peer("other")
    strangers.holds(one, LIMIT + 1)
    strangers.holds(other, LIMIT + 1)
    assert one.mailboxes.throttled
    assert other.mailboxes.throttled
    strangers.holds(other, 0)
    assert not other.mailboxes.throttled
    assert one.mailboxes.throttled
    strangers.holds(one, LIMIT // 2)
    assert not one.mailboxes.throttled
    assert [what for what, _ in strangers.said] == ["stop", "stop", "go on", "go on"]


def test_who_holds_next_to_nothing_goes_on_whatever_others_do(strangers: Strangers) -> None:
    stuck, quick = strangers.peer("stuck", "10.0.0.1"), strangers.peer("quick", "10.0.0.2")
    strangers.holds(stuck, LIMIT + 1)
    strangers.holds(quick, 3 * GRAIN)
    assert not quick.mailboxes.throttled
    strangers.holds(stuck, PATIENCE * LIMIT + 1)
    strangers.holds(quick, 3 * GRAIN)
    assert quick.mailboxes.throttled
    strangers.holds(quick, GRAIN)
    assert not quick.mailboxes.throttled
    assert stuck.mailboxes.throttled


def test_a_peer_that_is_known_is_not_counted(strangers: Strangers) -> None:
    friend, stranger = strangers.peer("friend"), strangers.peer("stranger")
    strangers.holds(stranger, 10_000)
    strangers.holds(friend, LIMIT // 2)
    friend.known = True
    strangers.holds(friend, 50 * LIMIT)
    assert strangers.throttle.used == 10_000
    assert strangers.said == []


def test_what_is_waiting_of_one_that_is_gone_is_dropped_once(strangers: Strangers) -> None:
    gone, other = strangers.peer("gone", "10.0.0.1"), strangers.peer("other", "10.0.0.2")
    strangers.holds(gone, LIMIT)
    gone.connections, gone.kept = [], LIMIT * 2 // 3
    strangers.throttle.gone(gone)
    strangers.holds(other, LIMIT // 2)
    assert strangers.said[0] == ("drop", "gone")
    strangers.holds(other, LIMIT + 1)
    assert [what for what, _ in strangers.said].count("drop") == 1
    assert other.mailboxes.throttled


def test_one_that_is_back_is_read_again(strangers: Strangers) -> None:
    peer = strangers.peer("peer")
    strangers.holds(peer, PATIENCE * LIMIT + 1)
    assert peer.mailboxes.unread
    strangers.throttle.gone(peer)
    peer.connections = ["new"]
    strangers.throttle.back(peer)
    assert not peer.mailboxes.unread
