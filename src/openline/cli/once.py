"""``openline send`` and ``openline request``: one exchange, then gone."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import msgspec

import openline
from openline.message import StreamId, new_id

from .common import USAGE, Failure, carriers, complain, transport
from .protocol import Record, encode_record, sent_record, to_json
from .show import journey, sent_text

log = logging.getLogger("openline")


def read_payload(text: str) -> Any:
    """JSON where it is JSON, else the text itself; ``-`` reads standard input."""
    if text == "-":
        text = _read_input()
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        if text.lstrip()[:1] in ("{", "["):
            complain("note: this payload is not valid JSON, so it is sent as a text")
        return text


def _read_input() -> str:
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise Failure(f"standard input is not UTF-8: {error}", USAGE) from None


def read_stream(text: str) -> StreamId:
    """``42`` is the number, ``'"42"'`` the text, as in JSON; all else is a text."""
    value = read_payload(text) if text != "-" else text
    return value if isinstance(value, str | int) and not isinstance(value, bool) else text


class Sending(msgspec.Struct, frozen=True):
    """What ``openline send`` was told."""

    address: str
    message: openline.Message
    count: int
    timeout: float | None
    json: bool


async def send(config: openline.Config, what: Sending) -> int:
    messages = [what.message]
    messages += [msgspec.structs.replace(what.message, id=new_id()) for _ in range(what.count - 1)]
    started = time.monotonic()
    async with transport(config) as t:
        if what.count > 1:
            receipts = await t.send_batch(what.address, messages, timeout=what.timeout)
        else:
            receipts = [await t.send(what.address, what.message, timeout=what.timeout)]
        took = time.monotonic() - started
    if t.stats().in_doubt:
        raise Failure(f"in doubt: sent to {what.address}, but the connection died before it was closed")
    records = [sent_record(m.id, what.address, r) for m, r in zip(messages, receipts, strict=True)]
    _print_receipts(what, records, took)
    return 0


def _print_receipts(what: Sending, records: list[Record], took: float) -> None:
    if what.json:
        sys.stdout.buffer.write(b"".join(map(encode_record, records)))
    elif what.count > 1:
        print(f"sent {what.count} messages to {what.address} in {took * 1e3:.1f} ms ({journey(records[-1])})")
    else:
        print(sent_text(records[0]))


async def request(
    config: openline.Config, address: str, message: openline.Message, timeout: float | None
) -> int:
    async with transport(config) as t:
        answer = await t.request(address, message, timeout)
        log.debug("%s has answered over %s", address, carriers(t))
    print(to_json(answer.payload))
    return 0
