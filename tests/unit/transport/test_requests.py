"""request(): correlated, never somebody else's answer."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

import openline

from ..clock import hurry
from .conftest import Make, Open
from .helpers import Box, Dials, closed_port, eventually, port_of, serve, task, tasks, within
from .rawsocket import Raw

Asking = asyncio.Future[openline.Message]


def ask(t: openline.Transport, address: str, timeout: float = 3.0, **fields: Any) -> Asking:
    return asyncio.ensure_future(t.request(address, task(**fields), timeout=timeout))


async def plain_pair(make: Make, raw: Open) -> tuple[openline.Transport, Raw]:
    """A transport and a plain peer that is connected to it."""
    a, client, _ = await two_plain(make, raw, 1)
    return a, client


async def two_plain(make: Make, raw: Open, count: int = 2) -> tuple[openline.Transport, Raw, Raw]:
    """A transport and two plain peers at one IP."""
    a = await make()
    port = port_of(await serve(a))
    clients = [await raw(port) for _ in range(count)]
    await eventually(lambda: a.stats().active == count)
    return a, clients[0], clients[-1]


# Openline peers -----------------------------------------------------------------------------------


async def test_a_request_gets_the_reply_to_it(make: Make) -> None:
    a, b = await make(), await make()
    a.on_message(lambda peer, message: peer.reply(message, {"n": message.payload}))
    reply = await b.request(await serve(a), task(7), timeout=2.0)
    assert (reply.payload, reply.type) == ({"n": 7}, "result")


async def test_an_answer_is_not_handed_to_handlers_or_receive_as_well(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(b)
    a.on_message(lambda peer, message: peer.reply(message, "answer"))
    address = await serve(a)
    await b.request(address, task(), timeout=2.0)
    with pytest.raises(TimeoutError):
        await b.receive(address, timeout=0.02)
    assert box == []


async def test_concurrent_requests_answered_out_of_order_each_get_their_own(make: Make) -> None:
    a, b = await make(), await make()
    waiting: list[tuple[openline.Peer, openline.Message]] = []
    a.on_message(lambda peer, message: waiting.append((peer, message)))
    address = await serve(a)
    asking = [ask(b, address, payload=number) for number in range(100)]
    await eventually(lambda: len(waiting) == 100)
    for peer, message in reversed(waiting):
        await peer.reply(message, message.payload)
    replies = await within(asyncio.gather(*asking))
    assert [reply.payload for reply in replies] == list(range(100))


async def test_an_openline_peers_other_message_is_no_answer(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(b)

    @a.on_message
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        await peer.send(openline.Message(id=message.id, payload="same id, no replyTo"))
        await peer.send(task("unrelated"))
        await peer.reply(message, "answer")

    assert (await b.request(await serve(a), task(), timeout=2.0)).payload == "answer"
    assert box.payloads == ["same id, no replyTo", "unrelated"]


async def test_an_answer_on_another_stream_is_still_the_answer(make: Make) -> None:
    a, b = await make(), await make()
    a.on_message(
        lambda peer, message: peer.send(
            task("answer", metadata={"replyTo": message.id}, stream_id="elsewhere")
        )
    )
    assert (await b.request(await serve(a), task(), timeout=2.0)).payload == "answer"


async def test_a_third_node_cannot_answer_for_the_peer(make: Make) -> None:
    a, b, c = await make(), await make(), await make()
    home = await serve(a)
    got = Box(b)
    at_a = Box(a)
    asking = ask(a, await serve(b), id="q")
    await eventually(lambda: got)
    await c.send(home, task("forged", metadata={"replyTo": "q"}))
    await eventually(lambda: at_a.payloads == ["forged"])
    assert not asking.done()
    await got.peers[0].reply(got[0], "real")
    assert (await within(asking)).payload == "real"


async def test_a_request_survives_the_loss_of_an_openline_peers_connection(make: Make) -> None:
    a, b = await make(), await make()
    got = Box(b)
    home = await serve(b)
    at_a = await serve(a)
    asking = ask(a, home)
    await eventually(lambda: got)
    for connection in list(a.peers()[0]._remote.connections):
        connection.link.abort()
    await eventually(lambda: b.stats().active == 0)
    await b.send(at_a, task("answer", metadata={"replyTo": got[0].id}))
    assert (await within(asking)).payload == "answer"


async def test_a_request_without_an_answer_times_out_with_the_builtin_error(make: Make) -> None:
    a, b = await make(), await make()
    address = await serve(a)
    with hurry() as passed, pytest.raises(TimeoutError, match=address):
        await b.request(address, task(), timeout=0.1)
    assert 0.09 < passed() < 1.0


async def test_the_default_time_out_is_configured(make: Make) -> None:
    a, b = await make(), await make(request_timeout=0.05)
    with pytest.raises(TimeoutError):
        await within(b.request(await serve(a), task()), 2.0)


async def test_a_short_request_is_not_held_up_by_the_timer_of_a_long_one(make: Make) -> None:
    a, b = await make(), await make()
    address = await serve(a)
    long = ask(b, address, timeout=4.0)
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        await within(b.request(address, task(), timeout=0.05), 1.0)
    long.cancel()


async def test_the_time_out_covers_a_dial_that_hangs(make: Make) -> None:
    dials = Dials()
    dials.gate.clear()
    b = await make(opener=dials)
    with pytest.raises(TimeoutError):
        await within(b.request("127.0.0.1:9", task(), timeout=0.1), 2.0)


async def test_a_request_to_nobody_is_unreachable(make: Make) -> None:
    with pytest.raises(openline.Unreachable):
        await (await make()).request(f"127.0.0.1:{closed_port()}", task(), timeout=2.0)


async def test_a_late_answer_of_an_openline_peer_answers_nobody(make: Make) -> None:
    a, b = await make(), await make()
    got = Box(a)
    address = await serve(a)
    with pytest.raises(TimeoutError):
        await b.request(address, task(1), timeout=0.05)
    second = ask(b, address, payload=2)
    await eventually(lambda: len(got) == 2)
    await got.peers[0].reply(got[0], "late")
    await got.peers[1].reply(got[1], "in time")
    assert (await within(second)).payload == "in time"


async def test_an_id_that_is_already_out_is_an_openline_error_and_the_first_one_is_answered(
    make: Make,
) -> None:
    a, b = await make(), await make()
    got = Box(a)
    address = await serve(a)
    first = ask(b, address, id="q")
    await eventually(lambda: got)
    with pytest.raises(openline.Error, match="q"):
        await b.request(address, task(id="q"), timeout=1.0)
    await got.peers[0].reply(got[0], "answer")
    assert (await within(first)).payload == "answer"


async def test_answered_requests_leave_nothing_behind(make: Make) -> None:
    a, b = await make(), await make()
    a.on_message(lambda peer, message: peer.reply(message))
    address = await serve(a)
    objects = []
    for _ in range(2):
        for _ in range(10):
            await asyncio.gather(*(b.request(address, message, timeout=5.0) for message in tasks(250)))
        gc.collect()
        objects.append(len(gc.get_objects()))
    assert objects[1] - objects[0] < 500


# Plain peers --------------------------------------------------------------------------------------


async def test_a_plain_peer_answers_with_the_same_id(make: Make, raw: Open) -> None:
    a, client = await plain_pair(make, raw)
    first, second = ask(a, client.address, id="1"), ask(a, client.address, id="2")
    await client.message()
    await client.message()
    await client.say("two", id="2")
    await client.say("one", id="1")
    assert [(await within(asking)).payload for asking in (first, second)] == ["one", "two"]


async def test_a_plain_peer_answers_with_reply_to(make: Make, raw: Open) -> None:
    a, client = await plain_pair(make, raw)
    first, second = ask(a, client.address, id="1"), ask(a, client.address, id="2")
    await client.message()
    await client.message()
    await client.say("two", id="x", metadata={"replyTo": "2"})
    await client.say("one", id="y", metadata={"replyTo": "1"})
    assert [(await within(asking)).payload for asking in (first, second)] == ["one", "two"]


async def test_a_plain_peers_next_message_is_the_answer_while_exactly_one_is_out(
    make: Make, raw: Open
) -> None:
    a, client = await plain_pair(make, raw)
    asking = ask(a, client.address)
    await client.message()
    await client.say("answer", id="anything")
    assert (await within(asking)).payload == "answer"


async def test_with_two_requests_out_a_plain_peers_next_message_answers_neither(
    make: Make, raw: Open
) -> None:
    a, client = await plain_pair(make, raw)
    box = Box(a)
    asking = [ask(a, client.address, id="1"), ask(a, client.address, id="2")]
    await client.message()
    await client.message()
    await client.say("whose?", id="anything")
    await eventually(lambda: box.payloads == ["whose?"])
    assert not any(one.done() for one in asking)
    await client.say("one", id="1")
    await client.say("two", id="anything")
    assert [(await within(one)).payload for one in asking] == ["one", "two"]


async def test_a_plain_peers_message_on_another_stream_is_no_answer(make: Make, raw: Open) -> None:
    a, client = await plain_pair(make, raw)
    box = Box(a)
    asking = ask(a, client.address, stream_id="rpc")
    await client.message()
    await client.say("default", id="anything")
    await eventually(lambda: box.payloads == ["default"])
    await client.say("rpc", id="anything", streamId="rpc")
    assert (await within(asking)).payload == "rpc"


async def test_a_plain_peers_answer_to_something_else_is_no_answer(make: Make, raw: Open) -> None:
    a, client = await plain_pair(make, raw)
    box = Box(a)
    asking = ask(a, client.address)
    await client.message()
    await client.say("else", id="x", metadata={"replyTo": "another"})
    await eventually(lambda: box.payloads == ["else"])
    await client.say("answer", id="y")
    assert (await within(asking)).payload == "answer"


async def test_the_id_42_is_not_the_text_42(make: Make, raw: Open) -> None:
    a, client = await plain_pair(make, raw)
    box = Box(a)
    asking = [ask(a, client.address, id=42), ask(a, client.address, id="other")]
    await client.message()
    await client.message()
    await client.say("text", id="42")
    await client.say("text", id="x", metadata={"replyTo": "42"})
    await eventually(lambda: len(box) == 2)
    await client.say("number", id=42)
    assert (await within(asking[0])).payload == "number"
    asking[1].cancel()


async def test_another_plain_peers_message_is_no_answer(make: Make, raw: Open) -> None:
    a, client, other = await two_plain(make, raw)
    box = Box(a)
    asking = ask(a, client.address, id="q")
    await client.message()
    await other.say("same id", id="q")
    await other.say("reply to", id="x", metadata={"replyTo": "q"})
    await other.say("next message", id="y")
    await eventually(lambda: len(box) == 3)
    assert not asking.done()
    await client.say("mine", id="q")
    assert (await within(asking)).payload == "mine"


async def test_two_plain_peers_asked_with_one_id_each_answer_their_own(make: Make, raw: Open) -> None:
    a, one, two = await two_plain(make, raw)
    asking = [ask(a, one.address, id="q"), ask(a, two.address, id="q")]
    await one.message()
    await two.message()
    await two.say("two", id="q")
    await one.say("one", id="q")
    assert [(await within(asked)).payload for asked in asking] == ["one", "two"]


@pytest.mark.parametrize("late", [{"id": "1"}, {"id": "x", "metadata": {"replyTo": "1"}}])
async def test_a_plain_peers_late_answer_answers_nobody_else(
    make: Make, raw: Open, late: dict[str, Any]
) -> None:
    a, client = await plain_pair(make, raw)
    with pytest.raises(TimeoutError):
        await a.request(client.address, task(id="1"), timeout=0.05)
    second = ask(a, client.address, id="2")
    await client.message()
    await client.message()
    await client.say("late", **late)
    await client.say("in time", id="2")
    assert (await within(second)).payload == "in time"


async def test_a_plain_peers_late_answer_without_any_mark_answers_nobody_else(make: Make, raw: Open) -> None:
    """The first request is still out as far as the peer knows: its next message may answer that."""
    a, client = await plain_pair(make, raw)
    with pytest.raises(TimeoutError):
        await a.request(client.address, task(id="1"), timeout=0.05)
    second = ask(a, client.address, id="2")
    await client.message()
    await client.message()
    await client.say("late", id="unmarked")
    await client.say("in time", id="2")
    assert (await within(second)).payload == "in time"


async def test_a_cancelled_requests_answer_answers_nobody_else(make: Make, raw: Open) -> None:
    a, client = await plain_pair(make, raw)
    first = ask(a, client.address, id="1")
    await client.message()
    first.cancel()
    await asyncio.sleep(0)
    second = ask(a, client.address, id="2")
    await client.message()
    await client.say("late", id="1")
    await client.say("in time", id="2")
    assert (await within(second)).payload == "in time"


async def test_a_request_whose_plain_peer_dies_is_not_confirmed(make: Make, raw: Open) -> None:
    a, client = await plain_pair(make, raw)
    asking = ask(a, client.address)
    await client.message()
    client.reset()
    with pytest.raises(openline.NotConfirmed, match=client.address):
        await within(asking, 1.0)


async def test_all_requests_to_a_plain_peer_that_dies_are_not_confirmed(make: Make, raw: Open) -> None:
    a, client = await plain_pair(make, raw)
    asking = [ask(a, client.address) for _ in range(10)]
    for _ in range(10):
        await client.message()
    client.close()
    results = await within(asyncio.gather(*asking, return_exceptions=True), 1.0)
    assert {type(result) for result in results} == {openline.NotConfirmed}


async def test_a_plain_peer_asks_and_is_answered_with_reply_to(make: Make, raw: Open) -> None:
    a, client = await plain_pair(make, raw)
    a.on_message(lambda peer, message: peer.reply(message, "pong"))
    await client.say("ping", id="q", streamId="rpc")
    reply = await client.message()
    assert (reply["payload"], reply["metadata"]["replyTo"], reply["streamId"]) == ("pong", "q", "rpc")


async def test_both_sides_may_ask_at_once(make: Make, raw: Open) -> None:
    """A plain peer's question, which comes while ours is out, is marked by an id of its own."""
    a, client = await plain_pair(make, raw)
    asking = [ask(a, client.address, id="1"), ask(a, client.address, id="2")]
    a.on_message(lambda peer, message: peer.reply(message, "answer to you"))
    await client.message()
    await client.message()
    await client.say("a question", id="q")
    assert (await client.message())["metadata"]["replyTo"] == "q"
    await client.say("one", id="1")
    await client.say("two", id="2")
    assert [(await within(one)).payload for one in asking] == ["one", "two"]
