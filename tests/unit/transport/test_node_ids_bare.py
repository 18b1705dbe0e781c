"""A bare node id as an address (rules 3.1 and 3.6)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import openline

from .certificates import Certificate
from .conftest import Make, Open
from .helpers import Box, closed_port, eventually, port_of, serve, task, tasks, within
from .proofs import Middle, between, nothing
from .rawsocket import Actor, Raw, RawServer, hello
from .uses import ABSENT, USES

# A bare node id -----------------------------------------------------------------------------------


async def test_a_peer_that_only_ever_dials_in_is_reached_by_its_node_id(make: Make) -> None:
    a, b = await make("a"), await make("b")
    box = Box(b, stream_id="default")
    b.on_message(lambda peer, message: peer.reply(message, "yes"), stream_id="rpc")
    await b.connect(await serve(a))
    await eventually(lambda: a.peers())
    receipt = await a.send(b.node_id, task(1))
    assert (receipt.acked, receipt.direction, receipt.attempts) == (True, "inbound", 1)
    assert len(await a.send_batch(b.node_id, tasks(3))) == 3
    assert (await a.request(b.node_id, task(stream_id="rpc"), timeout=2.0)).payload == "yes"
    assert await a.ping(b.node_id) > 0
    peer = await a.connect(b.node_id)
    assert peer is not None
    assert peer.node_id == b.node_id
    assert box.payloads == [1, 0, 1, 2]
    assert (a.stats().created, a.stats().dials) == (0, 0)
    explained = a.explain(b.node_id)
    assert explained.chosen is not None
    assert "proven the node id" in explained.why


async def test_receive_takes_a_bare_node_id(make: Make) -> None:
    a, b, c = await make("a"), await make("b"), await make("c")
    address = await serve(a)
    await b.connect(address)
    await c.connect(address)
    await eventually(lambda: len(a.peers()) == 2)
    waiting = asyncio.ensure_future(a.receive(b.node_id, timeout=3.0))
    await c.send(address, task("c"))
    await b.send(address, task("b"))
    assert (await within(waiting)).payload == "b"
    assert (await a.receive(c.node_id, timeout=3.0)).payload == "c"


async def test_receive_waits_for_a_node_that_has_never_been_here(make: Make) -> None:
    a, b, c = await make("a"), await make("b"), await make("c")
    address = await serve(a)
    waiting = asyncio.ensure_future(a.receive(b.node_id, timeout=3.0))
    await asyncio.sleep(0)
    await c.send(address, task("c"))
    await b.send(address, task("b"))
    assert (await within(waiting)).payload == "b"


async def test_keep_of_a_node_dials_where_it_was_last(make: Make) -> None:
    a, b = await make("a", backoff_min=0.02, backoff_max=0.1), await make("b")
    home, there = await serve(a), await serve(b)
    await b.connect(home)
    await eventually(lambda: a.peers())
    kept = await a.connect(b.node_id, keep=True)
    assert kept is not None
    for turn in range(3):
        for connection in between(a, b):
            connection.link.abort()
        await eventually(lambda: a.stats().created == turn + 1)  # noqa: B023
        await eventually(lambda: len(between(a, b)) == len(between(b, a)) == 1)
    assert kept.address == there


async def test_an_unknown_node_is_unreachable_with_a_text_that_helps(make: Make) -> None:
    a, b = await make("a"), await make("b")
    await b.connect(await serve(a))
    for use in USES.values():
        error = await nothing(within(use(a, ABSENT)))
        assert isinstance(error, openline.Unreachable), error
        assert ABSENT in str(error)
        assert "no live connection" in str(error)
        assert "no address" in str(error)
    assert a.stats().dials == 0
    explained = a.explain(ABSENT)
    assert explained.chosen is None
    assert "no address" in explained.why


async def test_keep_of_an_unknown_node_waits_until_it_is_known(make: Make) -> None:
    a, b = await make("a", backoff_min=0.02, backoff_max=0.1), await make("b")
    assert await within(a.connect(b.node_id, keep=True)) is None
    await b.connect(await serve(a))
    await eventually(lambda: a.peers())
    assert a.stats().dials == 0


async def test_a_node_behind_a_nat_is_reached_again_when_it_has_come_back(make: Make) -> None:
    a, b = await make("a"), await make("b")
    box, address = Box(b), await serve(a)
    async with Middle(port_of(address)) as middle:
        await b.connect(middle.address)
        await eventually(lambda: a.peers())
        await a.send(b.node_id, task(1))
        middle.cut()
        await eventually(lambda: not a.peers() and not b.peers())
        error = await nothing(a.send(b.node_id, task("lost")))
        assert isinstance(error, openline.Unreachable)
        assert b.node_id in str(error)
        await b.connect(middle.address)
        await eventually(lambda: a.peers())
        await a.send(b.node_id, task(2))
    assert box.payloads == [1, 2]
    assert a.stats().dials == 0


async def test_after_the_connection_is_gone_a_known_address_is_dialed(make: Make) -> None:
    """Known because it was dialed before."""
    a, b = await make("a"), await make("b")
    box, address = Box(b), await serve(b)
    await a.connect(address)
    for connection in between(a, b):
        connection.link.abort()
    await eventually(lambda: not a.peers() and not b.peers())
    assert f"would dial {b.node_id}@{address}" in str(a.explain(b.node_id))
    assert (await a.send(b.node_id, task("again"))).direction == "outbound"
    assert box.payloads == ["again"]
    assert a.stats().created == 2


async def test_after_the_connection_is_gone_the_address_that_it_told_is_dialed(make: Make) -> None:
    """Known because the peer, which had dialed in, said that it listens."""
    a, b = await make("a"), await make("b")
    box, here, there = Box(b), await serve(a), await serve(b)
    await b.connect(here)
    await eventually(lambda: a.peers())
    for connection in between(a, b):
        connection.link.abort()
    await eventually(lambda: not a.peers() and not b.peers())
    assert f"would dial {b.node_id}@{there}" in str(a.explain(b.node_id))
    assert (await a.send(b.node_id, task("again"))).direction == "outbound"
    assert box.payloads == ["again"]


async def test_a_peer_that_began_to_listen_later_is_known_there_too(make: Make) -> None:
    a, b = await make("a"), await make("b")
    box, here = Box(b), await serve(a)
    await b.connect(here)
    await eventually(lambda: a.peers())
    there = await serve(b)
    await eventually(lambda: a.peers()[0].address == there)
    for connection in between(a, b):
        connection.link.abort()
    await eventually(lambda: not a.peers() and not b.peers())
    await a.send(b.node_id, task("again"))
    assert box.payloads == ["again"]


async def test_who_sits_at_a_known_address_now_gets_nothing(make: Make) -> None:
    a, b, c = await make("a"), await make("b"), await make("c")
    box, address = Box(c), await serve(b)
    await a.connect(address)
    await b.close()
    await eventually(lambda: not a.peers())
    await c.listen(port_of(address), host="127.0.0.1")
    error = await nothing(within(a.send(b.node_id, task("secret"))))
    assert isinstance(error, openline.Unreachable), error
    assert c.node_id in str(error)
    assert address in str(error)
    assert (box, a.peers(), c.peers()) == ([], [], [])


async def test_a_plain_listener_at_a_known_address_gets_nothing(make: Make) -> None:
    a, b = await make("a"), await make("b")
    address = await serve(b)
    await a.connect(address)
    await b.close()
    await eventually(lambda: not a.peers())
    server = RawServer(port=port_of(address))
    try:
        sending = asyncio.ensure_future(a.send(b.node_id, task("secret")))
        raw = await server.accept()
        assert isinstance(await nothing(within(sending)), openline.Unreachable)
        assert len(await within(raw.gone())) <= 8
    finally:
        server.close_all()
    assert a.peers() == []


async def test_a_node_that_has_moved_is_found_at_its_new_address(make: Make) -> None:
    """The old one is dialed too, and whoever is there gets nothing."""
    a, c = await make("a"), await make("c")
    identity = openline.Identity()
    first = await make("b", identity=identity)
    here, old = await serve(a), await serve(first)
    await first.connect(here)
    await eventually(lambda: a.peers())
    await first.close()
    await eventually(lambda: not a.peers())
    at_c = Box(c)
    await c.listen(port_of(old), host="127.0.0.1")
    second = await make("b", identity=identity)
    box, new = Box(second), await serve(second)
    await second.connect(here)
    await eventually(lambda: a.peers())
    for connection in between(a, second):
        connection.link.abort()
    await eventually(lambda: not a.peers())
    assert f"would dial {identity.node_id}@{new}" in str(a.explain(identity.node_id))
    await a.send(identity.node_id, task("moved"))
    assert (box.payloads, at_c) == (["moved"], [])


async def test_several_known_addresses_are_tried_the_latest_first(make: Make) -> None:
    a, b = await make("a"), await make("b")
    port = port_of(await serve(b))
    async with Middle(port) as first, Middle(port) as second:
        for middle in (first, second):
            await a.connect(middle.address)
        addresses = [second.address, first.address]
        box = Box(b)
        for connection in between(a, b):
            connection.link.abort()
        await eventually(lambda: not a.peers() and not b.peers())
        seen = first.connections, second.connections
        await a.send(b.node_id, task("again"))
        assert (first.connections, second.connections) == (seen[0], seen[1] + 1)
    await b.close()
    await eventually(lambda: not a.peers())
    error = await nothing(within(a.send(b.node_id, task())))
    assert isinstance(error, openline.Unreachable)
    assert [place for place, _ in error.tried] == [f"{b.node_id}@{place}" for place in addresses]
    assert box.payloads == ["again"]


async def test_what_was_known_over_tls_is_dialed_over_tls(
    make: Make, certificate: Certificate, stranger: Certificate
) -> None:
    """And never without: the node's id alone would be weaker than what the address asked for."""
    b = await make("b", tls=certificate.serving())
    a = await make("a", tls=openline.Tls(ca=certificate.cert))
    box, address = Box(b), await serve(b)
    await a.connect(f"wss://{address}")
    for connection in between(a, b):
        connection.link.abort()
    await eventually(lambda: not a.peers() and not b.peers())
    assert "would dial wss://" in str(a.explain(b.node_id))
    assert (await a.send(b.node_id, task("again"))).acked
    assert box.payloads == ["again"]
    assert all(c.endpoint.secure for c in between(a, b))


async def test_concurrent_sends_to_a_bare_node_id_share_one_dial(make: Make) -> None:
    a, b = await make("a"), await make("b")
    box, address = Box(b), await serve(b)
    await a.connect(address)
    for connection in between(a, b):
        connection.link.abort()
    await eventually(lambda: not a.peers() and not b.peers())
    await asyncio.gather(*(a.send(b.node_id, message) for message in tasks(50)))
    assert box.payloads == list(range(50))
    assert (a.stats().dials, b.stats().accepted) == (2, 2)


async def test_a_node_that_is_called_by_name_does_not_care_who_else_is_gone(make: Make) -> None:
    """Peers come and go at one IP; each message for a node id goes to that node or nowhere."""
    a = await make("a")
    address = await serve(a)
    nodes = [await make(f"n{n}") for n in range(6)]
    boxes = [Box(node) for node in nodes]
    for node in nodes:
        await node.connect(address)
    await eventually(lambda: len(a.peers()) == 6)
    for turn, gone in enumerate(nodes):
        found = await asyncio.gather(
            *(a.send(node.node_id, task([turn, n])) for n, node in enumerate(nodes)), return_exceptions=True
        )
        assert [isinstance(f, openline.Receipt) for f in found] == [n >= turn for n in range(6)]
        assert all(isinstance(f, openline.Unreachable) for f in found[:turn])
        await gone.close()
        await eventually(lambda: len(a.peers()) == 5 - turn)  # noqa: B023
    for number, box in enumerate(boxes):
        assert box.payloads == [[turn, number] for turn in range(number + 1)]


# Neighbours ---------------------------------------------------------------------------------------


@pytest.fixture
async def neighbours(make: Make, raw: Open) -> tuple[openline.Transport, str, list[Raw]]:
    """A node with a plain client and another openline node behind its peer's IP, and its address."""
    a = await make("a")
    address = await serve(a)
    plain = await raw(port_of(address))
    await plain.say("hi", metadata={"sourceNodeId": ABSENT})
    other = await raw(port_of(address), Actor(8770, name=ABSENT))
    await eventually(lambda: len(a.peers()) == 2)
    return a, address, [plain, other]


async def test_neighbours_of_a_node_never_get_what_is_meant_for_it(
    neighbours: tuple[openline.Transport, str, list[Raw]], plain_server: Any
) -> None:
    """Neither a plain client at its IP that calls itself so, nor a node that says it listens on its port."""
    a, _, ends = neighbours
    closed = closed_port()
    targets = [ABSENT, f"{ABSENT}@127.0.0.1:8770", f"{ABSENT}@127.0.0.1:{closed}"]
    targets += [f"{ABSENT}@{end.address}" for end in ends]
    for to in targets:
        error = await nothing(within(a.send(to, task("secret"))))
        assert isinstance(error, openline.Unreachable | openline.Refused), (to, error)
        assert isinstance(await nothing(within(a.request(to, task("secret")))), openline.Error)
        assert a.explain(to).chosen is None
    for end in ends:
        end.close()
    await eventually(lambda: not a.peers())
    for end in ends:
        assert b"secret" not in end._buffer
    assert a.stats().messages_sent == 0


@pytest.mark.parametrize("reuse", ["unambiguous", "newest"])
async def test_a_plain_client_never_gets_what_is_meant_for_a_node_that_has_left(
    make: Make, raw: Open, reuse: str
) -> None:
    a, b = await make("a", plain_reuse=reuse), await make("b")
    here, there = await serve(a), await serve(b)
    await b.connect(here)
    client = await raw(port_of(here))
    await client.say("hi")
    await eventually(lambda: len(a.peers()) == 2)
    assert (await a.send(b.node_id, task())).acked
    await b.close()
    await eventually(lambda: len(a.peers()) == 1)
    for to in (b.node_id, f"{b.node_id}@{there}"):
        assert isinstance(await nothing(a.send(to, task("secret"))), openline.Unreachable)
    await a.send(client.address, task("for the client"))
    assert (await client.message())["payload"] == "for the client"


async def test_a_forged_hello_gets_nothing_that_is_meant_for_the_node(make: Make, raw: Open) -> None:
    a, b = await make("a"), await make("b")
    address = await serve(a)
    forger = await raw(port_of(address), hello(8770, node=b.node_id))
    for to in (b.node_id, f"{b.node_id}@127.0.0.1:8770"):
        assert isinstance(await nothing(within(a.send(to, task("secret")))), openline.Unreachable)
    box = Box(b)
    await b.connect(address)
    await eventually(lambda: a.peers())
    await a.send(b.node_id, task("for b"))
    assert box.payloads == ["for b"]
    assert forger._buffer == b""


async def test_peers_of_a_node_id_are_looked_up_by_the_whole_of_it(make: Make) -> None:
    """Not by a part that can be made alike: only exactly this one."""
    a, b = await make("a"), await make("b")
    await b.connect(await serve(a))
    await eventually(lambda: a.peers())
    last = "q" if b.node_id[-1] == "a" else "a"
    first = "b" if b.node_id[0] == "a" else "a"
    for other in (b.node_id[:-1] + last, first + b.node_id[1:]):
        assert isinstance(await nothing(a.send(other, task("secret"))), openline.Unreachable)


@pytest.mark.parametrize(
    "wrong",
    [ABSENT.upper(), ABSENT[:-1], ABSENT + "a", f"{ABSENT}@", f"1{ABSENT[1:]}"],
    ids=["upper case", "too short", "too long", "nothing behind the at", "a digit too low"],
)
async def test_what_is_no_node_id_is_an_invalid_address(make: Make, wrong: str) -> None:
    a = await make("a")
    with pytest.raises(openline.InvalidAddress):
        await a.send(wrong, task())
