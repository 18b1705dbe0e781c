"""Who this node is: an Ed25519 key; the node id is the public key in base32."""

from __future__ import annotations

import base64
import contextlib
import errno
import logging
import os
import shlex
import stat
import tempfile
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidSignature as _NoMatch
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from .errors import InvalidIdentity

log = logging.getLogger("openline")

FilePath = str | os.PathLike[str]

KEY_BYTES = 32
# Keys of node ids that are not decoded anew: rule 3.3 asks for them at every connection, and whoever is
# connected is asked about again.
KNOWN_KEYS = 1024

# Edwards25519 (RFC 8032): the field's prime, and y of the points whose order divides 8. Under such a
# "public key" anybody can make signatures that verify.
_PRIME = 2**255 - 19
_ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER = frozenset({0, 1, _PRIME - 1, _ORDER_8, _PRIME - _ORDER_8})
# The top bit of the encoding is the sign of x.
_Y_BITS = 2**255 - 1

# What file systems without hard links answer.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class Identity:
    """An Ed25519 key pair. ``Identity()`` makes a new one in memory; equal ones have one node id."""

    __slots__ = ("_key", "node_id")

    def __init__(self, key: Ed25519PrivateKey | None = None) -> None:
        self._key = key or Ed25519PrivateKey.generate()
        self.node_id = node_id_of(self.public_key)

    @classmethod
    def of(cls, given: FilePath | Identity | None) -> Identity:
        """What ``Config.identity`` says: None is a new one, in memory."""
        if given is None:
            return cls()
        return given if isinstance(given, Identity) else cls.load(given)

    @classmethod
    def load(cls, path: FilePath) -> Identity:
        """Read an unencrypted Ed25519 key in PEM form (PKCS #8), as ``openssl genpkey`` writes too.

        Logs a warning where others than the owner can get at the file. Raises ``InvalidIdentity``
        where there is no such file, or it cannot be read, or holds something else.
        """
        file = Path(path)
        try:
            pem = _read_private(file)
        except FileNotFoundError:
            raise InvalidIdentity(_missing(file)) from None
        except OSError as error:
            raise InvalidIdentity(f"identity {file} cannot be read: {error.strerror}") from error
        return cls(_parse(pem, file))

    @classmethod
    def load_or_create(cls, path: FilePath) -> Identity:
        """``load``, or ``save`` a new one first where there is no such file.

        Of several processes that do this at once, all end up with the same identity. Raises
        ``InvalidIdentity``, and ``OSError`` where the file cannot be made.
        """
        if not os.path.lexists(path):
            fresh = cls()
            # Another process may have been faster; then its key counts.
            with contextlib.suppress(FileExistsError):
                fresh.save(path)
                return fresh
        return cls.load(path)

    def save(self, path: FilePath) -> None:
        """Write the key to a new file, unencrypted, in PEM form (PKCS #8), for the owner alone (0600).

        The file appears complete or not at all. Missing folders are made, mode 0700. Raises
        ``FileExistsError`` rather than overwrite anything, and ``OSError``.
        """
        file = Path(path)
        _make_folders(file.parent)
        _write_new(file, self.to_pem())

    @property
    def public_key(self) -> bytes:
        """The 32 bytes that the node id stands for."""
        return self._key.public_key().public_bytes_raw()

    def to_pem(self) -> bytes:
        """The private key as PKCS 8 in PEM form, not encrypted: what ``save`` writes."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign(self, data: bytes) -> bytes:
        """The 64-byte Ed25519 signature of ``data`` (RFC 8032)."""
        return self._key.sign(data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and other.node_id == self.node_id

    def __hash__(self) -> int:
        return hash(self.node_id)

    def __repr__(self) -> str:
        return f"Identity({self.node_id})"


def node_id_of(public_key: bytes) -> str:
    """The node id of a raw public key: lower-case base32 without padding, 52 characters.

    Raises ``InvalidIdentity`` for anything but 32 bytes.
    """
    if len(public_key) != KEY_BYTES:
        raise InvalidIdentity(f"a public key has {KEY_BYTES} bytes, not {len(public_key)}")
    return base64.b32encode(public_key).decode().rstrip("=").lower()


@lru_cache(maxsize=KNOWN_KEYS)
def public_key_of(node_id: str) -> bytes:
    """The raw public key that a node id stands for.

    Raises ``InvalidIdentity`` unless it is the one text form of a key under which signatures prove
    something: also for unused bits that are not zero, and for points of small order.
    """
    try:
        key = base64.b32decode(node_id.upper() + "====")
    except ValueError:
        key = b""
    # Base32 decoding is lenient about case and about the unused bits at the end; encoding is not.
    if len(key) != KEY_BYTES or node_id_of(key) != node_id:
        raise InvalidIdentity(f"{node_id[:80]!r} is not a node id: 52 characters of a-z and 2-7, of 32 bytes")
    if not is_safe(key):
        raise InvalidIdentity(f"{node_id!r} is not a node id: no safe Ed25519 key has it")
    return key


def is_safe(public_key: bytes) -> bool:
    """Does a signature under this public key prove anything? Not where the point is of small order."""
    y = int.from_bytes(public_key, "little") & _Y_BITS
    return y < _PRIME and y not in _SMALL_ORDER


def verify(node_id: str, signature: bytes, data: bytes) -> bool:
    """Whether the node's key made this signature of ``data``. False for any malformed input."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key_of(node_id)).verify(signature, data)
    except (InvalidIdentity, _NoMatch):
        return False
    return True


# Files -------------------------------------------------------------------------------------------


def _missing(file: Path) -> str:
    if file.is_symlink():
        return f"identity {file} is a symbolic link to a file that does not exist"
    return f"identity {file} does not exist: create it with  openline id --identity {shlex.quote(str(file))}"


def _read_private(file: Path) -> bytes:
    with file.open("rb") as stream:
        mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
        # Windows has no such bits and reports them as set.
        pem = stream.read()
    if os.name == "posix" and mode & 0o077 and _looks_private(pem):
        log.warning("identity %s is open to other users (mode %03o): chmod 600 it", file, mode)
    return pem


def _looks_private(pem: bytes) -> bool:
    """Else it is the wrong file, and no business of ours."""
    return b"PRIVATE KEY-----" in pem


def _parse(pem: bytes, file: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise InvalidIdentity(f"identity {file} is encrypted: openline reads unencrypted keys only") from None
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidIdentity(f"identity {file} is not a private key in PEM form (PKCS #8)") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidIdentity(f"identity {file} is not an Ed25519 key")
    return key


def _make_folders(folder: Path) -> None:
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(mode=0o700, exist_ok=True)


def _write_new(file: Path, data: bytes) -> None:
    # Written beside it first (mkstemp: O_EXCL, mode 0600): whoever finds the file finds all of it.
    handle, name = tempfile.mkstemp(prefix=".identity-", dir=file.parent)
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        _publish(draft, file)
    finally:
        draft.unlink(missing_ok=True)


def _publish(draft: Path, file: Path) -> None:
    try:
        # Unlike a rename, a link never replaces what is there.
        os.link(draft, file)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Take the name first, then fill it: a reader may find it empty for a moment, but still no
        # file of somebody else's is replaced.
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        draft.replace(file)
