"""Which process this is: an Ed25519 key of its own, made when it begins and never written down.

The ``instance`` of a hello is the public key. Whoever has the node's key can repeat an instance that
it has read, and cannot sign for it: so a copy is told from the process itself.
"""

from __future__ import annotations

import base64
import binascii

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..core.handshake import in_base64
from ..identity import KEY_BYTES, is_safe


class Instance:
    """The key of one process. ``name`` is what its hellos say."""

    __slots__ = ("_key", "name")

    def __init__(self, key: Ed25519PrivateKey | None = None) -> None:
        self._key = key or Ed25519PrivateKey.generate()
        self.name = in_base64(self._key.public_key().public_bytes_raw())

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data)


def signed_for(name: str, signature: bytes, data: bytes) -> bool:
    """Has the process of that name made this signature of ``data``? False for a name that is no key."""
    try:
        key = base64.b64decode(name + "=", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return False
    # One text for each key, as with node ids.
    if len(key) != KEY_BYTES or in_base64(key) != name or not is_safe(key):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True
