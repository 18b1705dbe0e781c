"""The hello: what it says, what is signed of it, and that nothing in it can do harm."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openline import Config, Identity
from openline.core.frames import Malformed
from openline.core.handshake import (
    DEFAULT_RESUME,
    MAX_CAPS,
    MAX_DIAL,
    MAX_LENGTH,
    MAX_NAME,
    MAX_PORTS,
    MAX_RESUME,
    SIGNATURE_BYTES,
    Hello,
    Transcript,
    check_ports,
    parse_hello,
    split_proof,
    with_proof,
)

NODE = "a" * 51 + "q"
NONCE = "A" * 22
INSTANCE = "I" * 22
LEAST = f"1; node={NODE}; nonce={NONCE}; instance={INSTANCE}"
VALID = f"{LEAST}; dial=7; listen=8770,8771; resume=60; caps=quic,zstd.1; name=alice"


def hello(**fields: Any) -> Hello:
    return Hello(NODE, NONCE, instance=INSTANCE, **fields)


tokens = st.from_regex(r"[A-Za-z0-9_-]{22,64}", fullmatch=True)
hellos = st.builds(
    Hello,
    st.from_regex(r"[a-z2-7]{51}[aq]", fullmatch=True),
    tokens,
    st.lists(st.integers(1, 65535), max_size=MAX_PORTS).map(tuple),
    st.text(st.characters(exclude_categories=("C", "Z")), max_size=MAX_NAME),
    tokens,
    st.integers(0, MAX_DIAL - 1),
    st.lists(st.from_regex(r"[a-z0-9.-]{1,32}", fullmatch=True), max_size=MAX_CAPS).map(tuple),
    st.integers(0, MAX_RESUME),
)


def test_the_form() -> None:
    said = hello(ports=(8770, 8771), name="alice", dial=7, caps=("quic", "zstd.1"), resume=60)
    assert said.to_header() == VALID
    assert parse_hello(VALID) == said


def test_without_what_is_optional() -> None:
    assert parse_hello(LEAST) == hello()
    assert hello().to_header() == LEAST
    assert hello().resume == DEFAULT_RESUME == Config().resume_timeout + Config().max_idle_timeout


@given(hellos)
def test_round_trip(said: Hello) -> None:
    assert parse_hello(said.to_header()) == said


@given(hellos)
def test_the_header_is_one_line_of_plain_ascii(said: Hello) -> None:
    header = with_proof(said.to_header(), b"s" * SIGNATURE_BYTES)
    assert header.isascii()
    assert header.isprintable()
    assert len(header) <= MAX_LENGTH


@pytest.mark.parametrize(
    "said",
    [
        hello(name="é" * 5000),
        hello(ports=tuple(range(1, 1000))),
        hello(name="line\r\nX-Evil: 1"),
        hello(name="a; node=b"),
        hello(name="\ud800"),
        hello(caps=tuple(f"cap-{number}" for number in range(100))),
    ],
    ids=["long name", "many ports", "newline", "separator", "lone surrogate", "many capabilities"],
)
def test_whatever_a_node_is_configured_with_its_peers_can_read_it(said: Hello) -> None:
    assert parse_hello(said.to_header()).node_id == NODE


def test_unknown_parameters_are_room_for_later_versions() -> None:
    assert parse_hello(f"{VALID}; soul=xyz; flag;; =") == parse_hello(VALID)


def test_a_hello_that_is_too_long_is_not_looked_at() -> None:
    assert parse_hello(VALID + ";" * (MAX_LENGTH - len(VALID)))
    with pytest.raises(Malformed, match="at most"):
        parse_hello(VALID + ";" * (MAX_LENGTH - len(VALID) + 1))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "version"),
        ("2; node=x", "version '2'"),
        ("x" * 100, "version 'xxxxxxxxxxxxxxxx'"),
        ("1", "node id"),
        (LEAST.replace("node=", "edon="), "node id"),
        (LEAST.replace(NODE, NODE.upper()), "node id"),
        (LEAST.replace(NODE, "a" * 51 + "r"), "node id"),
        (LEAST.replace("nonce=", "once="), "nonce"),
        (LEAST.replace(NONCE, "A" * 21), "nonce"),
        (LEAST.replace(NONCE, "A" * 65), "nonce"),
        (LEAST.replace(NONCE, "+" * 22), "nonce"),
        (LEAST.replace("instance=", "class="), "instance"),
        (LEAST.replace(INSTANCE, "I" * 21), "instance"),
        (LEAST.replace(INSTANCE, "I" * 65), "instance"),
        (LEAST.replace(INSTANCE, "I" * 21 + "+"), "instance"),
    ],
)
def test_what_is_missing_is_named(value: str, says: str) -> None:
    with pytest.raises(Malformed, match=says):
        parse_hello(value)


@pytest.mark.parametrize("more", ["listen=²", "dial=٣", "caps=é", "name=bücher", "name=\xa0", "soul=\x80"])
def test_a_hello_is_ascii(more: str) -> None:
    """So it is the same bytes everywhere, and those are what is signed."""
    with pytest.raises(Malformed, match="ASCII"):
        parse_hello(f"{LEAST}; {more}")


@pytest.mark.parametrize("dial", ["-1", "x", "", "1.5", "1e3", str(MAX_DIAL), "9" * 17, "9" * 1000])
def test_bad_dial_numbers(dial: str) -> None:
    with pytest.raises(Malformed, match="dial number"):
        parse_hello(f"{LEAST}; dial={dial}")


@pytest.mark.parametrize("resume", ["-1", "x", "", "1.5", str(MAX_RESUME + 1), "9" * 17])
def test_bad_resume_times(resume: str) -> None:
    with pytest.raises(Malformed, match="resume time"):
        parse_hello(f"{LEAST}; resume={resume}")


@pytest.mark.parametrize("caps", ["A", ",", "a,", "a b", "c" * 33, ",".join("c" * (MAX_CAPS + 1))])
def test_bad_capabilities(caps: str) -> None:
    with pytest.raises(Malformed, match="capabilities"):
        parse_hello(f"{LEAST}; caps={caps}")


@pytest.mark.parametrize(
    "listen", ["0", "65536", "99999", "123456", "-1", "a", "1,", ",1", "1 ,2", "1e3", "0x1", ","]
)
def test_bad_ports(listen: str) -> None:
    with pytest.raises(Malformed, match="ports"):
        parse_hello(f"{LEAST}; listen={listen}")


def test_ports_are_limited() -> None:
    check_ports(tuple(range(1, MAX_PORTS + 1)))
    for ports in (tuple(range(1, MAX_PORTS + 2)), (0,), (65536,), (-1,)):
        with pytest.raises(Malformed):
            check_ports(ports)
    with pytest.raises(Malformed):
        parse_hello(f"{LEAST}; listen={','.join(['1'] * (MAX_PORTS + 1))}")


@pytest.mark.parametrize(
    ("quoted", "name"),
    [
        ("b%C3%B6b", "böb"),
        ("a%20b", "a b"),
        ("%0d%0aevil", "evil"),
        ("%1b[31mred", "[31mred"),
        ("%E2%80%AEabc", "abc"),
        ("%ff", "\N{REPLACEMENT CHARACTER}"),
        ("%zz", "%zz"),
        ("x" * 500, "x" * MAX_NAME),
    ],
    ids=["utf8", "space", "newline", "escape", "right-to-left", "not utf8", "not hex", "long"],
)
def test_names_end_up_in_logs_so_only_printable_ones_get_through(quoted: str, name: str) -> None:
    assert parse_hello(f"{LEAST}; name={quoted}").name == name


# Proofs -------------------------------------------------------------------------------------------

SIGNATURE = Identity().sign(b"anything")


def test_a_servers_value_is_its_hello_and_its_proof() -> None:
    value = with_proof(VALID, SIGNATURE)
    assert value == f"{VALID}; proof={base64.urlsafe_b64encode(SIGNATURE).decode().rstrip('=')}"
    assert split_proof(value) == (VALID, SIGNATURE)


@given(hellos, st.binary(min_size=SIGNATURE_BYTES, max_size=SIGNATURE_BYTES))
def test_hello_and_proof_come_apart_as_they_were_put_together(said: Hello, signature: bytes) -> None:
    assert split_proof(with_proof(said.to_header(), signature)) == (said.to_header(), signature)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "no proof"),
        (VALID, "no proof"),
        (f"{VALID}; proof=", "base64url"),
        (f"{VALID}; proof={'!' * 86}", "base64url"),
        (f"{VALID}; proof={'A' * 85}", "base64url"),
        (f"{VALID}; proof={'A' * 84}", "63 bytes"),
        (f"{VALID}; proof={'A' * 88}", "66 bytes"),
        (f"{VALID}; proof={'é' * 86}", "base64url"),
        (with_proof(VALID, SIGNATURE) + "; more=1", "base64url"),
    ],
)
def test_what_is_no_proof(value: str, says: str) -> None:
    with pytest.raises(Malformed, match=says):
        split_proof(value)


def test_what_is_signed_names_both_hellos_the_certificate_and_the_role() -> None:
    """Any change of it is another version: the two sides would not understand each other."""
    transcript = Transcript("client", "server", b"certificate")
    common = b"openline hello 1\n"
    for part in (b"client", b"server", hashlib.sha256(b"certificate").digest()):
        common += len(part).to_bytes(4, "big") + part
    assert transcript.signed_by("client") == common + b"client"
    assert transcript.signed_by("server") == common + b"server"
    assert transcript.connection_id == hashlib.sha256(common).digest()[:16]


def test_no_two_connections_sign_the_same() -> None:
    said = [
        Transcript("ab", "c", None),
        Transcript("a", "bc", None),
        Transcript("", "abc", None),
        Transcript("ab", "c", b""),
        Transcript("ab", "c", b"x"),
        Transcript("c", "ab", None),
    ]
    signed = {transcript.signed_by(role) for transcript in said for role in ("client", "server")}  # type: ignore[arg-type]
    assert len(signed) == 2 * len(said) - 2  # an empty certificate is none
    assert len({transcript.connection_id for transcript in said}) == len(said) - 1
