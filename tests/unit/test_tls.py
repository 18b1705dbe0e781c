"""Pins fail closed, and contexts trust what they are told to trust and nothing else."""

from __future__ import annotations

import base64
import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from openline import Refused
from openline.backends.tls import check_pins, client_context, fingerprint, server_context
from openline.config import Tls

Made = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


@pytest.fixture(scope="module")
def made() -> Made:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "openline test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


@pytest.fixture(scope="module")
def der(made: Made) -> bytes:
    return made[0].public_bytes(serialization.Encoding.DER)


@pytest.fixture
def files(made: Made, tmp_path: Path) -> tuple[str, str]:
    certificate, key = made
    cert_file, key_file = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key_file.write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    return str(cert_file), str(key_file)


def test_fingerprint_is_that_of_the_der_certificate(made: Made, der: bytes) -> None:
    digest = made[0].fingerprint(hashes.SHA256())
    assert fingerprint(der) == f"sha256/{base64.b64encode(digest).decode()}"


def test_a_pinned_certificate_passes(der: bytes) -> None:
    check_pins(Tls(pins=(fingerprint(der),)), der, "h:1")


def test_any_one_of_several_pins_is_enough_so_that_rotation_works(der: bytes) -> None:
    check_pins(Tls(pins=(fingerprint(b"old"), fingerprint(der), fingerprint(b"next"))), der, "h:1")


@pytest.mark.parametrize("tls", [None, Tls(), Tls(ca="ca.pem")])
@pytest.mark.parametrize("shown", [None, b"", b"any"])
def test_without_pins_there_is_nothing_to_check(tls: Tls | None, shown: bytes | None) -> None:
    check_pins(tls, shown, "h:1")


def test_another_certificate_is_refused_and_named(der: bytes) -> None:
    with pytest.raises(Refused) as caught:
        check_pins(Tls(pins=(fingerprint(b"other"), fingerprint(b"third"))), der, "wss://h:1")
    assert "wss://h:1" in str(caught.value)
    assert fingerprint(der) in str(caught.value)
    assert "2 pinned" in str(caught.value)


@pytest.mark.parametrize("shown", [None, b""])
def test_no_certificate_is_refused(shown: bytes | None, der: bytes) -> None:
    with pytest.raises(Refused, match=r"wss://h:1.*no certificate"):
        check_pins(Tls(pins=(fingerprint(der),)), shown, "wss://h:1")


@given(st.binary(), st.lists(st.binary(), min_size=1, max_size=4))
def test_exactly_the_pinned_pass(shown: bytes, pinned: list[bytes]) -> None:
    tls = Tls(pins=tuple(map(fingerprint, pinned)))
    if shown and shown in pinned:
        check_pins(tls, shown, "h:1")
    else:
        with pytest.raises(Refused):
            check_pins(tls, shown, "h:1")


def test_by_default_the_name_and_the_chain_are_verified() -> None:
    for context in (client_context(None), client_context(Tls())):
        assert context.check_hostname
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_a_given_ca_replaces_the_trust_store(files: tuple[str, str], made: Made) -> None:
    context = client_context(Tls(ca=files[0]))
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.get_ca_certs(binary_form=True) == [made[0].public_bytes(serialization.Encoding.DER)]


def test_with_pins_the_pin_is_what_is_checked(der: bytes) -> None:
    context = client_context(Tls(pins=(fingerprint(der),)))
    assert context.verify_mode is ssl.CERT_NONE
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_a_server_context_needs_its_files(files: tuple[str, str]) -> None:
    assert server_context(Tls(cert=files[0], key=files[1])).minimum_version >= ssl.TLSVersion.TLSv1_2
    with pytest.raises(OSError):  # noqa: PT011 - ssl's own error, from a file that is no key
        server_context(Tls(cert=files[0], key=files[0]))
    with pytest.raises(FileNotFoundError):
        server_context(Tls(cert=files[0] + ".gone", key=files[1]))
