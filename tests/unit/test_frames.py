"""The binary frames of openline peers: what is written can be read; what cannot be read is ``Malformed``."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openline import InvalidMessage, Message
from openline.core.frames import (
    BATCH_START,
    FLOW,
    HEADROOM,
    LISTENING,
    MESSAGES,
    PROOF,
    WELCOME,
    Batch,
    Batched,
    Flow,
    Listening,
    Malformed,
    Proof,
    Welcome,
    append_notes,
    decode_frame,
    decode_plain,
    encode_batch,
    encode_flow,
    encode_listening,
    encode_notes,
    encode_notes_frame,
    encode_plain,
    encode_proof,
    encode_welcome,
)

from .memory import traced
from .wire import UNWRITABLE, scalars, text, unknown


def read(frame: bytes | bytearray) -> Any:
    """What the other side makes of a frame, once the WebSocket header is off."""
    return decode_frame(memoryview(frame)[HEADROOM:])


def messages_in(frame: bytes | bytearray) -> list[Message]:
    """Of a frame that says nothing else."""
    batched = read(frame)
    assert (batched.acks, batched.opens) == ((), ())
    return batched.messages  # type: ignore[no-any-return]


def sent(message: Message) -> Message:
    batch = Batch()
    batch.add(message)
    (received,) = messages_in(batch.seal())
    return received


# Binary, between openline peers -------------------------------------------------------------------


SAMPLES = [
    Message(),
    Message(
        id=7, type="result", payload={"n": [1, 2.5, None, True]}, metadata={"replyTo": "a"}, stream_id=42
    ),
    Message(id=1.5, payload="text", stream_id="42", extra={"x": 1}),
    Message(payload=b"\x00\xff" * 100),
    Message(payload={"deep": [{"bytes": b"x"}]}),
    Message(payload=[2**64 - 1, -(2**63)]),
    Message(payload={"n": 2**64, "m": [-(2**63) - 1, 10**300]}),
]


def test_a_batch_gathers_messages_in_order() -> None:
    batch = Batch()
    sizes = [batch.add(message) for message in SAMPLES]
    assert batch.count == len(SAMPLES)
    assert len(batch.buffer) == BATCH_START + sum(sizes)
    assert messages_in(batch.seal()) == SAMPLES


def test_a_batch_in_one_call_reads_the_same() -> None:
    assert messages_in(encode_batch(SAMPLES)) == SAMPLES
    assert messages_in(encode_batch(SAMPLES[:6])) == SAMPLES[:6]
    assert messages_in(encode_batch([])) == []


NOTES = encode_notes({"rpc": 3, 42: 2**40}, [("default", 0), ("42", 7)])
NOTED = (("rpc", 3), (42, 2**40)), (("default", 0), ("42", 7))


@pytest.mark.parametrize(
    ("kind", "frame"),
    [
        (MESSAGES, encode_batch(SAMPLES)),
        (MESSAGES, encode_notes_frame(NOTES)),
        (FLOW, encode_flow("a", True)),
        (LISTENING, encode_listening((1,))),
        (PROOF, encode_proof(b"x" * 64, [])),
        (WELCOME, encode_welcome([])),
    ],
)
def test_there_is_room_for_the_websocket_header_in_front(kind: int, frame: bytearray) -> None:
    assert frame[:HEADROOM] == bytes(HEADROOM)
    assert frame[HEADROOM] == kind


def test_notes_travel_at_the_end_of_messages() -> None:
    batch = Batch()
    batch.add(SAMPLES[0])
    batch.add(SAMPLES[1])
    assert read(batch.seal(NOTES)) == Batched(SAMPLES[:2], *NOTED)
    together = encode_batch(SAMPLES)
    append_notes(together, NOTES)
    assert read(together) == Batched(SAMPLES, *NOTED)


def test_notes_travel_alone_too() -> None:
    assert read(encode_notes_frame(NOTES)) == Batched([], *NOTED)


@pytest.mark.parametrize("opens", [None, [], [("default", 1)]])
@pytest.mark.parametrize("acks", [{}, {"default": 5}])
def test_acks_go_without_opens_and_opens_without_acks(
    acks: dict[str | int, int], opens: list[tuple[str | int, int]] | None
) -> None:
    read_back = read(encode_notes_frame(encode_notes(acks, opens)))
    assert read_back == Batched([], tuple(acks.items()), tuple(opens or ()))


def test_notes_go_with_the_first_of_two_frames() -> None:
    batch = Batch()
    batch.add(SAMPLES[0])
    size = batch.add(SAMPLES[1])
    assert read(batch.split_last(size, NOTES)) == Batched(SAMPLES[:1], *NOTED)
    assert messages_in(batch.seal()) == SAMPLES[1:2]


def test_a_frame_without_notes_has_no_place_for_them() -> None:
    """Most frames of a quiet link are of this kind."""
    batch = Batch()
    size = batch.add(SAMPLES[0])
    assert len(batch.seal()) == BATCH_START + size


@pytest.mark.parametrize("lost", [[], [b"i" * 16, b"j" * 16]])
def test_proof_and_welcome(lost: list[bytes]) -> None:
    assert read(encode_proof(b"s" * 64, lost)) == Proof(b"s" * 64, lost)
    assert read(encode_welcome(lost)) == Welcome(lost)


def test_a_sealed_batch_is_empty_and_its_frame_is_left_alone() -> None:
    batch = Batch()
    batch.add(SAMPLES[0])
    first = batch.seal()
    assert batch.count == 0
    batch.add(SAMPLES[1])
    assert messages_in(batch.seal()) == SAMPLES[1:2]
    assert messages_in(first) == SAMPLES[:1]
    assert messages_in(batch.seal()) == []


def test_drop_last_leaves_no_trace() -> None:
    batch = Batch()
    batch.add(SAMPLES[0])
    batch.drop_last(batch.add(SAMPLES[1]))
    batch.add(SAMPLES[2])
    batch.drop_last(batch.add(SAMPLES[6]))
    assert messages_in(batch.seal()) == [SAMPLES[0], SAMPLES[2]]


@pytest.mark.parametrize("before", [1, 2, 5])
def test_the_last_message_may_be_split_off_into_a_new_batch(before: int) -> None:
    batch = Batch()
    for message in SAMPLES[:before]:
        batch.add(message)
    size = batch.add(SAMPLES[6])
    assert messages_in(batch.split_last(size)) == SAMPLES[:before]
    assert batch.count == 1
    assert len(batch.buffer) == BATCH_START + size
    batch.add(SAMPLES[0])
    assert messages_in(batch.seal()) == [SAMPLES[6], SAMPLES[0]]


UNPACKABLE = [
    *(Message(id="bad", payload=payload) for payload in UNWRITABLE if not isinstance(payload, dict)),
    Message(id="bad", payload=["x" * 10_000, object()]),
    Message(id="bad", payload={"\ud800": 1}),
    Message(id="bad", type="\ud800"),
    Message(id="bad", payload=2**64, metadata={"x": object()}),
]


@pytest.mark.parametrize("bad", UNPACKABLE, ids=lambda m: type(m.payload).__name__)
def test_an_error_leaves_no_trace_in_the_batch(bad: Message) -> None:
    batch = Batch()
    batch.add(SAMPLES[0])
    before = bytes(batch.buffer)
    with pytest.raises(InvalidMessage, match="bad"):
        batch.add(bad)
    assert (bytes(batch.buffer), batch.count) == (before, 1)
    batch.add(SAMPLES[1])
    assert messages_in(batch.seal()) == SAMPLES[:2]


@pytest.mark.parametrize("bad", UNPACKABLE, ids=lambda m: type(m.payload).__name__)
def test_encode_batch_names_the_message_that_cannot_be_sent(bad: Message) -> None:
    with pytest.raises(InvalidMessage, match="'bad'"):
        encode_batch([SAMPLES[0], bad, SAMPLES[1]])


@pytest.mark.parametrize(
    "payload",
    [
        {"n": 2**64, "b": b"x"},
        [2**64, [bytearray(b"x")]],
    ],
    ids=repr,
)
def test_a_huge_integer_does_not_change_what_else_is_in_the_payload(payload: Any) -> None:
    """Beside a small integer these bytes travel; refusing them is as good, changing them is not."""
    batch = Batch()
    try:
        batch.add(Message(payload=payload))
    except InvalidMessage:
        assert batch.count == 0
    else:
        (received,) = messages_in(batch.seal())
        assert repr(received.payload) == repr(payload)


@pytest.mark.parametrize(
    "where", [{"id": 2**64}, {"stream_id": -(2**70)}, {"metadata": {"n": 2**64}}], ids=repr
)
def test_outside_the_payload_integers_end_at_64_bits(where: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage):
        Batch().add(Message(**where))


WRONG_TYPES: list[dict[str, Any]] = [
    {"id": None},
    {"type": 5},
    {"metadata": [1]},
    {"metadata": {1: 2}},
    {"stream_id": None},
    {"stream_id": 1.5},
    {"stream_id": True},
    {"extra": [1]},
    {"payload": {2**64: 1}},
]


@pytest.mark.parametrize("wrong", WRONG_TYPES, ids=repr)
def test_what_a_batch_takes_the_peer_can_read(wrong: dict[str, Any]) -> None:
    """A frame that the peer cannot read would cost the connection, with all that is on it."""
    batch = Batch()
    try:
        batch.add(Message(**wrong))
    except InvalidMessage:
        return
    read(batch.seal())


@pytest.mark.parametrize("wrong", WRONG_TYPES, ids=repr)
def test_what_is_sent_as_json_an_openline_node_can_read(wrong: dict[str, Any]) -> None:
    try:
        data = encode_plain(Message(**wrong))
    except InvalidMessage:
        return
    decode_plain(data)


@pytest.mark.parametrize("stream_id", ["rpc", "", 42, -1])
@pytest.mark.parametrize("paused", [True, False])
def test_flow(stream_id: str | int, paused: bool) -> None:
    assert read(encode_flow(stream_id, paused)) == Flow(stream_id, paused)


@pytest.mark.parametrize("ports", [(), (8770,), (8770, 1, 65535)])
def test_listening(ports: tuple[int, ...]) -> None:
    assert read(encode_listening(ports)) == Listening(ports)


@pytest.mark.parametrize("kind", [0, 6, 99, 255])
def test_unknown_kinds_are_room_for_later_versions(kind: int) -> None:
    assert decode_frame(memoryview(bytes([kind]) + b"\xc1 anything")) is None


def test_a_later_version_may_add_fields_to_a_message_and_to_a_frame() -> None:
    body = msgspec.msgpack.encode([[["a", "task", 1, None, "default", None, "new"]], [], [], "new"])
    assert decode_frame(memoryview(b"\x01" + body)) == Batched([Message("a", "task", 1)])
    for kind, known in ((PROOF, Proof(b"s")), (WELCOME, Welcome())):
        body = msgspec.msgpack.encode([*msgspec.to_builtins(known, builtin_types=(bytes,)), "new"])
        assert decode_frame(memoryview(bytes([kind]) + body)) == known


MESSAGE = b"\x01\x91\x91\x93\xa1a\xa1b"  # one message: id "a", type "b", then its payload
NO_MESSAGES = b"\x01\x93\x90"  # then acks and opens


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\x01\x90",
        b"\x01\x91\x90\x90",
        b"\x01\xc0",
        b"\x01\x80",
        b"\x01\x91\xc0",
        b"\x01\x91\x80",
        b"\x01\x91\x91\x90extra",
        b"\x01\x91\x93\xa1a\xa1b\x01",
        b"\x01\xdd\xff\xff\xff\xff",
        b"\x01\x91\xdd\xff\xff\xff\xff",
        b"\x01\x91\xdd\x05\xff\xff\xff",
        MESSAGE,
        MESSAGE + b"\xc1",
        MESSAGE + b"\xdd\xff\xff\xff\xff",
        MESSAGE + b"\xdf\xff\xff\xff\xff",
        MESSAGE + b"\xdb\xff\xff\xff\xff",
        MESSAGE + b"\xc6\xff\xff\xff\xff",
        MESSAGE + b"\x81\x80\x01",
        MESSAGE + b"\x81\x91\x80\x01",
        MESSAGE + b"\x81\xd5\x01[]\x01",
        MESSAGE + b"\xa1\xff",
        MESSAGE + b"\xd5\x01[,",
        MESSAGE + b"\xd5\x07[]",
        MESSAGE + b"\xc7\x0c\xff" + b"\xff" * 12,
        MESSAGE + b"\x91" * 100_000 + b"\x01",
        MESSAGE + b"\xc8\xff\xff\x01" + b"[" * 65535,
        b"\x01\x91\x91\x91\xc0",
        b"\x01\x91\x91\x92\xa1a\x01",
        b"\x01\x91\x91\x94\xa1a\xa1b\x01\x90",
        b"\x01\x91\x91\x95\xa1a\xa1b\x01\xc0\xc3",
        NO_MESSAGES,
        NO_MESSAGES + b"\x90",
        NO_MESSAGES + b"\xc0\x90",
        NO_MESSAGES + b"\x90\xa1a",
        NO_MESSAGES + b"\x91\xa1a\x90",
        NO_MESSAGES + b"\x91\x91\xa1a\x90",
        NO_MESSAGES + b"\x91\x92\xa1a\xa11\x90",
        NO_MESSAGES + b"\x91\x92\xc0\x01\x90",
        NO_MESSAGES + b"\x91\x92\xa1a\xca\x3f\x80\x00\x01\x90",
        NO_MESSAGES + b"\x91\x93\xa1a\x01\x01\x90",
        NO_MESSAGES + b"\xdd\xff\xff\xff\xff\x90",
        NO_MESSAGES + b"\x90\xdd\xff\xff\xff\xff",
        NO_MESSAGES + b"\x90\x90rest",
        b"\x02",
        b"\x02\x90",
        b"\x02\x92\xa1a\x01",
        b"\x02\x92\xc0\xc3",
        b"\x03",
        b"\x03\x91\xc0",
        b"\x03\x91\x91\xa1a",
        b"\x03\x91\xdd\xff\xff\xff\xff",
        b"\x04",
        b"\x04\x90",
        b"\x04\x91\x01",
        b"\x04\x91\xc0",
        b"\x04\x92\xc4\x01x\xc0",
        b"\x04\x92\xc4\x01x\x91\x01",
        b"\x04\x92\xc4\x01x\xdd\xff\xff\xff\xff",
        b"\x05",
        b"\x05\xc0",
        b"\x05\x91\xc0",
        b"\x05\x91\x91\x01",
        b"\x05\x91\xdd\xff\xff\xff\xff",
    ],
    ids=lambda data: data[:16].hex(" "),
)
def test_malformed_frames(data: bytes) -> None:
    with traced() as memory, pytest.raises(Malformed):
        decode_frame(memoryview(data))
    assert memory.peak < 2_000_000, "a length is only a claim"


# Round trips --------------------------------------------------------------------------------------


def trees(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(leaves, lambda t: st.lists(t) | st.dictionaries(text, t), max_leaves=8)


ids = text | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
json_trees = trees(scalars)
messages = st.builds(
    Message,
    ids,
    text,
    json_trees,
    st.none() | st.dictionaries(text, trees(text | st.booleans())),
    text | st.integers(-(2**63), 2**64 - 1),
    st.none() | unknown.filter(bool),
)


def same(one: Message, other: Message) -> bool:
    """Equal, with 1 and 1.0 told apart, as well as 1 and True."""
    return one == other and repr(one) == repr(other)


@given(messages)
def test_plain_round_trip(message: Message) -> None:
    assert same(decode_plain(encode_plain(message)), message)


@given(messages)
def test_the_plain_form_is_what_any_json_parser_reads(message: Message) -> None:
    read_back = json.loads(encode_plain(message))
    assert (read_back["id"], read_back["type"], read_back["payload"]) == (
        message.id,
        message.type,
        message.payload,
    )


@settings(max_examples=50)
@given(json_trees)
def test_json_made_elsewhere_is_read_and_passed_on_unchanged(payload: Any) -> None:
    body = {"id": 1, "type": "t", "payload": payload, "more": payload}
    message = decode_plain(json.dumps(body).encode())
    assert repr(json.loads(encode_plain(message))) == repr(body)


@given(st.lists(st.builds(Message, ids, text, trees(scalars), st.none(), text), max_size=5))
def test_batches_round_trip_both_ways_of_making_them(gathered: list[Message]) -> None:
    batch = Batch()
    for message in gathered:
        batch.add(message)
    for received in (messages_in(batch.seal()), messages_in(encode_batch(gathered))):
        assert len(received) == len(gathered)
        assert all(map(same, received, gathered))


small = st.integers(-(2**63), 2**64 - 1)


@given(trees(st.binary() | st.none() | st.booleans() | small | st.floats(allow_nan=False) | text))
def test_bytes_travel_between_openline_peers(payload: Any) -> None:
    assert repr(sent(Message(payload=payload)).payload) == repr(payload)


streams = text | small
notes = st.lists(st.tuples(streams, st.integers(0, 2**63)), max_size=5, unique_by=lambda note: note[0])


@given(st.lists(st.builds(Message, ids, text), max_size=3), notes, notes)
def test_notes_round_trip(gathered: list[Message], acks: list[Any], opens: list[Any]) -> None:
    frame = encode_batch(gathered)
    append_notes(frame, encode_notes(dict(acks), opens))
    read_back = read(frame)
    assert read_back == Batched(gathered, tuple(acks), tuple(opens))
    assert repr(read_back.acks + read_back.opens) == repr((*acks, *opens))


@given(st.lists(st.sampled_from(["\ud83d", "\udc4d", "\\", "u", "d83d", '"', "é", "\U0001f44d"])))
def test_half_emojis_become_question_marks_and_all_else_stays(pieces: list[str]) -> None:
    # Encoded in halves, as JavaScript writes them, and joined again where two of them fit.
    text = json.loads(json.dumps("".join(pieces)))
    data = json.dumps({"id": "1", "type": "t", "payload": text}).encode()
    assert decode_plain(data).payload == text.encode("utf-8", "replace").decode()
