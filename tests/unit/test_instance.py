"""Which process it is: a key that only the process has, named in a form that is the only one."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openline import Identity
from openline.config import Config
from openline.connection.admission import Admission
from openline.connection.instance import Instance, signed_for
from openline.core.frames import Malformed
from openline.core.handshake import Hello, Transcript, digest_of, parse_hello

ONE = Instance()


@given(st.binary(max_size=300))
def test_what_a_process_signs_is_its_own(data: bytes) -> None:
    assert len(ONE.name) == 43
    assert signed_for(ONE.name, ONE.sign(data), data)
    assert not signed_for(Instance().name, ONE.sign(data), data)
    assert not signed_for(ONE.name, ONE.sign(data), data + b"\0")


@given(st.text(max_size=64), st.binary(max_size=70))
def test_what_is_no_key_or_no_signature_proves_nothing(name: str, signature: bytes) -> None:
    assert not signed_for(name, signature, b"data")
    assert not signed_for(ONE.name, signature, b"data")


def test_a_key_has_one_name() -> None:
    """Else one process could pass for two."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet.index(ONE.name[-1])
    for other in range(last - last % 4, last - last % 4 + 4):
        name = ONE.name[:-1] + alphabet[other]
        assert signed_for(name, ONE.sign(b"data"), b"data") == (other == last)
    for name in (ONE.name + "=", " " + ONE.name, ONE.name.replace("_", "/").replace("-", "+") + "A"):
        assert not signed_for(name, ONE.sign(b"data"), b"data")


@pytest.mark.parametrize("y", [0, 1, 2**255 - 19, 2**255 - 20])
def test_a_key_under_which_anybody_can_sign_names_nobody(y: int) -> None:
    name = base64.urlsafe_b64encode(y.to_bytes(32, "little")).decode().rstrip("=")
    forged = (1).to_bytes(32, "little") + bytes(32)
    assert not any(signed_for(name, forged, bytes([n])) for n in range(16))


def test_a_process_that_is_another_one_from_now_on_says_so() -> None:
    door = Admission(Config(), Identity(), lambda *_: None, lambda _: [], lambda _: False, lambda *_: None)  # type: ignore[arg-type, return-value]
    before = parse_hello(door.hello())
    assert door.is_own(Hello(before.node_id, "", instance=before.instance, proven=True))
    assert not door.is_own(before)  # it says so; anybody can
    door.renew_instance()
    after = parse_hello(door.hello())
    assert after.instance != before.instance
    assert not door.is_own(Hello(before.node_id, "", instance=before.instance, proven=True))


def test_a_claim_to_an_instance_is_another_process_than_the_instance() -> None:
    claimed, proven = (Hello("node", "", instance=ONE.name, proven=proven) for proven in (False, True))
    assert claimed.process != proven.process


# What a hello says of the certificate ---------------------------------------------------------------


def test_a_servers_hello_names_its_certificate() -> None:
    hello = Hello(Identity().node_id, "n" * 32, instance=ONE.name, certificate=digest_of(b"certificate"))
    assert parse_hello(hello.to_header()) == hello
    for wrong in ("", "A" * 42, "A" * 44, "A" * 42 + "B", "A" * 42 + "=", "A" * 42 + "/"):
        text = hello.to_header().replace(hello.to_header().partition("cert=")[2], wrong)
        if wrong:
            with pytest.raises(Malformed, match="certificate"):
                parse_hello(text)
        else:
            assert parse_hello(text).certificate == b""


def test_what_is_signed_is_the_digest() -> None:
    whole = Transcript("c", "s", b"certificate")
    assert Transcript.bound_to("c", "s", digest_of(b"certificate")).signed_by("client") == whole.signed_by(
        "client"
    )
    assert whole.without_certificate().signed_by("server") == Transcript("c", "s", None).signed_by("server")
