"""Where the command keeps what is the user's."""

from __future__ import annotations

import os
from pathlib import Path

NAME = "known_peers"


def user_folder() -> Path:
    """``openline`` in the user's configuration folder. Raises ``RuntimeError`` where there is no home."""
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    # The XDG specification has relative paths ignored.
    folder = Path(configured) if os.path.isabs(configured) else Path.home() / ".config"
    return folder / "openline"


def default_file() -> Path | None:
    """The command's file of known peers; None where there is no home folder."""
    try:
        return Path(os.path.realpath(user_folder() / NAME))
    except RuntimeError:
        return None
