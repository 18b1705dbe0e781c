"""``openline listen``: prints what comes, sends what is typed or piped in."""

from __future__ import annotations

import asyncio
import contextlib
from typing import get_args

import msgspec

import openline
from openline.backends.binding import why
from openline.config import BackendName

from .common import Failure, complain, transport
from .outbox import Outbox
from .protocol import Record, encode_record, message_record
from .show import render
from .stdio import Input, Output


class Options(msgspec.Struct, frozen=True):
    port: int
    host: str | None
    peers: tuple[str, ...]
    json: bool
    stay: bool


async def listen(config: openline.Config, options: Options) -> int:
    """Until a signal, the end of input (see ``_goes_on_without``), or nobody reads the output."""
    session = Session(options)
    with contextlib.suppress(asyncio.CancelledError):  # a signal is the usual way to end it
        try:
            async with transport(config) as t:
                await session.serve(t)
        finally:
            await session.finish()
    return 0


class Session:
    def __init__(self, options: Options) -> None:
        self.output = Output()
        self._options = options
        self._format = encode_record if options.json else render

    async def finish(self) -> None:
        if not await self.output.close():
            complain("nobody read the last lines of standard output")

    async def serve(self, t: openline.Transport) -> None:
        t.on_message(self._on_message)
        listener = await self._open(t)
        await self._write(
            {
                "listening": listener.port,
                "address": listener.address,
                "addresses": addresses(listener),
                "unavailable": left_out(listener, t.config),
                "name": t.config.name,
                "nodeId": t.node_id,
            }
        )
        sending = asyncio.ensure_future(self._send_lines(t))
        keeping = [asyncio.ensure_future(t.connect(peer, keep=True)) for peer in self._options.peers]
        try:
            await asyncio.wait([sending, self.output.broken], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, *keeping):
                task.cancel()
            await asyncio.gather(sending, *keeping, return_exceptions=True)
        self._raise_if_output_failed()

    async def _open(self, t: openline.Transport) -> openline.Listener:
        options = self._options
        try:
            return await t.listen(options.port, options.host)
        except OSError as error:
            where = f"{options.host} port {options.port}" if options.host else f"port {options.port}"
            raise Failure(f"cannot listen on {where}: {why(error, options.host)}") from None

    def _raise_if_output_failed(self) -> None:
        if self.output.broken.done() and (error := self.output.broken.exception()):
            raise Failure(f"cannot write to standard output: {error}")

    async def _on_message(self, peer: openline.Peer, message: openline.Message) -> None:
        await self._write(message_record(peer, message))

    async def _write(self, record: Record) -> None:
        await self.output.write(self._format(record))

    async def _send_lines(self, t: openline.Transport) -> None:
        # JSON may write one character as six.
        source = Input(max_line=6 * t.config.max_message_size)
        outbox = Outbox(t, self._write)
        async for line in source.lines():
            await outbox.put(line)
        await outbox.drain()
        if self._goes_on_without(source):
            await asyncio.Event().wait()

    def _goes_on_without(self, source: Input) -> bool:
        """A daemon has /dev/null for input; a program that has written there and then closed it is done."""
        return self._options.stay or (source.was_empty and not source.is_terminal)


def addresses(listener: openline.Listener) -> list[str]:
    """One for each backend that really listens."""
    place = listener.address.partition("://")[2]
    schemes = {"websocket": "wss" if listener.secure else "ws"}
    return [f"{schemes.get(backend, backend)}://{place}" for backend in listener.backends]


def left_out(listener: openline.Listener, config: openline.Config) -> dict[str, str]:
    """Why the other backends do not listen."""
    reasons = {}
    for name in get_args(BackendName):
        if name not in config.backends:
            reasons[name] = "not asked for"
        elif name not in listener.backends:
            reasons[name] = listener.unavailable.get(name, "not usable here")
    return reasons
