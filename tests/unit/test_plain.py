"""The JSON of plain peers (rule 3.7): what is written can be read; what cannot be read is ``Malformed``."""

from __future__ import annotations

import collections
import dataclasses
import json
from typing import Any

import msgspec
import pytest

from openline import InvalidMessage, Message
from openline.core.frames import (
    Malformed,
    decode_plain,
    encode_plain,
)

from .wire import UNWRITABLE, fields, nested


def plain(text: str) -> Message:
    return decode_plain(text.encode())


def test_the_plain_form_has_no_more_than_it_needs() -> None:
    assert encode_plain(Message(id="1")) == b'{"id":"1","type":"task","payload":null}'
    full = Message("1", "result", {"n": 1}, {"replyTo": "0"}, "rpc")
    assert fields(full) == {
        "id": "1",
        "type": "result",
        "payload": {"n": 1},
        "metadata": {"replyTo": "0"},
        "streamId": "rpc",
    }


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        ("", "default"),
        (', "streamId": null', "default"),
        (', "streamId": "default"', "default"),
        (', "streamId": "rpc"', "rpc"),
        (', "streamId": ""', ""),
        (', "streamId": 42', 42),
        (', "streamId": 42.0', 42),
        (', "streamId": 42.0, "unknown": 1', 42),
        (', "streamId": "42"', "42"),
        (', "streamId": -1', -1),
        (', "streamId": 0', 0),
        (', "streamId": 123456789012345678901234567890', 123456789012345678901234567890),
    ],
)
def test_stream_ids(stream: str, expected: str | int) -> None:
    message = plain(f'{{"id": 1, "type": "task", "payload": 0{stream}}}')
    assert message.stream_id == expected
    assert type(message.stream_id) is type(expected)


def test_42_and_its_text_stay_two_streams_on_the_wire() -> None:
    assert fields(Message(stream_id=42))["streamId"] == 42
    assert fields(Message(stream_id="42"))["streamId"] == "42"


@pytest.mark.parametrize("id", ["7", 7, 7.5, -1, 2**53 + 1, 10**30, ""])
def test_ids_are_text_or_numbers_and_keep_their_form(id: str | int | float) -> None:
    message = plain(f'{{"id": {json.dumps(id)}, "type": "t", "payload": 0}}')
    assert message.id == id
    assert type(message.id) is type(id)
    assert fields(message)["id"] == id


def test_unknown_fields_are_kept_and_sent_on() -> None:
    text = '{"id":1,"type":"t","payload":0,"priority":3,"trace":{"a":[1.0,2,null]}}'
    message = plain(text)
    assert message.extra == {"priority": 3, "trace": {"a": [1.0, 2, None]}}
    assert encode_plain(message).decode() == text


@pytest.mark.parametrize("number", ["1", "1.0", "-0.0", "0.1", "9007199254740993", "1" * 40, "-" + "1" * 40])
def test_number_forms_are_kept(number: str) -> None:
    text = f'{{"id":1,"type":"t","payload":[{number}],"x":{number}}}'
    assert encode_plain(plain(text)).decode() == text


def test_an_exponent_keeps_its_value() -> None:
    assert fields(plain('{"id":1,"type":"t","payload":1E5}'))["payload"] == 100000.0


def test_empty_metadata_is_kept() -> None:
    assert fields(plain('{"id":1,"type":"t","payload":0,"metadata":{}}'))["metadata"] == {}


def test_what_is_missing_is_filled_in_where_that_is_harmless() -> None:
    first, second = plain("{}"), plain('{"metadata": null}')
    assert (first.type, first.payload, first.metadata, first.stream_id) == ("task", None, None, "default")
    assert first.id != second.id


def test_the_last_of_two_equal_keys_counts() -> None:
    assert plain('{"id":1,"id":2,"type":"t","payload":0}').id == 2


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (r"a\ud83d", "a?"),
        (r"\ude00b", "?b"),
        (r"\uDC00\uD800", "??"),
        (r"\ud83d\ude00", "\U0001f600"),
        (r"\ud83d\ude00 \ud83d", "\U0001f600 ?"),
        (r"\\ud83d", r"\ud83d"),
    ],
)
def test_half_an_emoji_costs_one_character_and_not_the_message(escaped: str, text: str) -> None:
    """JavaScript sends it so when it has cut a text in two."""
    message = plain(f'{{"id":1,"type":"t","payload":["{escaped}",1.0,{10**30}],"{escaped}":[2]}}')
    assert message.payload == [text, 1.0, 10**30]
    assert type(message.payload[1]) is float
    assert message.extra == {text: [2]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"hello",
        b"{",
        b'{"id":1}{"id":2}',
        b"null",
        b"1",
        b'"text"',
        b"[]",
        b'[{"id":1}]',
        b"NaN",
        b'{"payload":NaN}',
        b'{"payload":1e400}',
        b'{"id":null}',
        b'{"id":true}',
        b'{"id":[1]}',
        b'{"id":{}}',
        b'{"type":1}',
        b'{"type":null}',
        b'{"metadata":[]}',
        b'{"metadata":"x"}',
        b'{"streamId":true}',
        b'{"streamId":[]}',
        b'{"streamId":4.5}',
        b'{"streamId":1e999}',
        b'{"id":1,"type":"t","payload":"\xff"}',
        b'{"id":1,"type":"t","payload":{"\xff":1}}',
        b'{"id":1,"type":"t","payload":"\xed\xa0\x80"}',
        b'{"id":1,"type":"t","payload":"\\ud800',
        b'{"id":1,"type":"t","payload":["\\ud800",NaN]}',
        b'["\\ud800"]',
        b'{"id":1,"type":"t","payload":"\\ud800' + b"[" * 100_000 + b'"',
        b'{"id":1,"type":"t","payload":["\\ud800",' + b"[" * 100_000 + b"]" * 100_000 + b"]}",
        b'\xef\xbb\xbf{"id":1,"type":"t","payload":0}',
        b'{"id":1,"type":"t","payload":"a\nb"}',
        b'{"id":1,"type":"t","payload":' + b"9" * 5000 + b"}",
        b'{"id":' + b"9" * 5000 + b',"type":"t","payload":0}',
        b'{"id":1,"type":"t","payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
        b"[" * 1_000_000,
    ],
    ids=lambda data: repr(data[:40]),
)
def test_malformed_json(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode_plain(data)
    with pytest.raises(Malformed):
        decode_plain(memoryview(data))


@dataclasses.dataclass
class Dataclass:
    value: object


class Struct(msgspec.Struct):
    value: object


BYTES = [
    b"x",
    bytearray(b"x"),
    memoryview(b"x"),
    [b"x"],
    (1, b"x"),
    {"a": {"b": [1, "two", {"c": b"x"}]}},
    [1, 2.0, None, True, "s", [b""]],
    nested(b"x", 200),
    {b"key": 1},
    {b"x"},
    collections.OrderedDict(a=b"x"),
    collections.defaultdict(None, a=[b"x"]),
    Dataclass(b"x"),
    Struct(b"x"),
]


@pytest.mark.parametrize("value", BYTES, ids=lambda value: type(value).__name__)
def test_bytes_never_become_text_without_a_word(value: Any) -> None:
    with pytest.raises(InvalidMessage, match="m-1"):
        encode_plain(Message(id="m-1", payload=value))


@pytest.mark.parametrize("where", ["payload", "metadata", "extra"])
def test_bytes_are_found_in_every_field(where: str) -> None:
    with pytest.raises(InvalidMessage, match="m-1"):
        encode_plain(Message(id="m-1", **{where: {"key": [b"x"]}}))


def test_bytes_toward_a_plain_peer_are_explained() -> None:
    with pytest.raises(InvalidMessage, match=r"'m-1' holds bytes; a plain peer reads JSON only"):
        encode_plain(Message(id="m-1", payload={"image": b"\x89PNG"}))


@pytest.mark.parametrize("payload", UNWRITABLE, ids=lambda value: type(value).__name__)
def test_what_is_not_json_is_invalid(payload: object) -> None:
    with pytest.raises(InvalidMessage, match="m-1"):
        encode_plain(Message(id="m-1", payload=payload))
