"""The hello: what an openline node says of itself in one HTTP header of the WebSocket upgrade.

``Openline-Hello: 1; node=<node id>; nonce=<base64url>; instance=<base64url>; dial=1; listen=8770; name=bob``

Each side signs one transcript: both hellos and the server's certificate, in the name of its role.
It signs twice, with the node's key and with its ``instance``'s (``openline.connection.instance``).
The server's proof ends its own header value (``; proof=<base64url>``); the client's is the first
frame it sends. No round trip is added. Unknown parameters are ignored.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Literal
from urllib.parse import quote, unquote

import msgspec

from ..address import is_node_id
from .frames import Malformed
from .text import printable

HEADER = "Openline-Hello"
# In an answer that turns a client away for who it is.
REFUSED_HEADER = "Openline-Refused"
VERSION = "1"
# A hello is parsed before anything is known of its sender; a full one takes about 900 characters.
MAX_LENGTH = 2048
MAX_PORTS = 16
MAX_NAME = 128
MAX_CAPS = 16
SIGNATURE_BYTES = 64
# A proof is the node's signature and its instance's; older nodes prove no instance.
PROOF_SIZES = (SIGNATURE_BYTES, 2 * SIGNATURE_BYTES)
# A capability: the client holds the server's certificate to pins or a CA, so that it needs this very
# connection for addresses that ask for one.
CERTIFIED = "certified"
# Nobody dials that often; it must only stay a number that fits everywhere.
MAX_DIAL = 2**53
# Config's resume_timeout and max_idle_timeout together, rounded up; their defaults make this. The
# other side remembers for twice as long what it has had, so there is a limit.
DEFAULT_RESUME = 150
MAX_RESUME = 10_000
# The capability of a node whose proofs are of the greater size: nobody on the way can cut that half off.
SIGNS_INSTANCE = "instance"
# A capability: this node reads the stream that answers in pieces are controlled on.
STREAMS = "streams"
_NONCE = re.compile(r"[A-Za-z0-9_-]{22,64}")
# SHA-256 in base64url: the last character carries 4 bits.
_DIGEST = re.compile(r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")
_CAP = re.compile(r"[a-z0-9.-]{1,32}")
_PROOF = "; proof="

Role = Literal["client", "server"]


class Hello(msgspec.Struct, frozen=True):
    """A parsed hello. ``ports`` are the TCP ports the node listens on.

    ``nonce`` is fresh for every connection, ``instance`` for every process, and ``dial`` counts the
    connections that process has begun (0 in a server's answer). ``resume`` is for how many seconds
    without a connection the process may still come back with what it has sent before.
    ``certificate`` is the SHA-256 of the certificate that a server shows, empty without TLS.
    """

    node_id: str
    nonce: str
    ports: tuple[int, ...] = ()
    name: str = ""
    instance: str = ""
    dial: int = 0
    caps: tuple[str, ...] = ()
    resume: int = DEFAULT_RESUME
    # What was signed, while the proof is on its way; then what both sides know the connection by.
    transcript: Transcript | None = None
    connection_id: bytes = b""
    certificate: bytes = b""
    # Has it signed with the key that the instance is? Else the instance is a claim, which whoever has
    # the node's key may have copied.
    proven: bool = False

    @property
    def process(self) -> str:
        """What tells the processes of one node apart: a claim to an instance is not that instance."""
        return f"={self.instance}" if self.proven else self.instance

    def is_copy(self, *processes: str) -> bool:
        """Does it only say that it is one of these, which have proven themselves?"""
        return not self.proven and f"={self.instance}" in processes

    def to_header(self) -> str:
        parts = [VERSION, f"node={self.node_id}", f"nonce={self.nonce}", f"instance={self.instance}"]
        if self.dial:
            parts.append(f"dial={self.dial}")
        if self.ports:
            parts.append("listen=" + ",".join(map(str, self.ports[:MAX_PORTS])))
        if self.resume != DEFAULT_RESUME:
            parts.append(f"resume={self.resume}")
        if self.caps:
            parts.append("caps=" + ",".join(self.caps[:MAX_CAPS]))
        if self.certificate:
            parts.append("cert=" + in_base64(self.certificate))
        if self.name:
            parts.append("name=" + quote(self.name[:MAX_NAME], safe="", errors="replace"))
        return "; ".join(parts)


def parse_hello(value: str) -> Hello:
    """Read the header's value. Raises ``Malformed`` with what is wrong."""
    if len(value) > MAX_LENGTH:
        raise Malformed(f"hello of {len(value)} characters, at most {MAX_LENGTH}")
    if not value.isascii():
        raise Malformed("a hello with a character outside ASCII")
    version, *pairs = (part.strip() for part in value.split(";"))
    if version != VERSION:
        raise Malformed(f"hello version {version[:16]!r}, this side speaks {VERSION}")
    fields = dict(pair.partition("=")[::2] for pair in pairs)
    node_id, nonce, instance = (fields.get(name, "") for name in ("node", "nonce", "instance"))
    if not is_node_id(node_id):
        raise Malformed("hello without a valid node id")
    if not _NONCE.fullmatch(nonce) or not _NONCE.fullmatch(instance):
        raise Malformed("hello without a valid nonce and instance")
    return Hello(
        node_id,
        nonce,
        _ports(fields.get("listen", "")),
        _name(fields.get("name", "")),
        instance,
        _number(fields.get("dial", "0"), MAX_DIAL, "dial number"),
        _caps(fields.get("caps", "")),
        _number(fields.get("resume", str(DEFAULT_RESUME)), MAX_RESUME + 1, "resume time"),
        certificate=_digest(fields.get("cert", "")),
    )


def _ports(value: str) -> tuple[int, ...]:
    texts = value.split(",") if value else []
    if len(texts) > MAX_PORTS or not all(t.isascii() and t.isdigit() and len(t) < 6 for t in texts):
        raise Malformed("hello with invalid ports")
    ports = tuple(map(int, texts))
    check_ports(ports)
    return ports


def check_ports(ports: tuple[int, ...]) -> None:
    if len(ports) > MAX_PORTS or not all(0 < port < 65536 for port in ports):
        raise Malformed("invalid listening ports")


def _name(value: str) -> str:
    return printable(unquote(value, errors="replace"), MAX_NAME)


def _number(value: str, below: int, what: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 17) or int(value) >= below:
        raise Malformed(f"hello with an invalid {what}")
    return int(value)


def _caps(value: str) -> tuple[str, ...]:
    caps = tuple(value.split(",")) if value else ()
    if len(caps) > MAX_CAPS or not all(_CAP.fullmatch(cap) for cap in caps):
        raise Malformed("hello with invalid capabilities")
    return caps


def _digest(value: str) -> bytes:
    if value and not _DIGEST.fullmatch(value):
        raise Malformed("hello with an invalid certificate digest")
    return base64.urlsafe_b64decode(value + "=") if value else b""


# The proof ---------------------------------------------------------------------------------------


class Transcript:
    """What both sides sign: both hellos as they were sent, and the server's certificate."""

    __slots__ = ("_common", "_hellos")

    def __init__(self, client: str, server: str, certificate: bytes | None) -> None:
        self._bind(client, server, digest_of(certificate))

    @classmethod
    def bound_to(cls, client: str, server: str, digest: bytes) -> Transcript:
        """With the SHA-256 of the certificate, or nothing, in place of the certificate."""
        made = cls.__new__(cls)
        made._bind(client, server, digest)
        return made

    def _bind(self, client: str, server: str, digest: bytes) -> None:
        self._hellos = client, server
        parts = (client.encode(), server.encode(), digest)
        self._common = b"openline hello 1\n" + b"".join(len(p).to_bytes(4, "big") + p for p in parts)

    def without_certificate(self) -> Transcript:
        """What would be signed on a connection without TLS."""
        return Transcript.bound_to(*self._hellos, b"")

    def signed_by(self, role: Role) -> bytes:
        """The bytes that this role signs."""
        return self._common + role.encode()

    @property
    def connection_id(self) -> bytes:
        """16 bytes that both sides know this connection by."""
        return hashlib.sha256(self._common).digest()[:16]


def digest_of(certificate: bytes | None) -> bytes:
    """What stands for the certificate in what is signed; empty without one."""
    return hashlib.sha256(certificate).digest() if certificate else b""


def in_base64(data: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def with_proof(hello: str, signature: bytes) -> str:
    """A server's header value: its hello, and its proof."""
    return hello + _PROOF + in_base64(signature)


def split_proof(value: str) -> tuple[str, bytes]:
    """A server's header value as the hello that was signed, and the proof. Raises ``Malformed``."""
    hello, found, text = value.rpartition(_PROOF)
    if not found:
        raise Malformed("the hello carries no proof")
    if not text:
        raise Malformed("the proof is empty, and not base64url")
    try:
        signature = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("the proof is not base64url") from None
    if len(signature) not in PROOF_SIZES:
        raise Malformed(f"a proof of {len(signature)} bytes instead of {' or '.join(map(str, PROOF_SIZES))}")
    return hello, signature
