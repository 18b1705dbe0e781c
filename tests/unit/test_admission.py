"""The doorkeeper (rule 3.6), without sockets: what it says, and whom it lets in."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from openline import Config, Identity, IdentityConflict, Refused, node_id_of
from openline.address import Address
from openline.backends.base import End, Visitor
from openline.connection.admission import Admission
from openline.core.frames import HEADROOM, Malformed, Proof, decode_frame
from openline.core.handshake import Hello, Transcript, parse_hello, with_proof
from openline.core.selection import Endpoint

ALICE = Identity(Ed25519PrivateKey.from_private_bytes(b"a" * 32))
BOB = Identity(Ed25519PrivateKey.from_private_bytes(b"b" * 32))
CAROL = Identity(Ed25519PrivateKey.from_private_bytes(b"c" * 32))
SOMEWHERE = Address.parse("10.0.0.1:8770")


class Door:
    """An ``Admission``, and what it has reported."""

    def __init__(self, identity: Identity, lost: tuple[bytes, ...] = (), **config: Any) -> None:
        self.ups: list[tuple[Any, list[bytes]]] = []
        self.bad: list[tuple[str, str]] = []
        self.conflicts: set[str] = set()
        self.admission = Admission(
            Config(**config),
            identity,
            self._up,
            lambda node_id: list(lost),
            lambda node_id: node_id in self.conflicts,
            lambda who, reason: self.bad.append((who, reason)),
        )

    def _up(self, link: Any, lost: list[bytes]) -> Any:
        self.ups.append((link, lost))
        return "the connection's events"


class FakeLink:
    """What the doorkeeper sees of a link."""

    def __init__(self, hello: Hello | None = None) -> None:
        self.endpoint = Endpoint("inbound", "10.0.0.9", 4711)
        self.endpoint.hello = hello
        self.events: Any = None
        self.limit = 1_000_000
        self.written: list[bytes] = []
        self.closed: list[tuple[int, str]] = []
        self.aborted = False

    def write_binary(self, buffer: bytearray) -> None:
        self.written.append(bytes(buffer[HEADROOM:]))

    def pong(self, payload: bytes) -> None:
        self.written.append(payload)

    def close(self, code: int, reason: str) -> None:
        self.closed.append((code, reason))

    def abort(self) -> None:
        self.aborted = True


def greet(
    client: Door,
    server: Door,
    *,
    shown: bytes | None = None,
    seen: bytes | None = None,
    address: Address = SOMEWHERE,
) -> tuple[Visitor, Hello]:
    """Both hellos; ``shown`` is the certificate that the server shows, ``seen`` what the client sees."""
    mine = client.admission.hello()
    visitor = server.admission.answer(mine, shown)
    assert visitor is not None
    hello = client.admission.greeted(address, mine, visitor.answer, seen)
    assert hello is not None
    return visitor, hello


def proof_of(client: Door, hello: Hello) -> Proof:
    """What the client says first."""
    link = FakeLink(hello)
    client.admission.enter(link)  # type: ignore[arg-type]
    frame = decode_frame(memoryview(link.written[0]))
    assert isinstance(frame, Proof)
    return frame


def let_in(server: Door, visitor: Visitor, proof: Proof) -> FakeLink:
    link = FakeLink()
    server.admission.let_in(link, visitor, proof)  # type: ignore[arg-type]
    return link


# Those who are right ----------------------------------------------------------------------------------


@pytest.mark.parametrize("certificate", [None, b"certificate"])
def test_both_learn_who_the_other_is(certificate: bytes | None) -> None:
    client, server = Door(ALICE, name="alice"), Door(BOB, name="bob")
    server.admission.ports = (8770,)
    visitor, hello = greet(client, server, shown=certificate, seen=certificate)
    link = let_in(server, visitor, proof_of(client, hello))
    there = link.endpoint.hello
    assert there is not None
    assert (hello.node_id, hello.name, hello.ports) == (BOB.node_id, "bob", (8770,))
    assert (there.node_id, there.name, there.ports) == (ALICE.node_id, "alice", ())
    assert [lost for _, lost in server.ups] == [[]]


def test_both_know_the_connection_by_the_same_number_and_every_connection_has_its_own() -> None:
    client, server = Door(ALICE), Door(BOB)
    seen = set()
    for _ in range(5):
        visitor, hello = greet(client, server)
        here = FakeLink(hello)
        client.admission.enter(here)  # type: ignore[arg-type]
        proof = decode_frame(memoryview(here.written[0]))
        there = let_in(server, visitor, proof)  # type: ignore[arg-type]
        assert here.endpoint.connection_id == there.endpoint.connection_id
        assert len(here.endpoint.connection_id or b"") == 16
        seen.add(here.endpoint.connection_id)
    assert len(seen) == 5


def test_both_count_the_dials_of_the_client() -> None:
    client, server = Door(ALICE), Door(BOB)
    counts = []
    for _ in range(3):
        visitor, hello = greet(client, server)
        assert visitor.hello.dial == hello.dial
        counts.append(hello.dial)
    assert counts == [1, 2, 3]


def test_what_a_client_has_lost_travels_with_its_proof() -> None:
    client, server = Door(ALICE, lost=(b"1" * 16, b"2" * 16)), Door(BOB)
    visitor, hello = greet(client, server)
    let_in(server, visitor, proof_of(client, hello))
    assert [lost for _, lost in server.ups] == [[b"1" * 16, b"2" * 16]]


def test_a_plain_peer_is_in_at_once_and_proves_nothing() -> None:
    server, client = Door(BOB), Door(ALICE)
    assert server.admission.answer(None, None) is None
    link, entered = FakeLink(), []
    server.admission.admit(link, None, lambda: entered.append(True))  # type: ignore[arg-type]
    assert (len(server.ups), entered) == (1, [True])
    assert client.admission.greeted(SOMEWHERE, client.admission.hello(), None, None) is None
    link = FakeLink()
    client.admission.enter(link)  # type: ignore[arg-type]
    assert link.written == []


def test_every_hello_has_its_own_nonce_and_one_process_one_instance() -> None:
    door, other = Door(ALICE), Door(ALICE)
    hellos = [parse_hello(door.admission.hello()) for _ in range(20)]
    assert len({hello.nonce for hello in hellos}) == 20
    assert len({hello.instance for hello in hellos}) == 1
    assert parse_hello(other.admission.hello()).instance != hellos[0].instance


def test_a_server_that_is_asked_twice_the_same_answers_differently() -> None:
    server, mine = Door(BOB), Door(ALICE).admission.hello()
    answers = {visitor.answer for _ in range(5) if (visitor := server.admission.answer(mine, None))}
    assert len(answers) == 5


def test_nothing_that_is_kept_of_a_hello_is_secret_or_long() -> None:
    client, server = Door(ALICE), Door(BOB)
    visitor, hello = greet(client, server)
    link = let_in(server, visitor, proof_of(client, hello))
    assert link.endpoint.hello is not None
    assert link.endpoint.hello.transcript is None


# Those who are not ------------------------------------------------------------------------------------


def wrong(server: Door, visitor: Visitor, proof: Proof) -> str:
    """Why it is not let in."""
    with pytest.raises(Malformed) as caught:
        let_in(server, visitor, proof)
    assert server.ups == []
    return str(caught.value)


@given(st.integers(0, 1023))
def test_any_bit_of_the_clients_proof_matters(bit: int) -> None:
    client, server = Door(ALICE), Door(BOB)
    visitor, hello = greet(client, server)
    number = int.from_bytes(proof_of(client, hello).signature, "big") ^ 1 << bit
    assert ALICE.node_id in wrong(server, visitor, Proof(number.to_bytes(128, "big")))


@given(st.binary(max_size=140))
def test_noise_is_no_proof(signature: bytes) -> None:
    client, server = Door(ALICE), Door(BOB)
    visitor, _ = greet(client, server)
    wrong(server, visitor, Proof(signature))


@given(st.integers(0, 10**6), st.integers(0, 127), st.integers(0, 2), st.booleans())
def test_any_character_of_either_hello_matters(
    place: int, code: int, edit: int, on_the_way_there: bool
) -> None:
    """Changed on the way, one side or the other does not accept it; or it cannot be read at all."""
    client, server = Door(ALICE, name="alice"), Door(BOB, name="bob")
    client.admission.ports = server.admission.ports = (8770, 8771)

    def changed(text: str) -> str:
        at = place % len(text)
        new = chr(code) if chr(code) != text[at] else "~"
        return text[:at] + ("", new, text[at] + new)[edit] + text[at + 1 :]

    mine = client.admission.hello()
    try:
        visitor = server.admission.answer(changed(mine) if on_the_way_there else mine, None)
        assert visitor is not None
        theirs = visitor.answer if on_the_way_there else changed(visitor.answer)
        client.admission.greeted(SOMEWHERE, mine, theirs, None)
    except (Refused, Malformed):
        return
    # What is left: base64 has several texts for one signature, and what was signed is unchanged.
    assert not on_the_way_there
    assert theirs.rpartition("; proof=")[0] == visitor.answer.rpartition("; proof=")[0]


@pytest.mark.parametrize(
    ("shown", "seen"), [(b"bob's", b"mallory's"), (b"bob's", None), (None, b"mallory's"), (b"", b"x")]
)
def test_both_must_see_the_same_certificate(shown: bytes | None, seen: bytes | None) -> None:
    client, server = Door(ALICE), Door(BOB)
    with pytest.raises(Refused, match="proof"):
        greet(client, server, shown=shown, seen=seen)


def test_the_server_checks_the_certificate_too() -> None:
    """A client that looks away is not let in by that."""
    client, server = Door(ALICE), Door(BOB)
    mine = client.admission.hello()
    visitor = server.admission.answer(mine, b"bob's")
    assert visitor is not None
    said = visitor.answer.rpartition("; proof=")[0]
    fooled = Transcript(mine, said, b"mallory's").signed_by("client")
    wrong(server, visitor, Proof(ALICE.sign(fooled)))


def test_the_servers_proof_is_not_the_clients() -> None:
    client, server = Door(ALICE), Door(BOB)
    visitor, hello = greet(client, server)
    transcript = visitor.transcript
    for identity, role in ((BOB, "server"), (BOB, "client"), (ALICE, "server"), (CAROL, "client")):
        wrong(server, visitor, Proof(identity.sign(transcript.signed_by(role))))  # type: ignore[arg-type]
    let_in(server, visitor, proof_of(client, hello))


def test_a_proof_is_of_one_meeting() -> None:
    client, server, other = Door(ALICE), Door(BOB), Door(CAROL)
    first, hello = greet(client, server)
    proof = proof_of(client, hello)
    second, _ = greet(client, server)
    third, _ = greet(client, other)
    let_in(server, first, proof)
    server.ups.clear()
    wrong(server, second, proof)
    wrong(other, third, proof)


def test_an_answer_is_of_one_meeting() -> None:
    client, server = Door(ALICE), Door(BOB)
    one, two = client.admission.hello(), client.admission.hello()
    visitor = server.admission.answer(one, None)
    assert visitor is not None
    with pytest.raises(Refused, match="proof"):
        client.admission.greeted(SOMEWHERE, two, visitor.answer, None)


def test_an_answer_without_a_proof_is_refused() -> None:
    client, server = Door(ALICE), Door(BOB)
    mine = client.admission.hello()
    with pytest.raises(Refused, match="proof"):
        client.admission.greeted(SOMEWHERE, mine, server.admission.hello(), None)


def test_ones_own_hello_is_no_answer() -> None:
    client = Door(ALICE)
    mine = client.admission.hello()
    for theirs in (mine, f"{mine}; proof={'A' * 86}"):
        with pytest.raises(Refused):
            client.admission.greeted(SOMEWHERE, mine, theirs, None)


@pytest.mark.parametrize("y", [0, 1, 2**255 - 20])
def test_a_node_id_under_which_anybody_can_sign_gets_nowhere(y: int) -> None:
    """A key of small order: the same "signature" is right for many messages."""
    weak = node_id_of(y.to_bytes(32, "little"))
    server = Door(BOB)
    mine = msgspec.structs.replace(parse_hello(Door(ALICE).admission.hello()), node_id=weak).to_header()
    forged = (1).to_bytes(32, "little") + bytes(32)
    for _ in range(16):
        try:
            visitor = server.admission.answer(mine, None)
        except Malformed:
            return
        assert visitor is not None
        wrong(server, visitor, Proof(forged))


# Addresses ----------------------------------------------------------------------------------------------


def at(node: Identity, scheme: str = "") -> Address:
    return Address.parse(f"{scheme}{node.node_id}@10.0.0.1:8770")


def test_the_node_that_the_address_names_is_accepted_and_no_other() -> None:
    client, server = Door(ALICE), Door(BOB)
    assert greet(client, server, address=at(BOB))[1].node_id == BOB.node_id
    with pytest.raises(Refused) as caught:
        greet(client, server, address=at(CAROL))
    for part in (BOB.node_id, CAROL.node_id, "10.0.0.1:8770"):
        assert part in str(caught.value)


@pytest.mark.parametrize("scheme", ["", "ws://", "wss://"])
def test_an_address_that_names_a_node_is_not_answered_by_a_plain_peer(scheme: str) -> None:
    client = Door(ALICE)
    with pytest.raises(Refused, match="node id"):
        client.admission.greeted(at(BOB, scheme), client.admission.hello(), None, None)


# Config.allow -------------------------------------------------------------------------------------------


def test_who_is_not_on_the_list_is_refused_on_either_side() -> None:
    client, server = Door(ALICE), Door(BOB)
    choosy_client, choosy_server = Door(ALICE, allow=(CAROL.node_id,)), Door(BOB, allow=(CAROL.node_id,))
    for one, other, stranger in ((choosy_client, server, BOB), (client, choosy_server, ALICE)):
        with pytest.raises(Refused) as caught:
            greet(one, other)
        assert stranger.node_id in str(caught.value)
        assert "Config.allow" in str(caught.value)


def test_who_is_on_the_list_is_not() -> None:
    allow = (ALICE.node_id, BOB.node_id)
    client, server = Door(ALICE, allow=allow), Door(BOB, allow=allow)
    visitor, hello = greet(client, server)
    let_in(server, visitor, proof_of(client, hello))


@pytest.mark.parametrize("allow", [(), (CAROL.node_id,)])
def test_plain_peers_are_on_no_list(allow: tuple[str, ...]) -> None:
    door = Door(ALICE, allow=allow)
    with pytest.raises(Refused, match="known nodes"):
        door.admission.answer(None, None)
    with pytest.raises(Refused, match=r"Config\.allow"):
        door.admission.greeted(SOMEWHERE, door.admission.hello(), None, None)


def test_being_on_the_list_is_not_enough() -> None:
    client, server = Door(CAROL), Door(BOB, allow=(ALICE.node_id,))
    mine = msgspec.structs.replace(parse_hello(client.admission.hello()), node_id=ALICE.node_id)
    visitor = server.admission.answer(mine.to_header(), None)
    assert visitor is not None
    wrong(server, visitor, Proof(CAROL.sign(visitor.transcript.signed_by("client"))))


# One identity, two processes ----------------------------------------------------------------------------


def test_a_second_process_with_our_key_is_a_conflict_on_either_side() -> None:
    one, other = Door(ALICE), Door(ALICE)
    with pytest.raises(IdentityConflict) as caught:
        other.admission.answer(one.admission.hello(), None)
    assert ALICE.node_id in str(caught.value)
    mine, said = one.admission.hello(), parse_hello(other.admission.hello())
    theirs = said.to_header()
    proof = ALICE.sign(Transcript(mine, theirs, None).signed_by("server"))
    with pytest.raises(IdentityConflict):
        one.admission.greeted(SOMEWHERE, mine, with_proof(theirs, proof), None)


def test_a_server_that_only_claims_our_key_is_refused_and_no_conflict() -> None:
    client, other = Door(ALICE), Door(ALICE)
    mine, theirs = client.admission.hello(), other.admission.hello()
    with pytest.raises(Refused):
        client.admission.greeted(SOMEWHERE, mine, f"{theirs}; proof={'A' * 86}", None)


def test_this_very_process_is_no_second_one() -> None:
    door = Door(ALICE, allow=())
    visitor, hello = greet(door, door)
    let_in(door, visitor, proof_of(door, hello))
    assert hello.node_id == ALICE.node_id


def test_a_node_in_conflict_is_turned_away_at_the_door() -> None:
    client, server = Door(ALICE), Door(BOB)
    server.conflicts.add(ALICE.node_id)
    with pytest.raises(IdentityConflict, match=ALICE.node_id):
        greet(client, server)
    greet(Door(CAROL), server)
    server.conflicts.clear()
    greet(client, server)


# The threshold ------------------------------------------------------------------------------------------


class Threshold:
    """A visitor who has been answered and has not proven anything."""

    def __init__(self, **config: Any) -> None:
        self.client, self.server = Door(ALICE), Door(BOB, **config)
        visitor, hello = greet(self.client, self.server)
        self.proof = FakeLink(hello)
        self.client.admission.enter(self.proof)  # type: ignore[arg-type]
        self.link = FakeLink()
        self.entered = 0
        self.link.events = self.server.admission.admit(self.link, visitor, self._enter)  # type: ignore[arg-type]

    def _enter(self) -> None:
        self.entered += 1

    def hear(self, data: bytes) -> None:
        self.link.events.on_binary(memoryview(data))


async def test_the_right_proof_opens_and_what_follows_goes_to_the_connection() -> None:
    threshold = Threshold()
    assert threshold.server.ups == []
    # A stranger need not be listened to for long.
    assert len(threshold.proof.written[0]) < threshold.link.limit < 10_000
    threshold.hear(threshold.proof.written[0])
    assert threshold.link.limit == 1_000_000
    assert threshold.link.events == "the connection's events"
    assert (threshold.entered, len(threshold.server.ups), threshold.server.bad) == (1, 1, [])


@pytest.mark.parametrize(
    "data", [b"", b"\x01\x91\x90", b"\x05\x91\x90", b"\x04", b"\x04\xc0", b"\xff", b"{}"]
)
async def test_what_is_no_proof_does_not_open(data: bytes) -> None:
    threshold = Threshold()
    with pytest.raises(Malformed):
        threshold.hear(data)
    with pytest.raises(Malformed):
        threshold.link.events.on_text(memoryview(data))
    threshold.link.events.on_closed(End.bad_input(1002, "something"))
    assert (threshold.entered, threshold.server.ups) == (1, [])
    assert len(threshold.server.bad) == 1
    who, reason = threshold.server.bad[0]
    assert "10.0.0.9:4711" in who
    assert ALICE.node_id in who
    assert reason == "bad input: something"


async def test_pings_are_answered_and_prove_nothing() -> None:
    threshold = Threshold()
    threshold.link.events.on_ping(b"there?")
    threshold.link.events.on_pong(b"still you?")
    threshold.link.events.on_writable()
    assert threshold.link.written == [b"there?"]
    assert (threshold.entered, threshold.server.ups) == (0, [])


async def test_who_does_not_prove_anything_in_time_is_cut() -> None:
    threshold = Threshold(handshake_timeout=0.05)
    threshold.link.events.on_ping(b"")
    await asyncio.sleep(0.1)
    assert threshold.link.aborted
    assert threshold.link.closed == [(1008, "no proof came")]
    assert threshold.server.ups == []


async def test_who_is_in_is_not_cut_and_who_has_gone_is_left_alone() -> None:
    inside, gone = Threshold(handshake_timeout=0.05), Threshold(handshake_timeout=0.05)
    inside.hear(inside.proof.written[0])
    gone.link.events.on_closed(End.lost("connection lost"))
    await asyncio.sleep(0.1)
    assert not inside.link.aborted
    assert not gone.link.aborted
