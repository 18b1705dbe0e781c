"""The commands and what ``--help`` says about them. The work is done in the modules beside."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

import openline

from . import INTERRUPTED
from .common import (
    FAILED,
    USAGE,
    Failure,
    check_address,
    check_backend,
    complain,
    configured,
    default_identity,
    load_identity,
    log_to_stderr,
    run,
)
from .known import app as known
from .listen import Options, listen
from .once import Sending, read_payload, read_stream, request, send
from .ping import ping

DEFAULT_PORT = 8770

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

# typer exports only this subclass of what all wrong usage raises.
_WrongUsage: type[typer.BadParameter] = typer.BadParameter.__mro__[1]

Addr = Annotated[
    str,
    typer.Argument(
        metavar="ADDR",
        help="Where the peer is: host:port (QUIC, else WebSocket), or with quic://, ws:// or wss://; "
        "also NODEID@host:port; IPv6 as \\[::1]:8770.",
    ),
]
Payload = Annotated[
    str, typer.Argument(metavar="PAYLOAD", help="JSON where it is JSON, else a text; - reads standard input.")
]
Type = Annotated[str, typer.Option("--type", help="The message's type.")]
Stream = Annotated[
    str, typer.Option("--stream", help="The message's stream; 42 is the number, '\"42\"' the text.")
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON, one object per line.")]


def run_app() -> int:
    """Parse ``sys.argv``, run the command, turn what users can run into into messages and codes."""
    try:
        code = app(prog_name="openline", standalone_mode=False)
        sys.stdout.flush()
        return code or 0
    except _WrongUsage as error:
        error.show()
        return USAGE
    except (Failure, openline.InvalidAddress, openline.InvalidIdentity) as error:
        complain(error)
        return getattr(error, "code", USAGE)
    except BrokenPipeError:
        # Nobody reads any more; the interpreter must not stumble over it again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (openline.Error, OSError) as error:
        complain(str(error) or type(error).__name__)
        return FAILED
    except typer.Abort:
        return INTERRUPTED


def _version(wanted: bool) -> None:
    if wanted:
        print(f"openline {openline.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Direct messages between agent processes, answered on the line that is already open.

    Try it in two terminals:
      openline listen
      openline send localhost:8770 '{"hello": "world"}'

    Or see what it is for, in under a minute:
      openline demo
    """


@app.command("demo")
def _demo() -> int:
    """See half a network fail, and openline's messages arrive all the same.

    A route breaks so that every new connection from B to A is refused, while the
    connection that A opened still works. Two ways to send, side by side; then the
    line goes silent. All of it over WebSocket and over QUIC. Nothing leaves this
    machine, and nothing stays behind.
    """
    from .demo.run import run_demo

    return run_demo()


@app.command("listen")
@configured
def _listen(
    config: openline.Config,
    port: Annotated[
        int, typer.Argument(metavar="PORT", min=0, max=65535, help="0 picks a free one.")
    ] = DEFAULT_PORT,
    host: Annotated[
        str | None,
        typer.Option("--host", metavar="H", help="The interface to listen on.", show_default="all of them"),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option("--peer", metavar="ADDR", help="Stay connected to this address. Repeatable."),
    ] = None,
    json: Json = False,
    stay: Annotated[bool, typer.Option("--stay", help="Go on listening when standard input ends.")] = False,
) -> int:
    """Print every message that arrives; send the lines of standard input.

    With --json both are JSON, one object per line, so that a program in any
    language can join. It listens with WebSocket on the TCP port and with QUIC on
    the UDP port of that number, or says why not.

    Examples:
      openline listen
      openline listen --identity alice.pem      (the same node after each start)
      openline listen 8770 --backend websocket
      openline listen 8770 --json --peer 10.0.0.2:8770 --name alice

    Lines of input, the second one asks for an answer:
      {"to": "10.0.0.2:8770", "payload": {"n": 1}}
      {"to": "10.0.0.2:8770", "payload": "how are you?", "request": true}

    Ctrl-C or SIGTERM ends it. So does the end of standard input (Ctrl-D), except
    where nothing ever came from there, as from /dev/null: then it goes on.
    """
    peers = [openline.Address.parse(address) for address in peer or ()]
    for address in peers:
        check_backend(config, address)
    return run(listen(config, Options(port, host, tuple(map(str, peers)), json, stay)))


@app.command("send")
@configured
def _send(
    config: openline.Config,
    addr: Addr,
    payload: Payload,
    type: Type = "task",
    stream: Stream = "default",
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Send it this many times.")] = 1,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", min=0.001, help="Seconds to wait for a connection, room and the peer's receipt."
        ),
    ] = None,
    json: Json = False,
) -> int:
    """Send one message and print its receipt.

    Examples:
      openline send 10.0.0.2:8770 '{"job": 7}'
      openline send 10.0.0.2:8770 hello --type status --stream log
      openline send quic://10.0.0.2:8770 hello --pin "$PIN"
      openline send wss://agents.example - --ca ca.pem < job.json

    The receipt names the backend that carried it. A bare host:port is dialed by
    QUIC, and by WebSocket where QUIC has failed or not answered within 250 ms;
    --backend changes that.

    Exit code 1 means that it did not get there; the message names every path that
    was tried and why each failed.
    """
    check_address(config, addr)
    message = openline.Message(type=type, payload=read_payload(payload), stream_id=read_stream(stream))
    return run(send(config, Sending(addr, message, count, timeout, json)))


@app.command("request")
@configured
def _request(
    config: openline.Config,
    addr: Addr,
    payload: Payload,
    type: Type = "task",
    stream: Stream = "default",
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0.001, help="Seconds to wait for the answer.")
    ] = None,
) -> int:
    """Send one message and print the payload of its answer, as JSON.

    Standard output holds the answer and nothing else; -v says on stderr what
    carried it.

    Examples:
      openline request 10.0.0.2:8770 '{"status": "?"}' | jq .load
      openline request quic://10.0.0.2:8770 "how are you?" --timeout 2
    """
    check_address(config, addr)
    message = openline.Message(type=type, payload=read_payload(payload), stream_id=read_stream(stream))
    return run(request(config, addr, message, timeout))


@app.command("ping")
@configured
def _ping(
    config: openline.Config,
    addr: Addr,
    count: Annotated[
        int | None, typer.Option("--count", "-c", min=1, help="Stop after this many.", show_default="Ctrl-C")
    ] = None,
    interval: Annotated[
        float, typer.Option("--interval", "-i", min=0, help="Seconds from one to the next.")
    ] = 1.0,
    timeout: Annotated[
        float, typer.Option("--timeout", "-W", min=0.001, help="Seconds to wait for each answer.")
    ] = 5.0,
) -> int:
    """Measure the round trip to a peer; see when it can be reached and when not.

    Each line names the backend that carried it. The peer's transport answers, so
    this works however busy its program is, and it works with any WebSocket server.

    Examples:
      openline ping 10.0.0.2:8770
      openline ping 10.0.0.2:8770 -c 5 -i 0.2 --backend quic

    Exit code 0 if any ping was answered, else 1.
    """
    check_address(config, addr)
    return run(ping(config, addr, count, interval, timeout))


@app.command("id")
def _id(
    identity: Annotated[
        Path | None,
        typer.Option(
            "--identity",
            metavar="PATH",
            envvar="OPENLINE_IDENTITY",
            dir_okay=False,
            help="The file of the key.",
            show_default="openline/identity.pem in $XDG_CONFIG_HOME or ~/.config",
        ),
    ] = None,
) -> int:
    """Print the node id of an identity; make the identity on first use.

    The node id is what peers know this node by: they --allow it, or dial it as
    NODEID@host:port. The file holds the secret key. Never copy it to another
    machine, and give every process a file of its own.

    Examples:
      openline id
      openline id --identity alice.pem
      openline listen --identity alice.pem --allow "$(ssh bob openline id)"
    """
    log_to_stderr(verbose=False)
    print(load_identity(identity or default_identity()).node_id)
    return 0


app.add_typer(known, name="known")


@app.command("capabilities")
def _capabilities(json: Json = False) -> int:
    """Show which backends really work on this machine, and which one is used."""
    found = openline.capabilities()
    if json:
        print(msgspec.json.encode(found).decode())
        return 0
    for backend in found.backends:
        print(f"{backend}: usable{', selected' if backend == found.selected else ''}")
    for backend, reason in found.unavailable.items():
        print(f"{backend}: {reason}")
    print(f"uvloop: {'used by this command' if found.uvloop else 'not installed'}")
    return 0
