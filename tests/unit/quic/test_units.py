"""core/units.py and core/tracks.py: whatever the chunks, whatever the bytes."""

from __future__ import annotations

import itertools
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openline.backends.quic.framing import UnitReader, goodbye, header, read_goodbye
from openline.core.frames import Malformed, TooBig
from openline.core.tracks import LOOK_AT, MAX_TRACKS, Tracks

KINDS = st.integers(0, 3)
UNITS = st.lists(st.tuples(KINDS, st.binary(max_size=300)), max_size=12)
SIZES = st.one_of(
    st.integers(0, 2**60 - 1), st.sampled_from([0, 15, 16, 4095, 4096, 2**28 - 1, 2**28, 2**60 - 1])
)


def taken(chunks: list[bytes], limit: int = 2**60) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    reader = UnitReader()
    for chunk in chunks:
        reader.feed(chunk, limit, lambda kind, data: found.append((kind, bytes(data))))
    return found


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def wire(units: list[tuple[int, bytes]]) -> bytes:
    return b"".join(header(kind, len(content)) + content for kind, content in units)


# Units --------------------------------------------------------------------------------------------


@given(UNITS, st.lists(st.integers(0, 5000), max_size=30))
def test_any_chunks_of_any_units_give_the_same_units(
    units: list[tuple[int, bytes]], places: list[int]
) -> None:
    assert taken(cut(wire(units), places)) == units


@given(UNITS)
def test_byte_by_byte(units: list[tuple[int, bytes]]) -> None:
    data = wire(units)
    assert taken([data[at : at + 1] for at in range(len(data))]) == units


@given(UNITS, UNITS, st.data())
def test_a_beginning_gives_the_units_that_are_whole_and_nothing_else(
    whole: list[tuple[int, bytes]], rest: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    begun = wire([*rest, (1, b"last")])
    part = begun[: data.draw(st.integers(0, len(begun) - 1))]
    found = taken([wire(whole), part])
    assert found == [*whole, *rest][: len(found)]
    assert len(found) >= len(whole)


@given(st.integers(0, 3), SIZES)
def test_a_header_says_kind_and_size_in_the_shortest_form(kind: int, size: int) -> None:
    head = header(kind, size)
    value = int.from_bytes(head, "big") & ((1 << (len(head) * 8 - 2)) - 1)
    assert (value & 3, value >> 2) == (kind, size)
    assert head[0] >> 6 == {1: 0, 2: 1, 4: 2, 8: 3}[len(head)]
    shorter = {1: 0, 2: 1 << 6, 4: 1 << 14, 8: 1 << 30}[len(head)]
    assert value >= shorter


@given(KINDS, st.integers(1, 60), st.sampled_from([1, 2, 4, 8]))
def test_a_longer_header_than_needed_is_read_all_the_same(kind: int, size: int, width: int) -> None:
    """RFC 9000 section 16: any encoding of a number is one of it."""
    value = size << 2 | kind
    if value >= 1 << (width * 8 - 2):
        width = 8
    mark = {1: 0, 2: 1, 4: 2, 8: 3}[width] << (width * 8 - 2)
    content = b"x" * size
    assert taken([(value | mark).to_bytes(width, "big") + content]) == [(kind, content)]


@given(st.integers(0, 2**20), st.integers(1, 2**39), KINDS, st.booleans())
def test_the_limit_holds_before_the_bytes_have_come(limit: int, over: int, kind: int, slowly: bool) -> None:
    head = header(kind, limit + over)
    chunks = [head[at : at + 1] for at in range(len(head))] if slowly else [head]
    with pytest.raises(TooBig):
        taken(chunks, limit)


@given(st.binary(max_size=64))
def test_a_unit_of_just_the_limit_is_taken(content: bytes) -> None:
    assert taken([header(0, len(content)), content], len(content)) == [(0, content)]


@given(st.lists(st.binary(max_size=40), max_size=20), st.integers(0, 200))
def test_any_bytes_are_units_or_malformed(chunks: list[bytes], limit: int) -> None:
    reader = UnitReader()
    total = sum(map(len, chunks))
    sizes: list[int] = []
    with suppress(TooBig):
        for chunk in chunks:
            reader.feed(chunk, limit, lambda kind, data: sizes.append(len(data)))
    assert all(size <= limit for size in sizes)
    assert sum(sizes) + len(sizes) <= total


@given(UNITS, UNITS)
def test_a_reader_keeps_no_more_than_has_come(
    units: list[tuple[int, bytes]], more: list[tuple[int, bytes]]
) -> None:
    reader = UnitReader()
    reader.feed(wire(units), 2**20, lambda kind, data: None)
    assert len(reader._rest) == 0
    half = wire([*more, (2, b"y" * 500)])[:-1]
    reader.feed(half, 2**20, lambda kind, data: None)
    assert len(reader._rest) <= 502


def test_what_take_raises_goes_on_to_the_caller() -> None:
    def refuse(kind: int, data: memoryview) -> None:
        raise Malformed("not that")

    with pytest.raises(Malformed, match="not that"):
        UnitReader().feed(header(0, 1) + b"x", 10, refuse)


def test_a_content_may_be_kept_while_more_is_fed() -> None:
    """The view is valid only during the call, but looking at it later must not break the reader."""
    kept: list[memoryview] = []
    reader = UnitReader()
    data = wire([(0, b"a" * 10), (1, b"b" * 10)])
    for at in range(len(data)):
        reader.feed(data[at : at + 1], 100, lambda kind, view: kept.append(view))
    assert len(kept) == 2


# Goodbyes -----------------------------------------------------------------------------------------


@given(st.integers(0, 65535), st.integers(0, 2**64 - 1), st.text(max_size=400))
def test_a_goodbye_is_read_as_it_was_said(code: int, count: int, reason: str) -> None:
    data = goodbye(code, count, reason.encode(errors="replace").decode())
    assert len(data) <= 130
    found = read_goodbye(memoryview(data))
    assert found[:2] == (code, count)
    assert found[2].isprintable()
    if reason.isascii() and reason.isprintable() and len(reason) <= 120:
        assert found[2] == reason


@given(st.binary(max_size=200))
def test_any_bytes_are_a_goodbye_or_malformed(data: bytes) -> None:
    try:
        code, count, reason = read_goodbye(memoryview(data))
    except Malformed:
        assert not 10 <= len(data) <= 130
    else:
        assert 0 <= code < 65536
        assert 0 <= count < 2**64
        assert reason.isprintable()


# Tracks -------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(st.sampled_from(["send", "ack", "pin"]), st.integers(0, 150)), min_size=50, max_size=600
)


@given(STEPS)
def test_a_stream_never_changes_its_track_while_something_of_it_is_unacknowledged(
    steps: list[tuple[str, int]],
) -> None:
    tracks, busy, pinned = Tracks(), set(), set()
    last: dict[int, int] = {}
    for what, stream in steps:
        if what == "ack":
            busy.discard(stream)
        elif what == "pin" and stream in busy:
            tracks.pin(stream)
            pinned.add(stream)
        elif what == "send":
            track = tracks.of(stream, lambda other: other not in busy)
            assert 1 <= track <= MAX_TRACKS
            if stream in busy or (stream in pinned and stream in last):
                assert track == last[stream]
            last[stream] = track
            busy.add(stream)


@given(st.integers(1, MAX_TRACKS))
def test_streams_have_tracks_of_their_own_while_there_are_enough(count: int) -> None:
    tracks = Tracks()
    assert len({tracks.of(stream, lambda _: False) for stream in range(count)}) == count


def test_what_is_known_of_idle_streams_is_bounded() -> None:
    tracks = Tracks()
    for stream in range(20_000):
        tracks.of(stream, lambda _: True)
    assert len(tracks._of) <= MAX_TRACKS + LOOK_AT


def test_idle_streams_behind_busy_ones_are_found() -> None:
    """The busy ones asked first go to the end: the idle ones get their turn."""
    tracks = Tracks()
    for stream in range(MAX_TRACKS):
        tracks.of(stream, lambda _: False)
    for stream in range(1000, 1500):
        tracks.of(stream, lambda other: isinstance(other, int) and other >= MAX_TRACKS // 2)
    assert len(tracks._of) <= 2 * MAX_TRACKS


def test_busy_streams_share_evenly() -> None:
    tracks = Tracks()
    used = [tracks.of(stream, lambda _: False) for stream in range(4 * MAX_TRACKS)]
    assert {used.count(track) for track in set(used)} == {4}
    assert len(set(used)) == MAX_TRACKS


def test_the_number_and_the_text_are_different_streams() -> None:
    tracks = Tracks()
    assert tracks.of(42, lambda _: False) != tracks.of("42", lambda _: False)
