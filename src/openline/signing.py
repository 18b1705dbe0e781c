"""Signed messages, in the form of the ruflo federation plugin (``jcs-v1``).

Ed25519 over the RFC 8785 form of ``{id, type, payload, metadata}``; the signature goes into
``metadata.signature`` in hex and is the one thing in the metadata that it does not cover.
``stream_id`` and ``extra`` are **not** covered, because that plugin does not cover them. A signature
tells who wrote a message; not for whom, and not when: who needs that puts it into the payload.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec
import rfc8785

from .errors import InvalidIdentity, InvalidMessage, InvalidSignature
from .identity import Identity, node_id_of, public_key_of, verify
from .message import Message

VERSION = "jcs-v1"

# Beyond it two numbers that differ can be the same double.
_SAFE = 2**53 - 1
_HEX = re.compile(r"[0-9a-f]{128}")


def sign_message(message: Message, identity: Identity) -> Message:
    """A copy of the message with ``metadata.signature``, ``signatureVersion`` and ``sourceNodeId``.

    A ``sourceNodeId`` that is there is kept: in a federation, members go by names of their own, and
    each has a list of the others' keys. The payload is shared with the copy, not copied. Raises
    ``InvalidMessage`` for what has no one JSON form everywhere: ``bytes``, keys that are not strings,
    lone surrogates, NaN and infinities, -0.0, and whole numbers outside ±(2**53 - 1); and for the
    node id of somebody else in ``sourceNodeId``.
    """
    metadata = {"sourceNodeId": identity.node_id, **(message.metadata or {}), "signatureVersion": VERSION}
    if not _may_speak_for(metadata["sourceNodeId"], identity.node_id):
        raise InvalidMessage(f"message {message.id!r}: metadata.sourceNodeId is another node's id")
    signed = msgspec.structs.replace(message, metadata=metadata)
    metadata["signature"] = identity.sign(_signed_bytes(signed)).hex()
    return signed


def verify_message(message: Message, key: str | bytes) -> None:
    """Return if the holder of ``key``, a node id or a raw public key, signed exactly this message.

    Raises ``InvalidSignature``: not signed, another version, another key, a key that is none,
    something changed since; and where ``metadata.sourceNodeId`` is the node id of another key.
    """
    metadata = message.metadata or {}
    node_id = _node_id(key)
    if metadata.get("signatureVersion") != VERSION:
        raise _invalid(message, f"metadata.signatureVersion is not {VERSION}")
    signature = metadata.get("signature")
    if not isinstance(signature, str) or not _HEX.fullmatch(signature):
        raise _invalid(message, "metadata.signature is not the hex of 64 bytes")
    if not _may_speak_for(metadata.get("sourceNodeId"), node_id):
        raise _invalid(message, "metadata.sourceNodeId is another node's id")
    try:
        data = _signed_bytes(message)
    except InvalidMessage as error:
        raise InvalidSignature(str(error)) from None
    if not verify(node_id, bytes.fromhex(signature), data):
        raise _invalid(message, f"{node_id} has not signed it like this")


def canonical(value: Any) -> bytes:
    """The RFC 8785 form (JCS) of a JSON value: the same bytes for equal values, in any language.

    Raises ``InvalidMessage`` for what has none: ``bytes`` and other types JSON does not know, keys
    that are not strings, lone surrogates, NaN and infinities, integers outside ±(2**53 - 1).
    """
    try:
        return rfc8785.dumps(value)
    except RecursionError:
        raise InvalidMessage("no canonical JSON form: nested too deeply, or in a circle") from None
    except ValueError as error:
        raise InvalidMessage(f"no canonical JSON form: {error}") from None


def _signed_bytes(message: Message) -> bytes:
    metadata = {name: value for name, value in (message.metadata or {}).items() if name != "signature"}
    covered = {"id": message.id, "type": message.type, "payload": message.payload, "metadata": metadata}
    try:
        data = canonical(covered)
        _check_numbers(covered)
    except InvalidMessage as error:
        raise InvalidMessage(f"message {message.id!r} cannot be signed: {error}") from None
    return data


def _check_numbers(value: Any) -> None:
    """Refuse the numbers that RFC 8785 can write, but that not every reader reads alike."""
    if isinstance(value, float):
        if value == 0 and math.copysign(1, value) < 0:
            raise InvalidMessage("-0.0 is 0 to some readers")
        if value.is_integer() and abs(value) > _SAFE:
            raise InvalidMessage(f"{value!r} is outside ±(2**53 - 1)")
    elif isinstance(value, dict):
        for item in value.values():
            _check_numbers(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_numbers(item)


def _node_id(key: object) -> str:
    """Also for a key that was read from a message, and can be anything."""
    try:
        node_id = node_id_of(key) if isinstance(key, bytes) else key
        if isinstance(node_id, str) and public_key_of(node_id):
            return node_id
        raise InvalidSignature("the key is neither a node id nor a public key")
    except InvalidIdentity as error:
        raise InvalidSignature(str(error)) from None


def _may_speak_for(source: object, node_id: str) -> bool:
    """Whether that key may call itself so: its own node id, or a name that is nobody's node id."""
    try:
        return source == node_id or not (isinstance(source, str) and public_key_of(source))
    except InvalidIdentity:
        return True


def _invalid(message: Message, reason: str) -> InvalidSignature:
    return InvalidSignature(f"message {message.id!r}: {reason}")
