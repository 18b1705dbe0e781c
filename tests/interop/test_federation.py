"""``examples/federation.py`` beside the federation plugin of npm, over the agentic-flow that it asks for."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest
from examples.federation import Agent, Rejected, read_manifest, signed_form, static_id

import openline
from openline import Message

from .conftest import _unavailable
from .helpers import free_port, until
from .node_peer import NodePeer
from .npm_peers import PeersUnavailable, fetch_federation

pytestmark = pytest.mark.interop

SCRIPT = Path(__file__).with_name("federation.mjs")
EXAMPLE = Path(__file__).parents[2] / "examples" / "federation.py"
UNTRUSTED, VERIFIED, ATTESTED = range(3)


@pytest.fixture(scope="session")
def folder() -> Path:
    try:
        return fetch_federation()
    except PeersUnavailable as reason:
        _unavailable(f"the federation plugin: {reason}")


@pytest.fixture
async def start_plugin(folder: Path, tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[NodePeer]]]:
    started: list[NodePeer] = []

    async def start(name: str, port: int, **config: Any) -> NodePeer:
        here = {"nodeId": name, "host": "127.0.0.1", "port": port, "endpoint": f"ws://127.0.0.1:{port}"}
        node = await NodePeer.run(SCRIPT, folder, json.dumps({**here, **config}), folder=tmp_path)
        node.port = port
        started.append(node)
        return node

    yield start
    for node in started:
        await node.stop()


class Both(NamedTuple):
    """An agent in Python and a node with the plugin, which have each other's manifest."""

    agent: Agent
    transport: openline.Transport
    node: NodePeer


def work(payload: dict[str, Any]) -> Any:
    return {"doubled": 2 * payload["n"]}


@pytest.fixture
async def agent() -> AsyncIterator[tuple[Agent, openline.Transport]]:
    async with openline.load_transport(openline.Config(backends=("websocket",), close_timeout=0.5)) as t:
        listener = await t.listen(0, host="127.0.0.1")
        yield Agent(t, openline.Identity(), f"ws://127.0.0.1:{listener.port}", work), t


@pytest.fixture
async def both(agent: tuple[Agent, openline.Transport], start_plugin: Any) -> Both:
    python, transport = agent
    node = await start_plugin("ruflo", free_port(), a2aCard=True, a2aCardPort=0)
    python.add_peer(await node.call("manifest"))
    await node.call("addPeer", endpoint=python.manifest["endpoint"], manifest=python.manifest)
    return Both(python, transport, node)


async def joined(both: Both) -> Both:
    await both.node.call("join", endpoint=both.agent.manifest["endpoint"])
    return both


async def inbound(node: NodePeer, kind: str) -> dict[str, Any]:
    event = await node.event("inbound")
    assert event["kind"] == kind
    return event


async def rejected(node: NodePeer) -> str:
    """Why the plugin took the next message not."""
    while (event := await node.event("audit"))["kind"] != "message_rejected":
        assert event["kind"] != "message_received"
    return str(event["metadata"]["reason"])


# Manifests -------------------------------------------------------------------------------------------


async def test_each_accepts_the_others_signed_manifest(both: Both) -> None:
    agent, _, node = both
    again = await node.call("addPeer", endpoint=agent.manifest["endpoint"], manifest=agent.manifest)
    assert again == {"nodeId": agent.node_id, "trustLevel": VERIFIED}
    assert list(agent.peers) == ["ruflo"]


async def test_neither_accepts_one_that_was_changed(both: Both) -> None:
    agent, _, node = both
    theirs = await node.call("manifest")
    for wrong in (
        {**theirs, "endpoint": "ws://127.0.0.1:1"},
        {**theirs, "publicKey": agent.manifest["publicKey"]},
        {**theirs, "signature": ""},
    ):
        with pytest.raises(Rejected, match="is not signed by its key"):
            agent.add_peer(wrong)
    ours = {**agent.manifest, "nodeId": "somebody", "endpoint": "ws://127.0.0.1:1"}
    with pytest.raises(Exception, match="Invalid manifest signature"):
        await node.call("addPeer", endpoint=ours["endpoint"], manifest=ours)


async def test_their_agent_card_has_the_manifest_in_it(both: Both) -> None:
    card = await asyncio.to_thread(read_manifest, await both.node.call("card"))
    assert card == await both.node.call("manifest")
    assert both.agent.add_peer(card) == "ruflo"


async def test_join_finds_the_manifest_by_the_name_that_the_plugin_gives_the_endpoint(both: Both) -> None:
    agent, _, node = both
    found = await node.call("join", endpoint=agent.manifest["endpoint"])
    assert found == {"nodeId": agent.node_id, "trustLevel": ATTESTED}
    for endpoint in ("ws://[::1]:9100", "", "x", "wss://ä.example:1/😀", "ws://10.10.10.10:65535"):
        assert (await node.call("join", endpoint=endpoint))["nodeId"] == static_id(endpoint)


# Challenges ------------------------------------------------------------------------------------------


async def test_their_challenge_is_answered_and_their_code_verifies_it(both: Both) -> None:
    agent, _, node = await joined(both)
    assert (await node.call("challenge", to=agent.node_id))["success"]
    await inbound(node, "challenge-response")
    verdict = await node.event("verified")
    assert (verdict["success"], verdict["trustLevel"]) == (True, ATTESTED)
    assert set(verdict["capabilities"]) >= {"send", "receive", "status", "ping"}


async def test_our_challenge_is_answered_by_their_code(both: Both) -> None:
    agent, _, _ = await joined(both)
    assert set(await agent.challenge("ruflo")) >= {"send", "receive", "status", "ping"}
    agent.peers["ruflo"]["publicKey"] = agent.manifest["publicKey"]
    with pytest.raises(TimeoutError):  # what it answers is not signed by that key
        await agent.challenge("ruflo", timeout=0.5)


async def test_nothing_but_a_nonce_is_signed_for_others(both: Both) -> None:
    agent, _, node = await joined(both)
    message = '{"id":"x","metadata":{},"payload":{},"type":"task-assignment"}'
    for nonce in (message, "openline hello 1\n", "a" * 65, "", "ä", None, 7, {"a": 1}):
        question = {"challengeId": "c", "nonce": nonce}
        assert (await node.call("route", to=agent.node_id, type="challenge", payload=question))["success"]
    await node.call("route", to=agent.node_id, type="challenge", payload={"challengeId": "d", "nonce": "ok"})
    answer = (await inbound(node, "challenge-response"))["envelope"]["payload"]
    assert answer["challengeId"] == "d"


# Messages --------------------------------------------------------------------------------------------


async def test_heartbeats_both_ways(both: Both) -> None:
    agent, _, node = await joined(both)
    beating = asyncio.ensure_future(agent.beat(every=0.05))
    for _ in range(3):
        event = await inbound(node, "heartbeat")
        assert (event["sourceNodeId"], event["envelope"]["targetNodeId"]) == (agent.node_id, "ruflo")
    beating.cancel()
    assert (await node.call("send", to=agent.node_id, type="heartbeat", payload={}))["success"]
    await until(lambda: "ruflo" in agent.heard)


async def test_a_task_from_python_and_its_result(both: Both) -> None:
    agent, _, _ = await joined(both)
    assert await agent.task("ruflo", {"n": 14, "why": "größer & <kleiner>\u2028"}) == {"tripled": 42}
    with pytest.raises(Rejected, match="ruflo failed: no n"):
        await agent.task("ruflo", {})


async def test_a_task_from_the_plugin_and_its_result(both: Both) -> None:
    agent, _, node = await joined(both)
    for payload, report in (
        ({"taskId": "t1", "n": 21}, {"taskId": "t1", "status": "completed", "result": {"doubled": 42}}),
        ({"taskId": "t2"}, {"taskId": "t2", "status": "failed", "error": "'n'"}),
    ):
        assert (await node.call("send", to=agent.node_id, type="task-assignment", payload=payload))["success"]
        assert (await inbound(node, "status-broadcast"))["envelope"]["payload"] == report


async def test_status_both_ways(both: Both) -> None:
    agent, _, node = await joined(both)
    await agent.send("ruflo", "status-broadcast", {"load": 0.25, "busy": False})
    assert (await inbound(node, "status-broadcast"))["envelope"]["payload"] == {"load": 0.25, "busy": False}
    await node.call("send", to=agent.node_id, type="status-broadcast", payload={"load": 1})
    await until(lambda: agent.status.get("ruflo") == {"load": 1})


async def test_their_signature_covers_payloads_of_every_kind(both: Both) -> None:
    """What both leave out, and how both write what they do not: their code checks ours, ours theirs.

    No long numbers: the plugin takes sixteen digits for those of a credit card, and sends nothing.
    """
    agent, _, node = await joined(both)
    payloads: list[Any] = [
        "a text: \x00\b\u2028\ufeff😀ä",
        [1, -0.5, 1e21, 1e-7, 5e-324, 123456, True, None, {"id": 1, "x": 2, "type": [{"payload": "y"}]}],
        {"id": {"id": {"id": [[], {}]}}, "payload": {"metadata": {"payload": 0.1}}, "zzz": 1, "__proto__": 2},
    ]
    for payload in payloads:
        await agent.send("ruflo", "status-broadcast", payload)
        assert (await inbound(node, "status-broadcast"))["envelope"]["payload"] == payload
    for payload in payloads:
        agent.heard.clear()
        await node.call("send", to=agent.node_id, type="heartbeat", payload=payload)
        await until(lambda: "ruflo" in agent.heard)


async def test_what_their_signature_leaves_open(both: Both) -> None:
    """As docs/howto.md says: their code accepts a payload that was changed, and one that comes twice."""
    agent, transport, node = await joined(both)
    names = {"sourceNodeId": agent.node_id}
    message = Message(type="status-broadcast", payload={"payload": {"n": 1}}, metadata=names)
    names["signature"] = agent._identity.sign(signed_form(message)).hex()
    for n in (1, 2, 2):
        message.payload["payload"]["n"] = n
        await transport.send(agent.peers["ruflo"]["endpoint"], message)
        assert (await inbound(node, "status-broadcast"))["envelope"]["payload"] == {"n": n}


async def test_what_the_plugin_takes_for_personal_data(both: Both) -> None:
    agent, _, node = await joined(both)
    sent = await node.call("send", to=agent.node_id, type="status-broadcast", payload={"n": 2**53 - 1})
    assert (sent["success"], sent["error"]) == (False, "Message blocked by PII policy")
    payload = {"at": "10.0.0.5", "n": "2147483648"}
    await node.call("send", to=agent.node_id, type="status-broadcast", payload=payload)
    await until(lambda: "ruflo" in agent.status)
    assert agent.status["ruflo"] == {"at": "[HASH:ip_address:hash-sal]", "n": "[REDACTED:phone]"}


async def test_answers_ride_the_line_that_the_plugin_opened(both: Both) -> None:
    agent, transport, node = await joined(both)
    await node.call("send", to=agent.node_id, type="task-assignment", payload={"taskId": "t", "n": 1})
    await inbound(node, "status-broadcast")
    assert (transport.stats().created, transport.stats().dials, transport.stats().accepted) == (0, 0, 1)


# Who is not who he says ------------------------------------------------------------------------------


async def test_their_code_rejects_what_our_key_has_not_signed(both: Both) -> None:
    agent, transport, node = await joined(both)
    endpoint = agent.peers["ruflo"]["endpoint"]

    def message(**metadata: Any) -> Message:
        return Message(type="task-assignment", payload={"payload": "x"}, metadata=metadata)

    await transport.send(endpoint, message())
    assert await rejected(node) == "MISSING_METADATA"
    await transport.send(endpoint, message(sourceNodeId="nobody"))
    assert await rejected(node) == "PEER_UNKNOWN"
    await transport.send(endpoint, message(sourceNodeId=agent.node_id, signature="00" * 64))
    assert await rejected(node) == "INVALID_SIGNATURE"
    signed = message(sourceNodeId=agent.node_id)
    assert signed.metadata is not None
    signed.metadata["signature"] = openline.Identity().sign(signed_form(signed)).hex()
    await transport.send(endpoint, signed)
    assert await rejected(node) == "INVALID_SIGNATURE"
    assert await node.call("evict", nodeId=agent.node_id)
    await agent.send("ruflo", "heartbeat", {})
    assert await rejected(node) == "PEER_EVICTED"


async def envelope_of(both: Both) -> Message:
    """One that the plugin has signed and the agent has taken."""
    got: list[Message] = []
    both.transport.on_message(lambda peer, message: got.append(message))
    await both.node.call("send", to=both.agent.node_id, type="heartbeat", payload={"payload": 1})
    await until(lambda: got)
    return got[0]


async def test_ours_rejects_what_their_key_has_not_signed(both: Both) -> None:
    agent, _, _ = await joined(both)
    genuine = await envelope_of(both)
    with pytest.raises(Rejected, match="has come before"):
        agent.opened(genuine)
    agent._seen.clear()
    assert agent.opened(genuine) == ("ruflo", {"payload": 1})
    assert genuine.metadata is not None
    for changes, why in (
        ({"type": "task-assignment"}, "is not signed"),
        ({"id": "another"}, "is not signed"),
        ({"payload": {**genuine.payload, "payload": {"payload": 2}}}, "is not signed"),
        ({"payload": {**genuine.payload, "targetNodeId": "another"}}, "the message around it"),
        ({"payload": {**genuine.payload, "messageType": "task-assignment"}}, "the message around it"),
        ({"payload": {**genuine.payload, "timestamp": "2026-01-01T00:00:00.000Z"}}, "old, or has come"),
        ({"payload": "no envelope"}, "no envelope"),
        ({"metadata": {**genuine.metadata, "signature": "00"}}, "is not signed"),
        ({"metadata": {**genuine.metadata, "sourceNodeId": "nobody"}}, "of no node that is known"),
        ({"metadata": None}, "of no node that is known"),
    ):
        agent._seen.clear()
        with pytest.raises(Rejected, match=why):
            agent.opened(openline.Message(**{**_fields(genuine), **changes}))


def _fields(message: Message) -> dict[str, Any]:
    return {name: getattr(message, name) for name in ("id", "type", "payload", "metadata")}


# The program -----------------------------------------------------------------------------------------


class Start(Protocol):
    async def __call__(self, *arguments: object) -> asyncio.subprocess.Process: ...


@pytest.fixture
async def start_program(tmp_path: Path) -> AsyncIterator[Start]:
    started: list[asyncio.subprocess.Process] = []

    async def start(*arguments: object) -> asyncio.subprocess.Process:
        command = (sys.executable, str(EXAMPLE), *map(str, arguments))
        program = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE)
        started.append(program)
        return program

    yield start
    for program in started:
        if program.returncode is None:
            program.terminate()
        await program.communicate()


async def line_of(program: asyncio.subprocess.Process) -> str:
    assert program.stdout is not None
    async with asyncio.timeout(30):
        return (await program.stdout.readline()).decode()


async def test_the_program_works_for_a_plugin(
    start_plugin: Any, start_program: Start, tmp_path: Path
) -> None:
    node = await start_plugin("ruflo", free_port(), a2aCard=True, a2aCardPort=0)
    program = await start_program(free_port(), "--manifest", "agent.json", "--peer", await node.call("card"))
    assert "with ruflo" in await line_of(program)
    manifest = json.loads(await asyncio.to_thread((tmp_path / "agent.json").read_text))
    await node.call("addPeer", endpoint=manifest["endpoint"], manifest=manifest)
    await node.call("join", endpoint=manifest["endpoint"])
    task = {"taskId": "t", "n": 4}
    assert (await node.call("send", to=manifest["nodeId"], type="task-assignment", payload=task))["success"]
    while (event := await node.event("inbound"))["kind"] == "heartbeat":
        pass
    assert event["envelope"]["payload"] == {"taskId": "t", "status": "completed", "result": {"doubled": 8}}


async def test_the_program_has_a_plugin_work(
    agent: Any, start_plugin: Any, start_program: Start, tmp_path: Path
) -> None:
    node = await start_plugin("ruflo", free_port(), a2aCard=True, a2aCardPort=0)
    port, identity = free_port(), openline.Identity()
    identity.save(tmp_path / "key.pem")
    theirs = Agent(agent[1], identity, f"ws://127.0.0.1:{port}", work).manifest
    await node.call("addPeer", endpoint=theirs["endpoint"], manifest=theirs)
    await node.call("join", endpoint=theirs["endpoint"])
    told = ("--key", "key.pem", "--peer", await node.call("card"), "--task", json.dumps({"n": 5}))
    program = await start_program(port, *told)
    assert [await line_of(program), await line_of(program)][1] == '{"tripled": 15}\n'
    assert await program.wait() == 0
