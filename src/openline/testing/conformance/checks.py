"""What any backend must do: ``check_backend`` runs every check of links and doors against one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from ...address import Address, join
from ...core.frames import Malformed
from ...errors import IdentityConflict, Refused, Unreachable
from .linkchecks import LINK_CHECKS
from .recording import WRONG_PROOF, Check, MakeBackend, Pair, Violation, expect, until

DOOR_CHECKS: dict[str, Check] = {}
# What a backend need not do.
FRAGMENTING = "ping_overtakes_large_frame"


def backend_checks() -> tuple[str, ...]:
    """The names of all checks, for parametrized tests."""
    return *LINK_CHECKS, *DOOR_CHECKS


async def check_backend(
    make: MakeBackend,
    host: str = "127.0.0.1",
    *,
    only: Iterable[str] | None = None,
    fragments: bool = True,
) -> None:
    """Check that a backend carries links as it must. Raises ``Violation``, which names the check.

    ``make(side, config, doorkeeper, on_bad)`` makes the backend of one ``side``, ``"server"`` or
    ``"client"``; it is called anew for every check. The server listens on ``host``, where the
    client can reach it. ``fragments`` says that control frames get in between the pieces of a large
    frame. ``only`` names the checks to run (``backend_checks()`` lists them).
    """
    checks = LINK_CHECKS | DOOR_CHECKS
    for name in checks if only is None else only:
        if name != FRAGMENTING or fragments:
            await _run(name, checks[name], Pair(make, host))


async def _run(name: str, check: Check, pair: Pair) -> None:
    try:
        await check(pair)
    except (Violation, TimeoutError) as error:
        raise Violation(f"{name}: {error or 'nothing happened in time'}") from error
    finally:
        await pair.close()


def _check(function: Callable[[Pair], Awaitable[None]]) -> None:
    DOOR_CHECKS[getattr(function, "__name__", "")] = function


# The door ---------------------------------------------------------------------------------------


async def _fails(pair: Pair, kind: type[Exception], address: Address | None = None) -> Exception:
    try:
        await asyncio.wait_for(pair.dialing.dial(address or pair.address), 5)
    except kind as error:
        return error
    except Exception as error:
        raise Violation(f"dial() raises {error!r}, not {kind.__name__}") from error
    raise Violation(f"dial() succeeds where it must raise {kind.__name__}")


@_check
async def the_door_turns_away(pair: Pair) -> None:
    """The client learns why; the next one gets in."""
    await pair.listen()
    objections = [
        (Refused("not on the list"), Refused),
        (IdentityConflict("two of you"), IdentityConflict),
        (Malformed("no such version"), Unreachable),
    ]
    for objection, kind in objections:
        pair.server.objection, pair.server.bad = objection, []
        error = await _fails(pair, kind)
        expect(str(objection) in str(error), f"{str(error)!r} does not say why")
        await until(lambda: pair.server.bad, "on_bad was not told")
        expect(len(pair.server.bad) == 1, f"on_bad was told {pair.server.bad}")
        expect(not pair.client.links and not pair.server.links, "a link in spite of that")
    pair.server.objection = None
    expect(pair.door.pending == 0, "handshakes that have failed are still pending")
    await pair.link()


@_check
async def the_client_turns_away(pair: Pair) -> None:
    """An answer that the client does not like."""
    await pair.listen()
    objections = ((Refused("you are not who I want"), Refused), (Malformed("what?"), Unreachable))
    for objection, kind in objections:
        pair.client.objection = objection
        error = await _fails(pair, kind)
        expect(str(objection) in str(error), f"{str(error)!r} does not say why")
    await until(lambda: pair.door.pending == 0, "the server still waits for a proof")
    expect(not pair.client.links and not pair.server.links, "a link in spite of that")
    pair.client.objection = None
    await pair.link()


@_check
async def a_wrong_proof_does_not_get_in(pair: Pair) -> None:
    """And the client's link ends."""
    await pair.listen()
    pair.client.proof = WRONG_PROOF
    client = await pair.dial()
    await until(lambda: client.ended, "the client's link stayed open")
    expect("wrong proof" in client.ended[0].text, f"the client was told {client.ended[0]}")
    expect(not pair.server.links, "a link in spite of that")
    await until(lambda: pair.door.pending == 0, "the handshake is still pending")
    expect(len(pair.server.bad) == 1, f"on_bad was told {pair.server.bad}")


@_check
async def pending_handshakes_are_bounded(pair: Pair) -> None:
    """At the bound the oldest makes room, and honest clients get in."""
    await pair.listen(max_pending_handshakes=3)
    pair.client.proof = None
    idle = [await pair.dial() for _ in range(8)]
    await until(lambda: pair.door.evicted >= 5, f"evicted {pair.door.evicted} of 8 with room for 3")
    expect(pair.door.pending <= 3, f"{pair.door.pending} pending with room for 3")
    await until(lambda: all(link.ended for link in idle[:5]), "the oldest were not cut")
    pair.client.proof = b"proof"
    await pair.link()


@_check
async def a_closed_port_is_unreachable(pair: Pair) -> None:
    """With the reason, and at once."""
    await pair.listen()
    address = pair.address
    await pair.door.close()
    error = await _fails(pair, Unreachable, address)
    expect(isinstance(error, Unreachable) and error.tried, "Unreachable does not say what was tried")
    expect("ECONNREFUSED" in str(error), f"{str(error)!r} does not say why")
    expect(isinstance(error, Unreachable) and not error.no_route, "refused is not the lack of a route")
    name = Address.parse(join("no-such-host.invalid", address.port))
    await _fails(pair, Unreachable, name)


@_check
async def closing_the_door_keeps_links(pair: Pair) -> None:
    """Pending handshakes are cut, links stay."""
    await pair.listen()
    server, client = await pair.link()
    pair.client.proof = None
    pending = await pair.dial()
    await until(lambda: pair.door.pending == 1, "the handshake is not pending")
    await pair.door.close()
    await until(lambda: pending.ended, "a pending handshake was not cut")
    server.text(b"from the server")
    client.text(b"from the client")
    await until(lambda: server.frames and client.frames, "a link did not survive")
    expect(not server.ended and not client.ended, "a link did not survive")


@_check
async def many_links_at_once(pair: Pair) -> None:
    """Each end talks to its own far end."""
    await pair.listen()
    await asyncio.gather(*(pair.dialing.dial(pair.address) for _ in range(50)))
    for number, recorder in enumerate(pair.client.links):
        recorder.text(b"%d" % number)
    await until(lambda: sum(len(link.frames) for link in pair.server.links) == 50, "not all 50 work")
    for link in pair.server.links:
        link.text(link.of("text")[0])
    await until(lambda: all(link.frames for link in pair.client.links), "not all 50 work")
    expect(
        [link.of("text") for link in pair.client.links] == [[b"%d" % number] for number in range(50)],
        "a frame came back on another link",
    )


@_check
async def a_cancelled_dial_leaks_nothing(pair: Pair) -> None:
    """At whatever moment it is cancelled, both sides end up without a link."""
    await pair.listen()
    for moment in range(30):
        dial = asyncio.ensure_future(pair.dialing.dial(pair.address))
        await (asyncio.sleep(moment * 0.0002) if moment % 2 else _turns(moment // 2))
        dial.cancel()
        await asyncio.wait([dial])
        if not dial.cancelled() and dial.exception() is None:
            pair.client.links[-1].abort()
    links = (pair.server.links, pair.client.links)
    await until(lambda: pair.door.pending == 0, "handshakes of cancelled dials are still pending")
    await until(lambda: all(link.ended for ends in links for link in ends), "a link stayed open")
    await pair.link()


async def _turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)
