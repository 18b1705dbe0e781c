"""The hello: what an openline node says of itself in one HTTP header of the WebSocket upgrade.

``Openline-Hello: 1; node=<node id>; nonce=<base64url>; listen=8770,8771; name=<percent-encoded>``

Unsigned for now: node id, name and ports are claims. The nonce already travels, so that a proof
over both hellos can be added without another round trip. Unknown parameters are ignored.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

import msgspec

from ..address import is_node_id
from .frames import Malformed

HEADER = "Openline-Hello"
VERSION = "1"
# A hello is parsed before anything is known of its sender; a full one takes about 700 characters.
MAX_LENGTH = 2048
MAX_PORTS = 16
MAX_NAME = 128
_NONCE = re.compile(r"[A-Za-z0-9_-]{22,64}")


class Hello(msgspec.Struct, frozen=True):
    """A parsed hello. ``ports`` are the TCP ports the node listens on."""

    node_id: str
    nonce: str
    ports: tuple[int, ...] = ()
    name: str = ""

    def to_header(self) -> str:
        parts = [VERSION, f"node={self.node_id}", f"nonce={self.nonce}"]
        if self.ports:
            parts.append("listen=" + ",".join(map(str, self.ports[:MAX_PORTS])))
        if self.name:
            parts.append("name=" + quote(self.name[:MAX_NAME], safe="", errors="replace"))
        return "; ".join(parts)


def parse_hello(value: str) -> Hello:
    """Read the header's value. Raises ``Malformed`` with what is wrong."""
    if len(value) > MAX_LENGTH:
        raise Malformed(f"hello of {len(value)} characters, at most {MAX_LENGTH}")
    version, *pairs = (part.strip() for part in value.split(";"))
    if version != VERSION:
        raise Malformed(f"hello version {version[:16]!r}, this side speaks {VERSION}")
    fields = dict(pair.partition("=")[::2] for pair in pairs)
    node_id, nonce = fields.get("node", ""), fields.get("nonce", "")
    if not is_node_id(node_id):
        raise Malformed("hello without a valid node id")
    if not _NONCE.fullmatch(nonce):
        raise Malformed("hello without a valid nonce")
    return Hello(node_id, nonce, _ports(fields.get("listen", "")), _name(fields.get("name", "")))


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
    name = unquote(value, errors="replace")[:MAX_NAME]
    # A name ends up in logs and terminals: no control characters.
    return "".join(c for c in name if c.isprintable())
