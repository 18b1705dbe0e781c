"""Fetches the real agentic-flow packages, and a library for them to sign with, once per clone.

`python tests/interop/npm_peers.py` does it ahead of the tests.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

VERSIONS = ("2.0.12-fix.8", "2.1.3")
# RFC 8785 in JavaScript; it has no dependencies.
CANONICALIZE = "canonicalize@2.1.0"
# The federation over agentic-flow, which its transport loader finds beside it.
FEDERATION = "@claude-flow/plugin-agent-federation@1.0.0-alpha.17"
FEDERATED = "2.0.12-fix.8"
STORE = Path(__file__).resolve().parents[2] / ".node"
NPM_TIMEOUT = 60.0


class PeersUnavailable(Exception):
    """The packages cannot be had here; the text says why."""


def fetch(version: str) -> Path:
    """The folder of the unpacked package, its one run-time dependency beside it."""
    home = STORE / f"agentic-flow-{version}"
    _once(home, partial(_agentic_flow, version))
    return home / "package"


def fetch_canonicalize() -> Path:
    """The folder to import ``canonicalize`` from."""
    home = STORE / CANONICALIZE.replace("@", "-")
    _once(home, partial(_install, CANONICALIZE))
    return home


def fetch_federation() -> Path:
    """The folder to import the federation plugin from, with the agentic-flow that it asks for."""
    home = STORE / "plugin-agent-federation-1.0.0-alpha.17"
    _once(home, _federation)
    return home


def _once(home: Path, build: Callable[[Path], None]) -> None:
    _require_tools()
    if not home.is_dir():
        with _lock():
            if not home.is_dir():
                _build(home, build)


def _require_tools() -> None:
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            raise PeersUnavailable(f"{tool} is not installed")


@contextmanager
def _lock() -> Iterator[None]:
    STORE.mkdir(exist_ok=True)
    with (STORE / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _build(home: Path, build: Callable[[Path], None]) -> None:
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=STORE))
    try:
        build(staging)
        # A rename is all or nothing: an interrupted fetch leaves no half package behind.
        staging.rename(home)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _agentic_flow(version: str, folder: Path) -> None:
    _unpack(version, folder)
    # The transport imports nothing else from outside; the full tree has hundreds of packages, some native.
    _install("ws@^8.20", folder)


def _federation(folder: Path) -> None:
    # agentic-flow is an optional peer of the plugin's; of its hundreds of packages the transport needs one.
    _install(FEDERATION, folder, "ws@^8.20")
    _unpack(FEDERATED, folder)
    (folder / "package").rename(folder / "node_modules" / "agentic-flow")


def _unpack(version: str, folder: Path) -> None:
    _npm(folder, "pack", f"agentic-flow@{version}")
    (archive,) = folder.glob("agentic-flow-*.tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    archive.unlink()


def _install(package: str, folder: Path, *more: str) -> None:
    (folder / "package.json").write_text('{"private": true}\n')
    _npm(
        folder,
        "install",
        "--no-save",
        "--no-package-lock",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        package,
        *more,
    )


def _npm(folder: Path, *arguments: str) -> None:
    command = ["npm", *arguments]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=NPM_TIMEOUT)
    except subprocess.CalledProcessError as error:
        raise PeersUnavailable(f"{' '.join(command)} failed: {error.stderr.strip()[-400:]}") from error
    except subprocess.TimeoutExpired as error:
        raise PeersUnavailable(f"{' '.join(command)} took over {NPM_TIMEOUT:.0f} s") from error


if __name__ == "__main__":
    for folder in (*map(fetch, VERSIONS), fetch_canonicalize(), fetch_federation()):
        print(folder.relative_to(STORE.parent))
