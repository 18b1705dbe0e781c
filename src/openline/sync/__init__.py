"""openline for scripts, notebooks and threads: the same names, without ``async``.

    import openline
    import openline.sync

    with openline.sync.load_transport(openline.Config(name="alice")) as t:
        reply = t.request("10.10.10.2:8770", openline.Message(payload={"n": 1}), timeout=5.0)

All transports of a process share one event loop in a thread of its own, which begins with the first and ends
with the last of them. Messages, addresses, receipts and errors are those of ``openline``.
"""

from .peer import Peer, PeerEvent
from .transport import Listener, Transport, load_transport

__all__ = ["Listener", "Peer", "PeerEvent", "Transport", "load_transport"]
