"""What every command shares: options, configuration, the event loop, signals, exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import signal
import ssl
import sys
import tomllib
from collections.abc import AsyncIterator, Callable, Coroutine
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

import openline
from openline.address import TLS_SCHEMES
from openline.backends.sockets import describe
from openline.known_peers.place import default_file, user_folder

FAILED, USAGE = 1, 2
OPTIONS = "these options"
OFF = Path("off")
_SHARED = "Connections and configuration"
_FILE = {"exists": True, "dir_okay": False, "readable": True, "rich_help_panel": _SHARED}


class Backend(StrEnum):
    """``openline.config.BackendName`` as an option takes it."""

    QUIC = "quic"
    WEBSOCKET = "websocket"


ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="Read openline.Config from this TOML or JSON file.", **_FILE),
]
Name = Annotated[
    str | None, typer.Option("--name", help="The name that peers are shown.", rich_help_panel=_SHARED)
]
Backends = Annotated[
    list[Backend] | None,
    typer.Option(
        "--backend",
        metavar="quic|websocket",
        help="Use only this. Repeatable: a bare host:port is dialed by the first, then by the next.",
        show_default="quic, then websocket",
        rich_help_panel=_SHARED,
    ),
]
Cert = Annotated[
    Path | None,
    typer.Option("--cert", help="PEM certificate: listeners serve wss, and show it in QUIC.", **_FILE),
]
Key = Annotated[Path | None, typer.Option("--key", help="PEM key of --cert.", **_FILE)]
Ca = Annotated[
    Path | None,
    typer.Option("--ca", help="PEM file to trust for wss:// (not the system's then) and quic://.", **_FILE),
]
Pin = Annotated[
    list[str] | None,
    typer.Option(
        "--pin",
        help="sha256/<base64> of a peer's certificate: then wss:// and quic:// trust only that. Repeatable.",
        rich_help_panel=_SHARED,
    ),
]
IdentityFile = Annotated[
    Path | None,
    typer.Option(
        "--identity",
        metavar="PATH",
        envvar="OPENLINE_IDENTITY",
        dir_okay=False,
        help="File of the key that is this node; made on first use.",
        show_default="a new key, in memory",
        rich_help_panel=_SHARED,
    ),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="NODEID",
        help="Connect with this node only; its key has to prove it. Repeatable.",
        show_default="anybody",
        rich_help_panel=_SHARED,
    ),
]
KnownPeersFile = Annotated[
    Path | None,
    typer.Option(
        "--known-peers",
        metavar="PATH|off",
        envvar="OPENLINE_KNOWN_PEERS",
        dir_okay=False,
        help="File that remembers which node answered where; another one there is refused. "
        "See openline known --help.",
        show_default="openline/known_peers in $XDG_CONFIG_HOME or ~/.config",
        rich_help_panel=_SHARED,
    ),
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Say on stderr what happens and why.", rich_help_panel=_SHARED),
]


class Failure(Exception):
    """Ends a command with one readable message and an exit code."""

    def __init__(self, text: str, code: int = FAILED) -> None:
        super().__init__(text)
        self.code = code


def complain(text: object) -> None:
    print(f"openline: {text}", file=sys.stderr, flush=True)


# Configuration -------------------------------------------------------------------------------------


def configured(command: Callable[..., int]) -> Callable[..., int]:
    """Add the shared options to a command; it gets the finished ``Config`` as its first argument."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    shared = inspect.signature(make_config, eval_str=True).parameters

    @wraps(command)
    def wrapper(**values: Any) -> int:
        config = make_config(**{name: values.pop(name) for name in shared})
        return command(config, **values)

    # What typer looks at.
    wrapper.__signature__ = inspect.Signature([*own, *shared.values()])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in (*own, *shared.values())}
    return wrapper


def make_config(
    config: ConfigFile = None,
    name: Name = None,
    backend: Backends = None,
    cert: Cert = None,
    key: Key = None,
    ca: Ca = None,
    pin: Pin = None,
    identity: IdentityFile = None,
    allow: Allow = None,
    known_peers: KnownPeersFile = None,
    verbose: Verbose = False,
) -> openline.Config:
    """The file's settings, overridden by the options."""
    log_to_stderr(verbose)
    settings = read_settings(config) if config else {}
    if name is not None:
        settings["name"] = name
    if backend:
        settings["backends"] = [each.value for each in dict.fromkeys(backend)]
    if allow:
        settings["allow"] = allow
    if known_peers is not None or "known_peers" not in settings:
        settings["known_peers"] = known_file(known_peers)
    tls = {"cert": cert and str(cert), "key": key and str(key), "ca": ca and str(ca), "pins": pin}
    given = {option: value for option, value in tls.items() if value}
    if given:
        settings["tls"] = {**(settings.get("tls") or {}), **given}
    made = to_config(settings, OPTIONS)
    if identity is None:
        return made
    # Last, so that wrong options leave no new file behind.
    return msgspec.structs.replace(made, identity=load_identity(identity))


def check_address(config: openline.Config, text: str) -> None:
    """An address that can be parsed and dialed, and to which a pin or CA that was given means something."""
    address = openline.Address.parse(text)
    check_backend(config, address)
    if config.tls is not None and config.certified and not address.tls:
        which = "pins hold" if config.tls.pins else "a CA holds"
        what = " or ".join(_with_scheme(address, scheme) for scheme in TLS_SCHEMES)
        raise Failure(f"{which} for wss:// and quic:// addresses only: not {text}, but {what}", USAGE)


def check_backend(config: openline.Config, address: openline.Address) -> None:
    needed = "quic" if address.scheme == "quic" else "websocket"
    if address.scheme is not None and needed not in config.backends:
        only = ", ".join(config.backends)
        raise Failure(f"{address} needs the backend {needed}, and only {only} may be used", USAGE)


def _with_scheme(address: openline.Address, scheme: str) -> str:
    if not address.dialable:
        return f"{scheme}://{address}@host:port"
    path = address.path if scheme == "wss" else "/"
    return str(msgspec.structs.replace(address, scheme=scheme, path=path))


def read_settings(path: Path) -> dict[str, Any]:
    """The file as a dict that makes a valid ``Config``."""
    try:
        text = path.read_text(encoding="utf-8")
        settings = msgspec.json.decode(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise Failure(f"{path}: {error}", USAGE) from None
    to_config(settings, str(path))
    return dict(settings)


def to_config(settings: Any, source: str) -> openline.Config:
    try:
        return msgspec.convert(settings, openline.Config)
    except msgspec.ValidationError as error:
        # The place in the settings helps with a file; there is none on a command line.
        text = str(error).partition(" - at `")[0] if source == OPTIONS else str(error)
        raise Failure(f"{source}: {text}", USAGE) from None


def load_identity(path: Path) -> openline.Identity:
    """The identity in that file; a new one, which is said, where there is no such file."""
    is_there = os.path.lexists(path)
    try:
        identity = openline.Identity.load_or_create(path)
    except OSError as error:
        raise Failure(f"identity {path} cannot be made: {describe(error)}", USAGE) from None
    if not is_there:
        complain(f"made a new identity: {path}")
    return identity


def default_identity() -> Path:
    """Where ``openline id`` keeps the identity, in the user's configuration folder."""
    try:
        return user_folder() / "identity.pem"
    except RuntimeError:
        raise Failure("there is no home folder: say where with --identity", USAGE) from None


def known_file(given: Path | None) -> str | None:
    """Which file of known peers that option means; None for none."""
    if given == OFF:
        return None
    if given is None and (given := default_file()) is None:
        complain("there is no home folder: nodes are not remembered; say where with --known-peers")
    return None if given is None else str(given)


def log_to_stderr(verbose: bool) -> None:
    handler = logging.StreamHandler()
    form = "%(asctime)s.%(msecs)03d %(levelname)s %(message)s" if verbose else "openline: %(message)s"
    handler.setFormatter(logging.Formatter(form, datefmt="%H:%M:%S"))
    log = logging.getLogger("openline")
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if verbose else logging.WARNING)


@contextlib.asynccontextmanager
async def transport(config: openline.Config) -> AsyncIterator[openline.Transport]:
    """``load_transport``, with TLS files that cannot be used as a usage error."""
    try:
        loaded = await openline.load_transport(config)
    except openline.InvalidIdentity:
        raise
    except (OSError, ValueError, TypeError) as error:  # TypeError: a key that needs a password
        reason = (
            describe(error) if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else error
        )
        raise Failure(f"cannot use the TLS files: {reason}", USAGE) from None
    async with loaded:
        yield loaded


# Running -------------------------------------------------------------------------------------------


def run(main: Coroutine[Any, Any, int]) -> int:
    """Run ``main``, on uvloop where there is one; a signal cancels it."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_until_signalled(main))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _until_signalled(main: Coroutine[Any, Any, int]) -> int:
    task = asyncio.ensure_future(main)
    received: list[signal.Signals] = []

    def cancel(number: signal.Signals) -> None:
        received.append(number)
        task.cancel()

    _on_signals(cancel)
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        return 128 + received[0]


def _on_signals(callback: Callable[[signal.Signals], None]) -> None:
    loop = asyncio.get_running_loop()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # nohup and background jobs of scripts have signals ignored, on purpose.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            with contextlib.suppress(NotImplementedError):  # Windows: KeyboardInterrupt does it
                loop.add_signal_handler(number, callback, number)


def carriers(t: openline.Transport) -> str:
    """What really carries the live connections: for a command that has one, its backend."""
    return " and ".join(t.stats().backends)
