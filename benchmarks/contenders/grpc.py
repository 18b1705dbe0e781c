"""grpc.aio: a unary call for the echo, a client stream for the one way; generic handlers, no protoc."""

from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from benchmarks.contenders.base import HOST, Ask, Contender, Seen, Send
from benchmarks.messages import Plain, decode, encode

METHOD = "/bench.Bench/Run"


class Grpc(Contender):
    async def echo(self) -> int:
        async def answer(message: Plain, _: Any) -> Plain:
            return message

        return await self._serve(grpc.unary_unary_rpc_method_handler(answer, decode, encode))

    async def asker(self, port: int) -> Ask:
        ask: Ask = (await self._channel(port)).unary_unary(METHOD, encode, decode)
        return ask

    async def receive(self, seen: Seen) -> int:
        async def count(stream: Any, _: Any) -> bytes:
            async for _message in stream:
                seen()
            return b""

        return await self._serve(grpc.stream_unary_rpc_method_handler(count, decode))

    async def sender(self, port: int) -> Send:
        call = (await self._channel(port)).stream_unary(METHOD, encode)()

        async def send(chunk: Sequence[Any]) -> None:
            for message in chunk:
                await call.write(message)

        self.exits.callback(call.cancel)
        return send

    async def _serve(self, handler: Any) -> int:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("bench.Bench", {"Run": handler})]
        )
        port = server.add_insecure_port(f"{HOST}:0")
        await server.start()
        self.exits.push_async_callback(server.stop, None)
        return port

    async def _channel(self, port: int) -> grpc.aio.Channel:
        return await self.exits.enter_async_context(grpc.aio.insecure_channel(f"{HOST}:{port}"))
