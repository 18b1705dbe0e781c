"""What a large message may hold, and what it is counted with (rule 3.10)."""

from __future__ import annotations

import gc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openline.core import bulk
from openline.core.bulk import CONTAINER_BYTES, MAX_CONTAINERS, measured, overloaded, weight_of
from openline.core.frames import HEADROOM, Batch, decode_frame, decode_plain, encode_plain
from openline.message import Message

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda each: st.lists(each) | st.dictionaries(st.text(), each),
    max_leaves=40,
)


def containers(value: Any) -> int:
    return weight_of(value) // CONTAINER_BYTES


@given(VALUES)
def test_arrays_and_objects_are_counted_exactly_in_both_forms(value: Any) -> None:
    assert bulk._in_json(msgspec.json.encode(value)) == containers(value)
    assert bulk._in_msgpack(msgspec.msgpack.encode(value)) == containers(value)


@given(st.binary())
def test_whatever_it_is_counting_comes_to_an_end(data: bytes) -> None:
    bulk._in_json(data)
    bulk._in_msgpack(data)


@pytest.mark.parametrize("one", [b"\x90", b"\x80", b"\x81\xa0\xc0", b"\xdc\x00\x00"])
def test_so_many_arrays_are_refused_in_msgpack(one: bytes) -> None:
    assert overloaded(memoryview(one * (MAX_CONTAINERS + 1)), False)
    assert not overloaded(memoryview(one * MAX_CONTAINERS), False)


def test_so_many_arrays_are_refused_in_json() -> None:
    many = b"[" + b",".join([b"[]"] * MAX_CONTAINERS) + b"]"
    assert overloaded(many, True)
    assert not overloaded(many.replace(b"[]", b'""'), True)
    hidden = msgspec.msgpack.encode(msgspec.msgpack.Ext(1, many))
    assert overloaded(hidden, False)


def test_bytes_texts_and_numbers_are_not_taken_for_arrays() -> None:
    pack = msgspec.msgpack.encode
    assert not overloaded(pack(b"\x90" * 2 * MAX_CONTAINERS), False)
    assert not overloaded(pack("漢" * MAX_CONTAINERS), False)
    assert not overloaded(pack([-1.4e-77] * (MAX_CONTAINERS // 4)), False)
    assert not overloaded(msgspec.json.encode('[{\\"' * MAX_CONTAINERS), True)


def test_what_containers_take_is_measured() -> None:
    batch = Batch()
    batch.add(Message("id", payload=[[]] * 9000))
    frame = memoryview(batch.seal())[HEADROOM:]
    _, more = measured(decode_frame, frame)  # up to 80 come from Python's stock of free ones
    assert more >= 8900 * CONTAINER_BYTES
    text = encode_plain(Message("id", payload=[{}] * 9000))
    assert measured(decode_plain, text)[1] >= 8900 * CONTAINER_BYTES
    assert gc.isenabled()


def test_the_collector_works_again_also_after_malformed_input() -> None:
    with pytest.raises(ZeroDivisionError):
        measured(lambda data: 1 // len(data), b"")
    assert gc.isenabled()
