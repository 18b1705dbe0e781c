"""Which peers this program has a reason to know: what others do never pushes those out (rule 3.10)."""

from __future__ import annotations

import openline
from openline import Config, Message

from .helpers import eventually


async def _pair() -> tuple[openline.Transport, openline.Transport, str]:
    server = await openline.load_transport(Config(backends=("websocket",)))
    client = await openline.load_transport(Config(backends=("websocket",)))
    listener = await server.listen(0, host="127.0.0.1")
    return server, client, f"127.0.0.1:{listener.port}"


async def test_who_only_asks_and_is_answered_stays_a_stranger() -> None:
    server, client, address = await _pair()
    async with server, client:

        @server.on_message
        async def echo(peer: openline.Peer, message: Message) -> None:
            await peer.reply(message, message.payload)

        assert (await client.request(address, Message(payload=1), timeout=5)).payload == 1
        assert [peer._remote.known for peer in server.peers()] == [False]
        assert [peer._remote.known for peer in client.peers()] == [True]


async def test_who_is_sent_to_of_our_own_accord_is_known() -> None:
    server, client, address = await _pair()
    async with server, client:
        await client.connect(address)
        client.on_message(lambda peer, message: None)
        await eventually(lambda: len(server.peers()) == 1)
        (peer,) = server.peers()
        assert not peer._remote.known
        await peer.send(Message())
        assert peer._remote.known


async def test_who_is_allowed_by_name_is_known() -> None:
    identity = openline.Identity()
    async with (
        openline.load_transport(Config(backends=("websocket",), allow=(identity.node_id,))) as server,
        openline.load_transport(Config(backends=("websocket",), identity=identity)) as client,
    ):
        listener = await server.listen(0, host="127.0.0.1")
        await client.connect(f"127.0.0.1:{listener.port}")
        await eventually(lambda: len(server.peers()) == 1)
        assert [peer._remote.known for peer in server.peers()] == [True]
