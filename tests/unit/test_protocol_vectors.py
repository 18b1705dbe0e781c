"""The vectors in docs/protocol.md are what the code writes and reads."""

from __future__ import annotations

import re
from pathlib import Path

from openline import Message
from openline.backends import deflate
from openline.core.frames import (
    HEADROOM,
    Batch,
    Flow,
    Listening,
    decode_frame,
    decode_plain,
    encode_flow,
    encode_listening,
    encode_plain,
)
from openline.core.handshake import HEADER, Hello, parse_hello

DOC = Path(__file__).parents[2] / "docs" / "protocol.md"
VECTORS = dict(re.findall(r"```vector (\w+)\n(.*?)\n```", DOC.read_text(encoding="utf-8"), re.DOTALL))

TASK = Message(id="m-1", payload={"n": 1})


def from_hex(name: str) -> memoryview:
    return memoryview(bytes.fromhex(VECTORS[name]))


def test_no_vector_is_left_unchecked() -> None:
    assert set(VECTORS) == {"hello", "plain", "batch", "flow", "listening", "deflate"}


def test_hello() -> None:
    name, _, value = VECTORS["hello"].partition(": ")
    hello = Hello("a" * 52, "A" * 32, (8770, 8771), "böb")
    assert name == HEADER
    assert hello.to_header() == value
    assert parse_hello(value) == hello


def test_plain() -> None:
    message = Message("m-1", "task", {"n": 1}, {"replyTo": "m-0"}, "rpc")
    assert encode_plain(message).decode() == VECTORS["plain"]
    assert decode_plain(VECTORS["plain"].encode()) == message


def test_batch() -> None:
    batch = Batch()
    batch.add(TASK)
    assert batch.seal()[HEADROOM:] == from_hex("batch")
    assert decode_frame(from_hex("batch")) == [TASK]


def test_flow() -> None:
    assert encode_flow("rpc", True)[HEADROOM:] == from_hex("flow")
    assert decode_frame(from_hex("flow")) == Flow("rpc", True)


def test_listening() -> None:
    assert encode_listening((8770,))[HEADROOM:] == from_hex("listening")
    assert decode_frame(from_hex("listening")) == Listening((8770,))


def test_deflate_offer() -> None:
    assert VECTORS["deflate"] == deflate.OFFER
    assert deflate.accept_offer(deflate.OFFER) == (deflate.OFFER, 15)
