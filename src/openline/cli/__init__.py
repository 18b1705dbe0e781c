"""The ``openline`` command. Nothing heavy is imported before ``main`` runs."""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130
NOT_INSTALLED = 2
# What the command imports of the extra "cli" (pyproject.toml), and what comes with that.
EXTRA = ("typer", "rich", "click")


def main() -> int:
    """Run the command line and return its exit code."""
    _open_closed_streams()
    try:
        from .app import run_app

        return run_app()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        print(f'openline: the command needs {error.name}: run  pip install "openline[cli]"', file=sys.stderr)
        return NOT_INSTALLED
    except KeyboardInterrupt:
        return INTERRUPTED


def _open_closed_streams() -> None:
    """A daemon may be started with some closed: then a socket must not become its standard output."""
    for fd, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            setattr(sys, name, os.fdopen(fd, mode))
