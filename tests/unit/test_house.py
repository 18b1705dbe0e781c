"""The rules of the house (docs/design.md), held over the syntax of every module of openline.

Each rule is a function that returns what breaks it, one line each, with what to do instead.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
# A file of tests is a list, which is read by its names.
LONGEST_FILE = {"src": 500, "tests": 1000}

# From the bottom to the top. A room may name those above it in this list, and itself.
ROOMS = (
    ("leaves", "errors message address config identity signing stats usable typed peer"),
    ("known peers", "known_peers"),
    ("core", "core"),
    ("runtime", "runtime"),
    ("backends, what they share", "backends"),
    ("the backends", "backends.websocket backends.quic backends.memory"),
    ("environment", "runtime.environment environment"),
    ("connection", "connection"),
    ("peers", "peers"),
    ("receiving", "receiving"),
    ("routing", "routing"),
    ("sending", "sending"),
    ("node", "node"),
    ("transport", "transport"),
    ("sync", "sync"),
    ("openline", ""),
    ("testing", "testing"),
    ("cli", "cli"),
)
# These stand beside each other, and none of them may name another.
APART = ("backends.websocket", "backends.quic", "backends.memory")
# A link, its engine and its listener are one thing in several files: these write each other's fields.
ONE_THING = (*APART, "testing", "cli")
# Stands in for a backend, and is one thing with it.
SIMULATED = {"testing.simulation.quicnet": "backends.quic"}
# Records: what is known of a far end is filled in by who learns it, what an error adds up by who raises it
# again. And the two fields of a link that its contract (backends/base.py) says are set by who uses it.
RECORDS = {
    *("hello", "certificate", "certified", "ip", "port", "target", "aliases"),
    *("hint", "doubtful", "crowded", "bound_port", "not_at"),
    *("sent", "acked"),
    *("events", "limit"),
}
# Whoever sees something counts it.
COUNTERS = "openline.stats"
NOT_IN_CORE = ("asyncio", "socket", "time")

PEER_MEMBERS = {
    *("address", "node_id", "name", "plain", "proven", "connected", "state"),
    *("send", "request", "stream", "reply"),
}

# What mypy is told to overlook, and why.
IGNORED = {
    ("backends/quic/core.py", "assignment"): "qh3's core with ours in front of it",
    ("backends/quic/core.py", "method-assign"): "qh3's bridge to its native part, of which one call is ours",
    ("backends/tls.py", "arg-type"): "an Ed25519 key where cryptography's types list all kinds",
    ("backends/sockets.py", "misc"): "getaddrinfo's stub has addresses of other families, too",
    ("backends/websocket/backend.py", "attr-defined"): "picows' stub leaves out its protocol class",
    ("backends/websocket/backend.py", "misc"): "a class derived from it",
    ("backends/websocket/portions.py", "assignment"): "taken apart at the end, so that no circle is left",
    ("backends/websocket/portions.py", "no-any-return"): "what picows returns",
    ("backends/websocket/reader.py", "attr-defined"): "picows' stub leaves out its protocol class",
    ("backends/websocket/reader.py", "method-assign"): "one call less for each read",
    ("backends/websocket/reader.py", "no-any-return"): "what picows returns",
    ("cli/common.py", "attr-defined"): "the signature that typer reads",
    ("core/frames.py", "no-any-return"): "a decoder by kind of frame",
    ("testing/conformance/lifetimes.py", "attr-defined"): "picows' stub leaves out its protocol class",
    ("testing/simulation/loop.py", "attr-defined"): "what asyncio's base loop does not show",
    ("testing/simulation/loop.py", "misc"): "what asyncio's base loop does not show",
}


def holds(broken: list[str], what_to_do: str) -> None:
    assert not broken, f"{what_to_do}\n  " + "\n  ".join(broken)


class Module:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")
        self.text = path.read_text()
        self.tree = ast.parse(self.text)
        self.package = self.name if path.name == "__init__.py" else self.name.rpartition(".")[0]

    @property
    def inside(self) -> str:
        """Its name below ``openline``."""
        return self.name.partition(".")[2]

    def at(self, node: ast.AST) -> str:
        return f"{self.path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


@cache
def modules() -> dict[str, Module]:
    found = [Module(path) for path in sorted((SRC / "openline").rglob("*.py"))]
    return {module.name: module for module in found}


def imported(module: Module) -> Iterator[tuple[ast.stmt, str]]:
    """All that a module names, wherever in it and also for types only; our modules by their full names."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(module, node)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield node, inner if inner in modules() else base


def _base(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *(node.module or "").split(".")]).rstrip(".")


def ours(module: Module, running: bool = False) -> Iterator[tuple[ast.stmt, str]]:
    """Imports of other modules of openline; or only those that run when the module is read."""
    top = set(map(id, module.tree.body))
    for node, name in imported(module):
        if name in modules() and name != module.name and (not running or id(node) in top):
            yield node, name


def floor(inside: str) -> int:
    """The room of a module: that which names it most exactly."""
    best, found = -1, -1
    for number, (_, names) in enumerate(ROOMS):
        for name in names.split() or [""]:
            within = inside == name or (name and inside.startswith(f"{name}."))
            if within and len(name) > best:
                best, found = len(name), number
    return found


# Who may name whom ------------------------------------------------------------------------------------


def test_every_module_has_a_room() -> None:
    homeless = [module.at(module.tree) for module in modules().values() if floor(module.inside) < 0]
    holds(homeless, "Put the module into a room, or give it one in ROOMS.")


def test_a_room_names_only_rooms_below_it() -> None:
    broken = []
    for module in modules().values():
        for node, name in ours(module):
            here, there = floor(module.inside), floor(name.partition(".")[2])
            if there > here:
                broken.append(f"{module.at(node)} ({ROOMS[here][0]}) names {name} ({ROOMS[there][0]})")
    holds(
        broken,
        "Imports point downward, type-only ones included. Move what is needed down, hand it in from above,"
        " or name a contract (a Protocol) of the lower room:",
    )


def test_backends_do_not_name_each_other() -> None:
    broken = []
    for module in modules().values():
        for node, name in ours(module):
            here = next((room for room in APART if module.inside.startswith(room)), None)
            there = next((room for room in APART if name.startswith(f"openline.{room}")), None)
            if here and there and here != there:
                broken.append(f"{module.at(node)} names {name}")
    holds(broken, "What two backends share belongs into a module directly in backends/:")


def test_there_is_no_ring_of_imports() -> None:
    """Of what runs when a module is read. Between rooms there is none for types, either, as each names lower
    ones only; within a room a whole and its parts may name each other in their types."""
    graph = {name: {found for _, found in ours(module, running=True)} for name, module in modules().items()}
    rings = [f"{' -> '.join(ring)}" for ring in _rings(graph)]
    holds(rings, "These modules cannot be read one by one. Split off what both need, or hand it in:")


def _rings(graph: dict[str, set[str]]) -> list[list[str]]:
    """One ring for every group of modules that reach each other."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        ahead = [start]
        while ahead:
            fresh = graph[ahead.pop()] - seen
            seen |= fresh
            ahead += fresh
        reach[start] = seen
    groups = {frozenset({a, *(b for b in reach[a] if a in reach[b])}) for a in graph if a in reach[a]}
    return [sorted(group) for group in groups]


def test_core_knows_no_loop_no_sockets_and_no_clock() -> None:
    broken = [
        f"{module.at(node)} imports {name}"
        for module in modules().values()
        if module.inside.startswith("core")
        for node, name in imported(module)
        if name.partition(".")[0] in NOT_IN_CORE
    ]
    holds(broken, "core/ is rules alone: take the time, or what came in, as an argument:")


# Who may know and change what ---------------------------------------------------------------------------


def declared(tree: ast.AST) -> set[str]:
    """Attributes that its classes have: slots, annotations, values, and what methods set on self."""
    found: set[str] = set()
    for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for node in cls.body:
            for target in _targets(node):
                if isinstance(target, ast.Name):
                    found.add(target.id)
                    if target.id == "__slots__":
                        found |= {c.value for c in ast.walk(node) if isinstance(c, ast.Constant)}
        for node in ast.walk(cls):
            for target in _targets(node):
                if isinstance(target, ast.Attribute) and _is_self(target):
                    found.add(target.attr)
    return found


def _targets(node: ast.AST) -> Iterator[ast.expr]:
    """Where something is assigned, added, deleted, or bound by a loop or a with."""
    if isinstance(node, ast.Assign | ast.Delete):
        found = list(node.targets)
    elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.For | ast.AsyncFor):
        found = [node.target]
    elif isinstance(node, ast.With | ast.AsyncWith):
        found = [item.optional_vars for item in node.items if item.optional_vars is not None]
    else:
        return
    for target in found:
        yield from target.elts if isinstance(target, ast.Tuple | ast.List) else [target]


def _is_self(target: ast.Attribute) -> bool:
    return isinstance(target.value, ast.Name) and target.value.id in ("self", "cls")


def _set_by_name(node: ast.AST) -> set[str]:
    """The attribute that a call of ``setattr`` or ``delattr`` on another object changes."""
    if not isinstance(node, ast.Call) or len(node.args) < 2:
        return set()
    name = getattr(node.func, "id", getattr(node.func, "attr", ""))
    whose, what = node.args[:2]
    if name.strip("_") not in ("setattr", "delattr") or getattr(whose, "id", "") in ("self", "cls"):
        return set()
    return {str(what.value)} if isinstance(what, ast.Constant) else set()


def test_nobody_writes_another_objects_fields() -> None:
    """But a module may do so with classes that it defines, and what libraries have is their own affair."""
    fields = {name: declared(module.tree) for name, module in modules().items()}
    all_of_us = set[str]().union(*fields.values())
    broken = []
    for module in modules().values():
        here = set[str]().union(*(fields[name] for name in _one_thing_with(module)))
        for node in ast.walk(module.tree):
            written = {t.attr for t in _targets(node) if isinstance(t, ast.Attribute) and not _is_self(t)}
            written |= _set_by_name(node)
            if isinstance(node, ast.AugAssign):
                written -= fields[COUNTERS]
            broken += [f"{module.at(node)} writes .{attr}" for attr in written & all_of_us - here - RECORDS]
    holds(broken, "Give the class that has the field a method that says what happens, and call that:")


def _one_thing_with(module: Module) -> list[str]:
    rooms = [room for room in (*ONE_THING,) if module.inside.startswith(room)]
    rooms += [SIMULATED[module.inside]] if module.inside in SIMULATED else []
    return [module.name, *(n for n in modules() for room in rooms if n.startswith(f"openline.{room}"))]


def test_peer_has_exactly_the_documented_members() -> None:
    found = [
        node
        for module in modules().values()
        if module.inside == "peer"
        for node in module.tree.body
        if isinstance(node, ast.ClassDef) and node.name == "Peer"
    ]
    assert len(found) == 1, "openline/peer.py defines the Peer that users hold"
    [peer] = found
    methods = {node.name for node in peer.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    public = {name for name in methods | declared(peer) if not name.startswith("_")}
    more = [f"{name}: not documented" for name in sorted(public - PEER_MEMBERS)]
    less = [f"{name}: missing" for name in sorted(PEER_MEMBERS - public)]
    holds(
        more + less,
        "Peer is what users hold. Keep what is known of a peer in peers/, or document the member:",
    )


# How it is written --------------------------------------------------------------------------------------


def test_no_file_is_long() -> None:
    lengths = {
        path.relative_to(ROOT): len(path.read_text().splitlines())
        for folder in LONGEST_FILE
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    broken = [f"{path}: {n} lines" for path, n in lengths.items() if n > LONGEST_FILE[path.parts[0]]]
    holds(broken, f"Over {LONGEST_FILE} lines a file has two subjects. Split it by them:")


def test_nothing_is_passed_off_as_any() -> None:
    broken = [
        f"{module.at(node)}: {ast.unparse(node)[:60]}"
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", getattr(node.func, "attr", "")) == "cast"
        and node.args
        and any(getattr(part, "id", getattr(part, "value", "")) == "Any" for part in ast.walk(node.args[0]))
    ]
    holds(broken, "A cast to Any hides that a seam is missing. Name a Protocol that both sides keep:")


def ignores(module: Module) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type == tokenize.COMMENT and "type: ignore" in token.string:
            codes = token.string.partition("[")[2].partition("]")[0]
            yield from ((token.start[0], code.strip() or "everything") for code in codes.split(","))


@pytest.mark.parametrize("unused", [False, True], ids=["no other ones", "all of them needed"])
def test_mypy_is_told_to_overlook_only_what_is_listed(unused: bool) -> None:
    found = {
        (
            str(module.path.relative_to(SRC / "openline")),
            code,
        ): f"{module.path.relative_to(ROOT)}:{line} [{code}]"
        for module in modules().values()
        for line, code in ignores(module)
    }
    if unused:
        holds([f"{key}" for key in IGNORED if key not in found], "Strike these from IGNORED:")
    else:
        broken = [where for key, where in found.items() if key not in IGNORED]
        holds(
            broken,
            "Say what it is in types, or, where a library is to blame, list it in IGNORED with the reason:",
        )
