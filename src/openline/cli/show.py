"""How messages and outcomes look to a person."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.text import Text

from .protocol import Record, to_json

# A person does not read more of a payload; --json has all of it.
MAX_SHOWN = 2000


def render(record: Record) -> bytes:
    """One record of the line protocol as one coloured line (plain where colour is not wanted)."""
    console = Console(file=sys.stdout, highlight=False)
    with console.capture() as capture:
        console.print(_line(record), soft_wrap=True)
    return capture.get().encode(errors="replace")


def _line(record: Record) -> Text:
    if "listening" in record:
        return Text(f"listening on {_where(record)}  (Ctrl-C ends)", style="bold")
    if "sent" in record:
        return Text(sent_text(record), style="dim")
    if "error" in record:
        return _error(record)
    return _message(record)


def _where(record: Record) -> str:
    without = [f", without {backend}: {why}" for backend, why in record["unavailable"].items()]
    return " and ".join(record["addresses"]) + "".join(without)


def _message(record: Record) -> Text:
    parts = [
        (time.strftime("%H:%M:%S "), "dim"),
        # In quotes: it is what the peer calls itself. The node id is proven.
        (f"{_json(record['name'])} " if record.get("name") else "", "cyan"),
        (f"{record['nodeId'][:8]} " if record.get("nodeId") else "", "bold cyan"),
        (f"{record['from']} ", "cyan"),
        (f"{record['type']} ", "green"),
        (_json(record["payload"]), ""),
        (_details(record), "dim"),
    ]
    return Text.assemble(*((printable(text), style) for text, style in parts))


def _details(record: Record) -> str:
    details = f"  id={record['id']}"
    if record["streamId"] != "default":
        details += f" stream={_json(record['streamId'])}"
    if "answers" in record:
        details += f" answers={record['answers']}"
    if record["metadata"]:
        details += f" metadata={_json(record['metadata'])}"
    return details


def sent_text(record: Record) -> str:
    return printable(f"sent {record['sent']} to {record['to']} ({journey(record)})")


def journey(record: Record) -> str:
    """What a receipt says."""
    acked = "acked" if record["acked"] else "not acked"
    return f"attempts {record['attempts']}, {record['direction']} {record['backend']}, {acked}"


def _error(record: Record) -> Text:
    where = f"line {record['line']}: " if "line" in record else ""
    return Text(printable(f"error: {where}{record['error']}"), style="red")


def _json(value: object) -> str:
    text = to_json(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}… ({len(text)} characters)"


def printable(text: str) -> str:
    """Nothing that a peer sends may steer the terminal."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
