"""A file of known peers on disk: read whole, written whole under a lock, for several processes at once."""

from __future__ import annotations

import contextlib
import os
import random
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from ..identity import FilePath
from .lines import Broken, Document, Entry

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

# Addresses that one file remembers: more than a fleet of a few hundred machines has, and read in some 10 ms.
# Those that were seen longest ago go first.
MAX_PLACES = 4096
# How much room is made at a time: to see which are oldest, every line has to be understood.
ROOM = 16
# A line has a hundred and fifty bytes, and up to two thousand with a long name.
MAX_BYTES = 4 * 1024 * 1024
# Others hold the lock for as long as it takes to read and write such a file, some 10 ms. A fleet's worth of
# them may start at once; and nobody waits for longer who holds up a program's end.
LOCK_WAIT = 5.0
# Between two looks, by chance: as many look, none shall always come too late.
_LOCK_POLL = 0.01
# When a file was changed is told in steps of up to two seconds (FAT); a size alone may stay the same.
Signature = tuple[int, int, int, int] | None


class Unusable(Exception):
    """The file cannot be read, written or trusted; the text says why, and what to do."""


class Merged(msgspec.Struct):
    """``refused`` were not written, as the file has another node for their address; ``dropped`` had to go."""

    document: Document
    refused: list[Entry]
    dropped: list[Entry]


class KnownFile:
    def __init__(self, path: FilePath) -> None:
        # What a link leads to is replaced, not the link.
        self.path = Path(os.path.realpath(path))

    def signature(self) -> Signature:
        """Changes with the file; None where there is none."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unusable(f"{self.path} cannot be read: {error.strerror}") from None
        return found.st_mtime_ns, found.st_ino, found.st_size, stat.S_IMODE(found.st_mode)

    def read(self) -> Document:
        """An empty one where there is no file. Raises ``Unusable``."""
        try:
            # Not waiting: a FIFO would never open.
            handle = os.open(self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except FileNotFoundError:
            return Document()
        except OSError as error:
            raise Unusable(f"{self.path} cannot be read: {error.strerror}") from None
        try:
            self._look_at(os.fstat(handle))
            with os.fdopen(handle, "rb", closefd=False) as stream:
                return Document(stream.read().decode())
        except (OSError, UnicodeDecodeError) as error:
            raise Unusable(f"{self.path} cannot be read: {error}; correct it or remove it") from None
        finally:
            os.close(handle)

    def _look_at(self, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise Unusable(f"{self.path} is not a file")
        if found.st_size > MAX_BYTES:
            raise Unusable(f"{self.path} has more than {MAX_BYTES} bytes: shorten it")
        # Windows has no such bits.
        mode = stat.S_IMODE(found.st_mode)
        if os.name == "posix" and mode & 0o022:
            raise Unusable(f"others may write to {self.path} (mode {mode:03o}): check it, then chmod 600 it")

    def update(self, change: Callable[[Document], None]) -> Document:
        """Read it, change it and write it while nobody else does. Raises ``Unusable``."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked():
                document = self.read()
                before = document.text
                change(document)
                if document.text != before:
                    self._write(document.text)
                return document
        except OSError as error:
            raise Unusable(f"{self.path} cannot be written: {error.strerror or error}") from None

    def merge(self, entries: Iterable[Entry]) -> Merged:
        """Remember these. One that was seen before is brought up to date, if it is still there."""
        refused: list[Entry] = []
        dropped: list[Entry] = []

        def change(document: Document) -> None:
            for entry in entries:
                try:
                    known = document.get(entry.place)
                except Broken:
                    refused.append(entry)
                    continue
                if known is not None and known.node_id != entry.node_id:
                    refused.append(entry)
                elif known is not None:
                    last = max(known.last or 0, entry.last or 0)
                    document.put(msgspec.structs.replace(known, last=last, name=entry.name))
                elif entry.first == entry.last:
                    document.put(entry)
            if len(document) > MAX_PLACES:
                dropped.extend(document.shrink(MAX_PLACES - MAX_PLACES // ROOM))

        return Merged(self.update(change), refused, dropped)

    def _write(self, text: str) -> None:
        # Beside it first (mkstemp: O_EXCL, mode 0600): whoever reads finds the old text or the new one.
        handle, draft = tempfile.mkstemp(prefix=f".{self.path.name}-", dir=self.path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            # The folder is not synced: a new name that a loss of power undoes is met as new again.
            os.replace(draft, self.path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)
            raise

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """A file of its own, which stays: the one that is replaced cannot be held."""
        place = f"{self.path}.lock"
        handle = os.open(place, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            until = time.monotonic() + LOCK_WAIT
            while not _try_lock(handle):
                if time.monotonic() >= until:
                    raise Unusable(f"another process has held {place} for more than {LOCK_WAIT:g} s")
                time.sleep(random.uniform(0.0, _LOCK_POLL))
            yield
        finally:
            os.close(handle)  # that gives it up


def _try_lock(handle: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
