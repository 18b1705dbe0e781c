"""openline.sync: who is there."""

from __future__ import annotations

import queue

import openline
import openline.sync

from .helpers import DEADLINE, Calling, eventually, serve, task


def test_who_comes_and_goes_in_a_thread_and_by_an_iterator() -> None:
    told: queue.Queue[openline.sync.PeerEvent] = queue.Queue()
    with openline.sync.load_transport() as bob:
        bob.on_peer(told.put)
        events = bob.peer_events()
        address = serve(bob)
        with openline.sync.load_transport(openline.Config(name="alice")) as alice:
            alice.send(address, task())
            event = told.get(timeout=DEADLINE)
            assert (event.kind, event.peer.name, event.peer) == ("connected", "alice", bob.peers()[0])
        assert told.get(timeout=DEADLINE).kind == "gone"
        assert [next(events).kind, next(events).kind] == ["connected", "gone"]
        bob.off_peer(told.put)
        rest = Calling(lambda: [event.kind for event in events])
        with openline.sync.load_transport() as carol:
            carol.send(address, task())
        eventually(lambda: not bob.peers())
    assert rest.end() == ["connected", "gone"]
    assert told.empty()
