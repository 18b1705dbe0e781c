"""A transport under attack, the frames that attack it, and what is logged of them."""

from __future__ import annotations

import logging
import struct

import msgspec
import pytest

import openline
from openline.core.frames import FLOW, LISTENING, MESSAGES, PROOF, WELCOME

from .helpers import Box, eventually, task, within
from .rawsocket import Raw
from .wire import BINARY, CLOSE, CONTINUATION, PING, TEXT, frame, plain

LIMIT = 100_000

# Seconds that something may take beside an attack, on a machine that has more to do.
BUSY = 20.0


class Node:
    """A transport under attack, and an honest openline and an honest plain peer of it."""

    def __init__(self, t: openline.Transport, honest: openline.Transport, client: Raw, port: int) -> None:
        self.t = t
        self.port = port
        self.box = Box(t)
        self._honest = honest
        self._client = client
        self._said = 0

    async def still_serves(self) -> None:
        """The others do not notice: same connections, messages go through, and new ones can come."""
        self._said += 1
        expected = [f"openline {self._said}", f"plain {self._said}", f"new {self._said}"]
        await within(self._honest.send(f"127.0.0.1:{self.port}", task(expected[0])), BUSY)
        await self._client.say(expected[1])
        new = await within(Raw.connect(self.port), BUSY)
        try:
            await new.say(expected[2])
            await eventually(lambda: set(expected) <= {str(payload) for payload in self.box.payloads}, BUSY)
        finally:
            new.close()
        assert (self._honest.stats().created, self._honest.stats().closed) == (1, 0)

    @property
    def malformed(self) -> int:
        return self.t.stats().malformed


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("openline") and record.levelno >= logging.WARNING
    ]


def packed(kind: int, body: object) -> bytes:
    return bytes([kind]) + msgspec.msgpack.encode(body)


def messages(*those: object, more: tuple[object, ...] = ()) -> bytes:
    return packed(MESSAGES, [those, *more])


ONE = ["1", "task", 1]
# A frame of messages, and one message whose payload is still to come.
FRAME = bytes([MESSAGES]) + b"\x91"
BEGUN = FRAME + b"\x91\x93\xa11\xa4task"

NOT_FRAMES = {
    "nothing": b"",
    "no body": bytes([MESSAGES]),
    "messages: a map": packed(MESSAGES, {"a": 1}),
    "messages: a map inside": FRAME + b"\x80",
    "messages: not in a frame": packed(MESSAGES, [ONE]),
    "messages: numbers": messages(1, 2),
    "messages: cut": messages(["1", "task", "payload"])[:-3],
    "messages: too long a claim": FRAME + b"\xdd\xff\xff\xff\xff",
    "messages: rest behind": messages(ONE) + b"rest",
    "messages: wrong types": messages([{}, 1, None, [], {}]),
    "messages: a map as a key": BEGUN + b"\x81\x80\x01",
    "messages: unknown extension": BEGUN + b"\xd4\x63\x00",
    "messages: broken json extension": BEGUN + b"\xd4\x01{",
    "messages: deeply nested": BEGUN + b"\x91" * 90_000,
    "messages: not utf-8": FRAME + b"\x91\x93\xa1\xff\xa4task\xc0",
    "messages: on a stream that was not opened": messages([*ONE, None, "other"]),
    "acks: text": messages(more=("all",)),
    "acks: of a stream that is none": messages(more=([[{}, 1]],)),
    "acks: a fraction": messages(more=([["default", 1.5]],)),
    "opens: before the first number": messages(more=([], [["other", -1]])),
    "opens: an endless name": messages(more=([], [["x" * 1025, 1]])),
    "flow: text": packed(FLOW, "stop"),
    "flow: an object as stream": packed(FLOW, [{}, True]),
    "listening: text": packed(LISTENING, "8770"),
    "listening: a port too high": packed(LISTENING, [[70_000]]),
    "listening: too many ports": packed(LISTENING, [list(range(1, 1000))]),
    "listening: a negative port": packed(LISTENING, [[-1]]),
    "proof: once more": packed(PROOF, [b"x" * 64]),
    "proof: text": packed(PROOF, "me"),
    "welcome: text": packed(WELCOME, "hello"),
}


async def cut(node: Node, peer: Raw, caplog: pytest.LogCaptureFixture) -> bytes:
    """The attacker's connection is cut, counted, and logged once with its address."""
    said = await peer.gone()
    await eventually(lambda: node.malformed == 1, 1.0)
    [line] = warnings_in(caplog)
    assert peer.address in line
    return said


BREACHES = {
    "unmasked text": frame(TEXT, plain("no"), mask=False),
    "reserved opcode 3": frame(3, plain("no")),
    "reserved opcode 7": frame(7, b""),
    "reserved control opcode 11": frame(11, b""),
    "reserved bit 2": frame(TEXT, plain("no"), rsv=2),
    "reserved bit 3": frame(TEXT, plain("no"), rsv=1),
    "compressed though not agreed": frame(TEXT, b"\xaa\x56\x00", rsv=4),
    "continuation of nothing": frame(CONTINUATION, plain("no")),
    "a message inside a message": frame(TEXT, b"{", fin=False) + frame(TEXT, plain("no")),
    "a binary inside a message": frame(TEXT, b"{", fin=False) + frame(BINARY, plain("no")),
    "a fragmented ping": frame(PING, b"x", fin=False),
    "a fragmented close": frame(CLOSE, struct.pack("!H", 1000), fin=False),
    "a long ping": frame(PING, b"x" * 126),
    "a close with half a code": frame(CLOSE, b"\x03"),
}
