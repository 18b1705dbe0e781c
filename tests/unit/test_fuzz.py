"""Every parser that reads from the wire returns, or raises ``Malformed``, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from hypothesis import example, given
from hypothesis import strategies as st

from openline import Message
from openline.backends.websocket import deflate
from openline.core.frames import (
    HEADROOM,
    Batch,
    Malformed,
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
from openline.core.handshake import Hello, parse_hello, split_proof, with_proof

JSON_SAMPLES = [
    Message(),
    Message(7, "result", {"n": [1, 2.5, None, True, 2**70]}, {"replyTo": "a"}, 42),
    Message(1.5, "task", "bücher \U0001f600", None, "42", {"x": [1]}),
]
BINARY_SAMPLES = [*JSON_SAMPLES, Message(payload={"deep": [{"bytes": b"x" * 300}]})]
TEXTS = [encode_plain(message) for message in JSON_SAMPLES]
TEXTS += [rb'{"id":1,"type":"t","payload":["\ud83d\ude00 \ud83d",1e5,{"a":-1.0}],"x":"\uDC00"}']
NOTES = encode_notes({"rpc": 3, 42: 2**40}, [("default", 1), ("42", 7)])
FRAMES = [
    bytes(frame[HEADROOM:])
    for frame in (
        encode_batch(BINARY_SAMPLES),
        Batch().seal(NOTES),
        encode_notes_frame(NOTES),
        encode_flow("rpc", True),
        encode_listening((1, 2)),
        encode_proof(b"s" * 64, [b"i" * 16]),
        encode_welcome([b"i" * 16]),
    )
]
DEFLATED = [deflate.compress(text, 15) for text in TEXTS]
HELLO = Hello("a" * 52, "A" * 22, (8770, 8771), "böb", "I" * 22, 7, ("quic", "zstd")).to_header()
PROVEN = with_proof(HELLO, b"s" * 64)
EXTENSIONS = f'{deflate.OFFER}; server_max_window_bits=10; client_max_window_bits, x-other; a="b"'
# One message with id "a" and type "b"; its payload comes next.
MESSAGE = b"\x01\x91\x91\x93\xa1a\xa1b"


def damaged(originals: list[bytes]) -> st.SearchStrategy[bytes]:
    """Valid input with a few bytes changed, cut out, doubled or put in."""
    edits = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 8), st.binary(max_size=8)), max_size=4)
    return st.builds(_damage, st.sampled_from(originals), edits)


def _damage(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for place, length, new in edits:
        at = place % (len(data) + 1)
        data = data[:at] + new + data[at + length :]
    return data


def damaged_text(original: str) -> st.SearchStrategy[str]:
    return damaged([original.encode("latin-1")]).map(lambda data: data.decode("latin-1"))


def returns_or_malformed(parser: Callable[[], object]) -> None:
    with contextlib.suppress(Malformed):
        parser()


@given(st.binary() | damaged(TEXTS))
def test_fuzz_decode_plain(data: bytes) -> None:
    returns_or_malformed(lambda: decode_plain(data))


@given(st.binary() | st.binary().map(MESSAGE.__add__) | damaged(FRAMES))
def test_fuzz_decode_frame(data: bytes) -> None:
    returns_or_malformed(lambda: decode_frame(memoryview(data)))


@given(st.text() | damaged_text(HELLO))
@example(HELLO)
def test_fuzz_parse_hello(value: str) -> None:
    returns_or_malformed(lambda: parse_hello(value))


@given(st.text() | damaged_text(PROVEN))
@example(PROVEN)
def test_fuzz_split_proof(value: str) -> None:
    def split() -> None:
        hello, signature = split_proof(value)
        assert (len(signature), value.startswith(hello)) == (64, True)

    returns_or_malformed(split)


@given(st.binary() | damaged(DEFLATED), st.integers(0, 300))
def test_fuzz_decompress(data: bytes, limit: int) -> None:
    def bounded() -> None:
        assert len(deflate.decompress(data, limit)) <= limit

    returns_or_malformed(bounded)


bits = st.text().map(f"{deflate.EXTENSION}; server_max_window_bits=".__add__)


@given(st.text() | bits | damaged_text(EXTENSIONS))
@example(f"{deflate.EXTENSION}; server_max_window_bits=²")
@example(f"{deflate.EXTENSION}; server_max_window_bits={'1' * 5000}")
def test_fuzz_accept_offer(header: str) -> None:
    answer = deflate.accept_offer(header)
    assert answer is None or 9 <= answer[1] <= 15


@given(st.text() | bits | damaged_text(EXTENSIONS) | damaged_text(deflate.OFFER))
def test_fuzz_check_answer(header: str) -> None:
    returns_or_malformed(lambda: deflate.check_answer(header))
