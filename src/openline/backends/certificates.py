"""The files of ``Config.tls``, read again when they have changed.

What is made of them is made anew and put in place of what was there, all of it or nothing: connections
that are open, or whose TLS handshake has begun, keep what they began with. A file that is missing,
half-written or not its partner's changes nothing.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import os
import re
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from ..config import Tls

log = logging.getLogger("openline")

# File systems keep times in steps of some milliseconds, some of two seconds: a file that is younger may
# have changed without its time having done so.
COARSE = 2.0
# Where nobody connects: what is wrong with the files is said all the same.
LOOK_IDLE = 60.0
# A certificate that is renewed in time has 20 to 30 days left; with 7 nobody is about to do it.
WARN_DAYS = 7.0
WARN_EVERY = 86400.0
# A file that changes while it is read is read again, so often.
READS = 5
_DAY = 86400.0
_KEY = re.compile(rb"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL)

T = TypeVar("T")
Contents = tuple[bytes, ...]
Make = Callable[[Contents], T]


class Made(Generic[T]):
    """What was made of the files as they were last found good."""

    def __init__(self, files: Files, now: T) -> None:
        self._files = files
        self.now = now

    def current(self) -> T:
        """The same, after a look at the files."""
        self._files.look()
        return self.now


class Files:
    """Some files that belong together, in PEM form; none where nothing is configured."""

    def __init__(self, *paths: str | None) -> None:
        self._paths = [Path(path) for path in paths if path is not None]
        self._making: list[tuple[Make[Any], Made[Any]]] = []
        # As they were when they were last read, well or badly.
        self._stamps: object = None
        self._tried: object = None
        if self._paths:
            self._stamps = self._stamp()

    def __str__(self) -> str:
        return ", ".join(map(str, self._paths))

    def use(self, make: Make[T]) -> Made[T]:
        """``make(contents)`` now, and again whenever the contents have changed. Raises ``OSError``."""
        try:
            contents, (now,) = self._build([make])
            if self._making and self._tried != _digest(contents):
                self._replace()  # what was made a moment ago is of files that have changed since
        except (ValueError, TypeError) as error:
            raise OSError(f"{self}: {error}") from None
        made = Made(self, now)
        self._making.append((make, made))
        self._tried = _digest(contents)
        return made

    def look(self) -> None:
        """Have they changed? Then read them; log what is wrong with them, once.

        Asked before every TLS handshake, which takes a hundred times as long.
        """
        if not self._paths:
            return
        stamps = self._stamp()
        if stamps == self._stamps and not _is_young(stamps):
            return
        self._stamps = stamps
        try:
            contents = self._read()
        except OSError as error:
            self._failed((type(error), error.errno, error.filename), error)
            return
        if self._tried != _digest(contents):
            try:
                self._replace()
            except (OSError, ValueError, TypeError) as error:
                self._failed(_digest(contents), error)

    def _failed(self, tried: object, error: Exception) -> None:
        if tried != self._tried:
            self._tried = tried
            # A pair that is being copied, one file after the other, looks like this for a moment, too.
            log.warning("%s: %s. What was read before stays in use", self, _reason(error))

    def reload(self) -> None:
        """Read them now. Raises ``OSError`` where they cannot be used; then nothing has changed."""
        if not self._paths:
            return
        self._stamps = self._stamp()
        try:
            self._replace()
        except (OSError, ValueError, TypeError) as error:
            raise OSError(f"{self}: {_reason(error)}. What was read before stays in use") from error

    def _read(self) -> Contents:
        return tuple(path.read_bytes() for path in self._paths)

    def _build(self, makers: list[Make[Any]]) -> tuple[Contents, list[Any]]:
        """What they make of one state of the files, which they may read by themselves."""
        contents = self._read()
        for _ in range(READS):
            failure: Exception | None = None
            try:
                fresh = [make(contents) for make in makers]
            except (OSError, ValueError, TypeError) as error:
                failure = error  # perhaps because one file was read before a change, and one after it
            again = self._read()
            if again != contents:
                contents = again
            elif failure is not None:
                raise failure
            else:
                return contents, fresh
        raise OSError("they change while they are read")

    def _replace(self) -> None:
        contents, fresh = self._build([make for make, _ in self._making])
        self._tried = _digest(contents)
        for (_, made), now in zip(self._making, fresh, strict=True):
            made.now = now
        self.renewed()

    def renewed(self) -> None:
        log.info("read again, and used for new connections: %s", self)

    def _stamp(self) -> object:
        """What tells a changed file, or another one in its place, whatever link leads there."""
        found: list[object] = []
        for path in self._paths:
            try:
                stat = os.stat(path)
            except OSError as error:
                found.append((error.errno, 0.0))
            else:
                times = stat.st_mtime_ns, stat.st_ctime_ns
                found.append(((stat.st_dev, stat.st_ino, stat.st_size, *times), max(times) / 1e9))
        return found


class ServerFiles(Files):
    """A certificate with its chain, and its key."""

    def __init__(self, tls: Tls | None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(*((tls.cert, tls.key) if tls is not None else ()))
        self._clock = clock
        self._expires: Made[datetime.datetime] | None = None
        self._warn_at = float("-inf")
        if self._paths:
            self._expires = self.use(_expiry)
            self._warn()

    @property
    def days(self) -> float | None:
        """Until the certificate expires; None without one."""
        if self._expires is None:
            return None
        return (self._expires.now - datetime.datetime.now(datetime.UTC)).total_seconds() / _DAY

    def renewed(self) -> None:
        log.info("%s: renewed, for new connections; good for %.0f days", self, self.days)
        self._warn_at = float("-inf")
        self._warn()

    def look(self) -> None:
        super().look()
        self._warn()

    def _warn(self) -> None:
        now = self._clock()
        if now < self._warn_at or self.days is None:
            return
        self._warn_at = now + WARN_EVERY
        if self.days < 0:
            log.error("%s: the certificate has expired %.1f days ago", self, -self.days)
        elif self.days < WARN_DAYS:
            log.warning("%s: the certificate expires in %.1f days", self, self.days)


class TlsFiles:
    """All files of one ``Config.tls``."""

    def __init__(self, tls: Tls | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.shown = ServerFiles(tls, clock)
        self.trusted = Files(tls.ca if tls is not None else None)
        self._clock = clock
        self._look_at = 0.0

    def look(self) -> None:
        """Called often, while nobody connects; looks seldom."""
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + LOOK_IDLE
            self.shown.look()
            self.trusted.look()


def _expiry(contents: Contents) -> datetime.datetime:
    """When the certificate ends. Raises ``ValueError`` where it and its key are not a pair."""
    chain, key = contents
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
    except ValueError as error:
        raise ValueError(f"no certificate in PEM form: {error}") from None
    try:
        private: Any = load_pem_private_key(private_key_in(key), None)
    except TypeError:
        raise ValueError("the key is encrypted") from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"no private key in PEM form: {error}") from None
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if leaf.public_key().public_bytes(*form) != private.public_key().public_bytes(*form):
        raise ssl.SSLError(ssl.SSL_ERROR_SSL, "the key is not that of the certificate")
    return leaf.not_valid_after_utc


def private_key_in(pem: bytes) -> bytes:
    """The key's block of a file that may hold others: its parameters, its certificate."""
    found = _KEY.search(pem)
    return found[0] if found else pem


def _digest(contents: Contents) -> bytes:
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in contents)).digest()


def _is_young(stamps: Any) -> bool:
    now = time.time()
    return any(abs(now - changed) < COARSE for _, changed in stamps)


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return str(getattr(error, "reason", None) or error.strerror or error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
