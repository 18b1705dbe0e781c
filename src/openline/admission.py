"""Who gets in: writes our hellos and proofs, judges theirs (rule 3.6).

Nothing of a node's is taken in, and nothing is sent to it, before its proof is right.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import secrets
from collections.abc import Callable

import msgspec

from .address import Address
from .backends.base import POLICY, Link, LinkEvents, OnBad, Visitor
from .config import Config
from .core.frames import Malformed, Proof, decode_frame, encode_proof
from .core.handshake import MAX_RESUME, Hello, Role, Transcript, parse_hello, split_proof, with_proof
from .errors import IdentityConflict, Refused
from .identity import Identity, verify

log = logging.getLogger("openline")

# A proof with as many lost connections as it may name takes about 1,300 bytes.
PROOF_BYTES = 4096
# The text by which a dialer knows that it was turned away as the second process with one key.
CONFLICT = "identity conflict"


class Admission:
    """The doorkeeper of one transport.

    ``up(link, lost)`` is called for a link whose far end may enter, with the connections that end
    says it has lost; ``lost(node_id)`` names those to a node that we have lost;
    ``in_conflict(node_id)`` says whether two processes have lately presented that identity;
    ``on_bad`` is told of visitors whose proof did not come or was wrong.
    """

    def __init__(
        self,
        config: Config,
        identity: Identity,
        up: Callable[[Link, list[bytes]], LinkEvents],
        lost: Callable[[str], list[bytes]],
        in_conflict: Callable[[str], bool],
        on_bad: OnBad,
    ) -> None:
        self.identity = identity
        # Tells this process from an earlier one, or another one, with the same key.
        self.instance = secrets.token_urlsafe(16)
        self.ports: tuple[int, ...] = ()
        self._config = config
        self._up = up
        self._lost = lost
        self._in_conflict = in_conflict
        self.on_bad = on_bad
        self._dials = itertools.count(1)

    def hello(self) -> str:
        return self._hello(next(self._dials))

    def _hello(self, dial: int) -> str:
        nonce = secrets.token_urlsafe(24)
        config = self._config
        resume = min(math.ceil(config.resume_timeout + config.max_idle_timeout), MAX_RESUME)
        hello = Hello(
            self.identity.node_id, nonce, self.ports, config.name, self.instance, dial, resume=resume
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
        own = self._hello(0)
        transcript = Transcript(hello, own, certificate)
        return Visitor(client, with_proof(own, self._sign(transcript, "server")), transcript)

    def admit(self, link: Link, visitor: Visitor | None, entered: Callable[[], None]) -> LinkEvents:
        if visitor is None:
            entered()
            return self._up(link, [])
        return _Threshold(self, link, visitor, entered, self._config.handshake_timeout)

    def let_in(self, link: Link, visitor: Visitor, proof: Proof) -> LinkEvents:
        """The proof has come. Raises ``Malformed`` where it is wrong."""
        if not verify(visitor.hello.node_id, proof.signature, visitor.transcript.signed_by("client")):
            raise Malformed(f"the proof of node id {visitor.hello.node_id} is wrong")
        link.endpoint.hello = _entered(visitor.hello, visitor.transcript)
        return self._up(link, proof.lost)

    # A client ------------------------------------------------------------------------------------

    def greeted(
        self, address: Address, mine: str, theirs: str | None, certificate: bytes | None
    ) -> Hello | None:
        if theirs is None:
            self._check_plain(address)
            return None
        try:
            signed, signature = split_proof(theirs)
        except Malformed as error:
            raise Refused(f"{address}: {error}; nothing was sent") from None
        server, own = parse_hello(signed), parse_hello(mine)
        if address.node_id not in (None, server.node_id):
            raise Refused(f"{address}: the node there is {server.node_id}; nothing was sent")
        transcript = Transcript(mine, signed, certificate)
        if not verify(server.node_id, signature, transcript.signed_by("server")):
            raise Refused(f"{address}: the proof of node id {server.node_id} is wrong; nothing was sent")
        self._check(server, str(address))
        return msgspec.structs.replace(server, dial=own.dial, transcript=transcript)

    def _check_plain(self, address: Address) -> None:
        if address.node_id is not None:
            raise Refused(f"{address}: what listens there proves no node id; nothing was sent")
        if self._config.allow is not None:
            raise Refused(f"{address}: what listens there proves no node id, and Config.allow asks for one")

    def _check(self, hello: Hello, where: str) -> None:
        if hello.node_id == self.identity.node_id:
            if hello.instance != self.instance:
                raise IdentityConflict(
                    f"{CONFLICT}: {where} and another process have the same key, node id {hello.node_id}; "
                    "give each its own identity"
                )
        elif self._config.allow is not None and hello.node_id not in self._config.allow:
            raise Refused(f"{where}: node {hello.node_id} is not in the list of those allowed (Config.allow)")

    def enter(self, link: Link) -> LinkEvents:
        hello = link.endpoint.hello
        if hello is not None and hello.transcript is not None:
            proof = self._sign(hello.transcript, "client")
            link.write_binary(encode_proof(proof, self._lost(hello.node_id)))
            link.endpoint.hello = _entered(hello, hello.transcript)
        return self._up(link, [])

    def _sign(self, transcript: Transcript, role: Role) -> bytes:
        return self.identity.sign(transcript.signed_by(role))


def _entered(hello: Hello, transcript: Transcript) -> Hello:
    """A hello to keep: nothing of it that is only needed for the proof."""
    number = transcript.connection_id
    return msgspec.structs.replace(hello, transcript=None, nonce="", connection_id=number)


class _Threshold:
    """Events of an accepted link until its proof has come: the first frame, or nothing."""

    def __init__(
        self, door: Admission, link: Link, visitor: Visitor, entered: Callable[[], None], patience: float
    ) -> None:
        self._door = door
        self._link = link
        self._visitor = visitor
        self._entered = entered
        self._overdue = False
        self._timer = asyncio.get_running_loop().call_later(patience, self._late)
        # Nobody makes us hold megabytes before it has said who it is.
        self._limit, link.limit = link.limit, PROOF_BYTES

    def _late(self) -> None:
        self._overdue = True
        self._link.close(POLICY, "no proof came")
        self._link.abort()

    def on_binary(self, data: memoryview) -> None:
        frame = decode_frame(data) if len(data) <= PROOF_BYTES else None
        if not isinstance(frame, Proof):
            raise Malformed("the first frame is not a proof")
        self._timer.cancel()
        self._link.limit = self._limit
        self._link.events = self._door.let_in(self._link, self._visitor, frame)
        self._entered()
        del self._timer, self._visitor, self._entered  # this object may outlive its use

    def on_text(self, data: memoryview) -> None:
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

    def on_closed(self, reason: str) -> None:
        self._timer.cancel()
        who = f"{self._link.endpoint.remote} (node id {self._visitor.hello.node_id}, not proven)"
        if self._overdue:
            self._door.on_bad(who, "no proof came")
        elif reason.startswith("bad input"):
            self._door.on_bad(who, reason)
        else:
            log.debug("gone before it had proven itself: %s: %s", who, reason)
        self._entered()  # out of the unfinished handshakes; it has been told
