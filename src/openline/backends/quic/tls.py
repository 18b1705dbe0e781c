"""TLS for QUIC: the certificate that a node makes of its identity, tickets, and retry tokens."""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
import logging
import os
import socket
import ssl
import struct
import time
from collections import OrderedDict
from typing import Any

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from qh3._hazmat import Certificate
from qh3.quic.configuration import QuicConfiguration
from qh3.tls import Alert, SessionTicket, SignatureAlgorithm, verify_certificate

from ...address import Address, canonical_ip
from ...config import Config, Tls
from ...core.text import printable
from ...errors import Refused
from ...identity import Identity
from ..certificates import private_key_in
from ..tls import certificate_of, check_pins, first_certificate
from .limits import MIN_DATAGRAM

ALPN = "openline/1"
# What a client that goes by the node's proof puts into SNI; it tells nobody whom it dials.
SERVER_NAME = "openline"

# Unread bytes that a peer may have on its way to us: per stream as much as the default window of a
# session's stream, and as much again for large messages; per connection the double of that.
STREAM_WINDOW = 8 * 1024 * 1024
CONNECTION_WINDOW = 16 * 1024 * 1024

# Tickets kept: by a client, one per address it dials; by a server, those not used yet. Each takes
# about 1 kB.
CLIENT_TICKETS = 1024
SERVER_TICKETS = 4096
# A retry token comes back within a round trip.
RETRY_LIFETIME = 10.0

_SIGNATURES = [
    SignatureAlgorithm.ED25519,
    SignatureAlgorithm.ECDSA_SECP256R1_SHA256,
    SignatureAlgorithm.ECDSA_SECP384R1_SHA384,
    SignatureAlgorithm.RSA_PSS_RSAE_SHA256,
    SignatureAlgorithm.RSA_PSS_RSAE_SHA384,
    SignatureAlgorithm.RSA_PSS_RSAE_SHA512,
]


class _Quieter(logging.Filter):
    """qh3 warns of every connection that a peer closes; openline says so itself, where it matters."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Native p")


logging.getLogger("quic").addFilter(_Quieter())


class Shown:
    """What a new connection is shown, and may be resumed by: one certificate.

    ``certificate`` (DER) is what the proofs of its connections are bound to. A ticket is good only for
    the certificate of the connection that it came over, because a resumed one shows none.
    """

    def __init__(self, quic: QuicConfiguration, certificate: bytes) -> None:
        self.quic = quic
        self.certificate = certificate
        self.tickets = ServerTickets()


def shown_by(config: Config, identity: Identity, files: tuple[bytes, ...]) -> Shown:
    """For listening: the certificate and key of ``files``, else one made of the identity.

    Raises ``ValueError`` and ``TypeError``.
    """
    quic = _configuration(config, is_client=False)
    if files:
        chain, key = files
        quic.load_cert_chain(chain, _key(key))
        return Shown(quic, first_certificate(chain.decode()))
    pem = certificate_of(identity)
    quic.load_cert_chain(pem, identity.to_pem())
    return Shown(quic, first_certificate(pem.decode()))


def _key(pem: bytes) -> bytes:
    """The private key in the one form that qh3 reads whatever it is."""
    key = load_pem_private_key(private_key_in(pem), None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def client_configuration(config: Config, ticket: SessionTicket | None) -> QuicConfiguration:
    """For one dial. Certificates are judged by ``Trust``, before anything of ours leaves."""
    quic = _configuration(config, is_client=True)
    quic.signature_algorithms = list(_SIGNATURES)
    if ticket is not None and not config.zero_rtt:
        ticket = dataclasses.replace(ticket, max_early_data_size=None)  # or qh3 offers early data
    quic.session_ticket = ticket
    quic.verify_mode = ssl.CERT_NONE
    quic.server_name = SERVER_NAME
    return quic


class Trust:
    """What a certificate must be where an address says ``quic://`` (rule 3.6): pinned, or from the CA.

    Where there are neither pins nor a CA the node's proof is all that counts. ``files`` is the CA's, if
    any. Raises ``ValueError`` where it holds no certificate.
    """

    def __init__(self, config: Tls | None, files: tuple[bytes, ...]) -> None:
        self._tls = config
        self._ca = b""
        self._known: set[bytes] = set()
        if config is not None and files and not config.pins:
            self._ca = files[0]
            try:
                found = x509.load_pem_x509_certificates(self._ca)
            except ValueError as error:
                raise ValueError(f"it holds no certificate: {error}") from None
            self._known = {certificate.public_bytes(Encoding.DER) for certificate in found}

    def check(self, address: Address, shown: bytes, chain: list[Any]) -> None:
        """Raises ``Refused``."""
        check_pins(self._tls, shown, str(address))
        if not self._ca:
            return
        host = address.host.partition("%")[0]
        try:
            certificate = x509.load_der_x509_certificate(shown)
            _check_dates(certificate)
            if shown in self._known:
                _check_name(certificate, host)  # as OpenSSL has it: what is in the file is trusted
            else:
                verify_certificate(Certificate(shown), chain, cadata=self._ca, server_name=host)
        except (ValueError, Alert) as error:
            why = printable(str(error))
            raise Refused(f"{address}: the peer's certificate is not trusted: {why}") from None


def _check_dates(certificate: x509.Certificate) -> None:
    now = datetime.datetime.now(datetime.UTC)
    if now > certificate.not_valid_after_utc:
        raise ValueError(f"it has expired on {certificate.not_valid_after_utc:%Y-%m-%d}")
    if now < certificate.not_valid_before_utc:
        raise ValueError(f"it is not valid before {certificate.not_valid_before_utc:%Y-%m-%d}")


def _check_name(certificate: x509.Certificate, host: str) -> None:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise ValueError("it names no host") from None
    ips = {str(ip) for ip in names.get_values_for_type(x509.IPAddress)}
    hosts = {name.lower() for name in names.get_values_for_type(x509.DNSName)}
    wild = "*." + host.partition(".")[2]
    if not (canonical_ip(host) in ips if canonical_ip(host) else {host, wild} & hosts):
        raise ValueError(f"it is for {', '.join(sorted(ips | hosts))}, not for {host}")


def _configuration(config: Config, *, is_client: bool) -> QuicConfiguration:
    return QuicConfiguration(
        is_client=is_client,
        alpn_protocols=[ALPN],
        idle_timeout=config.max_idle_timeout,
        max_data=CONNECTION_WINDOW,
        max_stream_data=STREAM_WINDOW,
        max_datagram_size=MIN_DATAGRAM,
    )


# Resumption -------------------------------------------------------------------------------------


class Remembered(msgspec.Struct):
    """A ticket, and the certificate of the connection it came over: a resumed one shows none."""

    ticket: SessionTicket
    certificate: bytes


class ClientTickets:
    """By what was dialed; each ticket is used once (RFC 8446 appendix C.4)."""

    def __init__(self) -> None:
        self._kept: OrderedDict[object, Remembered] = OrderedDict()

    def add(self, key: object, ticket: SessionTicket, certificate: bytes) -> None:
        self._kept[key] = Remembered(ticket, certificate)
        self._kept.move_to_end(key)
        if len(self._kept) > CLIENT_TICKETS:
            self._kept.popitem(last=False)

    def take(self, key: object) -> Remembered | None:
        found = self._kept.pop(key, None)
        return found if found is not None and found.ticket.is_valid else None


class ServerTickets:
    """Those given out. Each opens one connection: what was sent early cannot be replayed
    (RFC 8446 section 8.1)."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, SessionTicket] = OrderedDict()

    def add(self, ticket: SessionTicket) -> None:
        self._kept[ticket.ticket] = ticket
        if len(self._kept) > SERVER_TICKETS:
            self._kept.popitem(last=False)

    def take(self, label: bytes) -> SessionTicket | None:
        return self._kept.pop(label, None)


# Retry ------------------------------------------------------------------------------------------


class RetryTokens:
    """Proof that a client receives what is sent to its address (RFC 9000 section 8.1.2).

    qh3's own are RSA: a flood would cost more to check than to serve.
    """

    def __init__(self) -> None:
        self._seal = AESGCM(AESGCM.generate_key(128))

    def make(self, addr: tuple[Any, ...], original: bytes, source: bytes) -> bytes:
        nonce = os.urandom(12)
        until = struct.pack("!d", time.monotonic() + RETRY_LIFETIME)
        inside = until + bytes([len(original)]) + original + source
        return nonce + self._seal.encrypt(nonce, inside, _packed(addr))

    def read(self, addr: tuple[Any, ...], token: bytes) -> tuple[bytes, bytes]:
        """The original destination connection id, and the one we chose. Raises ``ValueError``."""
        try:
            inside = self._seal.decrypt(token[:12], token[12:], _packed(addr))
        except (InvalidTag, ValueError):
            raise ValueError("not a token of ours, or not for that address") from None
        if struct.unpack_from("!d", inside)[0] < time.monotonic():
            raise ValueError("the token has expired")
        split = 9 + inside[8]
        return inside[9:split], inside[split:]


def _packed(addr: tuple[Any, ...]) -> bytes:
    return ipaddress.ip_address(addr[0].partition("%")[0]).packed + socket.htons(addr[1]).to_bytes(2, "big")
