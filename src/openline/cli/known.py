"""``openline known``: which node answered where, and what to do when another one does."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

import openline
from openline.address import is_node_id
from openline.known_peers.file import KnownFile, Unusable
from openline.known_peers.lines import Document, Entry, place_of, read_place

from .common import (
    FAILED,
    OFF,
    USAGE,
    Failure,
    KnownPeersFile,
    check_address,
    complain,
    configured,
    known_file,
    run,
    transport,
)
from .show import printable

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

Place = Annotated[
    str,
    typer.Argument(
        metavar="ADDR",
        help="As it is dialed. host:port, ws://, wss:// and quic:// of one host and port are one place.",
    ),
]


@app.callback()
def _known() -> None:
    """Which node answered where; what to do when another one does.

    The first time that an address is dialed, whoever answers there is taken, and
    its node id is remembered, as ssh does with host keys. From then on another
    node there is refused, and so is one that proves none: nothing is sent to it.
    That keeps out whoever steps in between later. It cannot tell whether the first
    one was right: NODEID@host:port does, and asks no file.

    A node that has no identity file has another node id with each start, so
    give those that you listen with one: openline listen --identity alice.pem

    Examples:
      openline known list
      openline known accept 10.0.0.2:8770
      openline known forget 10.0.0.2:8770

    To remember nothing: --known-peers off, or OPENLINE_KNOWN_PEERS=off.
    """


@app.command("list")
def _list(
    known_peers: KnownPeersFile = None,
    json: Annotated[bool, typer.Option("--json", help="Write JSON, one object per line.")] = False,
) -> int:
    """Show all addresses, who answered there, and when that was first and last seen.

    "Last seen" is exact to a day. The name is what the node calls itself; the
    node id is proven. Lines of the file that cannot be used are named on stderr;
    the addresses that they are for are refused until the lines are put right.

    Examples:
      openline known list
      openline known list --json | jq -r 'select(.name == "bob").address'

    Exit code 1 where there is a line that cannot be used, or the file cannot be read.
    """
    file = _file(known_peers)
    document = _usable(file.read)
    entries = sorted(document.entries.values(), key=lambda entry: entry.place)
    if json:
        for entry in entries:
            print(msgspec.json.encode(_record(entry)).decode())
    elif entries:
        _print_table(entries)
    for complaint in document.complaints:
        complain(f"{file.path}: {complaint}")
    return FAILED if document.complaints else 0


def _record(entry: Entry) -> dict[str, Any]:
    return {
        "address": entry.place,
        "nodeId": entry.node_id,
        "firstSeen": entry.first,
        "lastSeen": entry.last,
        "name": entry.name,
    }


def _print_table(entries: list[Entry]) -> None:
    rows = [("address", "node id", "first seen (UTC)", "last seen", "name")]
    for entry in entries:
        when = _day(entry.first, "%Y-%m-%d %H:%M"), _day(entry.last)
        rows.append((entry.place, entry.node_id, *when, printable(entry.name)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())


def _day(seconds: int | None, form: str = "%Y-%m-%d") -> str:
    return "-" if seconds is None else time.strftime(form, time.gmtime(seconds))


@app.command("forget")
def _forget(
    what: Annotated[
        list[str], typer.Argument(metavar="ADDR|NODEID...", help="An address, or a node with all of its.")
    ],
    known_peers: KnownPeersFile = None,
) -> int:
    """Forget who answered at an address: whoever does next is taken, and remembered.

    To say who it has to be instead, use  openline known accept ADDR NODEID

    Examples:
      openline known forget 10.0.0.2:8770
      openline known forget "$OLD_ID"

    Exit code 1 where nothing was known of one of them.
    """
    file = _file(known_peers)
    wanted = {text: text if is_node_id(text) else _place(text) for text in what}
    gone: dict[str, list[str]] = {}

    def change(document: Document) -> None:
        gone.update({text: document.remove(key) for text, key in wanted.items()})

    _usable(lambda: file.update(change))
    for text, places in gone.items():
        for place in places:
            print(f"forgotten: {place}")
        if not places:
            complain(f"nothing is known of {text}")
    return 0 if all(gone.values()) else FAILED


@app.command("accept")
@configured
def _accept(
    config: openline.Config,
    addr: Place,
    node_id: Annotated[
        str | None,
        typer.Argument(
            metavar="NODEID", help="Who it is. Without it the address is dialed, and who answers is taken."
        ),
    ] = None,
) -> int:
    """Accept another node at an address, in place of the one that is known there.

    The refusal of a send or a ping names the node id that it met: compare it with
    what "openline id" prints there. With the node id nothing is dialed.

    Examples:
      openline known accept 10.0.0.2:8770 "$(ssh bob openline id)"
      openline known accept 10.0.0.2:8770

    Exit code 1 where nobody answers, or one that proves no node id.
    """
    file = _file(Path(config.known_peers) if config.known_peers else OFF)
    address = openline.Address.parse(addr)
    wanted = node_id or address.node_id
    if wanted is not None and not is_node_id(wanted):
        raise Failure(f"{wanted!r} is not a node id (52 characters of a-z and 2-7)", USAGE)
    if not address.dialable:
        raise Failure(f"{addr} is a node id: say at which address it is to be accepted", USAGE)
    name = ""
    if wanted is None:
        check_address(config, addr)
        _usable(file.read)
        wanted, name = _who_answers(config, addr)
    print(_usable(lambda: _put(file, place_of(address), wanted, name)))
    return 0


def _who_answers(config: openline.Config, address: str) -> tuple[str, str]:
    """Who answers there now, whoever did before."""
    found: list[tuple[str, str]] = []

    async def dial() -> int:
        async with transport(msgspec.structs.replace(config, known_peers=None)) as t:
            peer = await t.connect(address)
            if peer is None or peer.node_id is None:
                raise Failure(
                    f"{address}: what answers there proves no node id: there is nothing to remember"
                )
            found.append((peer.node_id, peer.name))
        return 0

    code = run(dial())
    if code:
        raise Failure("interrupted", code)
    return found[0]


def _put(file: KnownFile, place: str, node_id: str, name: str) -> str:
    """What was done, for people."""
    before: list[str] = []

    def change(document: Document) -> None:
        known = document.entries.get(place)  # one that is broken is replaced
        now = int(time.time())
        if known is not None and known.node_id == node_id:
            before.append(f"{place}: {node_id} was known there already")
            return
        was = f", in place of {known.node_id}" if known is not None else ""
        before.append(f"{place}: {node_id} is known there from now on{was}")
        document.put(Entry(place=place, node_id=node_id, first=now, last=now, name=name))

    file.update(change)
    return before[0]


def _file(given: Path | None) -> KnownFile:
    path = known_file(given)
    if path is None:
        raise Failure("nodes are not remembered here: say in which file with --known-peers", USAGE)
    return KnownFile(path)


def _place(text: str) -> str:
    """Of an address, or of what ``list`` shows: a path without a scheme."""
    return place_of(openline.Address.parse(text)) if "://" in text else read_place(text)


def _usable(work: Callable[[], T]) -> T:
    try:
        return work()
    except Unusable as error:
        raise Failure(str(error)) from None
