"""The npm peers, fetched as the interop tests fetch them."""

from pathlib import Path

import msgspec
from tests.interop.npm_peers import STORE, fetch


def agentic_flow(version: str) -> Path:
    """The unpacked package, with `ws` where its imports find it; fetched the first time only."""
    return fetch(version)


def home(version: str) -> Path:
    return STORE / f"agentic-flow-{version}"


def ws_version(version: str) -> str:
    package = home(version) / "node_modules/ws/package.json"
    return str(msgspec.json.decode(package.read_bytes())["version"])
