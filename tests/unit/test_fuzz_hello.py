"""Hellos, proofs and session frames from strangers: parsed, or ``Malformed``, and nothing else (rule 3.6).

Beside ``test_fuzz.py``: built from the parts that a hello and a frame consist of, so that what is
wrong is deeper inside.
"""

from __future__ import annotations

import base64
import contextlib
import string
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from openline import Config, Identity, IdentityConflict, Refused
from openline.address import Address
from openline.connection.admission import Admission
from openline.core.frames import Batched, Flow, Listening, Malformed, Proof, Welcome, decode_frame
from openline.core.handshake import (
    MAX_DIAL,
    MAX_LENGTH,
    MAX_NAME,
    MAX_PORTS,
    SIGNATURE_BYTES,
    Hello,
    Transcript,
    parse_hello,
    split_proof,
    with_proof,
)
from openline.core.session import Session

NODE = Identity().node_id
GOOD = {"node": NODE, "nonce": "A" * 22, "instance": "I" * 22}
KEYS = ["node", "nonce", "instance", "dial", "listen", "caps", "name", "proof", "x", ""]

numbers = st.integers(-(2**70), 2**70).map(str) | st.sampled_from(
    ["²", "٣", "1_0", "0x1", "1e3", "+1", " 1", "01"]
)
values = st.one_of(
    numbers,
    st.lists(numbers, max_size=20).map(",".join),
    st.text(string.ascii_letters + string.digits + "-_.,%=+/", max_size=80),
    st.text(max_size=40),
    st.just(NODE),
    st.just(NODE.upper()),
    st.just("A" * 22),
    st.text("%0123456789abcdefABCDEFé", max_size=30),
)
separators = st.sampled_from(["; ", ";", " ; ", ";;", "; ; ", ",", "\t;", ";\x00"])


@st.composite
def hellos(draw: st.DrawFn) -> str:
    """Something like a hello: right parts, wrong parts, doubled parts, in any order."""
    fields = [*draw(st.sampled_from([list(GOOD.items()), []]))]
    fields += draw(st.lists(st.tuples(st.sampled_from(KEYS), values), max_size=6))
    parts = [f"{key}={value}" for key, value in draw(st.permutations(fields))]
    parts.insert(0, draw(st.sampled_from(["1", "1", "1", "2", "", "11", "1.0", " 1", "１"])))
    return draw(separators).join(parts)


@given(hellos())
@example(f"1; node={NODE}; nonce={'A' * 22}; instance={'I' * 22}; x=\udcff")
@example(f"1; node={NODE}; nonce={'A' * 22}; instance={'I' * 22}; name=%ff%fe%00%F0%9F%98")
@example(f"1; node={NODE}; nonce={'A' * 22}; instance={'I' * 22}; dial={'9' * 5000}")
def test_a_hello_is_read_within_its_limits_or_malformed(value: str) -> None:
    with contextlib.suppress(Malformed):
        hello = parse_hello(value)
        assert len(value) <= MAX_LENGTH
        assert len(hello.ports) <= MAX_PORTS
        assert all(0 < port < 65536 for port in hello.ports)
        assert len(hello.name) <= MAX_NAME
        assert hello.name == "" or hello.name.isprintable()
        assert 0 <= hello.dial < MAX_DIAL
        assert 22 <= len(hello.nonce) <= 64
        assert 22 <= len(hello.instance) <= 64
        # Whatever has been read can be signed, and said again.
        Transcript(value, value, None).signed_by("client")
        assert parse_hello(hello.to_header()) == hello


@given(hellos(), st.text(max_size=100) | st.binary(max_size=80).map(lambda b: base64.b64encode(b).decode()))
@example("1", "")
@example("1", "=" * 86)
@example("1", "A" * 86)
@example("1", "A" * 85 + "é")
@example("1", "\udcff" * 86)
def test_a_proof_is_split_off_or_malformed(hello: str, proof: str) -> None:
    with contextlib.suppress(Malformed):
        said, signature = split_proof(f"{hello}; proof={proof}")
        assert len(signature) == SIGNATURE_BYTES
        assert f"{hello}; proof={proof}".startswith(said)


@given(hellos(), st.binary(min_size=SIGNATURE_BYTES, max_size=SIGNATURE_BYTES))
def test_a_proof_that_was_put_on_comes_off_again(hello: str, signature: bytes) -> None:
    assert split_proof(with_proof(hello, signature)) == (hello, signature)


@given(st.text(max_size=200))
def test_where_nothing_is_called_a_proof_there_is_none(value: str) -> None:
    if "; proof=" not in value:
        with pytest.raises(Malformed, match="no proof"):
            split_proof(value)


# The doorkeeper, who is the first to hear them ----------------------------------------------------------

OURS = Identity()


def door(**config: Any) -> Admission:
    def up(link: Any, lost: Any) -> Any:
        raise AssertionError("nobody has proven anything")

    return Admission(Config(**config), OURS, up, lambda _: [], lambda _: False, lambda *_: None)


@given(st.none() | hellos() | st.text(max_size=300), st.none() | st.binary(max_size=40))
def test_a_server_answers_or_turns_away_whatever_it_is_told(
    hello: str | None, certificate: bytes | None
) -> None:
    for admission in (door(), door(allow=(NODE,))):
        with contextlib.suppress(Malformed, Refused, IdentityConflict):
            visitor = admission.answer(hello, certificate)
            assert (visitor is None) == (hello is None)
            assert visitor is None or visitor.answer.isascii()


@given(
    st.none() | hellos() | st.text(max_size=300),
    st.text(max_size=100) | st.just("A" * 86),
    st.sampled_from(["10.0.0.1:1", f"{NODE}@10.0.0.1:1", "wss://example.org"]),
)
def test_a_client_believes_nothing_that_is_not_signed(hello: str | None, proof: str, address: str) -> None:
    client = door()
    for theirs in (hello, f"{hello}; proof={proof}"):
        with contextlib.suppress(Malformed, Refused, IdentityConflict):
            found = client.greeted(Address.parse(address), client.hello(), theirs, None)
            assert found is None
            assert theirs is None


# Frames ---------------------------------------------------------------------------------------------------

pieces = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=True)
    | st.text(max_size=20)
    | st.binary(max_size=70),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(max_size=5) | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=20,
)
messages = st.lists(pieces, max_size=7) | st.tuples(st.text(max_size=5), st.just("task"), pieces)
notes = st.lists(
    st.tuples(st.text(max_size=5) | st.integers(-5, 5), st.integers(-(2**63), 2**64 - 1)) | pieces, max_size=4
)
lost = st.lists(st.binary(max_size=20), max_size=4) | st.lists(st.binary(max_size=20) | pieces, max_size=4)
bodies: dict[int, st.SearchStrategy[Any]] = {
    1: st.tuples(st.lists(messages, max_size=4), notes, notes),
    2: st.tuples(st.text(max_size=5) | st.integers(), st.booleans() | pieces),
    3: st.tuples(st.lists(st.integers(-1, 70000), max_size=20)),
    4: st.tuples(st.binary(max_size=70), lost) | st.tuples(pieces, lost),
    5: st.tuples(lost),
}
TYPES = {1: Batched, 2: Flow, 3: Listening, 4: Proof, 5: Welcome}


def _pack(value: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(value)
    except (OverflowError, msgspec.MsgspecError, TypeError):
        return b"\xc1"  # never used in msgpack


def frames(kind: int) -> st.SearchStrategy[bytes]:
    """Mostly whole, now and then cut off or with something behind it."""
    body = bodies[kind] | bodies[kind] | bodies[kind].map(lambda found: [*found, None, 1]) | pieces
    ends = st.sampled_from([(0, b"")] * 6 + [(1, b""), (3, b""), (0, b"\x00"), (1, b"\xc0")])
    return st.builds(
        lambda data, end: bytes([kind]) + data[: len(data) - end[0]] + end[1], body.map(_pack), ends
    )


@pytest.mark.parametrize("kind", bodies)
def test_a_frame_is_read_or_malformed(kind: int) -> None:
    @given(frames(kind))
    def check(data: bytes) -> None:
        with contextlib.suppress(Malformed):
            assert isinstance(decode_frame(memoryview(data)), TYPES[kind])

    check()


@given(st.binary(min_size=1, max_size=200).map(bytearray))
def test_what_has_been_read_does_not_depend_on_the_buffer(data: bytearray) -> None:
    """The buffer is the socket's, and is written over after the call."""
    for kind in bodies:
        data[0] = kind
        with contextlib.suppress(Malformed):
            found = decode_frame(memoryview(data))
            before = repr(found)
            data[1:] = bytes(len(data) - 1)
            assert repr(found) == before


@given(st.lists(st.tuples(st.booleans(), frames(1)), max_size=5))
def test_a_session_takes_what_can_be_read_or_says_malformed(script: list[tuple[bool, bytes]]) -> None:
    """Numbers that jump, streams that were not opened, acknowledgements of what was never sent."""
    session: Session[Any] = Session("I" * 22, (10, 1000))
    positions: dict[Any, int] = {}
    for fresh, data in script:
        if fresh:
            positions = {}  # over another connection
        with contextlib.suppress(Malformed):
            frame = decode_frame(memoryview(data))
            assert isinstance(frame, Batched)
            session.open(positions, frame.opens)
            acks: dict[Any, int] = {}
            new = session.accept(positions, frame.messages, acks)
            assert len(new) <= len(frame.messages)
            assert all(session.expected[stream] == number for stream, number in acks.items())
            for stream, number in frame.acks:
                session.outgoing(stream).ack(number)


def test_the_samples_reach_what_they_are_for() -> None:
    """Of these strategies a good part is parsed; else they would test only the first check."""
    read = 0

    @given(frames(4))
    def check(data: bytes) -> None:
        nonlocal read
        with contextlib.suppress(Malformed):
            decode_frame(memoryview(data))
            read += 1

    check()
    assert read >= 3
    assert parse_hello("1; " + "; ".join(f"{k}={v}" for k, v in GOOD.items())) == Hello(
        NODE, GOOD["nonce"], instance=GOOD["instance"]
    )
