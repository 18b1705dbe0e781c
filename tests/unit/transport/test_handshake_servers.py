"""Servers that are not who they say, or do not speak this protocol, get nothing (rule 3.6)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

import openline

from .conftest import Make
from .helpers import eventually, task, within
from .proofs import (
    FIELDS,
    HELLO,
    PROOF,
    SEPARATOR,
    altered,
    answer,
    in_base64,
    nothing,
    right,
    signed,
    value,
)
from .rawsocket import Actor, RawServer
from .wire import (
    header,
)

# Answers that are no upgrade ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "ours", "kind"),
    [
        ("403 Forbidden", True, openline.Refused),
        ("409 Conflict", True, openline.IdentityConflict),
        ("400 Bad Request", False, openline.Unreachable),
        ("409 Conflict", False, openline.Unreachable),
        ("403 Forbidden", False, openline.Unreachable),
    ],
)
async def test_only_a_node_that_says_so_has_refused_us(
    make: Make, raw_server: RawServer, status: str, ours: bool, kind: type[openline.Error]
) -> None:
    """A proxy on the way also answers 403 and 409, and knows nothing of identities."""
    t = await make()
    sending = asyncio.ensure_future(t.send(raw_server.address, task()))
    raw = await raw_server.tcp()
    await raw.head()
    more = "Openline-Refused: 1\r\n" if ours else ""
    body = "because"
    await raw.send(f"HTTP/1.1 {status}\r\n{more}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    raw.close()
    error = await nothing(within(sending))
    assert type(error) is kind, error
    assert "because" in str(error)
    assert raw_server.address in str(error)
    assert (t.peers(), t.stats().conflicts) == ([], 0)


# Servers that are not who they say ----------------------------------------------------------------


Answer = Callable[[Actor, str], str]

BAD_ANSWERS: dict[str, Answer] = {
    "no proof": lambda actor, mine: actor.hello(),
    "an empty proof": lambda actor, mine: actor.hello() + SEPARATOR,
    "wrong key": lambda actor, mine: value(
        said := actor.hello(), openline.Identity().sign(signed("server", mine, said))
    ),
    "in the client's role": lambda actor, mine: value(*right(actor, mine, role="client")),
    "in no role": lambda actor, mine: value(*right(actor, mine, role="")),
    "for TLS that there is not": lambda actor, mine: value(*right(actor, mine, certificate=b"certificate")),
    "for another client": lambda actor, mine: value(*right(actor, Actor().hello(1))),
    "for no client": lambda actor, mine: value(*right(actor, "")),
    "hellos swapped": lambda actor, mine: value(
        said := actor.hello(), actor.identity.sign(signed("server", said, mine))
    ),
    "the client's hello sent back": lambda actor, mine: value(mine, right(actor, mine)[1]),
    "the client's hello sent back, signed by another": lambda actor, mine: value(
        mine, actor.identity.sign(signed("server", mine, mine))
    ),
    "truncated": lambda actor, mine: value(*right(actor, mine))[:-1],
    "short": lambda actor, mine: value(actor.hello(), bytes(63)),
    "long": lambda actor, mine: value(actor.hello(), bytes(65)),
    "zeros": lambda actor, mine: value(actor.hello(), bytes(64)),
    "not base64": lambda actor, mine: actor.hello() + SEPARATOR + "!" * 86,
    "first proof of two": lambda actor, mine: value(*right(actor, mine)) + SEPARATOR + "A" * 86,
    "with something behind it": lambda actor, mine: value(*right(actor, mine)) + "; name=mallory",
    "empty": lambda actor, mine: "",
    "only a proof": lambda actor, mine: SEPARATOR + in_base64(right(actor, mine)[1]),
    "another version": lambda actor, mine: "2" + value(*right(actor, mine))[1:],
    "very long": lambda actor, mine: value(*right(actor, mine)) + "; x=" + "x" * 4000,
}
for _field in FIELDS:
    BAD_ANSWERS[f"its own hello with another {_field}"] = lambda actor, mine, field=_field: value(
        altered((said := right(actor, mine))[0], field), said[1]
    )
    BAD_ANSWERS[f"our hello with another {_field}"] = lambda actor, mine, field=_field: value(
        *right(actor, altered(mine, field))
    )

# A node that does not speak this protocol, as opposed to one that lies.
OTHER_PROTOCOL = ("another version", "very long", "empty", "only a proof")


@pytest.mark.parametrize("how", BAD_ANSWERS)
async def test_a_server_with_a_wrong_proof_gets_nothing(make: Make, raw_server: RawServer, how: str) -> None:
    t, actor = await make("alice"), Actor()
    sending = asyncio.ensure_future(t.send(raw_server.address, task("secret")))
    raw = await raw_server.tcp()
    raw.request = await raw.head()
    await answer(raw, BAD_ANSWERS[how](actor, header(raw.request, HELLO)))
    error = await nothing(within(sending))
    assert isinstance(error, openline.Refused | openline.Unreachable), error
    if how not in OTHER_PROTOCOL:
        assert isinstance(error, openline.Refused), error
        assert "proof" in str(error)
        assert raw_server.address in str(error)
    heard = await within(raw.gone())
    assert b"secret" not in heard
    assert bytes([PROOF]) not in heard[:3]
    stats = t.stats()
    assert (t.peers(), stats.active, stats.created, stats.dial_failures) == ([], 0, 0, 1)
    assert stats.messages_sent == 0


async def test_an_answer_is_good_for_one_connection(make: Make, raw_server: RawServer) -> None:
    """Hello and proof of a server that were right, played again to the next connection."""
    t, actor = await make(), Actor()
    connecting = asyncio.ensure_future(t.connect(raw_server.address))
    first = await raw_server.tcp()
    first.request = await first.head()
    recorded = value(*right(actor, header(first.request, HELLO)))
    await answer(first, recorded)
    assert (await within(connecting)).node_id == actor.node_id
    first.reset()
    await eventually(lambda: not t.peers())
    sending = asyncio.ensure_future(t.send(raw_server.address, task("secret")))
    second = await raw_server.tcp()
    second.request = await second.head()
    await answer(second, recorded)
    assert isinstance(await nothing(within(sending)), openline.Refused)
    assert b"secret" not in await within(second.gone())


async def test_a_server_that_lies_does_not_stop_who_is_right_at_the_next_attempt(
    make: Make, raw_server: RawServer
) -> None:
    t, actor = await make(), Actor()
    sending = asyncio.ensure_future(t.send(raw_server.address, task()))
    raw = await raw_server.tcp()
    raw.request = await raw.head()
    await answer(raw, BAD_ANSWERS["wrong key"](actor, header(raw.request, HELLO)))
    assert isinstance(await nothing(within(sending)), openline.Refused)
    sending = asyncio.ensure_future(t.send(raw_server.address, task("now")))
    good = await raw_server.accept(actor)
    assert (await good.takes(sending)).acked
    assert good.payloads == ["now"]
