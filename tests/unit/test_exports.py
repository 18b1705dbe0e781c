"""First contact: what ``import openline`` reads, what it shows, and what ``help`` says of it.

What is read at import is held by what is not there afterwards, in an interpreter of its own: not by a clock.
"""

from __future__ import annotations

import ast
import inspect
import pydoc
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import openline
import openline.sync

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "openline" / "__init__.py"
# Each of these takes longer to read than all of openline's own files that a first look needs.
HEAVY = (
    *("asyncio", "ssl", "typing", "logging", "msgspec", "picows", "qh3", "cryptography"),
    *("rfc8785", "uvloop", "typer", "rich"),
)


def fresh(code: str, *options: str) -> str:
    """What a program prints in an interpreter of its own."""
    run = subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


# What is read -------------------------------------------------------------------------------------------


def test_import_reads_nothing_else() -> None:
    """``-S -E``: what the site's own start reads is not ours."""
    source = str(ROOT / "src")
    code = f"import sys; sys.path.insert(0, {source!r}); import openline; print(*sys.modules)"
    read = fresh(code, "-S", "-E").split()
    assert [name for name in read if name.startswith("openline")] == ["openline"]
    assert not {*HEAVY} & {*read}


@pytest.mark.parametrize(
    ("code", "unread"),
    [
        ("openline.Closed, openline.__version__, dir(openline)", HEAVY),
        ("openline.Message, openline.Receipt, openline.Stats", ("asyncio", "picows", "qh3", "cryptography")),
        ("openline.Config, openline.Identity, openline.Address", ("asyncio", "picows", "qh3")),
        ("openline.load_transport, openline.Transport, openline.sync", ("qh3", "uvloop")),
    ],
    ids=["errors", "messages", "configuration", "transports"],
)
def test_a_name_reads_what_it_needs(code: str, unread: tuple[str, ...]) -> None:
    read = fresh(f"import openline; {code}; import sys; print(*sys.modules)").split()
    assert not {*unread} & {*read}


def test_names_are_ordinary_after_their_first_use() -> None:
    code = "import openline; openline.Message; openline.capabilities;"
    code += "print(sorted({*vars(openline)} & {*openline.__all__}))"
    assert fresh(code) == "['Message', '__version__', 'capabilities']\n"


def test_capabilities_is_the_function_whatever_was_read_before() -> None:
    code = "import openline.transport, openline.usable, openline; print(openline.capabilities().selected)"
    assert fresh(code).strip() in ("quic", "websocket")


# What is shown ------------------------------------------------------------------------------------------


def test_dir_shows_public_names_and_nothing_else() -> None:
    shown = "import openline; print(*dir(openline))"
    assert fresh(shown).split() == sorted(openline.__all__)
    assert fresh(
        "import openline, openline.transport, openline.testing; openline.Config; print(*dir(openline))"
    ) == (fresh(shown))


def test_every_name_is_there_in_every_way() -> None:
    names = ", ".join(name for name in openline.__all__)
    assert fresh(f"from openline import {names}") == ""
    assert fresh("from openline import *; print(load_transport.__name__, sync.__name__)").split() == [
        "load_transport",
        "openline.sync",
    ]
    for name in openline.__all__:
        found = getattr(openline, name)
        assert name == "__version__" or found.__doc__, name


def test_what_is_no_name_is_no_name() -> None:
    with pytest.raises(AttributeError, match="module 'openline' has no attribute 'load_transprt'"):
        _ = openline.load_transprt  # type: ignore[attr-defined]
    assert not hasattr(openline, "annotations")


@pytest.mark.parametrize("room", ["errors", "core", "backends", "environment", "testing", "transport"])
def test_modules_are_there_without_an_import_of_their_own(room: str) -> None:
    assert fresh(f"import openline; print(openline.{room}.__name__)") == f"openline.{room}\n"


def test_modules_are_there_without_an_import_and_are_the_same() -> None:
    assert fresh("import openline; print(openline.errors.Refused is openline.Refused)") == "True\n"


def test_the_lists_of_names_agree() -> None:
    """What type checkers read, what ``__all__`` says, and where a name is read from."""
    tree = ast.parse(SOURCE.read_text())
    typed: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            typed |= {alias.name: node.module or "" for alias in node.names}
    found = {name: module for module, names in openline._MODULES.items() for name in names.split()}  # type: ignore[attr-defined]
    assert typed == {**found, "sync": ""}
    assert sorted(openline.__all__) == sorted({*typed, "__version__"})
    assert openline.__all__ == sorted(openline.__all__)
    for module, names in openline._MODULES.items():  # type: ignore[attr-defined]
        assert module not in openline.__all__ or names == "", (
            f"the module {module} would take the name's place"
        )


@pytest.mark.parametrize(
    "line",
    [
        "import openline.testing; openline.testing.Network",
        "from openline.environment import RealEnvironment",
        "from openline.core.handshake import Hello, Transcript, split_proof",
        "from openline.core.frames import encode_proof",
        "import openline; openline.sync.load_transport",
    ],
)
def test_what_programs_import_beside_the_names(line: str) -> None:
    assert fresh(line) == ""


def test_the_version_is_that_of_the_package() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["version"] == openline.__version__


# help() -------------------------------------------------------------------------------------------------

SHOWN = (openline.Transport, openline.Peer, openline.Listener, openline.sync.Transport, openline.sync.Peer)
# These can fail at nothing that a program has to expect.
NO_ERRORS = {
    "on_message",
    "off_message",
    "on_peer",
    "off_peer",
    "on_undelivered",
    "messages",
    "stats",
    "peers",
    "close",
}


def members(cls: type) -> list[tuple[str, object]]:
    return [(name, member) for name, member in vars(cls).items() if not name.startswith("_")]


@pytest.mark.parametrize("cls", SHOWN, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_member_says_what_it_does_its_errors_and_units(cls: type) -> None:
    for name, member in members(cls):
        text = inspect.getdoc(member)
        assert text, f"{cls.__name__}.{name} has no docstring"
        assert text.partition("\n")[0].rstrip().endswith((".", ":", "?")), name
        if not inspect.isfunction(member):
            continue
        assert (
            re.search(r"Raises|As ``Transport\.", text) or name in NO_ERRORS or "Listener" in cls.__name__
        ), f"{cls.__name__}.{name} does not say what it raises"
        for parameter in inspect.signature(member).parameters:
            if parameter == "timeout":
                assert re.search(r"``timeout|TimeoutError|[aA]s ``Transport\.", text), (
                    f"{cls.__name__}.{name}"
                )
                assert "seconds" in (inspect.getdoc(cls) or "")


@pytest.mark.parametrize("cls", [openline.Transport, openline.sync.Transport], ids=["async", "sync"])
def test_help_names_every_member_in_its_group(cls: type) -> None:
    text = inspect.getdoc(cls) or ""
    listed = re.findall(r"``(\w+)``", text[text.index("\n- ") :])
    assert sorted({*listed}) == sorted({*[name for name, _ in members(cls)], "config"})
    shown = pydoc.render_doc(cls, renderer=pydoc.plaintext)
    for name, _ in members(cls):
        assert name in shown
    assert "_home" not in shown
