"""Addresses: where to dial, and the one way to write an IP so that comparing texts is enough."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

import msgspec

from .errors import InvalidAddress

SCHEMES = ("ws", "wss", "quic")
TLS_SCHEMES = ("wss", "quic")
_DEFAULT_PORTS = {"ws": 80, "wss": 443}
# 32 bytes in base32: the last character holds one bit of them, so that each key has one text.
_NODE_ID = re.compile(r"[a-z2-7]{51}[aq]")
# An address ends up in an HTTP request: nothing that could begin another header.
_PRINTABLE = re.compile(r"[!-~]+")
_SCOPE = re.compile(r"[A-Za-z0-9._-]+")
# How a scope begins in a URI: with an escaped percent sign (RFC 6874).
_ESCAPED = "25"
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?")


class Address(msgspec.Struct, frozen=True):
    """A parsed address. ``scheme`` is None for a bare ``host:port`` (any backend will do).

    A bare node id has no host and port 0: it is reached wherever that node is known to be.
    """

    host: str
    port: int
    scheme: str | None = None
    node_id: str | None = None
    path: str = "/"

    @classmethod
    def parse(cls, text: str | Address) -> Address:
        """Parse ``host:port``, ``ws://``, ``wss://`` or ``quic://``, each with optional ``NODEID@``.

        Or a bare ``NODEID``.

        Raises ``InvalidAddress``.
        """
        if isinstance(text, Address):
            return text
        if not isinstance(text, str):
            raise TypeError(f"an address is a text such as '10.0.0.2:8770', not {text!r}")
        return _parse(text)

    @property
    def is_ip(self) -> bool:
        return canonical_ip(self.host) is not None

    @property
    def authenticated(self) -> bool:
        """Only a connection that has proven an identity may answer for this address (rule 3.1)."""
        return self.tls or self.node_id is not None

    @property
    def tls(self) -> bool:
        """Its scheme asks for TLS, and with that for a certificate where ``Config.tls`` names any."""
        return self.scheme in TLS_SCHEMES

    @property
    def dial_key(self) -> tuple[object, ...]:
        """The same for all spellings that one dial serves."""
        return self.scheme or "ws", self.node_id, self.host, self.port, self.path

    @property
    def place(self) -> tuple[object, ...]:
        """The same for all that one connection may answer for: a bare address asks for no scheme."""
        return self.scheme or "ws", self.host, self.port, self.path

    @property
    def dialable(self) -> bool:
        """False for a bare node id."""
        return bool(self.host)

    @property
    def netloc(self) -> str:
        return join(self.host, self.port)

    @property
    def authority(self) -> str:
        """What goes into a Host header: a scope means something on this host only (RFC 6874 section 4)."""
        return join(self.host.partition("%")[0], self.port)

    @property
    def url(self) -> str:
        """What a WebSocket client dials."""
        return f"{self.scheme or 'ws'}://{self.netloc}{self.path}"

    def __str__(self) -> str:
        if not self.host:
            return self.node_id or ""
        scheme = f"{self.scheme}://" if self.scheme else ""
        node = f"{self.node_id}@" if self.node_id else ""
        path = "" if self.path == "/" else self.path
        return f"{scheme}{node}{self.netloc}{path}"


def join(host: str, port: int) -> str:
    """``host:port``, with brackets around IPv6; what ``Address.parse`` reads back as the same.

    A scope that looks like an escaped one (``25en0``) is escaped itself.
    """
    if ":" not in host:
        return f"{host}:{port}"
    if f"%{_ESCAPED}" in host:
        ip, _, scope = host.partition("%")
        host = f"{ip}%{_escaped(scope)}"
    return f"[{host}]:{port}"


def _escaped(scope: str) -> str:
    return f"{_ESCAPED}{scope}" if _unescaped(scope) != scope else scope


def _unescaped(scope: str) -> str:
    """``25en0``, as in ``[fe80::1%25en0]``, is ``en0``; a mere ``25`` is interface number 25."""
    return scope.removeprefix(_ESCAPED) or scope


def canonical_ip(text: str) -> str | None:
    """The one text form of an IP address, or None: IPv4-mapped IPv6 becomes IPv4, scopes stay."""
    base, percent, scope = text.partition("%")
    try:
        ip = ipaddress.ip_address(base)
    except ValueError:
        return None
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return f"{ip}{percent}{scope}"
    return None if percent else str(ip)


def parse_place(text: str) -> tuple[str, int]:
    """``host`` or ``host:port``, also behind ``wss://``, in the form that addresses have.

    Port 0 where there is none. Raises ``InvalidAddress``.
    """
    return _split_port(text, text.removeprefix("wss://"), 0)


def is_node_id(text: str) -> bool:
    return _NODE_ID.fullmatch(text) is not None


@lru_cache(maxsize=4096)
def _parse(text: str) -> Address:
    if is_node_id(text):
        return Address("", 0, None, text)
    scheme, rest = _split_scheme(text)
    if text and not _PRINTABLE.fullmatch(text):
        raise _invalid(text, "it holds a space, a control character or a character outside ASCII")
    authority, slash, tail = rest.partition("/")
    if slash and scheme is None:
        raise _invalid(text, "a path needs a scheme, as in ws://host:port/path")
    node, at, hostport = authority.rpartition("@")
    if at and not is_node_id(node):
        raise _invalid(text, "the part before @ must be a node id (52 characters of a-z and 2-7)")
    host, port = _split_port(text, hostport, _DEFAULT_PORTS.get(scheme or ""))
    return Address(host, port, scheme, node or None, slash + tail if tail else "/")


def _split_scheme(text: str) -> tuple[str | None, str]:
    scheme, separator, rest = text.partition("://")
    if not separator:
        return None, text
    if scheme.lower() not in SCHEMES:
        raise _invalid(text, f"the scheme must be one of {', '.join(SCHEMES)}")
    return scheme.lower(), rest


def _split_port(text: str, hostport: str, default: int | None) -> tuple[str, int]:
    if hostport.startswith("["):
        host, bracket, tail = hostport[1:].partition("]")
        if not bracket or (tail and not tail.startswith(":")):
            raise _invalid(text, "write IPv6 as [address]:port")
        return _ipv6(text, host), _port(text, tail[1:], default)
    if hostport.count(":") > 1:
        raise _invalid(text, "write IPv6 in brackets, as in [::1]:8770")
    host, _, port = hostport.partition(":")
    return _host(text, host), _port(text, port, default)


def _ipv6(text: str, host: str) -> str:
    base, percent, scope = host.partition("%")
    scope = _unescaped(scope)
    ip = canonical_ip(f"{base}{percent}{scope}")
    if ip is None or ":" not in host or ("%" in host and not _SCOPE.fullmatch(scope)):
        raise _invalid(text, f"{host!r} is not an IPv6 address")
    return ip


def _host(text: str, host: str) -> str:
    host = host.lower()
    ip = canonical_ip(host)
    if ip is not None:
        return ip
    if not _HOST.fullmatch(host) or len(host) > 253 or host.rstrip(".").rpartition(".")[2].isdigit():
        raise _invalid(text, f"{host!r} is not a host name or IP address")
    return host


def _port(text: str, port: str, default: int | None) -> int:
    if not port:
        if default is None:
            raise _invalid(text, "the port is missing")
        return default
    if not (port.isascii() and port.isdigit() and len(port) < 6) or not 0 < int(port) < 65536:
        raise _invalid(text, f"port {port!r} is not a number from 1 to 65535")
    return int(port)


def _invalid(text: str, reason: str) -> InvalidAddress:
    example = "" if "as in" in reason else " (for example 10.0.0.2:8770)"
    return InvalidAddress(f"address {text!r}: {reason}{example}")
