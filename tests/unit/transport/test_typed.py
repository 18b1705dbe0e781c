"""Payloads of a type: on_message(type=...), request(returns=...), stream(returns=...)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import msgspec
import pytest

import openline
from openline import Message, Peer, TypedMessage
from openline.typed import converter

from .conftest import Make
from .helpers import eventually, port_of, serve, task, within

pydantic = pytest.importorskip("pydantic")


class Task(msgspec.Struct):
    n: int
    names: list[str] = []


class Result(msgspec.Struct, tag=True):
    total: Annotated[int, msgspec.Meta(ge=0)]


@dataclass
class Point:
    x: float
    y: float = 0.0


class Named(TypedDict):
    name: str


class Model(pydantic.BaseModel):  # type: ignore[misc,name-defined]
    n: int
    inner: list[int] = pydantic.Field(default_factory=list)


async def answering(make: Make, kind: Any) -> tuple[openline.Transport, openline.Transport, str, list[Any]]:
    """Who answers with the type of what came, and who asks."""
    a, b = await make(), await make()
    seen: list[Any] = []

    @a.on_message(type=kind)
    async def handle(peer: Peer, message: TypedMessage[Any]) -> None:
        seen.append(message.payload)
        await peer.reply(message, message.payload if kind is not Model else message.payload.model_dump())

    return a, b, await serve(a), seen


@pytest.mark.parametrize(
    ("kind", "payload", "made"),
    [
        (Task, {"n": 1, "names": ["a"]}, Task(1, ["a"])),
        (Task, Task(2), Task(2)),
        (Point, Point(1.5), Point(1.5)),
        (Named, {"name": "x"}, {"name": "x"}),
        (int, 7, 7),
        (list[int], [1, 2], [1, 2]),
        (Model, {"n": 1, "inner": [2]}, Model(n=1, inner=[2])),
    ],
)
async def test_a_handler_gets_what_it_asks_for_and_so_does_who_asks_it(
    make: Make, kind: Any, payload: Any, made: Any
) -> None:
    _, b, address, seen = await answering(make, kind)
    answer = await b.request(address, task(payload), returns=kind)
    assert (seen, answer.payload) == ([made], made)
    assert isinstance(answer, Message)


@pytest.mark.parametrize(
    ("kind", "payload", "where"),
    [
        (Task, {"n": "one"}, r"Expected `int`, got `str` - at `\$.n`"),
        (Task, {"n": 1, "names": ["a", 2]}, r"\$.names\[1\]"),
        (Task, None, "Expected `object`, got `null`"),
        (Point, {}, "missing required field `x`"),
        (int, "7", "Expected `int`, got `str`"),
        (Model, {"n": "one"}, r"valid integer.* - at `\$.n`"),
        (Model, {"n": 1, "inner": [1, "x"]}, r"\$.inner.1"),
    ],
)
async def test_what_does_not_fit_is_answered_with_what_and_where(
    make: Make, kind: Any, payload: Any, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    a, b, address, seen = await answering(make, kind)
    with pytest.raises(openline.RemoteError, match=where) as raised:
        await b.request(address, task(payload))
    assert raised.value.type == "InvalidPayload"
    with pytest.raises(openline.RemoteError, match=where):
        await anext(b.stream(address, task(payload)))
    assert seen == []
    assert (a.stats().malformed, a.stats().handler_errors) == (2, 0)
    assert "does not fit" in caplog.text
    assert "Traceback" not in caplog.text


async def test_a_plain_peer_gets_an_error_message(make: Make, plain_client: Any) -> None:
    a, _, address, _ = await answering(make, Task)
    client = await plain_client(port_of(address))
    for message in (
        {"id": "e", "type": "error", "payload": {"text": "whatever"}},
        {"id": "r", "type": "result", "payload": 1, "metadata": {"replyTo": "x"}},
        {"id": "q", "type": "task", "payload": {"n": None}},
    ):
        await client.send(json.dumps(message))
    answer = json.loads(await within(client.recv()))
    assert (answer["type"], answer["metadata"]) == ("error", {"replyTo": "q", "more": False})
    assert "`$.n`" in answer["payload"]["text"]
    assert a.stats().malformed == 3


async def test_an_answer_that_does_not_fit_names_the_peer_and_the_place(make: Make) -> None:
    a, b = await make(), await make()

    @a.on_message
    async def handle(peer: Peer, message: Message) -> AsyncIterator[Any]:
        yield Result(1)
        yield {"type": "Result", "total": -1}
        await asyncio.sleep(1e6)

    address = await serve(a)
    peer = await b.connect(address)
    assert peer is not None
    assert (await peer.request(task(), returns=Result)).payload.total == 1
    stream = b.stream(address, task(), returns=Result)
    assert (await anext(stream)).payload == Result(1)
    with pytest.raises(openline.InvalidMessage, match=rf"{address} answers .* at `\$.total`"):
        await anext(stream)
    await eventually(lambda: not any(remote.answers.by_id for remote in a._table))
    with pytest.raises(openline.InvalidMessage, match=r"at `\$\.total`"):
        async for _ in peer.stream(task(), returns=Result):
            pass


async def test_other_handlers_see_the_payload_as_it_came(make: Make) -> None:
    a, b = await make(), await make()
    seen: list[Any] = []
    a.on_message(lambda peer, message: seen.append(message.payload))
    a.on_message(type=Task)(lambda peer, message: seen.append(message.payload))
    a.on_message(lambda peer, message: seen.append(message.payload))
    await b.send(await serve(a), task({"n": 1}))
    await eventually(lambda: len(seen) == 3)
    assert seen == [{"n": 1}, Task(1), {"n": 1}]


async def test_a_generator_may_be_typed(make: Make) -> None:
    a, b = await make(), await make()

    @a.on_message(type=Task, stream_id="count")
    async def handle(peer: Peer, message: TypedMessage[Task]) -> AsyncIterator[Result]:
        for number in range(message.payload.n):
            yield Result(number)

    parts = [
        part.payload.total
        async for part in b.stream(await serve(a), task(Task(3), stream_id="count"), returns=Result)
    ]
    assert parts == [0, 1, 2]


async def test_a_typed_handler_is_taken_off_by_itself(make: Make) -> None:
    a, b = await make(), await make()
    seen: list[Any] = []

    def handle(peer: Peer, message: TypedMessage[Task]) -> None:
        seen.append(message.payload)

    assert a.on_message(type=Task)(handle) is handle
    address = await serve(a)
    await b.send(address, task(Task(1)))
    a.off_message(handle)
    await b.send(address, task(Task(2)))
    await eventually(lambda: seen == [Task(1)])


@pytest.mark.parametrize("kind", ["task", "Task", object(), 3])
async def test_what_is_no_type_is_refused_at_once(make: Make, kind: Any) -> None:
    a = await make()
    with pytest.raises(TypeError):
        a.on_message(type=kind)(lambda peer, message: None)
    with pytest.raises(TypeError):
        await a.request("127.0.0.1:1", task(), returns=kind)


def test_a_payload_that_nests_without_end_does_not_fit() -> None:
    class Node(msgspec.Struct):
        child: Any = None

    nested: Any = None
    for _ in range(50):
        nested = {"child": nested}
    assert converter(Node)(nested).child == nested["child"]
