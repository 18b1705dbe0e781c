"""The JSON line protocol of ``openline listen --json``: what a program writes, and what it reads.

docs/reference-cli.md describes it for programs in any language.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

import openline
from openline.message import DEFAULT_STREAM, StreamId, new_id

Record = dict[str, Any]

_UNENCODABLE = (TypeError, ValueError, OverflowError, RecursionError)
_EXAMPLE = '{"to": "10.0.0.2:8770", "payload": 1}'
_encode = msgspec.json.Encoder().encode


class BadLine(Exception):
    """A line that asks for nothing that can be done. ``id`` is the message id, if it had one."""

    def __init__(self, text: str, id: object = None) -> None:
        super().__init__(text)
        self.id = id


class Line(msgspec.Struct, forbid_unknown_fields=True, rename={"stream_id": "streamId"}):
    """One line of standard input: a message to send, or a request to make."""

    to: str
    payload: Any = None
    type: str = "task"
    stream_id: StreamId = DEFAULT_STREAM
    metadata: dict[str, Any] | None = None
    id: str | int | float | None = None
    request: bool = False
    timeout: Annotated[float, Meta(gt=0)] | None = None

    @property
    def message(self) -> openline.Message:
        assert self.id is not None
        return openline.Message(self.id, self.type, self.payload, self.metadata, self.stream_id)


_decode_line = msgspec.json.Decoder(Line).decode


def parse_line(text: bytes) -> Line:
    """Raises ``BadLine``."""
    try:
        line = _decode_line(text)
        line.to = str(openline.Address.parse(line.to))
    except openline.InvalidAddress as error:
        raise BadLine(str(error), line.id) from None
    except msgspec.ValidationError as error:
        raise BadLine(str(error), _id_of(text)) from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadLine(f"not a line such as {_EXAMPLE}: {error}") from None
    if line.id is None:
        line.id = new_id()
    return line


def _id_of(text: bytes) -> object:
    fields = msgspec.json.decode(text)
    return fields.get("id") if isinstance(fields, dict) else None


def message_record(peer: openline.Peer, message: openline.Message) -> Record:
    return {"from": peer.address, "name": peer.name, "nodeId": peer.node_id, **_content(message)}


def answer_record(line: Line, answer: openline.Message) -> Record:
    return {"from": line.to, "answers": line.id, **_content(answer)}


def _content(message: openline.Message) -> Record:
    content = {
        "id": message.id,
        "type": message.type,
        "payload": message.payload,
        "metadata": message.metadata,
        "streamId": message.stream_id,
    }
    # What a plain peer sent besides.
    return {**content, "extra": message.extra} if message.extra else content


def sent_record(id: object, to: str, receipt: openline.Receipt) -> Record:
    return {"sent": id, "to": to, **msgspec.structs.asdict(receipt)}


def error_record(error: Exception, **where: object) -> Record:
    text = str(error) or type(error).__name__
    return {"error": text, "kind": type(error).__name__, **{k: v for k, v in where.items() if v is not None}}


def encode_record(record: Record) -> bytes:
    """One line of JSON. Bytes in it become base64 text."""
    try:
        return _encode(record) + b"\n"
    except _UNENCODABLE:
        return _encode({key: _encodable(value) for key, value in record.items()}) + b"\n"


def _encodable(value: object) -> object:
    """An openline peer can send what JSON has no form for, such as a list as a key: then its text."""
    try:
        _encode(value)
    except _UNENCODABLE:
        return ascii(value)
    return value


def to_json(value: object) -> str:
    return _encode(_encodable(value)).decode()
