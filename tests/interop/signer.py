"""A Python handle on signer.mjs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("signer.mjs")
DEADLINE = 30.0


class Signer:
    """One node process per call; it takes many tasks at once."""

    def __init__(self, library: Path) -> None:
        self._library = library

    def canonical(self, texts: Iterable[str]) -> list[str]:
        """JSON texts in their canonical form."""
        return self._run({"op": "canonical", "text": text} for text in texts)

    def portable(self, texts: Iterable[str]) -> list[bool]:
        """Whether the plugin signs the values of those JSON texts."""
        return self._run({"op": "portable", "text": text} for text in texts)

    def sign(self, seed: bytes, messages: Iterable[dict[str, Any]]) -> list[str]:
        """The signed messages, as the JSON texts that would be sent."""
        return self._run({"op": "sign", "seed": seed.hex(), "message": message} for message in messages)

    def verify(self, key: bytes, texts: Iterable[str]) -> list[bool]:
        """Whether the holder of that public key has signed the messages in those JSON texts."""
        return self._run({"op": "verify", "key": key.hex(), "text": text} for text in texts)

    def _run(self, tasks: Iterable[dict[str, Any]]) -> list[Any]:
        run = subprocess.run(
            ["node", str(SCRIPT), str(self._library / "package.json")],
            input=json.dumps(list(tasks)),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=DEADLINE,
        )
        assert run.returncode == 0, run.stderr
        return list(json.loads(run.stdout))
