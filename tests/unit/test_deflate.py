"""permessage-deflate (RFC 7692): bounded on the way in, and only what was agreed on the way out."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openline.backends.websocket import deflate
from openline.core.frames import Malformed, TooBig

from .memory import traced

LIMIT = 10_000


@given(st.binary(max_size=2000), st.integers(9, 15))
def test_deflate_round_trip(data: bytes, window_bits: int) -> None:
    assert deflate.decompress(deflate.compress(data, window_bits), len(data)) == data


@pytest.mark.parametrize(
    "compressed",
    [
        pytest.param("f2 48 cd c9 c9 07 00", id="one block"),
        pytest.param("00 05 00 fa ff 48 65 6c 6c 6f 00", id="stored"),
        pytest.param("f3 48 cd c9 c9 07 00 00", id="final block"),
        pytest.param("f2 48 05 00 00 00 ff ff ca c9 c9 07 00", id="two blocks"),
    ],
)
def test_the_examples_of_rfc_7692(compressed: str) -> None:
    assert deflate.decompress(bytes.fromhex(compressed), 100) == b"Hello"


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 1, 2 * LIMIT])
def test_the_limit_is_exact(size: int) -> None:
    data = deflate.compress(bytes(size), 15)
    if size <= LIMIT:
        assert len(deflate.decompress(data, LIMIT)) == size
    else:
        with pytest.raises(TooBig, match=f"more than {LIMIT} bytes"):
            deflate.decompress(data, LIMIT)


def test_a_bomb_takes_no_more_memory_than_the_limit() -> None:
    bomb = deflate.compress(bytes(50_000_000), 15)
    assert len(bomb) < 300_000
    with traced() as memory, pytest.raises(TooBig):
        deflate.decompress(bomb, LIMIT)
    assert memory.peak < 3 * len(bomb) + 10 * LIMIT


def test_garbage_is_not_deflate() -> None:
    with pytest.raises(Malformed, match="compressed data"):
        deflate.decompress(b"\xff\xff\xff\xff", LIMIT)


@pytest.mark.parametrize(
    ("header", "answer"),
    [
        ("", None),
        ("x-webkit-deflate-frame", None),
        ("permessage-deflate", (deflate.OFFER, 15)),
        ("PerMessage-Deflate", (deflate.OFFER, 15)),
        (deflate.OFFER, (deflate.OFFER, 15)),
        ("permessage-deflate; client_max_window_bits", (deflate.OFFER, 15)),
        ("foo, permessage-deflate; client_max_window_bits=10", (deflate.OFFER, 15)),
        (
            "permessage-deflate; server_max_window_bits=10",
            (f"{deflate.OFFER}; server_max_window_bits=10", 10),
        ),
        (
            'permessage-deflate; server_max_window_bits="12"',
            (f"{deflate.OFFER}; server_max_window_bits=12", 12),
        ),
        # zlib cannot do 8; the client offers to do without the limit, too.
        ("permessage-deflate; server_max_window_bits=8", None),
        ("permessage-deflate; server_max_window_bits=8, permessage-deflate", (deflate.OFFER, 15)),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; server_max_window_bits", None),
    ],
)
def test_offers(header: str, answer: tuple[str, int] | None) -> None:
    assert deflate.accept_offer(header) == answer


@pytest.mark.parametrize("bits", range(9, 16))
def test_an_agreed_window_is_kept_to(bits: int) -> None:
    data = bytes(range(256)) * 300
    compressed = deflate.compress(data, bits)
    assert zlib.decompressobj(-bits).decompress(compressed + b"\x00\x00\xff\xff") == data


@pytest.mark.parametrize(
    ("header", "agreed"),
    [
        ("", False),
        ("  ", False),
        (deflate.OFFER, True),
        (deflate.OFFER.upper(), True),
        ("permessage-deflate; server_no_context_takeover", True),
        ("permessage-deflate; server_no_context_takeover; server_max_window_bits=10", True),
    ],
)
def test_answers(header: str, agreed: bool) -> None:
    assert deflate.check_answer(header) is agreed


@pytest.mark.parametrize(
    "header",
    [
        "x-webkit-deflate-frame",
        "permessage-deflate",
        "permessage-deflate; client_no_context_takeover",
        f"{deflate.OFFER}, {deflate.OFFER}",
        f"{deflate.OFFER}, x-other",
        # The peer would inflate with a smaller window than we deflate with.
        f"{deflate.OFFER}; client_max_window_bits=10",
        f"{deflate.OFFER}; unknown=1",
    ],
)
def test_an_answer_to_what_was_not_offered_is_refused(header: str) -> None:
    with pytest.raises(Malformed, match="not offered"):
        deflate.check_answer(header)
