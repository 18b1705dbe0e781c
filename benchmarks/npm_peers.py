"""The npm peers, fetched as the interop tests fetch them."""

from pathlib import Path

import msgspec

from tests.interop.npm_peers import STORE, fetch


def agentic_flow(version: str) -> Path:
    """The unpacked package, with `ws` where its imports find it; fetched the first time only."""
    return fetch(version)


def ws_version(version: str) -> str:
    package = STORE / f"agentic-flow-{version}" / "node_modules/ws/package.json"
    return str(msgspec.json.decode(package.read_bytes())["version"])
