"""Fetches npm peers without their dependencies; `ws` is the only one their transport imports."""

import fcntl
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent / ".node"
INSTALL = ("install", "--no-save", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund")


def agentic_flow(version: str) -> Path:
    """The unpacked package, with `ws` where its imports find it; fetched the first time only."""
    place = home(version)
    if not place.is_dir():
        with _lock():
            if not place.is_dir():
                _fetch(f"agentic-flow@{version}", place)
    return place / "package"


def home(version: str) -> Path:
    return ROOT / f"agentic-flow-{version}"


def ws_version(version: str) -> str:
    package = home(version) / "node_modules/ws/package.json"
    return str(msgspec.json.decode(package.read_bytes())["version"])


@contextmanager
def _lock() -> Iterator[None]:
    """The interop tests keep their peers in the same place, under the same lock."""
    ROOT.mkdir(exist_ok=True)
    with (ROOT / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _fetch(spec: str, place: Path) -> None:
    """Into a folder beside the target first, so that what was interrupted is never taken for complete."""
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        staging = Path(folder) / "staging"
        staging.mkdir()
        (staging / "package.json").write_text('{"private": true}\n')
        _npm(staging, *INSTALL, "ws@^8.20")
        _npm(staging, "pack", spec)
        _unpack(next(staging.glob("*.tgz")), staging)
        staging.rename(place)


def _unpack(archive: Path, into: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(into, filter="data")
    archive.unlink()


def _npm(folder: Path, *arguments: str) -> None:
    command = ["npm", *arguments, "--silent"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
