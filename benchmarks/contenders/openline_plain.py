"""openline toward a plain peer: a minimal WebSocket server that reads JSON, and cannot acknowledge."""

from collections.abc import Callable
from typing import Any

from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_create_server
from websockets.asyncio.client import connect

from benchmarks.contenders.base import HOST, Ask, Seen
from benchmarks.contenders.openline import OpenlineRequest
from benchmarks.messages import Plain, decode, encode

Got = Callable[[WSTransport, Plain], None]


class PlainPeer(WSListener):
    def __init__(self, got: Got) -> None:
        self._got = got

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.TEXT:
            self._got(transport, decode(frame.get_payload_as_memoryview()))
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()


class OpenlinePlain(OpenlineRequest):
    """The sending end is the same as toward an openline peer."""

    async def echo(self) -> int:
        return await self._serve(lambda line, message: line.send(WSMsgType.TEXT, encode(message)))

    async def receive(self, seen: Seen) -> int:
        return await self._serve(lambda line, message: seen())

    async def _serve(self, got: Got) -> int:
        server: Any = await ws_create_server(lambda request: PlainPeer(got), HOST, 0)
        self.exits.callback(server.close)
        return int(server.sockets[0].getsockname()[1])


class PlainClient(OpenlineRequest):
    """The other way round: a client that speaks no openline asks one that does, which answers in JSON."""

    def native(self, message: Plain) -> Plain:
        return message

    async def asker(self, port: int) -> Ask:
        line = await self.exits.enter_async_context(connect(f"ws://{HOST}:{port}", compression=None))

        async def ask(message: Any) -> None:
            await line.send(encode(message), text=True)
            decode(await line.recv(decode=False))

        return ask
