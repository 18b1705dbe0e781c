"""openline to openline over QUIC: the same ends as over WebSocket, by another address."""

import openline
from benchmarks.contenders.openline import OpenlineGather, OpenlineHandler, OpenlineRequest, OpenlineSend
from benchmarks.contenders.quic import check_resumed


class OverQuic(OpenlineRequest):
    scheme = "quic"
    dials = ("cold", "resumed", "early")

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def check(self, client: openline.Transport, how: str) -> None:
        # The first one of each node has no ticket yet.
        known = how == "cold" or how in self._seen
        self._seen.add(how)
        for connection in client._table.connections:
            check_resumed(connection.link._engine.core, how if known else "cold")  # type: ignore[attr-defined]


class HandlerOverQuic(OpenlineHandler):
    scheme = "quic"


class SendOverQuic(OpenlineSend):
    scheme = "quic"


class GatherOverQuic(OpenlineGather):
    scheme = "quic"
