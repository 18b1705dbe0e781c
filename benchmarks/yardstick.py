"""The least that an acknowledged request and its reply have to do, on the same two libraries as openline.

Messages are numbered for each stream, kept until they are acknowledged, taken once, and answered by id.
What is left out is what openline's layers are for: no identities, no second connection, no resending, no
bounds, no liveness, no handlers that wait. The difference between the two is what those cost.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect, ws_create_server

REPLY_TO = "replyTo"


class Message(msgspec.Struct, array_like=True):
    id: str
    type: str = "task"
    payload: Any = None
    metadata: dict[str, Any] | None = None
    stream_id: str = "default"


class Frame(msgspec.Struct, array_like=True):
    # The number of each message in its stream, beside it.
    numbers: list[int]
    messages: list[Message]
    # For each stream the number that is expected next.
    acks: dict[str, int]


# A structure, for that is made without a Python call.
class Unacked(msgspec.Struct):
    number: int
    message: Message
    acked: asyncio.Future[bool] | None = None


class Stream:
    __slots__ = ("expected", "next", "unacked")

    def __init__(self) -> None:
        self.next = 0
        self.unacked: deque[Unacked] = deque()
        self.expected = 0


Handler = Callable[["Session", Message], Coroutine[Any, Any, None]]

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Frame).decode
reply_ids = itertools.count()


class Session(WSListener):
    """One end of one connection."""

    _transport: WSTransport

    def __init__(self, handler: Handler | None = None) -> None:
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self._streams: dict[str, Stream] = {}
        self._asked: dict[str, asyncio.Future[Message]] = {}
        # What the next frame will carry.
        self._numbers: list[int] = []
        self._messages: list[Message] = []
        self._owed: dict[str, int] = {}
        self._reading = False

    async def request(self, message: Message) -> Message:
        answer: asyncio.Future[Message] = self._loop.create_future()
        self._asked[message.id] = answer
        self.post(message)
        return await answer

    async def send(self, message: Message) -> bool:
        """Until it is acknowledged."""
        unacked = self.post(message)
        unacked.acked = self._loop.create_future()
        return await unacked.acked

    async def send_batch(self, messages: Sequence[Message]) -> bool:
        """In one frame, until the last one is acknowledged; all of one stream."""
        self._reading = True
        for message in messages:
            unacked = self.post(message)
        self._reading = False
        self._flush()
        unacked.acked = self._loop.create_future()
        return await unacked.acked

    def reply(self, to: Message, payload: Any) -> None:
        self.post(Message(f"r-{next(reply_ids)}", "result", payload, {REPLY_TO: to.id}, to.stream_id))

    def post(self, message: Message) -> Unacked:
        stream = self._streams.get(message.stream_id)
        if stream is None:
            stream = self._streams[message.stream_id] = Stream()
        unacked = Unacked(stream.next, message)
        stream.next += 1
        stream.unacked.append(unacked)
        self._numbers.append(unacked.number)
        self._messages.append(message)
        if not self._reading:
            self._flush()
        return unacked

    def close(self) -> None:
        self._transport.disconnect()

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        arrived = decode(frame.get_payload_as_memoryview())
        # What handlers send leaves in one frame, together with the acknowledgement.
        self._reading = True
        for stream_id, expected in arrived.acks.items():
            self._acked(self._streams[stream_id].unacked, expected)
        for number, message in zip(arrived.numbers, arrived.messages, strict=True):
            self._take(number, message)
        self._reading = False
        if self._messages:
            self._flush()
        elif self._owed:
            # Whoever waited for this answer may ask again in this turn of the loop.
            self._loop.call_soon(self._flush)

    def _acked(self, unacked: deque[Unacked], expected: int) -> None:
        while unacked and unacked[0].number < expected:
            acked = unacked.popleft().acked
            if acked is not None and not acked.done():
                acked.set_result(True)

    def _take(self, number: int, message: Message) -> None:
        stream = self._streams.get(message.stream_id)
        if stream is None:
            stream = self._streams[message.stream_id] = Stream()
        if number < stream.expected:
            return
        stream.expected = self._owed[message.stream_id] = number + 1
        if message.metadata and (asked := self._asked.pop(message.metadata.get(REPLY_TO, ""), None)):
            asked.set_result(message)
        elif self._handler is not None:
            try:
                self._handler(self, message).send(None)
            except StopIteration:
                return
            raise RuntimeError("a handler of the yardstick may not wait")

    def _flush(self) -> None:
        if self._messages or self._owed:
            frame = Frame(self._numbers, self._messages, self._owed)
            self._numbers, self._messages, self._owed = [], [], {}
            self._transport.send(WSMsgType.BINARY, encode(frame))


async def serve(host: str, handler: Handler) -> asyncio.Server:
    return await ws_create_server(lambda request: Session(handler), host, 0)


async def connect(host: str, port: int) -> Session:
    _, session = await ws_connect(Session, f"ws://{host}:{port}/")
    assert isinstance(session, Session)
    return session
