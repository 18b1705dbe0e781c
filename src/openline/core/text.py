"""Text that a peer has chosen, and that ends up in logs, errors and terminals. Pure."""

from __future__ import annotations

# Of a reason, an error body or a hint.
MAX_REMARK = 300


def printable(text: str, limit: int = MAX_REMARK) -> str:
    """What of ``text`` can be shown: no control characters, no line breaks, nothing that turns the
    direction of writing or is not there to be seen."""
    text = text[:limit]
    return text if text.isprintable() else "".join(c for c in text if c.isprintable())


def printable_lines(text: str, limit: int = MAX_REMARK) -> str:
    """The same where line breaks separate words."""
    return printable(" ".join(text.split()), limit)
