"""The vectors in docs/protocol.md are what the code writes and reads."""

from __future__ import annotations

import hashlib
import itertools
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from openline import Identity, Message
from openline.backends.quic.framing import ANSWER, GOODBYE, UnitReader, goodbye, header, read_goodbye
from openline.backends.websocket import deflate
from openline.connection.instance import Instance, signed_for
from openline.core.collision import Claim, winner
from openline.core.frames import (
    HEADROOM,
    Batch,
    Batched,
    EncodedNotes,
    Flow,
    Listening,
    Proof,
    Welcome,
    decode_frame,
    decode_plain,
    encode_flow,
    encode_listening,
    encode_notes,
    encode_notes_frame,
    encode_plain,
    encode_proof,
    encode_welcome,
)
from openline.core.handshake import HEADER, Hello, Transcript, parse_hello, split_proof, with_proof
from openline.core.pieces import (
    CONTROL_STREAM,
    Cancel,
    Failed,
    Taken,
    allowed_by,
    as_message,
    error_in,
    is_end,
    is_last,
    lane_of,
    read_told,
)
from openline.identity import verify
from openline.message import StreamId

DOC = Path(__file__).parents[2] / "docs" / "protocol.md"
VECTORS = dict(re.findall(r"```vector ([\w-]+)\n(.*?)\n```", DOC.read_text(encoding="utf-8"), re.DOTALL))

CLIENT = Identity(Ed25519PrivateKey.from_private_bytes(b"\x01" * 32))
SERVER = Identity(Ed25519PrivateKey.from_private_bytes(b"\x02" * 32))
# The keys of the two processes.
CLIENT_PROCESS = Instance(Ed25519PrivateKey.from_private_bytes(b"\x03" * 32))
SERVER_PROCESS = Instance(Ed25519PrivateKey.from_private_bytes(b"\x04" * 32))
CHECKED = """client-hello server-hello proof server-hello-tls proof-tls proof-node-only connection-id
    plain first next piggyback acks welcome flow listening collision deflate quic-headers quic-goodbye
    quic-answer plain-part plain-end question parts told"""


def from_hex(name: str) -> memoryview:
    return memoryview(bytes.fromhex(VECTORS[name]))


def value_of(name: str) -> str:
    header, _, value = VECTORS[name].partition(": ")
    assert header == HEADER
    return value


def transcript(certificate: bytes | None = None) -> Transcript:
    answer = "server-hello-tls" if certificate else "server-hello"
    return Transcript(value_of("client-hello"), split_proof(value_of(answer))[0], certificate)


def both(node: Identity, process: Instance, data: bytes) -> bytes:
    return node.sign(data) + process.sign(data)


def test_no_vector_is_left_unchecked() -> None:
    assert set(VECTORS) == set(CHECKED.split())


def test_client_hello() -> None:
    hello = Hello(CLIENT.node_id, "A" * 32, (8770, 8771), "böb", CLIENT_PROCESS.name, 1, ("instance",))
    assert hello.to_header() == value_of("client-hello")
    assert parse_hello(value_of("client-hello")) == hello


@pytest.mark.parametrize(
    ("name", "certificate"), [("server-hello", b""), ("server-hello-tls", b"certificate")]
)
def test_server_hello(name: str, certificate: bytes) -> None:
    hello, proof = split_proof(value_of(name))
    digest = hashlib.sha256(certificate).digest() if certificate else b""
    said = Hello(
        SERVER.node_id, "B" * 32, instance=SERVER_PROCESS.name, caps=("instance",), certificate=digest
    )
    assert said.to_header() == hello
    assert parse_hello(hello) == said
    signed = transcript(certificate).signed_by("server")
    assert with_proof(hello, both(SERVER, SERVER_PROCESS, signed)) == value_of(name)
    assert verify(SERVER.node_id, proof[:64], signed)
    assert signed_for(SERVER_PROCESS.name, proof[64:], signed)


@pytest.mark.parametrize(("name", "certificate"), [("proof", None), ("proof-tls", b"certificate")])
def test_client_proof(name: str, certificate: bytes | None) -> None:
    signed = transcript(certificate).signed_by("client")
    assert encode_proof(both(CLIENT, CLIENT_PROCESS, signed), [])[HEADROOM:] == from_hex(name)
    frame = decode_frame(from_hex(name))
    assert isinstance(frame, Proof)
    assert verify(CLIENT.node_id, frame.signature[:64], signed)
    assert signed_for(CLIENT_PROCESS.name, frame.signature[64:], signed)


def test_proof_of_a_node_that_proves_no_instance() -> None:
    client = value_of("client-hello").replace(CLIENT_PROCESS.name, "a" * 22).replace("; caps=instance", "")
    signed = Transcript(client, split_proof(value_of("server-hello"))[0], None).signed_by("client")
    assert encode_proof(CLIENT.sign(signed), [])[HEADROOM:] == from_hex("proof-node-only")


def test_connection_id() -> None:
    assert transcript().connection_id == from_hex("connection-id")


def test_welcome() -> None:
    lost = [bytes(range(16))]
    assert encode_welcome(lost)[HEADROOM:] == from_hex("welcome")
    assert decode_frame(from_hex("welcome")) == Welcome(lost)


def test_plain() -> None:
    message = Message("m-1", "task", {"n": 1}, {"replyTo": "m-0"}, "rpc")
    assert encode_plain(message).decode() == VECTORS["plain"]
    assert decode_plain(VECTORS["plain"].encode()) == message


@pytest.mark.parametrize(
    ("name", "number", "notes", "acks", "opens"),
    [
        ("first", 1, encode_notes({}, [("default", 1)]), (), (("default", 1),)),
        ("next", 2, None, (), ()),
        ("piggyback", 3, encode_notes({"default": 7}, None), (("default", 7),), ()),
    ],
)
def test_messages(name: str, number: int, notes: EncodedNotes | None, acks: object, opens: object) -> None:
    message = Message(f"m-{number}", payload={"n": number})
    batch = Batch()
    batch.add(message)
    assert batch.seal(notes)[HEADROOM:] == from_hex(name)
    frame = decode_frame(from_hex(name))
    assert isinstance(frame, Batched)
    assert (frame.messages, frame.acks, frame.opens) == ([message], acks, opens)


def test_acks_alone() -> None:
    assert encode_notes_frame(encode_notes({"default": 3, 42: 9}, None))[HEADROOM:] == from_hex("acks")
    assert decode_frame(from_hex("acks")) == Batched([], (("default", 3), (42, 9)))


# Answers in pieces ----------------------------------------------------------------------------------


def test_parts_and_ends_in_the_plain_form() -> None:
    part = Message("p-1", "result", "a token", {"replyTo": "m-1", "more": True})
    end = Message("p-2", "error", {"type": "ValueError", "text": "no"}, {"replyTo": "m-1", "more": False})
    assert encode_plain(part).decode() == VECTORS["plain-part"]
    assert encode_plain(end).decode() == VECTORS["plain-end"]
    assert decode_plain(VECTORS["plain-end"].encode()) == end
    assert (is_last(part), is_end(part), is_last(end), is_end(end)) == (False, False, True, True)
    assert error_in(end.payload) == ("ValueError", "no")


def frame_of(messages: list[Message], *opens: tuple[StreamId, int]) -> bytearray:
    batch = Batch()
    for message in messages:
        batch.add(message)
    return batch.seal(encode_notes({}, list(opens)) if opens else None)[HEADROOM:]


def test_a_question_for_pieces() -> None:
    question = Message("m-4", metadata={"stream": 32})
    assert frame_of([question]) == from_hex("question")
    assert allowed_by(question) == 32


def test_parts_between_openline_peers() -> None:
    lane = lane_of("m-4")
    part = Message(1, "result", "a", {"replyTo": "m-4", "more": True}, lane)
    end = Message("p-9", "result", None, {"replyTo": "m-4", "more": False}, lane)
    assert frame_of([part, end], (lane, 1)) == from_hex("parts")


def test_what_is_told_of_requests() -> None:
    told = [Taken("m-4", 16, 64), Cancel("default", "m-4"), Failed("m-5", "ValueError", "no")]
    assert frame_of([as_message(each) for each in told], (CONTROL_STREAM, 1)) == from_hex("told")
    frame = decode_frame(from_hex("told"))
    assert isinstance(frame, Batched)
    assert [read_told(message) for message in frame.messages] == told


class Rival:
    def __init__(self, text: str) -> None:
        rank, who, dial = text.split("/")
        self.text = text
        self.claim = Claim(int(rank), {"A": CLIENT, "B": SERVER}[who].node_id, int(dial))


@pytest.mark.parametrize("line", VECTORS["collision"].splitlines())
def test_collision(line: str) -> None:
    rivals, _, stays = line.partition(" = ")
    for order in itertools.permutations(map(Rival, rivals.split())):
        assert winner(CLIENT.node_id, SERVER.node_id, order).text == stays
        assert winner(SERVER.node_id, CLIENT.node_id, order).text == stays


def test_flow() -> None:
    assert encode_flow("rpc", True)[HEADROOM:] == from_hex("flow")
    assert decode_frame(from_hex("flow")) == Flow("rpc", True)


def test_listening() -> None:
    assert encode_listening((8770,))[HEADROOM:] == from_hex("listening")
    assert decode_frame(from_hex("listening")) == Listening((8770,))


def test_deflate_offer() -> None:
    assert VECTORS["deflate"] == deflate.OFFER
    assert deflate.accept_offer(deflate.OFFER) == (deflate.OFFER, 15)


@pytest.mark.parametrize("line", VECTORS["quic-headers"].splitlines())
def test_quic_headers(line: str) -> None:
    unit, _, head = line.partition(" = ")
    kind, size = map(int, unit.split())
    assert header(kind, size) == bytes.fromhex(head)
    units: list[tuple[int, int]] = []
    UnitReader().feed(bytes.fromhex(head) + bytes(size), size, lambda k, data: units.append((k, len(data))))
    assert units == [(kind, size)]


@pytest.mark.parametrize(
    ("name", "code", "count"), [("quic-goodbye", 1001, 3), ("quic-answer", 1001 | ANSWER, 1)]
)
def test_quic_goodbyes(name: str, code: int, count: int) -> None:
    content = goodbye(code, count, "closing")
    assert header(GOODBYE, len(content)) + content == from_hex(name)
    assert read_goodbye(memoryview(content)) == (code, count, "closing")
