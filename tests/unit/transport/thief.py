"""Somebody who has a node's key, and repeats what its process says of itself."""

from __future__ import annotations

import os
from collections.abc import Callable

import openline
from openline.connection.instance import Instance
from openline.core.frames import HEADROOM, encode_proof
from openline.core.handshake import Hello, Transcript

from .rawsocket import Actor

# What he signs beside the node's signature, which is right.
Extra = Callable[[bytes], bytes]

FORGED: dict[str, Extra] = {
    "the node's signature alone": lambda data: b"",
    "and noise": lambda data: os.urandom(64),
    "and zeros": lambda data: bytes(64),
    "and a key of his own": lambda data: Instance().sign(data),
}


class Thief(Actor):
    """Says that it is ``process``, a process of ``identity`` that somebody else is."""

    def __init__(
        self, identity: openline.Identity, process: Hello, extra: Extra = FORGED["the node's signature alone"]
    ) -> None:
        super().__init__(identity=identity, name=process.name)
        self.instance = process.instance
        self.extra = extra

    def proof(self, transcript: Transcript, role: str) -> bytes:
        data = transcript.signed_by(role)  # type: ignore[arg-type]
        return self.identity.sign(data) + self.extra(data)

    def prove(self, transcript: Transcript, lost: object = ()) -> bytes:
        return bytes(encode_proof(self.proof(transcript, "client"), list(lost)))[HEADROOM:]  # type: ignore[call-overload]
