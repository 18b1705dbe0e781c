"""What is published is built, looked into, and tried where nothing else is: ``python -m tests.dist``.

Every supported Python that this machine has gets an empty environment, the wheel and what the wheel asks for.
Those that it does not have are named at the end. Exit code 1 where anything is wrong.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
# The oldest has to be there, or nothing was tried.
NEEDED = SUPPORTED[:1]
# An installation from a registry over a slow line; only against hanging.
LONGEST = 600.0

FIRST_STEPS = """
import sys
import openline
assert "asyncio" not in sys.modules, "import openline reads more than itself"
import asyncio

async def main():
    async with openline.load_transport() as alice, openline.load_transport() as bob:
        port = (await bob.listen(host="127.0.0.1")).port
        bob.on_message(lambda peer, message: peer.reply(message, message.payload * 2))
        assert (await alice.send(f"127.0.0.1:{port}", openline.Message(payload=1))).acked
        print((await alice.request(f"127.0.0.1:{port}", openline.Message(payload=21))).payload, end=" ")

asyncio.run(main())
import openline.sync

with openline.sync.load_transport() as alice, openline.sync.load_transport() as bob:
    port = bob.listen(host="127.0.0.1").port
    bob.on_message(lambda peer, message: peer.reply(message, message.payload * 2))
    print(alice.request(f"127.0.0.1:{port}", openline.Message(payload=21)).payload, end=" ")
print(*openline.capabilities().backends)
"""
PRINTED = "42 42 quic websocket\n"


class Broken(Exception):
    """What is wrong, for people."""


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    texts = [str(part) for part in command]
    return subprocess.run(
        texts,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONGEST,
        stdin=subprocess.DEVNULL,
    )


def must(*command: str | Path, cwd: Path = ROOT) -> str:
    done = run(*command, cwd=cwd)
    if done.returncode:
        raise Broken(
            f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done.stdout


# What is in it ------------------------------------------------------------------------------------------


def build(into: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel made from it, as who installs from source would."""
    must(sys.executable, "-m", "build", "--no-isolation", "--outdir", into, ROOT)
    must(sys.executable, "-m", "twine", "check", "--strict", *sorted(into.iterdir()))
    (sdist,), (wheel,) = into.glob("*.tar.gz"), into.glob("*.whl")
    return sdist, wheel


def wrong_in_sdist(names: set[str]) -> Iterator[str]:
    files = {name.partition("/")[2] for name in names}
    for needed in ("LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "src/openline/py.typed"):
        if needed not in files:
            yield f"the sdist has no {needed}"
    for name in sorted(files):
        if {".venv", ".node", "node_modules", "__pycache__"} & set(name.split("/")):
            yield f"the sdist has {name}"


def wrong_in_wheel(names: set[str]) -> Iterator[str]:
    modules = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "openline").rglob("*.py")}
    for needed in sorted({*modules, "openline/py.typed"} - names):
        yield f"the wheel has no {needed}"
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        yield "the wheel has no LICENSE"
    for name in sorted(names - modules - {"openline/py.typed"}):
        if ".dist-info/" not in name:
            yield f"the wheel has {name}"


def look_into(sdist: Path, wheel: Path) -> None:
    with tarfile.open(sdist) as tar, zipfile.ZipFile(wheel) as archive:
        wrong = [*wrong_in_sdist(set(tar.getnames())), *wrong_in_wheel(set(archive.namelist()))]
    if wrong:
        raise Broken("\n".join(wrong))


# Where it runs ------------------------------------------------------------------------------------------


def interpreters() -> dict[str, Path]:
    """The supported Pythons of this machine: on the PATH, or kept by pyenv."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found: dict[str, Path] = {}
    for version in SUPPORTED:
        kept = sorted(root.glob(f"versions/{version}.*/bin/python"))
        on_path = shutil.which(f"python{version}")
        for python in [*kept, *([Path(on_path)] if on_path else [])]:
            if _says(python) == version:
                found[version] = python
    return found


def _says(python: Path) -> str:
    """The version that it really is: what is on the PATH may only stand for one that is not there."""
    try:
        done = run(python, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])")
    except OSError:
        return ""
    return done.stdout.strip()


def try_on(python: Path, wheel: Path, folder: Path) -> None:
    """An empty environment, the wheel, the first steps; and the command, which needs an extra."""
    must(python, "-m", "venv", "--without-pip", folder)
    own = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", own)
    must(*pip, "install", "-qq", "--no-compile", "--disable-pip-version-check", wheel)
    if (said := must(own, "-I", "-c", FIRST_STEPS, cwd=folder)) != PRINTED:
        raise Broken(f"the first steps print {said!r}, not {PRINTED!r}")
    command = run(folder / "bin" / "openline", cwd=folder)
    if command.returncode != 2 or command.stderr.splitlines()[1:] or "openline[cli]" not in command.stderr:
        raise Broken(f"openline without its extra: exit code {command.returncode}, {command.stderr!r}")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="openline-dist-") as name:
        folder = Path(name)
        try:
            sdist, wheel = build(folder / "dist")
            look_into(sdist, wheel)
            pythons = interpreters()
            if missing := sorted({*NEEDED} - {*pythons}):
                raise Broken(f"no Python {missing[0]} to try the wheel with")
            with ThreadPoolExecutor(max_workers=2) as pool:
                tried = {v: pool.submit(try_on, python, wheel, folder / v) for v, python in pythons.items()}
            for version, trying in tried.items():
                if (error := trying.exception()) is not None:
                    raise Broken(f"Python {version}: {error}") from error
        except Broken as broken:
            print(f"dist: {broken}", file=sys.stderr)
            return 1
        absent = [version for version in SUPPORTED if version not in pythons]
        print(f"dist: {sdist.name}, {wheel.name}: installed and used with Python {', '.join(pythons)}")
        if absent:
            print(f"dist: not tried, as they are not on this machine: Python {', '.join(absent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
