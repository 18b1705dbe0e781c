"""Configuration comes from a plain dict, is frozen, and says what is wrong with it."""

from __future__ import annotations

import tomllib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import openline
from openline.backends.tls import fingerprint
from openline.config import Config, Tls, check_pin

PIN = fingerprint(b"a certificate")
OTHER_PIN = fingerprint(b"its successor")
NODE = "a" * 51 + "q"


def test_everything_has_a_default() -> None:
    assert msgspec.convert({}, Config) == Config() == openline.Config()


def test_from_toml_with_nested_tls() -> None:
    text = f"""
        name = "alice"
        max_idle_timeout = 6
        plain_reuse = "newest"
        [tls]
        cert = "cert.pem"
        key = "key.pem"
        pins = ["{PIN}", "{OTHER_PIN}"]
    """
    config = msgspec.convert(tomllib.loads(text), Config)
    assert config == Config(
        name="alice",
        max_idle_timeout=6.0,
        plain_reuse="newest",
        tls=Tls(cert="cert.pem", key="key.pem", pins=(PIN, OTHER_PIN)),
    )


def test_from_json() -> None:
    config = msgspec.json.decode(b'{"compression": true, "inbox_messages": 5}', type=Config)
    assert (config.compression, config.inbox_messages) == (True, 5)


def test_configs_survive_a_round_trip() -> None:
    config = Config(name="alice", tls=Tls(pins=(PIN,)))
    assert msgspec.convert(msgspec.to_builtins(config), Config) == config


@pytest.mark.parametrize(("struct", "field"), [(Config(), "name"), (Tls(), "cert")])
def test_frozen(struct: msgspec.Struct, field: str) -> None:
    with pytest.raises(AttributeError):
        setattr(struct, field, "x")


def test_the_idle_timeout_drives_the_ping_interval() -> None:
    assert Config().ping_interval == 5.0
    assert Config(max_idle_timeout=6).ping_interval == 1.0


POSITIVE = [
    "max_idle_timeout",
    "progress_cap",
    "dial_timeout",
    "handshake_timeout",
    "send_timeout",
    "resume_timeout",
    "request_timeout",
    "close_timeout",
    "backoff_min",
    "backoff_max",
]
COUNTS = [
    "max_pending_handshakes",
    "max_connections_per_ip",
    "max_strangers",
    "strangers_inbox_bytes",
    "window_messages",
    "window_bytes",
    "max_attempts",
    "max_message_size",
    "write_high_water",
    "inbox_messages",
    "inbox_bytes",
    "max_streams",
    "peer_events",
]


@pytest.mark.parametrize("field", POSITIVE)
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), "5", None])
def test_times_are_positive(field: str, value: Any) -> None:
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.convert({field: value}, Config)


@pytest.mark.parametrize("field", COUNTS)
@pytest.mark.parametrize("value", [0, -1, 1.5, "5", None])
def test_counts_and_sizes_are_at_least_one(field: str, value: Any) -> None:
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.convert({field: value}, Config)


def test_every_limit_is_in_one_of_the_tables_above() -> None:
    limits = {field.name for field in msgspec.structs.fields(Config) if type(field.default) in (int, float)}
    assert limits == {*POSITIVE, *COUNTS}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"nmae": "alice"}, "nmae"),
        ({"tls": {"certificate": "x"}}, "certificate"),
        ({"name": "x" * 129}, "128"),
        ({"name": 5}, "name"),
        ({"plain_reuse": "always"}, "always"),
        ({"compression": 1}, "compression"),
        ({"identity": 5}, "identity must be a path or an openline.Identity"),
        ({"allow": NODE}, "allow"),
        ({"allow": [NODE, "alice"]}, "'alice' is not a node id"),
        ({"allow": [NODE.upper()]}, "is not a node id"),
        ({"backoff_min": 5, "backoff_max": 1}, "backoff_max must not be smaller"),
        ({"tls": {"cert": "cert.pem"}}, "both cert and key"),
        ({"tls": {"key": "key.pem"}}, "both cert and key"),
        ({"tls": {"pins": PIN}}, "pins"),
        ({"tls": {"pins": [PIN, "sha256/short"]}}, "sha256/short"),
    ],
)
def test_mistakes_are_named(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=says):
        msgspec.convert(wrong, Config)


@pytest.mark.parametrize("build", [{"cert": "cert.pem"}, {"key": "key.pem"}, {"pins": ("x",)}, {"pins": PIN}])
def test_tls_is_checked_when_built_in_code_too(build: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"cert and key|pin"):
        Tls(**build)


@pytest.mark.parametrize(
    "pin",
    [
        "",
        "sha256",
        "sha256/",
        PIN.removeprefix("sha256/"),
        PIN.replace("sha256", "sha1"),
        PIN.upper(),
        PIN[:-1],
        PIN + "=",
        PIN + "\n",
        " " + PIN,
        "sha256/" + "A" * 40,
        "sha256/" + "A" * 86 + "==",
        "sha256/" + "-_" * 21 + "A=",
        "sha256/é",
        "sha256/" + "ab" * 32,
    ],
)
def test_bad_pins_are_shown_with_the_form_they_should_have(pin: str) -> None:
    with pytest.raises(ValueError, match="is not sha256/<base64 of 32 bytes>"):
        check_pin(pin)


@given(st.binary())
def test_what_fingerprint_makes_is_a_pin(der: bytes) -> None:
    check_pin(fingerprint(der))


@given(st.text() | st.text().map("sha256/".__add__))
def test_arbitrary_text_is_a_pin_or_a_value_error(text: str) -> None:
    said = repr(text)
    try:
        check_pin(text)
    except ValueError as error:
        said = str(error)
    assert repr(text) in said


def test_known_peers_is_a_path() -> None:
    assert Config().known_peers is None
    assert msgspec.convert({"known_peers": "known"}, Config).known_peers == "known"
    with pytest.raises(msgspec.ValidationError, match="known_peers must be the path of a file"):
        msgspec.convert({"known_peers": ""}, Config)
    with pytest.raises(TypeError):
        Config(known_peers=5)  # type: ignore[arg-type]
