"""openline to openline by a bare address where UDP does not pass: TLS with the certificate of the node."""

from typing import Any

import openline
from benchmarks.contenders.openline import (
    HOST,
    OpenlineGather,
    OpenlineHandler,
    OpenlineRequest,
    OpenlineSend,
)


class OverTls(OpenlineRequest):
    def _address(self, port: int) -> str:
        return f"{HOST}:{port}"

    async def _transport(self, name: str, **options: Any) -> openline.Transport:
        return await super()._transport(name, backends=("websocket",), **options)

    def check(self, client: openline.Transport, how: str) -> None:
        if not all(connection.endpoint.secure for connection in client._table.connections):
            raise RuntimeError("it was dialed in plain text")


class HandlerOverTls(OverTls, OpenlineHandler):
    """The same by handlers."""


class SendOverTls(OverTls, OpenlineSend):
    """The same by `send()`."""


class GatherOverTls(OverTls, OpenlineGather):
    """The same by many `send()`s at once."""
