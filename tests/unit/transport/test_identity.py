"""Who a node is (rule 3.6): what is proven of it and what is claimed, and ``Config.identity``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import openline

from .conftest import Make, Open
from .helpers import Box, eventually, port_of, serve, task, within
from .proofs import (
    nothing,
)
from .rawsocket import Actor

# What is proven and what is claimed ---------------------------------------------------------------


async def test_a_node_id_is_proven_and_a_name_is_a_claim(make: Make) -> None:
    a, b = await make("alice"), await make("bob")
    box, address = Box(a), await serve(a)
    there = await b.connect(address)
    await b.send(address, task())
    here = box.peers[0]
    assert there is not None
    assert (here.node_id, here.name, here.proven) == (b.node_id, "bob", True)
    assert (there.node_id, there.name, there.proven) == (a.node_id, "alice", True)
    for peer, name, other in ((here, "bob", b), (there, "alice", a)):
        assert f"calling itself {name!r}" in repr(peer)
        assert other.node_id[:8] in repr(peer)


async def test_what_a_plain_peer_calls_itself_is_no_node_id(make: Make, raw: Open) -> None:
    a, b = await make("alice"), await make("bob")
    box, address = Box(a), await serve(a)
    client = await raw(port_of(address))
    await client.say("hi", metadata={"sourceNodeId": b.node_id})
    await eventually(lambda: box)
    peer = box.peers[0]
    assert (peer.node_id, peer.proven, peer.name) == (None, False, b.node_id)
    assert repr(peer).startswith("<plain peer calling itself")
    assert isinstance(await nothing(a.send(b.node_id, task("secret"))), openline.Unreachable)


async def test_metadata_of_an_openline_peer_does_not_rename_it(make: Make) -> None:
    a, b = await make("alice"), await make("bob")
    box, address = Box(a), await serve(a)
    await b.send(address, task(metadata={"sourceNodeId": "mallory"}))
    assert (box.peers[0].name, box.peers[0].node_id) == ("bob", b.node_id)


async def test_a_name_cannot_pass_for_more_than_a_name(make: Make, raw: Open) -> None:
    a = await make("alice")
    address = await serve(a)
    await raw(port_of(address), Actor(name="x' at 10.0.0.1:1, live>\n\x1b[2J<peer 'root"))
    text = repr(a.peers()[0])
    assert "\n" not in text
    assert "\x1b" not in text
    assert a.peers()[0].name in text or repr(a.peers()[0].name) in text


async def test_two_nodes_with_one_name_are_two_peers(make: Make) -> None:
    a, first, second = await make("alice"), await make("bob"), await make("bob")
    box, address = Box(a), await serve(a)
    await first.send(address, task(1))
    await second.send(address, task(2))
    assert len(a.peers()) == 2
    assert {peer.node_id for peer in box.peers} == {first.node_id, second.node_id}


async def test_a_node_that_comes_back_with_another_name_is_called_that(make: Make) -> None:
    a = await make("alice")
    address, identity = await serve(a), openline.Identity()
    first = await make("bob", identity=identity)
    peer = (await first.connect(address)) and a.peers()[0]
    assert peer.name == "bob"
    await first.close()
    await eventually(lambda: not a.peers())
    second = await make("robert", identity=identity)
    await second.connect(address)
    await eventually(lambda: a.peers())
    assert a.peers()[0].node_id == identity.node_id
    assert a.peers()[0].name == "robert"


async def test_a_peer_has_no_node_id_but_the_proven_one_of_its_connections(make: Make) -> None:
    """Whoever answers at an address next is another peer, also for a program that kept the first one."""
    a, b, c = await make("a"), await make("b"), await make("c")
    address = await serve(b)
    kept = await a.connect(address)
    assert kept is not None
    await b.close()
    await eventually(lambda: not a.peers())
    await c.listen(port_of(address), host="127.0.0.1")
    now = await a.connect(address)
    assert now is not None
    assert (kept.node_id, now.node_id) == (b.node_id, c.node_id)
    assert kept is not now
    box = Box(c)
    error = await nothing(within(kept.send(task("for b"))))
    assert isinstance(error, openline.Refused | openline.Unreachable)
    assert box == []


# Config.identity ----------------------------------------------------------------------------------


async def test_an_identity_given_is_the_nodes(make: Make) -> None:
    identity = openline.Identity()
    a, b = await make("a", identity=identity), await make("b")
    assert a.node_id == identity.node_id
    peer = await b.connect(await serve(a))
    assert peer is not None
    assert peer.node_id == identity.node_id


async def test_without_one_every_transport_is_a_node_of_its_own(make: Make) -> None:
    assert len({(await make()).node_id for _ in range(5)}) == 5


@pytest.mark.parametrize("as_text", [True, False])
async def test_a_path_names_the_file_of_the_key(make: Make, tmp_path: Path, as_text: bool) -> None:
    identity, file = openline.Identity(), tmp_path / "key.pem"
    identity.save(file)
    before = file.read_bytes()
    a = await make(identity=str(file) if as_text else file)
    assert a.node_id == identity.node_id
    assert (os.listdir(tmp_path), file.read_bytes()) == (["key.pem"], before)


async def test_a_missing_file_is_a_helpful_error_and_is_not_made(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "key.pem"
    with pytest.raises(openline.InvalidIdentity) as caught:
        await openline.load_transport(openline.Config(identity=str(file)))
    assert str(file) in str(caught.value)
    assert "openline id" in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"not a key", b"\x00" * 100])
async def test_a_file_that_holds_no_key_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(openline.InvalidIdentity, match=r"key\.pem"):
        await openline.load_transport(openline.Config(identity=file))
    assert file.read_bytes() == content


@pytest.mark.parametrize("wrong", [7, b"key", object(), ["a"]])
def test_an_identity_is_a_path_or_an_identity(wrong: object) -> None:
    with pytest.raises(ValueError, match="identity"):
        openline.Config(identity=wrong)
