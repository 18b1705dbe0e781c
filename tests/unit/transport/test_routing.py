"""Which connection carries a message (rule 3.1): outbound, inbound, else a dial."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import pytest

import openline
from openline.connection.connection import State

from .conftest import Make, Open
from .helpers import Box, Dials, closed_port, eventually, port_of, resolve_to, serve, task, tasks, within
from .rawsocket import Actor, RawServer

# Outbound, inbound, dial --------------------------------------------------------------------------


async def test_a_reply_to_the_listening_address_rides_the_inbound_socket(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(b)
    home = await serve(b)
    await b.connect(await serve(a))
    receipt = await a.send(home, task("back"))
    assert (receipt.attempts, receipt.direction) == (1, "inbound")
    await eventually(lambda: box.payloads == ["back"])
    assert (a.stats().created, a.stats().dials, b.stats().accepted) == (0, 0, 0)


async def test_20_replies_on_the_inbound_socket_create_nothing(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(b)
    home = await serve(b)
    await b.connect(await serve(a))
    receipts = [await a.send(home, message) for message in tasks(20)]
    assert {(receipt.attempts, receipt.direction) for receipt in receipts} == {(1, "inbound")}
    await eventually(lambda: box.payloads == list(range(20)))
    assert (a.stats().created, a.stats().reuses) == (0, 20)


async def test_a_batch_and_a_request_ride_the_inbound_socket_too(make: Make) -> None:
    a, b = await make(), await make()
    b.on_message(lambda peer, message: peer.reply(message, message.payload))
    home = await serve(b)
    await b.connect(await serve(a))
    assert {receipt.direction for receipt in await a.send_batch(home, tasks(50))} == {"inbound"}
    assert (await a.request(home, task("echo"), timeout=5.0)).payload == "echo"
    assert a.stats().created == 0


async def test_without_an_inbound_connection_it_dials(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(b)
    receipt = await a.send(await serve(b), task("first"))
    assert (receipt.attempts, receipt.direction) == (1, "outbound")
    await eventually(lambda: box.payloads == ["first"])
    assert (a.stats().created, a.stats().dials) == (1, 1)


async def test_the_second_message_rides_the_first_ones_connection(make: Make) -> None:
    a, b = await make(), await make()
    address = await serve(b)
    await a.send(address, task())
    await a.send(address, task())
    assert (a.stats().created, a.stats().reuses, b.stats().accepted) == (1, 1, 1)


async def test_what_was_dialed_goes_before_another_nodes_claim_and_is_dialed_again(
    make: Make, raw: Open, raw_server: RawServer
) -> None:
    a, node = await make(), Actor(raw_server.port)
    dialing = asyncio.ensure_future(a.connect(raw_server.address))
    server = await raw_server.accept(node)
    await within(dialing)
    client = await raw(port_of(await serve(a)), Actor(raw_server.port))
    assert a.stats().active == 2
    assert (await server.takes(a.send(raw_server.address, task(1)))).direction == "outbound"
    server.close()
    await eventually(lambda: a.stats().active == 1)
    sending = asyncio.ensure_future(a.send(raw_server.address, task(2)))
    again = await raw_server.accept(node)
    assert (await again.takes(sending)).direction == "outbound"
    assert (server.payloads, again.payloads, client.payloads) == ([1], [2], [])


async def test_a_peer_that_is_not_there_is_unreachable_and_the_error_says_why(make: Make) -> None:
    address = f"127.0.0.1:{closed_port()}"
    with pytest.raises(openline.Unreachable, match="ECONNREFUSED") as caught:
        await (await make()).send(address, task())
    assert address in str(caught.value)


async def test_a_name_that_does_not_resolve_is_unreachable(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unknown(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    with pytest.raises(openline.Unreachable, match=r"agent\.test"):
        await (await make()).send("agent.test:8770", task())


@pytest.mark.parametrize("name", ["x" * 64 + ".test", "x" * 63 + ".x." + "y" * 63])
async def test_a_name_that_cannot_be_looked_up_is_an_openline_error(make: Make, name: str) -> None:
    """Labels of more than 63 letters cannot be encoded; the resolver says so with a UnicodeError."""
    t = await make()
    with pytest.raises(openline.Error, match=name[:20]):
        await t.send(f"{name}:8770", task())
    with pytest.raises(TimeoutError):
        await t.receive("x" * 63 + ".test:8770", timeout=0.01)


async def test_every_path_to_a_name_is_tried_and_the_error_says_how_each_failed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    dials = Dials()
    dials.error = OSError(errno.EHOSTUNREACH, "no route")
    resolve_to(monkeypatch, "127.0.0.2", "127.0.0.3")
    with pytest.raises(openline.Unreachable) as caught:
        await (await make(opener=dials)).send("agent.test:8770", task())
    text = str(caught.value)
    assert text.count("EHOSTUNREACH") == 2
    assert "127.0.0.2:8770" in text
    assert "127.0.0.3:8770" in text


async def test_a_dead_first_address_of_a_name_does_not_hide_the_second(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await make(), await make()
    home = await serve(b)
    resolve_to(monkeypatch, "127.0.0.2", "127.0.0.1")
    assert (await a.send(f"agent.test:{port_of(home)}", task())).attempts == 1


# Answering ip:ephemeral-port ----------------------------------------------------------------------


async def test_an_answer_to_a_clients_own_end_rides_its_socket(make: Make, raw: Open) -> None:
    dials = Dials()
    a = await make(opener=dials)
    port = port_of(await serve(a))
    one, two = await raw(port), await raw(port)
    await eventually(lambda: a.stats().active == 2)
    await a.send(one.address, task("one"))
    await a.send(two.address, task("two"))
    assert (await one.message())["payload"] == "one"
    assert (await two.message())["payload"] == "two"
    assert dials.made == []


@pytest.mark.parametrize("form", ["{}", "ws://{}"])
async def test_a_clients_own_end_is_not_dialed_while_it_is_there_and_the_error_says_later_what_it_was(
    make: Make, raw: Open, form: str
) -> None:
    dials = Dials()
    a = await make(opener=dials)
    client = await raw(port_of(await serve(a)))
    await eventually(lambda: a.stats().active == 1)
    address = form.format(client.address)
    next(iter(a._table.connections)).set_state(State.SUSPECT)
    await a.send(address, task("never dialed"))
    assert ((await client.message())["payload"], dials.made) == ("never dialed", [])
    client.close()
    await eventually(lambda: a.stats().active == 0)
    with pytest.raises(openline.Unreachable, match="far end of a connection that came in"):
        await a.send(address, task())


async def test_a_gone_clients_end_does_not_ride_another_clients_socket(make: Make, raw: Open) -> None:
    a = await make()
    port = port_of(await serve(a))
    gone, stays = await raw(port), await raw(port)
    await eventually(lambda: a.stats().active == 2)
    address = gone.address
    gone.close()
    await eventually(lambda: a.stats().active == 1)
    with pytest.raises(openline.Unreachable):
        await a.send(address, task("for the gone one"))
    await a.close()
    assert b"for the gone one" not in await stays.gone()


async def test_an_answer_to_a_client_that_died_is_unreachable_and_not_dialed(make: Make, raw: Open) -> None:
    dials = Dials()
    a = await make(opener=dials)
    box = Box(a)
    client = await raw(port_of(await serve(a)))
    await client.say("hello")
    await eventually(lambda: box)
    client.reset()
    with pytest.raises(openline.Unreachable):
        await box.peers[0].reply(box[0], "too late")
    assert dials.made == []


async def test_an_openline_client_that_does_not_listen_is_answered_on_its_socket(make: Make) -> None:
    a, b = await make(), await make()
    at_a, at_b = Box(a), Box(b)
    await b.send(await serve(a), task())
    await eventually(lambda: at_a)
    receipt = await a.send(at_a.peers[0].address, task("answer"))
    assert (receipt.direction, a.stats().created) == ("inbound", 0)
    await eventually(lambda: at_b.payloads == ["answer"])
