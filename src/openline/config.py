"""Configuration: frozen structs that ``msgspec.convert`` also reads from a plain dict (TOML, JSON).

Every limit has a name here; the comment beside it is its reason. Times are seconds, sizes are bytes.
"""

from __future__ import annotations

import base64
import os
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from .address import is_node_id, parse_place
from .identity import Identity

Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]

# Peers remember for twice as long what they have had.
MAX_RESUME_TIMEOUT = 3600.0

# Messages of full size that all strangers together may have begun and not finished. A frame may carry
# others, its kind and a count besides such a message.
STRANGER_MESSAGES = 4
MESSAGE_OVERHEAD = 64 * 1024

PlainReuse = Literal["unambiguous", "newest", "never"]
BackendName = Literal["quic", "websocket"]
Plaintext = Literal["plain-peers", "allow", "never"]


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """TLS material (rule 3.6). All paths are files in PEM form.

    ``cert`` and ``key`` make ``listen()`` serve ``wss``. ``ca`` replaces the system's trust store
    for dialing. ``pins`` are ``sha256/<base64>`` of the DER certificate: where given, the
    certificate must match one of them and nothing else is trusted; they are checked before any
    message leaves, and they fail closed.
    """

    cert: str | None = None
    key: str | None = None
    ca: str | None = None
    pins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("Tls needs both cert and key, or neither")
        if isinstance(self.pins, str):
            raise ValueError("pins must be a tuple of pins, not one text")
        for pin in self.pins:
            check_pin(pin)


def check_pin(pin: str) -> None:
    """Raise ``ValueError`` unless ``pin`` is ``sha256/`` and the base64 of 32 bytes."""
    prefix, _, digest = pin.partition("/")
    try:
        raw = base64.b64decode(digest, validate=True)
    except ValueError:  # binascii.Error is one
        raw = b""
    if prefix != "sha256" or len(raw) != 32:
        raise ValueError(f"pin {pin!r} is not sha256/<base64 of 32 bytes>")


def check_proxies(names: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless each is a pin, a host, or a host and its port."""
    if isinstance(names, str):
        raise ValueError("tls_proxy must be a tuple of certificates and addresses, not one text")
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"tls_proxy: {name!r} is not a text")
        if name.startswith("sha256/"):
            check_pin(name)
        else:
            parse_place(name)  # its InvalidAddress is a ValueError


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything a transport can be told. All fields have defaults."""

    # Shown to peers in the hello; a claim, never proof.
    name: Annotated[str, Meta(max_length=128)] = ""
    # Who this node is: an ``Identity``, or the path of a file made by ``openline id`` or
    # ``Identity().save(path)``. None makes a new one in memory, which ends with the process.
    identity: Any = None
    # Node ids that may connect or be connected to; None is anybody, plain peers too.
    allow: tuple[str, ...] | None = None
    # A file that remembers which node answered at an address that was dialed, as OpenSSH's known_hosts
    # does; another one there is Refused. None remembers nothing beyond the process.
    known_peers: str | None = None
    tls: Tls | None = None
    # Proxies that end TLS and may stand between this node and those it dials as wss://: their
    # certificates (sha256/<base64>) or places (host, host:port). Through these, a node's proof need
    # not be bound to the certificate that this side saw. Such a proxy reads and may change everything.
    tls_proxy: tuple[str, ...] = ()
    # What may be used, the preferred one first: a bare host:port is dialed by the first of them, and
    # by the next where that has not answered within 250 ms. Those that cannot be used here are
    # left out (``capabilities()`` says why).
    backends: tuple[BackendName, ...] = ("quic", "websocket")
    # Sites whose pages may connect, as browsers write them ("https://example.org"), or "*". Pages from the
    # same IP, or localhost, and from the disk may anyway; programs are not asked.
    origins: tuple[str, ...] = ()
    # Where a bare host:port may be talked to in plain text (rule 3.8): with plain peers that speak no TLS,
    # or with anybody ("allow"). With "never" nothing is, not even by ws://, and nobody may come that way.
    plaintext: Plaintext = "plain-peers"
    # Send the hello with the first packet of a QUIC connection to a node dialed before (0-RTT): saves
    # a round trip, and lets whoever sees both tell that they are the same client's.
    zero_rtt: bool = False
    # permessage-deflate (RFC 7692): costs CPU on every message, so it is asked for, not assumed.
    compression: bool = False
    # May a plain peer be recognised by its IP alone? See rule 3.1.
    plain_reuse: PlainReuse = "unambiguous"

    # Liveness: ping after 1/6 of it without life, suspect after 2/6, dead after 3/6 (rule 3.2).
    max_idle_timeout: Positive = 30.0
    # How long bytes that move without completing a unit count as life: long enough for one
    # maximum-size message at 64 kB/s, short enough that a trickling peer does not hold on for ever.
    progress_cap: Positive = 300.0

    # One dial, from name look-up to finished handshake: two lost SYNs (1 s + 2 s) still fit.
    dial_timeout: Positive = 5.0
    # A client that has connected must have finished TLS and upgrade by then.
    handshake_timeout: Positive = 5.0
    # Half-open handshakes kept at a time; the oldest makes room, so a flood cannot shut the door.
    max_pending_handshakes: Count = 256
    # Connections from one IP (IPv6: /64) that prove no node id: many agents may sit behind one NAT.
    max_connections_per_ip: Count = 1024
    # Inbound connections of all peers together that this program has no reason to know; a quarter of it
    # over QUIC. Over TCP not more than there are file descriptors, less a reserve for those it knows.
    max_strangers: Count = 16384
    # How long a send may wait: for a connection, for room on it, and for the acknowledgement.
    send_timeout: Positive = 30.0
    # How long a peer that cannot be reached keeps its place: then what is not acknowledged is given
    # up. Longer than a reboot of its router, an hour at most: the receiving side remembers for twice
    # as long what it has had, so that nothing is ever handed over twice.
    resume_timeout: Positive = 120.0
    # Unacknowledged messages and bytes per (peer, stream), kept to be sent again. 4 MiB fill a
    # 40 ms path at 800 Mbit/s.
    window_messages: Count = 16384
    window_bytes: Count = 4 * 1024 * 1024
    # Connections tried for one message before giving up; each failed one has been evicted.
    max_attempts: Count = 4
    # Default for request(timeout=...).
    request_timeout: Positive = 30.0
    # close(): time for handlers and buffers to finish before the rest is cut.
    close_timeout: Positive = 3.0
    # connect(keep=True): exponential backoff with full jitter between these.
    backoff_min: Positive = 0.2
    backoff_max: Positive = 30.0

    # One message, both ways. The ws package accepts 100 MiB by default; agents send far less.
    max_message_size: Count = 16 * 1024 * 1024
    # Unfinished input of all strangers together: beginnings of frames, fragments, units of QUIC. None is
    # four messages of full size: as many large ones a node has under way at a time, and a plain peer one.
    # Beyond it whoever holds the most is cut. Peers that this program knows are not counted.
    stranger_buffer_bytes: Count | None = None
    # Unsent bytes on a connection before senders wait: several loopback round trips, little memory.
    write_high_water: Count = 256 * 1024
    # Messages and bytes waiting per (peer, stream) before that stream's sender is held back.
    inbox_messages: Count = 1024
    inbox_bytes: Count = 4 * 1024 * 1024
    # The same of all peers together that this program has no reason to know, 256 bytes for each
    # message included: sixteen full streams. Beyond it those that hold the most are held back.
    strangers_inbox_bytes: Count = 64 * 1024 * 1024
    # Streams of one peer with something waiting; idle ones are forgotten.
    max_streams: Count = 1024
    # Events of peers that wait for one ``on_peer`` handler or ``peer_events()``: some for each of a few
    # hundred peers, as when a network is cut. A quarter of it for all strangers together. What is beyond is
    # told when there is room, as far as it has not become void.
    peer_events: Count = 4096

    def __post_init__(self) -> None:
        """msgspec checks ranges when it converts; a ``Config(...)`` in code is checked here."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, int | float) and not isinstance(value, bool) and not value > 0:
                raise ValueError(f"{name} must be greater than 0, not {value!r}")
        if self.resume_timeout > MAX_RESUME_TIMEOUT:
            raise ValueError(f"resume_timeout must be {MAX_RESUME_TIMEOUT:g} at most")
        if self.identity is not None and not isinstance(self.identity, str | os.PathLike | Identity):
            raise ValueError("identity must be a path or an openline.Identity")
        if self.known_peers is not None and not os.fspath(self.known_peers):
            raise ValueError("known_peers must be the path of a file, or None")
        if isinstance(self.allow, str):
            raise ValueError("allow must be a tuple of node ids, not one text")
        if isinstance(self.origins, str):
            raise ValueError("origins must be a tuple of sites, not one text")
        for node_id in self.allow or ():
            if not is_node_id(node_id):
                raise ValueError(f"allow: {node_id!r} is not a node id (52 characters of a-z and 2-7)")
        check_proxies(self.tls_proxy)
        names = get_args(BackendName)
        given = self.backends
        if isinstance(given, str) or not given or not set(given) <= set(names) or len({*given}) < len(given):
            raise ValueError(f"backends must hold one or both of {names}, each once, not {given!r}")
        if self.plain_reuse not in get_args(PlainReuse):
            raise ValueError(f"plain_reuse must be one of {get_args(PlainReuse)}, not {self.plain_reuse!r}")
        if self.plaintext not in get_args(Plaintext):
            raise ValueError(f"plaintext must be one of {get_args(Plaintext)}, not {self.plaintext!r}")
        if self.backoff_max < self.backoff_min:
            raise ValueError("backoff_max must not be smaller than backoff_min")

    @property
    def stranger_buffer(self) -> int:
        """``stranger_buffer_bytes``, or its default."""
        return self.stranger_buffer_bytes or STRANGER_MESSAGES * (self.max_message_size + MESSAGE_OVERHEAD)

    @property
    def certified(self) -> bool:
        """Are there pins or a CA that certificates have to satisfy?"""
        return self.tls is not None and bool(self.tls.ca or self.tls.pins)

    @property
    def ping_interval(self) -> float:
        """Seconds without life before a ping: ``max_idle_timeout / 6`` (rule 3.2)."""
        return self.max_idle_timeout / 6
