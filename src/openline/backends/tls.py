"""TLS contexts, and pins that fail closed (rule 3.6)."""

from __future__ import annotations

import base64
import datetime
import hashlib
import os
import ssl
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from ..config import Tls
from ..errors import Refused
from ..identity import Identity


class ServerContext(ssl.SSLContext):
    """``certificate`` (DER) is what it shows: a connection's proof is bound to that of its own context."""

    certificate: bytes


def server_context(tls: Tls) -> ServerContext:
    """For ``listen()``: needs ``cert`` and ``key``."""
    assert tls.cert is not None
    context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.cert, tls.key, password=_no_password)
    context.certificate = certificate(tls)
    return context


def node_context(identity: Identity) -> ServerContext:
    """For ``listen()`` without files of its own: shows the certificate of the node's key (rule 3.8)."""
    context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # nothing of ours resumes, and each would cost every handshake 250 bytes
    pem = certificate_of(identity)
    _load(context, pem + identity.to_pem())
    context.certificate = first_certificate(pem.decode())
    return context


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    """OpenSSL's binding reads files only: one that has no name, or none any more when it has been read."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("certificate")
        try:
            os.write(number, pem)
            context.load_cert_chain(f"/proc/self/fd/{number}")
        finally:
            os.close(number)
        return
    number, path = tempfile.mkstemp()  # for its owner only (0600)
    try:
        with open(number, "wb") as file:
            file.write(pem)
        context.load_cert_chain(path)
    finally:
        os.unlink(path)


def certificate_of(identity: Identity) -> bytes:
    """A self-signed certificate for the node's key, in PEM form; the same one every time.

    So a pin on it holds as long as the identity does. Nobody reads its names or dates.
    """
    key = load_pem_private_key(identity.to_pem(), None)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.node_id)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())  # type: ignore[arg-type]  # it is Ed25519
        .serial_number(int.from_bytes(identity.public_key[:8], "big") | 1)
        .not_valid_before(datetime.datetime(2020, 1, 1))
        .not_valid_after(datetime.datetime(9999, 12, 31, 23, 59, 59))
    )
    return builder.sign(key, None).public_bytes(Encoding.PEM)  # type: ignore[arg-type]


def _no_password() -> str:
    """OpenSSL would ask at the terminal, and the program would stand still."""
    raise ValueError("the key is encrypted")


def client_context(tls: Tls | None) -> ssl.SSLContext:
    """For dialing: pins, else the given CA, else the system's trust store."""
    context = ssl.create_default_context(cafile=tls.ca if tls else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls and tls.pins:
        # The pin is the trust anchor; check_pins() runs before a byte of ours leaves.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def any_certificate_context() -> ssl.SSLContext:
    """For dialing an address that asks for no certificate: the node's proof, bound to the certificate that
    was shown, says who it is (rule 3.6)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def certificate(tls: Tls) -> bytes:
    """The DER certificate that ``server_context`` shows."""
    assert tls.cert is not None
    return first_certificate(Path(tls.cert).read_text(encoding="utf-8"))


def first_certificate(pem: str) -> bytes:
    """The DER form of the first one in the text, which is the one shown. Raises ``ValueError``."""
    begin = pem.index(ssl.PEM_HEADER)
    return ssl.PEM_cert_to_DER_cert(pem[begin : pem.index(ssl.PEM_FOOTER, begin) + len(ssl.PEM_FOOTER)])


def fingerprint(der: bytes) -> str:
    """``sha256/<base64>`` of a DER certificate, the form that pins take."""
    return pin_of(hashlib.sha256(der).digest())


def pin_of(digest: bytes) -> str:
    """The same of a SHA-256."""
    return "sha256/" + base64.b64encode(digest).decode()


def check_pins(tls: Tls | None, der: bytes | None, address: str) -> None:
    """Raise ``Refused`` unless the certificate matches one of the pins, where there are any."""
    if tls is None or not tls.pins:
        return
    if not der:
        raise Refused(f"{address}: the peer showed no certificate, and pins are set")
    shown = fingerprint(der)
    if shown not in tls.pins:
        raise Refused(
            f"{address}: the peer's certificate is {shown}, which is none of the {len(tls.pins)} pinned"
        )
