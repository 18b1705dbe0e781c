"""Who gets in: writes our hellos and proofs, judges theirs (rule 3.6).

Nothing of a node's is taken in, and nothing is sent to it, before its proof is right.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

import msgspec

from ..address import Address
from ..backends.base import CONFLICT as CONFLICT_CODE
from ..backends.base import POLICY, By, End, Link, LinkEvents, OnBad, Visitor
from ..backends.tls import fingerprint, pin_of
from ..backends.unfinished import Unfinished
from ..config import Config
from ..core.frames import Malformed, Proof, decode_frame, encode_proof
from ..core.handshake import (
    CERTIFIED,
    MAX_RESUME,
    PROOF_SIZES,
    SIGNATURE_BYTES,
    SIGNS_INSTANCE,
    STREAMS,
    Hello,
    Role,
    Transcript,
    digest_of,
    parse_hello,
    split_proof,
    with_proof,
)
from ..errors import IdentityConflict, Refused
from ..identity import Identity, verify
from ..known_peers.memory import KnownPeers
from .instance import Instance, signed_for
from .proxies import Proxies

log = logging.getLogger("openline")

# A proof with as many lost connections as it may name takes about 1,300 bytes.
PROOF_BYTES = 4096
# How long one that is turned away after its proof may take to hear it: cut at once, with its messages
# still arriving, TCP would drop what it was told.
LAST_WORD = 1.0
# The text by which a dialer knows that it was turned away as the second process with one key.
CONFLICT = "identity conflict"


class Crowded(Protocol):
    def __call__(self, ip: str, backend: str, node_id: str | None) -> str | None: ...


class Admission:
    """The doorkeeper of one transport.

    ``up(link, lost)`` is called for a link whose far end may enter, with the connections that end
    says it has lost; ``lost(node_id)`` names those to a node that we have lost;
    ``in_conflict(node_id)`` says whether two processes have lately presented that identity;
    ``on_bad`` is told of visitors whose proof did not come or was wrong; ``is_copy(hello)``
    says whether it repeats the instance of a process with which there is, or lately was, a session, and
    ``on_copy(node_id, where)`` is told of somebody with a node's key who has done that;
    ``crowded(ip, backend, node_id)`` says why there is no room for one more, if so; ``known`` are
    the nodes that answered dials before.
    """

    def __init__(
        self,
        config: Config,
        identity: Identity,
        up: Callable[[Link, list[bytes]], LinkEvents],
        lost: Callable[[str], list[bytes]],
        in_conflict: Callable[[str], bool],
        on_bad: OnBad,
        is_copy: Callable[[Hello], bool] = lambda hello: False,
        on_copy: Callable[[str, str], None] = lambda node_id, where: None,
        crowded: Crowded = lambda ip, backend, node_id: None,
        known: KnownPeers | None = None,
    ) -> None:
        self.identity = identity
        self.unfinished = Unfinished(config.stranger_buffer)
        self.renew_instance()
        self.ports: tuple[int, ...] = ()
        self._config = config
        self._proxies = Proxies(config.tls_proxy)
        self._is_copy = is_copy
        self._on_copy = on_copy
        self._up = up
        self._lost = lost
        self._in_conflict = in_conflict
        self.on_bad = on_bad
        self._crowded = crowded
        self._known = known or KnownPeers(None, time.time)
        self._dials = itertools.count(1)

    def announce(self, ports: tuple[int, ...]) -> None:
        """What our hellos say from now on of where we listen."""
        self.ports = ports

    def renew_instance(self) -> None:
        """From now on this is another process than before."""
        # Tells this process from an earlier one, or another one, with the same key.
        self._instance = Instance()

    @property
    def instance(self) -> str:
        return self._instance.name

    def is_own(self, hello: Hello) -> bool:
        """This very process, which has dialed itself."""
        return hello.proven and (hello.node_id, hello.instance) == (self.identity.node_id, self.instance)

    def hello(self, certified: bool = False) -> str:
        return self._hello(next(self._dials), caps=(CERTIFIED,) if certified else ())

    def _hello(self, dial: int, certificate: bytes | None = None, caps: tuple[str, ...] = ()) -> str:
        nonce = secrets.token_urlsafe(24)
        config = self._config
        resume = min(math.ceil(config.resume_timeout + config.max_idle_timeout), MAX_RESUME)
        hello = Hello(
            self.identity.node_id,
            nonce,
            self.ports,
            config.name,
            self.instance,
            dial,
            (SIGNS_INSTANCE, STREAMS, *caps),
            resume,
            certificate=digest_of(certificate),
        )
        return hello.to_header()

    # A server ------------------------------------------------------------------------------------

    def answer(self, hello: str | None, certificate: bytes | None) -> Visitor | None:
        if hello is None:
            if self._config.allow is not None:
                raise Refused("only known nodes may connect here, and this client says no openline hello")
            return None
        client = parse_hello(hello)
        self._check(client, "the client")
        if self._in_conflict(client.node_id):
            raise IdentityConflict(
                f"{CONFLICT}: two processes have used the key of node {client.node_id}; stop one or give it "
                "a key of its own, and try again in a while (30 s, longer each time it comes back)"
            )
        own = self._hello(0, certificate)
        transcript = Transcript(hello, own, certificate)
        answer = with_proof(own, self._sign(transcript, "server"))
        return Visitor(client, answer, transcript, partial(self._crowded, node_id=client.node_id))

    def crowded(self, ip: str, backend: str) -> str | None:
        return self._crowded(ip, backend, None)

    def admit(self, link: Link, visitor: Visitor | None, entered: Callable[[], None]) -> LinkEvents:
        if visitor is None:
            entered()
            return self._up(link, [])
        return _Threshold(self, link, visitor, entered, self._config.handshake_timeout)

    def let_in(self, link: Link, visitor: Visitor, proof: Proof) -> LinkEvents:
        """The proof has come. Raises ``Malformed`` where it is wrong, ``IdentityConflict`` for a copy."""
        hello, transcript = visitor.hello, visitor.transcript
        signed = transcript.signed_by("client")
        if not _signed(hello, proof.signature, signed):
            unseen = _signed(hello, proof.signature, transcript.without_certificate().signed_by("client"))
            raise Malformed(f"the proof of node id {hello.node_id} {_UNSEEN if unseen else 'is wrong'}")
        hello = self._process(hello, proof.signature, signed, link.endpoint.remote)
        link.endpoint.hello = _entered(hello, transcript)
        return self._up(link, proof.lost)

    # A client ------------------------------------------------------------------------------------

    def greeted(
        self, address: Address, mine: str, theirs: str | None, certificate: bytes | None, ip: str = ""
    ) -> Hello | None:
        if theirs is None:
            self._check_plain(address)
            return None
        try:
            signed, proof = split_proof(theirs)
        except Malformed as error:
            raise Refused(f"{address}: {error}; nothing was sent") from None
        server, own = parse_hello(signed), parse_hello(mine)
        if address.node_id not in (None, server.node_id):
            raise Refused(f"{address}: the node there is {server.node_id}; nothing was sent")
        transcript = Transcript(mine, signed, certificate)
        if not _signed(server, proof, transcript.signed_by("server")):
            transcript = Transcript.bound_to(mine, signed, server.certificate)
            certified = _signed(server, proof, transcript.signed_by("server"))
            if not certified or not self._proxies.may_stand(address, ip, certificate):
                why = _other_certificate(address, server, certificate) if certified else "is wrong"
                raise Refused(f"{address}: the proof of node id {server.node_id} {why}; nothing was sent")
        self._check(server, str(address))
        self._known.check(address, server.node_id)
        try:
            server = self._process(server, proof, transcript.signed_by("server"), str(address))
        except Malformed as error:
            raise Refused(f"{address}: {error}; nothing was sent") from None
        if server.node_id != self.identity.node_id:
            self._known.saw(address, server.node_id, server.name)
        return msgspec.structs.replace(server, dial=own.dial, transcript=transcript)

    def _check_plain(self, address: Address) -> None:
        if address.node_id is not None:
            raise Refused(f"{address}: what listens there proves no node id; nothing was sent")
        if self._config.allow is not None:
            raise Refused(f"{address}: what listens there proves no node id, and Config.allow asks for one")
        self._known.check(address, None)

    def _check(self, hello: Hello, where: str) -> None:
        if hello.node_id == self.identity.node_id:
            if hello.instance != self.instance:
                raise IdentityConflict(
                    f"{CONFLICT}: {where} and another process have the same key, node id {hello.node_id}; "
                    "give each its own identity"
                )
        elif self._config.allow is not None and hello.node_id not in self._config.allow:
            raise Refused(f"{where}: node {hello.node_id} is not in the list of those allowed (Config.allow)")

    def _process(self, hello: Hello, proof: bytes, signed: bytes, where: str) -> Hello:
        """Is it the process that it says? The node's signature is right.

        Raises ``IdentityConflict`` for one that repeats the instance of a process which is known here, and
        ``Malformed`` for any other wrong proof. Who proves no instance is an older version.
        """
        proven = msgspec.structs.replace(hello, proven=True)
        its = proof[SIGNATURE_BYTES:]
        if its and signed_for(hello.instance, its, signed):
            return proven
        if self.is_own(proven) or self._is_copy(hello):
            self._on_copy(hello.node_id, where)
            raise IdentityConflict(
                f"{CONFLICT}: {where} has the key of node {hello.node_id} and repeats the instance of "
                "another process, which it cannot sign for; nothing was sent to it"
            )
        if its or SIGNS_INSTANCE in hello.caps:
            raise Malformed(f"the proof of an instance of node id {hello.node_id} is wrong")
        return hello

    def enter(self, link: Link) -> LinkEvents:
        hello = link.endpoint.hello
        if hello is not None and hello.transcript is not None:
            proof = self._sign(hello.transcript, "client")
            link.write_binary(encode_proof(proof, self._lost(hello.node_id)))
            link.endpoint.hello = _entered(hello, hello.transcript)
        return self._up(link, [])

    def _sign(self, transcript: Transcript, role: Role) -> bytes:
        data = transcript.signed_by(role)
        return self.identity.sign(data) + self._instance.sign(data)


def _signed(hello: Hello, proof: bytes, data: bytes) -> bool:
    """Has the node signed this?"""
    return len(proof) in PROOF_SIZES and verify(hello.node_id, proof[:SIGNATURE_BYTES], data)


_UNSEEN = "is for a connection without TLS: something in between begins TLS"


def _other_certificate(address: Address, server: Hello, certificate: bytes | None) -> str:
    """What a proof is that would be right with the certificate that the hello names, or without any."""
    shown = pin_of(server.certificate) if server.certificate else "none, as it listens without TLS"
    if not certificate:
        return f"is for a connection with TLS (the peer shows {shown}): something in between begins TLS"
    hint = "; if it may, Config.tls_proxy names it" if address.scheme == "wss" else ""
    return (
        "does not fit: the certificate that this side saw is not the one the peer shows: something in "
        f"between ends TLS (seen here: {fingerprint(certificate)}, shown by the peer: {shown}){hint}"
    )


def _entered(hello: Hello, transcript: Transcript) -> Hello:
    """A hello to keep: nothing of it that is only needed for the proof."""
    number = transcript.connection_id
    return msgspec.structs.replace(hello, transcript=None, nonce="", connection_id=number, certificate=b"")


class _Threshold:
    """Events of an accepted link until its proof has come: the first frame, or nothing."""

    known = False

    def __init__(
        self, door: Admission, link: Link, visitor: Visitor, entered: Callable[[], None], patience: float
    ) -> None:
        self._door = door
        self._link = link
        self._visitor = visitor
        self._entered = entered
        self._overdue = self._turned_away = False
        self._timer = asyncio.get_running_loop().call_later(patience, self._late)
        # Nobody makes us hold megabytes before it has said who it is.
        self._limit, link.limit = link.limit, PROOF_BYTES

    def _late(self) -> None:
        self._overdue = True
        self._link.close(POLICY, "no proof came")
        self._link.abort()

    def _turn_away(self, code: int, reason: str) -> None:
        """Tell it, and hear nothing more of it."""
        self._turned_away = True
        self._link.limit = PROOF_BYTES
        self._link.close(code, reason)
        self._timer = asyncio.get_running_loop().call_later(LAST_WORD, self._link.abort)

    def on_binary(self, data: memoryview) -> None:
        if self._turned_away:
            return
        frame = decode_frame(data) if len(data) <= PROOF_BYTES else None
        if not isinstance(frame, Proof):
            raise Malformed("the first frame is not a proof")
        self._timer.cancel()
        link = self._link
        link.limit = self._limit
        try:
            link.events = self._door.let_in(link, self._visitor, frame)
        except IdentityConflict as error:
            self._turn_away(CONFLICT_CODE, str(error))
            return
        entered = self._entered
        self._let_go()
        entered()

    def _let_go(self) -> None:
        """Its use is over: no circle keeps the link, nor what came with the hello."""
        self._timer.cancel()
        del self._timer, self._visitor, self._entered, self._link

    def on_text(self, data: memoryview) -> None:
        if self._turned_away:
            return
        raise Malformed("the first frame is not a proof")

    def on_ping(self, payload: bytes) -> None:
        self._link.pong(payload)

    def on_pong(self, payload: bytes) -> None:
        """Allowed at any time (RFC 6455 section 5.5.3)."""

    def on_alive(self) -> None:
        """Whoever it is has a while to prove it."""

    def on_silent(self) -> None:
        """Its time is limited anyway."""

    def on_moved(self, ip: str, port: int) -> None:
        self._link.endpoint.ip, self._link.endpoint.port = ip, port

    def on_writable(self) -> None:
        """Nothing waits to be written."""

    def on_closed(self, end: End) -> None:
        entered = self._entered
        who = f"{self._link.endpoint.remote} (node id {self._visitor.hello.node_id}, not proven)"
        if self._overdue:
            self._door.on_bad(who, "no proof came")
        elif end.by is By.BAD_INPUT:
            self._door.on_bad(who, end.text)
        else:
            log.debug("gone before it had proven itself: %s: %s", who, end.text)
        self._let_go()
        entered()  # out of the unfinished handshakes; it has been told
