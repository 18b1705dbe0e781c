"""Both wire forms: JSON text for plain peers (rule 3.7), batched msgpack between openline peers.

Everything that reads from the wire raises ``Malformed`` and nothing else.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ..errors import InvalidMessage
from ..message import DEFAULT_STREAM, Message, StreamId, new_id

Buffer = bytes | bytearray | memoryview

# The first byte of a binary frame between openline peers.
MESSAGES = 1
FLOW = 2
LISTENING = 3
PROOF = 4
WELCOME = 5

# picows writes the WebSocket header in front of the payload, in place; it needs 14 bytes.
HEADROOM = 14
# Kind, a msgpack array header for the frame's one to three elements, then an array32 header for the
# messages; both are corrected when the batch is sealed.
BODY = HEADROOM + 2
BATCH_START = BODY + 5
# One element, one message: most frames of a quiet link.
_EMPTY_BATCH = bytes(HEADROOM) + bytes([MESSAGES, 0x91, 0xDD, 0, 0, 0, 1])
_ONLY_NOTES = bytes(HEADROOM) + bytes([MESSAGES, 0x92, 0x90])
_WITH_ACKS, _WITH_BOTH = 0x92, 0x93

# A frame of many messages leaves at this size: large enough that the cost per frame vanishes,
# small enough that it is never fragmented and the first message does not wait for the last. A
# larger message has a frame of its own.
FRAME_BYTES = 48 * 1024

# msgpack ext type: a JSON text, for payloads with integers over 64 bits.
_JSON_EXT = 1


class Malformed(Exception):
    """Bytes from the wire that are not what they should be. Costs its own connection at most."""


class TooBig(Malformed):
    """Well formed, perhaps, but over ``max_message_size``."""


class Flow(msgspec.Struct, array_like=True, frozen=True):
    """The receiver's inbox of a stream is full (``paused``), or has room again.

    ``answers``: answers to its requests are welcome all the same, as they do not go into the inbox.
    """

    stream_id: StreamId
    paused: bool
    answers: bool = False


class Listening(msgspec.Struct, array_like=True, frozen=True):
    """The ports the sender listens on now: after the hello, whenever they change."""

    ports: tuple[int, ...]


# An honest frame of several messages has 72 KiB at most, and a message 7 bytes at least; a sender
# knows of no more streams than this. What exceeds it is refused before it is decoded.
MAX_MESSAGES = 16384
MAX_NOTES = 8192
MAX_LOST = 64
# Any other frame: the longest honest one names 64 lost connections, or a stream of 1,024 characters.
MAX_CONTROL = 16 * 1024

Notes = Annotated[tuple[tuple[StreamId, int], ...], Meta(max_length=MAX_NOTES)]
LostIds = Annotated[list[bytes], Meta(max_length=MAX_LOST)]


class Batched(msgspec.Struct, array_like=True, frozen=True):
    """Messages, and what sessions tell each other. ``acks``: the next number that the receiver of a
    stream waits for. ``opens``: the number at which a stream goes on over this connection."""

    messages: Annotated[list[Message], Meta(max_length=MAX_MESSAGES)]
    acks: Notes = ()
    opens: Notes = ()


class Proof(msgspec.Struct, array_like=True, frozen=True):
    """A client's first frame: its signature, and which connections to this node it has lost."""

    signature: bytes
    lost: LostIds = []


class Welcome(msgspec.Struct, array_like=True, frozen=True):
    """A server's first frame: the client is in; and which connections to it the server has lost."""

    lost: LostIds = []


class _Plain(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    id: str | int | float
    type: str
    payload: Any
    metadata: dict[str, Any] | None = None
    streamId: StreamId | float | None = DEFAULT_STREAM


_json = msgspec.json.Encoder()
_json_any = msgspec.json.Decoder()
_json_plain = msgspec.json.Decoder(_Plain)
_pack = msgspec.msgpack.Encoder()
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_LONE_SURROGATE = re.compile(rb"%b(?!%b)|(?<!%b)%b" % (_HIGH, _LOW, _HIGH, _LOW))
PARSE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError)
_ENCODE_ERRORS = (msgspec.MsgspecError, TypeError, OverflowError, RecursionError, ValueError)


def _ext_hook(code: int, data: memoryview) -> Any:
    if code == _JSON_EXT:
        return _json_any.decode(data)
    raise ValueError(f"unknown ext type {code}")


_unpack_batch = msgspec.msgpack.Decoder(Batched, ext_hook=_ext_hook)
# What a frame of messages is read with, without the byte that says its kind; raises ``PARSE_ERRORS``.
unpack_batch = _unpack_batch.decode
_unpack_flow = msgspec.msgpack.Decoder(Flow)
_unpack_listening = msgspec.msgpack.Decoder(Listening)
_unpack_proof = msgspec.msgpack.Decoder(Proof)
_unpack_welcome = msgspec.msgpack.Decoder(Welcome)


# Plain peers ------------------------------------------------------------------------------------


def encode_plain(message: Message) -> bytes:
    """One message as the JSON text a plain peer reads. Raises ``InvalidMessage``."""
    _check(message)
    try:
        if any(map(_holds_bytes, (message.payload, message.metadata, message.extra))):
            raise InvalidMessage(
                f"message {message.id!r} holds bytes; a plain peer reads JSON only "
                "(encode them, as in base64)"
            )
        body = _Plain(message.id, message.type, message.payload, message.metadata, message.stream_id)
        if message.extra is None:
            return _json.encode(body)
        return _json.encode({**msgspec.to_builtins(body), **message.extra})
    except InvalidMessage:
        raise
    except _ENCODE_ERRORS as error:
        raise InvalidMessage(f"message {message.id!r} is not JSON: {error}") from None


def decode_plain(data: Buffer) -> Message:
    """Read a plain peer's JSON. Raises ``Malformed``."""
    try:
        wire = _json_plain.decode(data)
    except msgspec.ValidationError:
        return _decode_unusual(data)
    except PARSE_ERRORS as error:
        if _SURROGATE.search(data):
            return _decode_unusual(_without_surrogates(data))
        raise Malformed(f"not a JSON message: {error}") from None
    return Message(wire.id, wire.type, wire.payload, wire.metadata, _stream_of(wire.streamId))


def _without_surrogates(data: Buffer) -> bytes:
    r"""JavaScript that cuts a text inside an emoji sends half of it, as ``\ud83d``: no character.

    It becomes ``?``, as in any encoder told to replace; the rest of the message is kept. Not by way of
    Python's own ``json``, in which 16 MiB take seconds.
    """
    # Without escaped backslashes, each that is left begins an escape.
    return _LONE_SURROGATE.sub(b"?", bytes(data).replace(b"\\\\", b"\\u005c"))


def _decode_unusual(data: Buffer) -> Message:
    """The same with unknown or missing fields: keep what is unknown, fill in what is harmless."""
    try:
        fields = _json_any.decode(data)
        if not isinstance(fields, dict):
            raise Malformed("not a JSON object")
        known = {key: fields.pop(key) for key in _Plain.__struct_fields__ if key in fields}
        known = {"id": new_id(), "type": "task", "payload": None, **known}
        wire = msgspec.convert(known, _Plain)
    except PARSE_ERRORS as error:
        raise Malformed(f"not a message: {error}") from None
    return Message(wire.id, wire.type, wire.payload, wire.metadata, _stream_of(wire.streamId), fields or None)


def _stream_of(value: StreamId | float | None) -> StreamId:
    if value is None:
        return DEFAULT_STREAM
    if isinstance(value, float):
        if not value.is_integer():
            raise Malformed(f"streamId {value!r} is neither a string nor an integer")
        return int(value)
    return value


_SCALARS = frozenset({str, int, float, bool, type(None)})
_BYTES = (bytes, bytearray, memoryview)


def _holds_bytes(value: Any) -> bool:
    """JSON encoding would turn bytes into base64 text without a word; find them first."""
    if type(value) in _SCALARS:
        return False
    if isinstance(value, _BYTES):
        return True
    if isinstance(value, dict):
        if any(isinstance(key, _BYTES) for key in value):
            return True
        value = value.values()
    elif not isinstance(value, list | tuple | set | frozenset):
        # What msgspec makes of it: structs, dataclasses, dates.
        return _holds_bytes(msgspec.to_builtins(value, builtin_types=_BYTES))
    if set(map(type, value)) <= _SCALARS:
        return False
    return any(map(_holds_bytes, value))


def _check(message: Message) -> None:
    """What the other side would take for bad input is an error on this side."""
    if (
        type(message.type) is str
        and type(message.stream_id) in _STREAM_IDS
        and type(message.id) in _IDS
        and (message.metadata is None or _is_object(message.metadata))
        and (message.extra is None or _is_object(message.extra))
    ):
        return
    raise InvalidMessage(
        f"message {message.id!r}: id is a string or number, type a string, stream_id a string or integer, "
        f"metadata and extra are dicts with string keys"
    )


_IDS = frozenset({str, int, float})
_STREAM_IDS = frozenset({str, int})
_KEYS = frozenset({str})


def _is_object(value: object) -> bool:
    return isinstance(value, dict) and set(map(type, value)) <= _KEYS


# Between openline peers -------------------------------------------------------------------------


class Batch:
    """Messages gathering into one frame; ``seal()`` gives the buffer to write."""

    __slots__ = ("buffer", "count")

    def __init__(self) -> None:
        self.buffer = bytearray(_EMPTY_BATCH)
        self.count = 0

    def add(self, message: Message) -> int:
        """Append one message; returns its size. Raises ``InvalidMessage`` and leaves no trace."""
        # As in ``_check``, which costs a call for each message.
        if (
            type(message.type) is not str
            or type(message.stream_id) not in _STREAM_IDS
            or type(message.id) not in _IDS
            or (
                message.metadata is not None
                and (
                    type(message.metadata) is not dict
                    # An answer's are seen at a glance.
                    or (
                        not ("replyTo" in message.metadata and len(message.metadata) == 1)
                        and not set(map(type, message.metadata)) <= _KEYS
                    )
                )
            )
            or message.extra is not None
        ):
            _check(message)
        start = len(self.buffer)
        try:
            _pack.encode_into(message, self.buffer, -1)
        except _ENCODE_ERRORS as error:
            del self.buffer[start:]
            self.buffer += _pack_unusual(message, error)
        self.count += 1
        return len(self.buffer) - start

    def split_last(self, size: int, notes: EncodedNotes | None = None) -> bytearray:
        """Seal all but the last message, which then begins a new batch."""
        last = self.buffer[-size:]
        self.drop_last(size)
        frame = self.seal(notes)
        self.buffer += last
        self.count = 1
        return frame

    def drop_last(self, size: int) -> None:
        """Take the last message out again."""
        del self.buffer[-size:]
        self.count -= 1

    def seal_with(self, acks: dict[StreamId, int], opens: list[tuple[StreamId, int]] | None) -> bytearray:
        """``seal`` with notes that have yet to be encoded."""
        buffer = self.buffer
        if self.count != 1:
            buffer[BATCH_START - 4 : BATCH_START] = self.count.to_bytes(4, "big")
        if acks or opens:
            buffer[HEADROOM + 1] = _WITH_BOTH if opens else _WITH_ACKS
            buffer += _pack.encode(list(acks.items()))
            if opens:
                buffer += _pack.encode(opens)
        self.buffer = bytearray(_EMPTY_BATCH)
        self.count = 0
        return buffer

    def seal(self, notes: EncodedNotes | None = None) -> bytearray:
        """The frame, with ``HEADROOM`` bytes free in front; the batch is empty afterwards."""
        frame = self.seal_with({}, None)
        if notes is not None:
            append_notes(frame, notes)
        return frame


# Array header of the frame that carries them, and the notes.
EncodedNotes = tuple[int, bytes]


def append_notes(frame: bytearray, notes: EncodedNotes) -> None:
    """Put encoded notes at the end of a frame of messages."""
    frame[HEADROOM + 1], encoded = notes
    frame += encoded


def encode_notes(acks: dict[StreamId, int], opens: list[tuple[StreamId, int]] | None) -> EncodedNotes:
    """Notes for the end of a frame of messages."""
    encoded = _pack.encode(list(acks.items()))
    return (_WITH_BOTH, encoded + _pack.encode(opens)) if opens else (_WITH_ACKS, encoded)


def encode_batch(messages: list[Message]) -> bytearray:
    """Many messages as one frame, in one call. Raises ``InvalidMessage``."""
    checked: dict[str, Any] | None = None
    for message in messages:
        # Parts of one answer have one dict, which is looked at once.
        if (
            checked is None
            or message.metadata is not checked
            or message.extra is not None
            or type(message.type) is not str
            or type(message.id) not in _IDS
        ):
            _check(message)
            checked = message.metadata
    buffer = bytearray(_EMPTY_BATCH)
    try:
        _pack.encode_into(messages, buffer, BODY)
    except _ENCODE_ERRORS:
        batch = Batch()
        for message in messages:
            batch.add(message)
        return batch.seal()
    return buffer


def _pack_unusual(message: Message, error: Exception) -> bytes:
    """msgpack ends at 64-bit integers and JSON does not: such a payload travels as JSON text."""
    try:
        if _holds_bytes(message.payload):
            raise TypeError("bytes beside an integer of more than 64 bits have no common form")
        payload = msgspec.msgpack.Ext(_JSON_EXT, _json.encode(message.payload))
        return _pack.encode(
            Message(message.id, message.type, payload, message.metadata, message.stream_id, message.extra)
        )
    except _ENCODE_ERRORS:
        raise InvalidMessage(f"message {message.id!r} cannot be encoded: {error}") from None


def encode_flow(stream_id: StreamId, paused: bool, answers: bool = False) -> bytearray:
    return _control(FLOW, Flow(stream_id, paused, answers))


def encode_listening(ports: tuple[int, ...]) -> bytearray:
    return _control(LISTENING, Listening(ports))


def encode_notes_frame(notes: EncodedNotes) -> bytearray:
    """Notes in a frame without messages."""
    frame = bytearray(_ONLY_NOTES)
    frame[HEADROOM + 1], encoded = notes
    frame += encoded
    return frame


def encode_proof(signature: bytes, lost: list[bytes]) -> bytearray:
    return _control(PROOF, Proof(signature, lost))


def encode_welcome(lost: list[bytes]) -> bytearray:
    return _control(WELCOME, Welcome(lost))


def _control(kind: int, body: Any) -> bytearray:
    return bytearray(HEADROOM) + bytes([kind]) + _pack.encode(body)


Frame = Batched | Flow | Listening | Proof | Welcome


def unreadable(kind: int, error: Exception) -> Malformed:
    return Malformed(f"frame of kind {kind}: {error}")


def decode_frame(data: memoryview) -> Frame | None:
    """Read a binary frame. None for a kind this version does not know. Raises ``Malformed``."""
    if not data:
        raise Malformed("empty frame")
    kind = data[0]
    decoder = _DECODERS.get(kind)
    if decoder is None:
        return None
    if kind != MESSAGES and len(data) > MAX_CONTROL:
        raise Malformed(f"a frame of kind {kind} with {len(data)} bytes, at most {MAX_CONTROL}")
    try:
        return decoder.decode(data[1:])  # type: ignore[no-any-return]
    except PARSE_ERRORS as error:
        raise unreadable(kind, error) from None


_DECODERS: dict[int, msgspec.msgpack.Decoder[Any]] = {
    MESSAGES: _unpack_batch,
    FLOW: _unpack_flow,
    LISTENING: _unpack_listening,
    PROOF: _unpack_proof,
    WELCOME: _unpack_welcome,
}
