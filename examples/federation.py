"""A Python agent in an agentic-flow federation, whose other nodes run the npm plugin
``@claude-flow/plugin-agent-federation`` (1.0.0-alpha.17) over ``agentic-flow``.

    python examples/federation.py 9200 --manifest agent.json --peer ruflo.json          # works for others
    python examples/federation.py 9201 --peer ruflo.json --task '{"n": 21}'             # has one work for it

A node is known by the manifest that it signs: each side needs the other's before it takes anything from it.
``--manifest`` writes ours; a plugin takes it by ``discovery.addStaticPeer(endpoint, manifest)``, and
``coordinator.joinPeer(endpoint)`` then opens its session. ``--peer`` reads theirs: a file, or the URL of its
agent card (``a2aCard: true`` in the plugin's configuration).

The agent answers challenges, says that it lives (``heartbeat``), does tasks (``task-assignment``) and reports
by ``status-broadcast``, the only one of the plugin's types that can bring a result back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import secrets
import sys
import time
import urllib.request
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

import openline

Json = dict[str, Any]
Work = Callable[[Json], Any]

CAPABILITIES = ["send", "receive", "query-redacted", "status", "ping", "discovery"]
# The plugin passes these names to JSON.stringify, which then leaves out every other key, at every depth.
COVERED = ("id", "metadata", "payload", "type")
# What we sign for others may be a nonce and nothing else: not a message of ours.
NONCE = re.compile(r"[A-Za-z0-9_-]{1,64}")
HEARTBEAT = 30.0
ANSWERS = ("challenge-response", "status-broadcast")
# What is older has been recorded; what is not is remembered, so that it comes once.
MAX_AGE, MAX_REMEMBERED = 300.0, 65_536


class Rejected(Exception):
    """A manifest, a message or a task that is not taken."""


def signed_form(message: openline.Message) -> bytes:
    """The bytes that the plugin signs: of an envelope, no more than what ``COVERED`` names."""
    metadata = {key: value for key, value in (message.metadata or {}).items() if key != "signature"}
    whole = {"id": message.id, "metadata": metadata, "payload": message.payload, "type": message.type}
    return openline.canonical(_covered(whole))


def _covered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _covered(value[key]) for key in COVERED if key in value}
    return [_covered(each) for each in value] if isinstance(value, list) else value


def check(key_hex: str, signature_hex: Any, data: bytes, what: str) -> None:
    """Raises ``Rejected`` where the key has not signed that."""
    try:
        key = openline.public_key_of(openline.node_id_of(bytes.fromhex(key_hex)))  # a safe one
        Ed25519PublicKey.from_public_bytes(key).verify(bytes.fromhex(signature_hex), data)
    except (InvalidSignature, ValueError, TypeError):
        raise Rejected(f"{what} is not signed by its key") from None


def static_id(endpoint: str) -> str:
    """What the plugin's ``joinPeer(endpoint)`` calls the node there: only of that name can it be joined."""
    number, digits = 0, ""
    for unit in memoryview(endpoint.encode("utf-16-le")).cast("H"):
        number = (31 * number + unit + 2**31) % 2**32 - 2**31
    number = abs(number)
    while number or not digits:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return f"static-{digits}"


def read_manifest(where: str) -> Json:
    """Of a file, or of the agent card at a URL, which has it inside."""
    if "://" not in where:
        return dict(json.loads(Path(where).read_text()))
    with urllib.request.urlopen(where, timeout=10) as answer:
        card = json.load(answer)
    [own] = [each["params"] for each in card["capabilities"]["extensions"] if "federation" in each["uri"]]
    limits = {name: own[name] for name in ("maxConcurrentSessions", "supportedProtocols", "complianceModes")}
    kinds = [skill["id"].removeprefix("agent-type:") for skill in card["skills"]]
    manifest = {name: own[name] for name in ("nodeId", "publicKey", "endpoint")}
    manifest |= {"capabilities": {"agentTypes": kinds, **limits}, "version": card["version"]}
    return {**manifest, "timestamp": own["manifestTimestamp"], "signature": own["manifestSignature"]}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Agent:
    """One node of the federation. ``work`` does what a task's payload says; what it raises is reported."""

    def __init__(
        self, transport: openline.Transport, identity: openline.Identity, endpoint: str, work: Work
    ) -> None:
        self.node_id = static_id(endpoint)
        self.peers: dict[str, Json] = {}
        # When each was last heard, by this machine's clock; and what it last said of itself.
        self.heard: dict[str, float] = {}
        self.status: dict[str, Json] = {}
        self._transport, self._identity, self._work = transport, identity, work
        self._seen: OrderedDict[object, None] = OrderedDict()
        self._asked: dict[str, asyncio.Future[Json]] = {}
        limits = {"maxConcurrentSessions": 10, "supportedProtocols": ["websocket"], "complianceModes": []}
        self.manifest: Json = {"nodeId": self.node_id, "publicKey": identity.public_key.hex()}
        self.manifest |= {"endpoint": endpoint, "capabilities": {"agentTypes": ["coder"], **limits}}
        self.manifest |= {"version": "1.0.0", "timestamp": _now()}
        self.manifest["signature"] = identity.sign(openline.canonical(self.manifest)).hex()
        transport.on_message(self._receive)

    def add_peer(self, manifest: Json) -> str:
        """Take in a node, and nothing of it before; its id. Raises ``Rejected``."""
        data = openline.canonical({key: value for key, value in manifest.items() if key != "signature"})
        check(manifest["publicKey"], manifest["signature"], data, f"the manifest of {manifest['nodeId']}")
        self.peers[manifest["nodeId"]] = manifest
        return str(manifest["nodeId"])

    async def send(self, to: str, kind: str, payload: Any) -> openline.Receipt:
        """One signed envelope; it rides the line that the other side has opened, where there is one."""
        names = {"sourceNodeId": self.node_id, "targetNodeId": to, "sessionId": f"session-{self.node_id}"}
        envelope = {"envelopeId": secrets.token_hex(12), **names, "messageType": kind, "payload": payload}
        envelope |= {"timestamp": _now(), "nonce": secrets.token_hex(12), "hmacSignature": ""}
        message = openline.Message(id=envelope["envelopeId"], type=kind, payload=envelope, metadata=names)
        names["signature"] = self._identity.sign(signed_form(message)).hex()
        return await self._transport.send(self.peers[to]["endpoint"], message)

    async def task(self, to: str, payload: Json, timeout: float = 30.0) -> Any:
        """Have a node do something; its result. Raises ``Rejected`` where it failed, and ``TimeoutError``."""
        number = secrets.token_hex(8)
        report = await self._ask(to, "task-assignment", number, {**payload, "taskId": number}, timeout)
        if report["status"] == "failed":
            raise Rejected(f"{to} failed: {report.get('error')}")
        return report.get("result")

    async def challenge(self, to: str, timeout: float = 10.0) -> list[str]:
        """Have a node sign a fresh number, as a manifest may be anybody's copy; what it says it can do."""
        number, nonce = secrets.token_hex(8), secrets.token_hex(24)
        names = {"timestamp": _now(), "sourceNodeId": self.node_id, "targetNodeId": to}
        question = {"challengeId": number, "nonce": nonce, **names}
        answer = await self._ask(to, "challenge", number, question, timeout)
        check(self.peers[to]["publicKey"], answer.get("signedNonce"), nonce.encode(), f"{to}'s nonce")
        return list(answer["capabilities"])

    async def _ask(self, to: str, kind: str, number: str, payload: Json, timeout: float) -> Json:
        self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self.send(to, kind, payload)
                return await self._asked[number]
        finally:
            del self._asked[number]

    async def beat(self, every: float = HEARTBEAT) -> None:
        """Tell all others that this node lives, for ever; who is away hears it the next time."""
        while True:
            beats = [self.send(to, "heartbeat", {"at": _now()}) for to in self.peers]
            await asyncio.gather(*beats, return_exceptions=True)
            await asyncio.sleep(every)

    def opened(self, message: openline.Message) -> tuple[str, Json]:
        """Who has sent it, and what is inside. Raises ``Rejected``."""
        metadata, envelope = message.metadata or {}, message.payload
        source = metadata.get("sourceNodeId")
        if source not in self.peers or not isinstance(envelope, dict):
            raise Rejected(f"no envelope, or of no node that is known here: {source!r}")
        check(self.peers[source]["publicKey"], metadata.get("signature"), signed_form(message), "it")
        outside = [source, self.node_id, message.type, message.id]
        inside = [envelope.get(n) for n in ("sourceNodeId", "targetNodeId", "messageType", "envelopeId")]
        if inside != outside:
            raise Rejected(f"the envelope says {inside}, the message around it {outside}")
        age = time.time() - datetime.fromisoformat(str(envelope.get("timestamp"))).timestamp()
        if abs(age) > MAX_AGE or message.id in self._seen:
            raise Rejected(f"{message.id} is {age:.0f} s old, or has come before")
        self._seen[message.id] = None
        if len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)
        payload = envelope.get("payload")
        return source, payload if isinstance(payload, dict) else {}

    async def _receive(self, peer: openline.Peer, message: openline.Message) -> None:
        try:
            source, payload = self.opened(message)
        except (Rejected, ValueError, TypeError) as why:
            print(f"rejected, from {peer.address}: {why}", file=sys.stderr)
            return
        self.heard[source] = time.time()
        if message.type == "challenge" and NONCE.fullmatch(str(payload.get("nonce"))):
            proof = self._identity.sign(payload["nonce"].encode()).hex()
            answer = {"challengeId": payload.get("challengeId"), "signedNonce": proof}
            answer |= {"publicKey": self.manifest["publicKey"], "capabilities": CAPABILITIES}
            await self.send(source, "challenge-response", answer)
        elif message.type == "task-assignment":
            await self.send(source, "status-broadcast", self._done(payload))
        elif message.type == "status-broadcast":
            self.status[source] = payload
        asked = self._asked.get(str(payload.get("challengeId") or payload.get("taskId")))
        if asked is not None and message.type in ANSWERS and not asked.done():
            asked.set_result(payload)

    def _done(self, payload: Json) -> Json:
        try:
            return {"taskId": payload.get("taskId"), "status": "completed", "result": self._work(payload)}
        except Exception as why:
            return {"taskId": payload.get("taskId"), "status": "failed", "error": str(why)}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default="127.0.0.1", help="where the others reach this machine")
    parser.add_argument("--key", default="federation.pem", help="this node's key; made on first use")
    parser.add_argument("--manifest", help="write ours to this file")
    parser.add_argument("--peer", action="append", default=[], help="a node's manifest or agent card")
    parser.add_argument("--task", type=json.loads, help="have the first of them do this, and end")
    told = parser.parse_args()
    identity = openline.Identity.load_or_create(told.key)
    async with openline.load_transport(openline.Config(backends=("websocket",))) as t:
        await t.listen(told.port)
        endpoint = f"ws://{told.host}:{told.port}"
        agent = Agent(t, identity, endpoint, lambda payload: {"doubled": 2 * payload["n"]})
        if told.manifest:
            await asyncio.to_thread(Path(told.manifest).write_text, json.dumps(agent.manifest))
        ids = [agent.add_peer(await asyncio.to_thread(read_manifest, where)) for where in told.peer]
        print(f"{agent.node_id} at {endpoint}, with {', '.join(ids) or 'nobody'}", flush=True)
        if told.task is not None:
            print(json.dumps(await agent.task(ids[0], told.task)))
        else:
            await agent.beat()


if __name__ == "__main__":
    asyncio.run(main())
