"""The bytes of WebSocket and of openline over it, as the tests write and read them."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

import openline
from openline.core.frames import (
    MESSAGES,
    Batched,
)
from openline.message import StreamId

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = True, size: int = -1
) -> bytes:
    """One frame, masked with zeros; ``size`` claims another length than the payload's."""
    size = len(payload) if size < 0 else size
    first = (0x80 if fin else 0) | (rsv << 4) | opcode
    bit = 0x80 if mask else 0
    if size < 126:
        head = struct.pack("!BB", first, bit | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, bit | 127, size)
    return head + (b"\0\0\0\0" if mask else b"") + payload


def plain(payload: Any = None, **fields: Any) -> bytes:
    """A message as a plain peer writes it."""
    return json.dumps({"id": "p", "type": "task", "payload": payload, **fields}).encode()


Notes = Mapping[StreamId, int]


def batch(messages: Iterable[openline.Message], acks: Notes = {}, opens: Notes = {}) -> bytes:  # noqa: B006
    """A binary frame's payload as an openline peer writes it."""
    body = Batched(list(messages), tuple(acks.items()), tuple(opens.items()))
    return bytes([MESSAGES]) + msgspec.msgpack.encode(body)


def unframed(data: bytes) -> tuple[int, bytes, bytes] | None:
    """First byte and payload of the frame that ``data`` begins with, and the rest; None if it is cut."""
    if len(data) < 2:
        return None
    first, length = data[:2]
    start, size = 2, length & 0x7F
    if size > 125:
        start += 2 if size == 126 else 8
        size = int.from_bytes(data[2:start], "big")
    key = data[start : start + 4] if length & 0x80 else b""
    start += len(key)
    payload = data[start : start + size]
    if len(data) < start + size or (length & 0x80 and len(key) < 4):
        return None
    if any(key):
        payload = bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))
    return first, payload, data[start + size :]


def header(head: str, name: str) -> str:
    """The value of a header in an HTTP head."""
    lines = [line.partition(":") for line in head.split("\r\n")]
    return next(value.strip() for key, _, value in lines if key.lower() == name.lower())


def upgrade(headers: dict[str, str] | None = None) -> bytes:
    """A client's request."""
    lines = ["GET / HTTP/1.1", "Host: 127.0.0.1", "Upgrade: websocket", "Connection: Upgrade"]
    lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def switching(request: str, headers: dict[str, str] | None = None) -> bytes:
    """The server's answer to an upgrade."""
    key = header(request, "Sec-WebSocket-Key")
    digest = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
    lines.append(f"Sec-WebSocket-Accept: {base64.b64encode(digest).decode()}")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
