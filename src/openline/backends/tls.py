"""TLS contexts, and pins that fail closed (rule 3.6)."""

from __future__ import annotations

import base64
import hashlib
import ssl
from pathlib import Path

from ..config import Tls
from ..errors import Refused


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
