"""Who this node is: an Ed25519 key; the node id is the public key in base32."""

from __future__ import annotations

import base64

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class Identity:
    """An Ed25519 key pair. ``Identity()`` makes a new one in memory."""

    __slots__ = ("_key", "node_id")

    def __init__(self, key: Ed25519PrivateKey | None = None) -> None:
        self._key = key or Ed25519PrivateKey.generate()
        self.node_id = node_id_of(self._key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"Identity({self.node_id})"


def node_id_of(public_key: bytes) -> str:
    """The node id of a raw 32-byte public key: lower-case base32 without padding, 52 characters."""
    return base64.b32encode(public_key).decode().rstrip("=").lower()
