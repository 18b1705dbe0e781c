"""What a transport does with its file of known peers: judges who answers a dial, and remembers them."""

from __future__ import annotations

import asyncio
import logging
import shlex
from collections.abc import Callable

import msgspec

from ..address import Address
from ..errors import Refused
from ..identity import FilePath
from .file import MAX_PLACES, KnownFile, Merged, Unusable
from .lines import Broken, Document, Entry, place_of
from .place import default_file

log = logging.getLogger("openline")

# How exactly "last seen" is kept: each change rewrites the file.
REFRESH = 86400
# Stands for the node of an address of which the file says something that cannot be read: nobody is that.
UNREADABLE = "?"


class KnownPeers:
    """The nodes that answered where this program dialed. Without a file it knows and remembers nothing.

    Read when it was made, and again where the file has changed; written by a thread. ``changed`` is called
    where other nodes are known than before.
    """

    def __init__(
        self, path: FilePath | None, clock: Callable[[], float], changed: Callable[[], object] = lambda: None
    ) -> None:
        self._file = KnownFile(path) if path is not None else None
        self._clock = clock
        self._changed: Callable[[], object] = lambda: None
        self._document = Document()
        self._read: object = ()
        # Why the file cannot be used now.
        self._unusable = ""
        # Not in the file yet.
        self._unwritten: dict[str, Entry] = {}
        self._writing: asyncio.Task[None] | None = None
        self._complained = False
        self.refresh()
        self._changed = changed

    def refresh(self) -> None:
        """Read the file again if it has changed: one look at it where it has not."""
        if self._file is None:
            return
        try:
            now = self._file.signature()
            if now == self._read and not self._unusable:
                return
            self._take(self._file.read(), now)
        except Unusable as error:
            self._unusable, self._read = str(error), ()

    def _take(self, document: Document, signature: object) -> None:
        before, self._document = self._document, document
        self._unusable, self._read = "", signature
        if before.strays != document.strays:
            for stray in document.strays:
                log.warning("known peers: %s: %s", self._file and self._file.path, stray)
        if before.text != document.text:
            self._changed()

    def node_at(self, address: Address) -> str | None:
        """Who alone may get what is for that address, if that is known; ``UNREADABLE`` where it is nobody."""
        if self._file is None or address.node_id is not None:
            return None
        try:
            entry = self._entry(address)
        except Broken:
            return UNREADABLE
        if self._unusable:
            return UNREADABLE
        return entry.node_id if entry is not None else None

    def _entry(self, address: Address) -> Entry | None:
        """Raises ``Broken``."""
        place = place_of(address)
        return self._document.get(place) or self._unwritten.get(place)

    # A dial --------------------------------------------------------------------------------------

    def check(self, address: Address, node_id: str | None) -> None:
        """That node, or a plain peer, has answered there. Raises ``Refused`` where another one did before."""
        if self._file is None or address.node_id is not None:
            return
        self.refresh()
        if self._unusable:
            raise Refused(
                f"{address}: who answered there before cannot be told: {self._unusable}; {_NOTHING}"
            )
        try:
            entry = self._entry(address)
        except Broken as broken:
            command = self._command("forget", address)
            where = f"line {broken.number} of {self._file.path} cannot be used ({broken.why})"
            raise Refused(f"{address}: {_NOTHING}: {where}: correct it, or  {command}") from None
        if entry is not None and entry.node_id != node_id:
            raise Refused(self._other(address, entry, node_id))

    def _other(self, address: Address, known: Entry, node_id: str | None) -> str:
        since = f", first seen {known.since}," if known.since else ""
        before = f"{known.node_id}{since} answered there before"
        if node_id is None:
            command = self._command("forget", address)
            return (
                f"{address}: what answers there now proves no node id, and node {before}; {_NOTHING}. "
                f"Somebody may stand in the way. If that node is there no more:  {command}"
            )
        command = self._command("accept", address, node_id)
        return (
            f"{address}: the node there is {node_id}, and node {before}; {_NOTHING}. Somebody may be in its "
            "place, or it has a new key (one without an identity file has with each start). If you know that "
            f"it is right:  {command}"
        )

    def _command(self, what: str, address: Address, *more: str) -> str:
        assert self._file is not None
        words = ["openline", "known", what, str(address), *more]
        if self._file.path != default_file():
            words += ["--known-peers", str(self._file.path)]
        return shlex.join(words)

    def saw(self, address: Address, node_id: str, name: str) -> None:
        """It has proven itself there, and was no other than before."""
        if self._file is None or address.node_id is not None:
            return
        now, known = int(self._clock()), self._entry(address)
        if known is None:
            entry = Entry(place=place_of(address), node_id=node_id, first=now, last=now, name=name)
            log.info("known from now on: node %s answers at %s", node_id, entry.place)
        elif now - (known.last or 0) >= REFRESH:
            entry = msgspec.structs.replace(known, last=now, name=name)
        else:
            return
        self._unwritten[entry.place] = entry
        if len(self._unwritten) > MAX_PLACES:
            oldest = next(iter(self._unwritten))
            log.warning("known peers: %s is forgotten, as it could not be written", oldest)
            del self._unwritten[oldest]
        self._write()

    # Writing -------------------------------------------------------------------------------------

    def _write(self) -> None:
        if self._writing is None or self._writing.done():
            self._writing = asyncio.ensure_future(self._write_all())

    async def _write_all(self) -> None:
        assert self._file is not None
        while self._unwritten:
            batch = dict(self._unwritten)
            try:
                merged = await asyncio.to_thread(self._file.merge, batch.values())
            except Unusable as error:
                level = logging.DEBUG if self._complained else logging.WARNING
                log.log(level, "known peers: kept in memory only: %s", error)
                self._complained = True
                return
            self._complained = False
            self._written(batch, merged)

    def _written(self, batch: dict[str, Entry], merged: Merged) -> None:
        for place, entry in batch.items():
            if self._unwritten.get(place) is entry:
                del self._unwritten[place]
        for entry in merged.refused:
            text = "known peers: another process has met another node at %s than %s; that one stays known"
            log.error(text, entry.place, entry.node_id)
        for entry in merged.dropped:
            text = "known peers: %s (node %s) is forgotten: more than %d addresses"
            log.warning(text, entry.place, entry.node_id, MAX_PLACES)
        # Its signature is taken at the next look: somebody may have written since.
        self._take(merged.document, ())

    async def close(self) -> None:
        """Wait until all is written, as far as it can be."""
        if self._unwritten:
            self._write()
        if self._writing is not None:
            await self._writing


_NOTHING = "nothing was sent"
