"""The public names, as a program sees them."""

from __future__ import annotations

import inspect
import re
import tomllib
from types import ModuleType
from typing import Any

import msgspec
import pytest

import openline

from .conftest import Make, Open
from .helpers import Box, eventually, port_of, serve, task, tasks

NAMES = {
    "Closed",
    "Config",
    "Error",
    "IdentityConflict",
    "InvalidMessage",
    "Message",
    "MessageTooLarge",
    "NotConfirmed",
    "Receipt",
    "Refused",
    "Tls",
    "Transport",
    "Unreachable",
    "capabilities",
    "load_transport",
}
ERRORS = NAMES & {
    *("Closed", "IdentityConflict", "InvalidMessage", "MessageTooLarge", "NotConfirmed", "Refused"),
    "Unreachable",
}


def test_all_names_of_the_contract_are_exported() -> None:
    assert set(openline.__all__) >= NAMES


def test_every_exported_name_exists() -> None:
    assert [name for name in openline.__all__ if not hasattr(openline, name)] == []


def test_everything_public_in_the_package_is_exported() -> None:
    public = {
        name
        for name, value in vars(openline).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public <= set(openline.__all__)


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_every_error_is_an_openline_error(name: str) -> None:
    assert issubclass(getattr(openline, name), openline.Error)


def test_errors_of_different_meaning_do_not_catch_each_other() -> None:
    separate = [openline.Unreachable, openline.NotConfirmed, openline.Refused, openline.Closed]
    assert [(a, b) for a in separate for b in separate if a is not b and issubclass(a, b)] == []


def test_an_error_of_openline_is_no_timeout() -> None:
    assert not issubclass(openline.Error, TimeoutError)


# Structs -----------------------------------------------------------------------------------------


def test_a_message_has_the_defaults_of_the_contract() -> None:
    message = openline.Message()
    assert (message.type, message.payload, message.metadata, message.stream_id) == (
        *("task", None, None, "default"),
    )


def test_a_message_takes_its_fields_in_the_order_of_the_contract() -> None:
    message = openline.Message("m1", "result", [1], {"k": 2}, 42)
    assert message == openline.Message(id="m1", type="result", payload=[1], metadata={"k": 2}, stream_id=42)


def test_message_ids_are_unique() -> None:
    assert len({openline.Message().id for _ in range(10_000)}) == 10_000


def test_a_receipt_has_the_fields_of_the_contract() -> None:
    assert openline.Receipt.__struct_fields__[:5] == ("attempts", "acked", "backend", "direction", "rtt")


def test_tls_has_the_fields_of_the_contract() -> None:
    assert set(openline.Tls.__struct_fields__) >= {"cert", "key", "ca", "pins"}


def test_a_config_is_frozen() -> None:
    config = openline.Config(name="alice")
    with pytest.raises(AttributeError):
        config.name = "bob"  # type: ignore[misc]


def test_tls_is_frozen() -> None:
    with pytest.raises(AttributeError):
        openline.Tls().ca = "x"  # type: ignore[misc]


def test_a_config_reads_from_a_plain_dict() -> None:
    pin = "sha256/" + "A" * 43 + "="
    found = msgspec.convert({"name": "alice", "tls": {"ca": "ca.pem", "pins": [pin]}}, openline.Config)
    assert found.tls is not None
    assert (found.name, found.tls.ca, set(found.tls.pins)) == ("alice", "ca.pem", {pin})


def test_a_config_reads_from_toml() -> None:
    text = 'name = "alice"\nmax_idle_timeout = 12\ncompression = true\nplain_reuse = "never"\n'
    found = msgspec.convert(tomllib.loads(text), openline.Config)
    assert (found.max_idle_timeout, found.compression, found.plain_reuse) == (12.0, True, "never")


def test_a_config_reads_from_json() -> None:
    assert msgspec.json.decode(b'{"name": "a"}', type=openline.Config) == openline.Config(name="a")


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": 3},
        {"no_such_field": 1},
        {"max_idle_timeout": 0},
        {"max_idle_timeout": "long"},
        {"plain_reuse": "always"},
        {"tls": {"cert": "cert.pem"}},
        {"tls": {"pins": ["md5/AAAA"]}},
        {"tls": {"pins": ["sha256/AAAA"]}},
        {"tls": {"pin": []}},
    ],
)
def test_a_wrong_configuration_is_turned_down(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, openline.Config)


def test_compression_is_off_by_default() -> None:
    assert openline.Config().compression is False


def test_a_plain_peer_is_recognised_by_ip_only_where_unambiguous_by_default() -> None:
    assert openline.Config().plain_reuse == "unambiguous"


def test_capabilities_name_usable_backends_and_the_selected_one() -> None:
    found = openline.capabilities()
    assert "websocket" in found.backends
    assert found.selected in found.backends


# The transport -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "leading"),
    [
        ("listen", ["port", "host"]),
        ("send", ["address", "message"]),
        ("send_batch", ["address", "messages"]),
        ("request", ["address", "message", "timeout"]),
        ("receive", ["address", "stream_id", "timeout"]),
        ("messages", ["stream_id"]),
        ("connect", ["address", "keep"]),
        ("explain", ["address"]),
        ("stats", []),
        ("peers", []),
        ("close", []),
    ],
)
def test_a_method_takes_the_parameters_of_the_contract(method: str, leading: list[str]) -> None:
    parameters = list(inspect.signature(getattr(openline.Transport, method)).parameters)
    assert parameters[1 : 1 + len(leading)] == leading


async def test_load_transport_is_a_context_manager_that_closes() -> None:
    async with openline.load_transport(openline.Config(name="alice")) as t:
        assert isinstance(t, openline.Transport)
    with pytest.raises(openline.Closed):
        await t.send("127.0.0.1:9", task())


async def test_load_transport_can_be_awaited() -> None:
    t = await openline.load_transport(openline.Config(name="alice"))
    assert isinstance(t, openline.Transport)
    await t.close()


async def test_load_transport_needs_no_configuration() -> None:
    async with openline.load_transport() as t:
        assert t.stats().active == 0


async def test_an_awaited_transport_is_a_context_manager_too() -> None:
    async with await openline.load_transport() as t:
        pass
    with pytest.raises(openline.Closed):
        await t.listen(0)


async def test_a_node_id_is_a_public_key_in_base32(make: Make) -> None:
    assert re.fullmatch("[a-z2-7]{52}", (await make()).node_id)


async def test_two_transports_are_two_nodes(make: Make) -> None:
    assert (await make()).node_id != (await make()).node_id


async def test_listening_on_port_0_tells_the_port_that_was_picked(make: Make) -> None:
    listener = await (await make()).listen(0, host="127.0.0.1")
    assert 0 < listener.port < 65536


async def test_listening_on_a_port_in_use_raises(make: Make) -> None:
    first = await (await make()).listen(0, host="127.0.0.1")
    with pytest.raises(OSError, match="in use"):
        await (await make()).listen(first.port, host="127.0.0.1")


async def test_on_message_bare_gives_the_function_back(make: Make) -> None:
    t = await make()

    @t.on_message
    def handle(peer: openline.Peer, message: openline.Message) -> None: ...

    @t.on_message
    async def handle_too(peer: openline.Peer, message: openline.Message) -> None: ...

    assert inspect.isfunction(handle)
    assert inspect.iscoroutinefunction(handle_too)


async def test_on_message_with_a_stream_gives_the_function_back(make: Make) -> None:
    t = await make()

    @t.on_message(stream_id="rpc")
    def handle(peer: openline.Peer, message: openline.Message) -> None: ...

    assert inspect.isfunction(handle)


async def test_on_message_with_empty_parentheses_takes_every_stream(make: Make) -> None:
    a, b = await make(), await make()
    got = []

    @a.on_message()
    def handle(peer: openline.Peer, message: openline.Message) -> None:
        got.append(message.stream_id)

    address = await serve(a)
    await b.send_batch(address, [task(stream_id=1), task(stream_id="two")])
    await eventually(lambda: got == [1, "two"])


async def test_a_stream_in_place_of_the_handler_is_a_type_error(make: Make) -> None:
    t = await make()
    with pytest.raises(TypeError):
        t.on_message("rpc")  # type: ignore[call-overload]


async def test_a_receipt_says_how_the_message_went(make: Make) -> None:
    a, b = await make(), await make()
    receipt = await b.send(await serve(a), task())
    assert (receipt.attempts, receipt.backend, receipt.direction) == (1, "quic", "outbound")
    assert receipt.acked is True
    assert receipt.rtt is None or isinstance(receipt.rtt, float)


async def test_a_plain_peers_socket_cannot_confirm(make: Make, raw: Open) -> None:
    t = await make()
    client = await raw(port_of(await serve(t)))
    await eventually(lambda: t.stats().active == 1)
    receipts = [await t.send(client.address, task()), *await t.send_batch(client.address, tasks(2))]
    assert {(r.attempts, r.acked, r.direction) for r in receipts} == {(1, False, "inbound")}


async def test_send_batch_gives_one_receipt_per_message(make: Make) -> None:
    a, b = await make(), await make()
    receipts = await b.send_batch(await serve(a), tasks(7))
    assert [type(receipt) for receipt in receipts] == [openline.Receipt] * 7
    assert all(receipt.acked for receipt in receipts)


async def test_send_batch_takes_a_generator_and_an_empty_list(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(a)
    address = await serve(a)
    assert len(await b.send_batch(address, (task(n) for n in range(3)))) == 3
    assert await b.send_batch(address, []) == []
    await eventually(lambda: box.payloads == [0, 1, 2])


async def test_a_handlers_peer_has_address_node_id_and_name(make: Make) -> None:
    a, b = await make("alice"), await make("bob")
    box = Box(a)
    home = await serve(b)
    await b.send(await serve(a), task())
    await eventually(lambda: box)
    peer = box.peers[0]
    assert (peer.address, peer.node_id, peer.name) == (home, b.node_id, "bob")


async def test_a_peer_sends_requests_and_replies(make: Make) -> None:
    a, b = await make(), await make()
    box = Box(b)

    @a.on_message
    async def handle(peer: openline.Peer, message: openline.Message) -> None:
        assert (await peer.send(task("sent"))).attempts == 1
        assert (await peer.reply(message, {"done": True})).attempts == 1

    reply = await b.request(await serve(a), task(), timeout=5.0)
    assert reply.payload == {"done": True}
    assert box.payloads == ["sent"]
    [peer] = a.peers()
    b.on_message(lambda peer, message: peer.reply(message, "pong") if message.type == "ping" else None)
    assert (await peer.request(task(type="ping"), timeout=5.0)).payload == "pong"


async def test_connect_gives_the_peer(make: Make) -> None:
    a, b = await make("alice"), await make()
    peer = await b.connect(await serve(a))
    assert peer is not None
    assert (peer.node_id, peer.name) == (a.node_id, "alice")


async def test_peers_lists_whom_a_live_connection_reaches(make: Make) -> None:
    a, b = await make(), await make()
    assert b.peers() == []
    await b.connect(await serve(a))
    assert [peer.node_id for peer in b.peers()] == [a.node_id]
    await a.close()
    await eventually(lambda: b.peers() == [])


STATS = ["active", "idle", "created", "closed", "dials", "reuses", "retries", "evictions"]
STATS += ["duplicates_suppressed", "in_doubt", "bytes_sent", "bytes_received", "malformed"]
STATS += ["resent", "replaced", "conflicts", "undelivered"]


@pytest.mark.parametrize("name", STATS)
async def test_a_statistic_reads_as_attribute_and_by_name(make: Make, name: str) -> None:
    stats = (await make()).stats()
    assert getattr(stats, name) == stats[name] == dict(stats)[name] == 0


async def test_an_unknown_statistic_is_a_key_error(make: Make) -> None:
    with pytest.raises(KeyError):
        (await make()).stats()["no_such_name"]


async def test_statistics_are_a_snapshot(make: Make) -> None:
    a, b = await make(), await make()
    before = b.stats()
    await b.send(await serve(a), task())
    assert (before.created, b.stats().created) == (0, 1)


async def test_statistics_count_bytes_and_connections(make: Make) -> None:
    a, b = await make(), await make()
    await b.send(await serve(a), task("x" * 1000))
    await eventually(lambda: a.stats().bytes_received >= 1000)
    stats = b.stats()
    assert (stats.active, stats.created, stats.closed, stats.dials) == (1, 1, 0, 1)
    assert stats.bytes_sent >= 1000
    await a.close()
    await eventually(lambda: (b.stats().active, b.stats().closed) == (0, 1))


WRONG = ["", "nowhere", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:70000", "ftp://h:1", "::1:8770", "a b:1"]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("method", ["send", "send_batch", "request", "receive", "connect", "explain"])
async def test_a_wrong_address_is_an_openline_error_that_shows_it(
    make: Make, method: str, wrong: str
) -> None:
    arguments = {"send": [task()], "send_batch": [[task()]], "request": [task()]}.get(method, [])
    t = await make()

    async def call() -> None:
        result = getattr(t, method)(wrong, *arguments)
        if method != "explain":
            await result

    with pytest.raises(openline.Error, match=re.escape(wrong) or "address"):
        await call()


async def test_keeping_a_wrong_address_is_an_error_at_once(make: Make) -> None:
    with pytest.raises(openline.Error, match="nowhere"):
        await (await make()).connect("nowhere", keep=True)
