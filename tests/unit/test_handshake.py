"""The hello: what it says, and that nothing in it can do harm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openline.core.frames import Malformed
from openline.core.handshake import MAX_LENGTH, MAX_NAME, MAX_PORTS, Hello, check_ports, parse_hello

NODE = "a" * 51 + "q"
NONCE = "A" * 22
VALID = f"1; node={NODE}; nonce={NONCE}; listen=8770,8771; name=alice"

hellos = st.builds(
    Hello,
    st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=52, max_size=52),
    st.from_regex(r"[A-Za-z0-9_-]{22,64}", fullmatch=True),
    st.lists(st.integers(1, 65535), max_size=MAX_PORTS).map(tuple),
    st.text(st.characters(exclude_categories=("C", "Z")), max_size=MAX_NAME),
)


def test_the_form() -> None:
    hello = Hello(NODE, NONCE, (8770, 8771), "alice")
    assert hello.to_header() == VALID
    assert parse_hello(VALID) == hello


def test_without_ports_and_name() -> None:
    assert parse_hello(f"1; node={NODE}; nonce={NONCE}") == Hello(NODE, NONCE)
    assert Hello(NODE, NONCE).to_header() == f"1; node={NODE}; nonce={NONCE}"


@given(hellos)
def test_round_trip(hello: Hello) -> None:
    assert parse_hello(hello.to_header()) == hello


@given(hellos)
def test_the_header_is_one_line_of_plain_ascii(hello: Hello) -> None:
    header = hello.to_header()
    assert header.isascii()
    assert header.isprintable()
    assert len(header) <= MAX_LENGTH


@pytest.mark.parametrize(
    "hello",
    [
        Hello(NODE, NONCE, name="é" * 5000),
        Hello(NODE, NONCE, tuple(range(1, 1000))),
        Hello(NODE, NONCE, name="line\r\nX-Evil: 1"),
        Hello(NODE, NONCE, name="a; node=b"),
        Hello(NODE, NONCE, name="\ud800"),
    ],
    ids=["long name", "many ports", "newline", "separator", "lone surrogate"],
)
def test_whatever_a_node_is_configured_with_its_peers_can_read_it(hello: Hello) -> None:
    assert parse_hello(hello.to_header()).node_id == NODE


def test_unknown_parameters_are_room_for_later_versions() -> None:
    assert parse_hello(f"{VALID}; proof=xyz; flag;; =") == parse_hello(VALID)


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
        (f"1; nonce={NONCE}", "node id"),
        (f"1; node={NODE.upper()}; nonce={NONCE}", "node id"),
        (f"1; node={NODE}", "nonce"),
        (f"1; node={NODE}; nonce={'A' * 21}", "nonce"),
        (f"1; node={NODE}; nonce={'A' * 65}", "nonce"),
        (f"1; node={NODE}; nonce={'é' * 22}", "nonce"),
    ],
)
def test_what_is_missing_is_named(value: str, says: str) -> None:
    with pytest.raises(Malformed, match=says):
        parse_hello(value)


@pytest.mark.parametrize(
    "listen", ["0", "65536", "99999", "123456", "-1", "a", "1,", ",1", "1 ,2", "²", "٣", ","]
)
def test_bad_ports(listen: str) -> None:
    with pytest.raises(Malformed, match="ports"):
        parse_hello(f"1; node={NODE}; nonce={NONCE}; listen={listen}")


def test_ports_are_limited() -> None:
    check_ports(tuple(range(1, MAX_PORTS + 1)))
    for ports in (tuple(range(1, MAX_PORTS + 2)), (0,), (65536,), (-1,)):
        with pytest.raises(Malformed):
            check_ports(ports)
    with pytest.raises(Malformed):
        parse_hello(f"1; node={NODE}; nonce={NONCE}; listen={','.join(['1'] * (MAX_PORTS + 1))}")


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
    assert parse_hello(f"1; node={NODE}; nonce={NONCE}; name={quoted}").name == name
