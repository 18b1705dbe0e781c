"""agentic-flow 2.1.3, the npm package itself: agentic_flow.mjs beside this file plays both ends."""

import shutil
from functools import cache
from pathlib import Path

from tests.interop.npm_peers import PeersUnavailable

from benchmarks import npm_peers

VERSION = "2.1.3"
SCRIPT = Path(__file__).with_suffix(".mjs")


@cache
def why_not() -> str:
    """Why it cannot take part; empty when it can, and then it is fetched."""
    missing = [tool for tool in ("node", "npm") if shutil.which(tool) is None]
    if missing:
        return f"skipped: {missing[0]} not found"
    try:
        npm_peers.agentic_flow(VERSION)
    except PeersUnavailable:
        return "skipped: npm could not fetch it"
    return ""


def command(plan_json: str) -> list[str]:
    loader = npm_peers.agentic_flow(VERSION) / "dist/transport/quic-loader.js"
    return ["node", str(SCRIPT), str(loader), "run", plan_json]
