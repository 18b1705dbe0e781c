"""Messages signed in JavaScript verify in Python, and the other way round."""

from __future__ import annotations

import json
import math
import random
import struct
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from openline import (
    Identity,
    InvalidMessage,
    InvalidSignature,
    Message,
    canonical,
    sign_message,
    verify_message,
)
from openline.core.frames import decode_plain, encode_plain

from .conftest import OpenTransport, Package, StartNode
from .helpers import Mailbox, listening, serving
from .signer import Signer

pytestmark = pytest.mark.interop

SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
NODE = Identity(Ed25519PrivateKey.from_private_bytes(SEED))
SAFE = 2**53 - 1

# As the plugin sends them: an envelope as payload, and the names of both sides in the metadata.
ENVELOPE = {
    "envelopeId": "env-1",
    "sourceNodeId": "node-a",
    "messageType": "task-assignment",
    "payload": {"job": {"n": 7, "ratio": 0.25}, "steps": ["read", "write"]},
    "scan": None,
    "signed": True,
}
METADATA = {"sourceNodeId": "node-a", "targetNodeId": "node-b", "sessionId": "session-1"}

PAYLOADS: list[Any] = [
    ENVELOPE,
    None,
    "",
    [],
    {},
    {"": {"": [[], {}, ""]}},
    {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "😀": 5, "\x80": 6, "ö": 7, "10": 8, "2": 9},
    '\x00\b\t\n\f\r\x1f\x7f\u2028\ufeff\uffff</script>"\\/ü漢字🜁👩‍🚀',
    ["\u00e5", "a\u030a"],
    [0, 1, -1, SAFE, -SAFE, 0.1, -0.5, 1e-6, 1e-7, 5e-324, 333333333.33333329, 4.50, 2e-3, 1e-27],
    [True, False, None, "true", 1],
    {"__proto__": {"x": 1}, "constructor": 2, "toString": 3, "length": 4},
]


def messages() -> list[dict[str, Any]]:
    return [
        {"id": f"m-{n}", "type": "task-assignment", "payload": payload, "metadata": METADATA}
        for n, payload in enumerate(PAYLOADS)
    ]


def test_python_verifies_what_javascript_signs(javascript: Signer) -> None:
    for text in javascript.sign(SEED, messages()):
        message = decode_plain(text.encode())
        verify_message(message, NODE.node_id)
        message.payload = [message.payload]
        with pytest.raises(InvalidSignature):
            verify_message(message, NODE.node_id)


def test_javascript_verifies_what_python_signs(javascript: Signer) -> None:
    signed = [sign_message(Message(**message), NODE) for message in messages()]
    good = [encode_plain(message).decode() for message in signed]
    altered = [text.replace("task-assignment", "task", 1) for text in good]
    assert javascript.verify(NODE.public_key, good) == [True] * len(good)
    assert javascript.verify(NODE.public_key, altered) == [False] * len(good)
    assert javascript.verify(Identity().public_key, good) == [False] * len(good)


def test_both_make_the_same_signature(javascript: Signer) -> None:
    for theirs, message in zip(javascript.sign(SEED, messages()), messages(), strict=True):
        assert json.loads(theirs)["metadata"] == sign_message(Message(**message), NODE).metadata


def doubles(count: int) -> list[float]:
    """Of all magnitudes, and around the places where the notation changes."""
    dice = random.Random(8785)
    bits = [dice.getrandbits(64) for _ in range(count)]
    edges = [m * 10.0**e for e in range(-8, 24) for m in (1, 1.5, 9.999999999999999, dice.random())]
    near = [math.nextafter(edge, to) for edge in edges for to in (-math.inf, math.inf)]
    found = [struct.unpack(">d", struct.pack(">Q", n))[0] for n in bits] + edges + near
    return [number for number in found if math.isfinite(number)]


def test_both_write_every_number_alike(javascript: Signer) -> None:
    numbers = doubles(20_000)
    theirs = javascript.canonical(map(json.dumps, numbers))
    assert theirs == [canonical(number).decode() for number in numbers]


def test_both_sort_every_text_alike(javascript: Signer) -> None:
    dice = random.Random(8785)
    planes = [
        range(0x20),
        range(0x20, 0x80),
        range(0x80, 0xD800),
        range(0xE000, 0x10000),
        range(0x10000, 0x110000),
    ]
    texts = ["".join(chr(dice.choice(dice.choice(planes))) for _ in range(3)) for _ in range(5_000)]
    value = {text: text[::-1] for text in texts}
    assert javascript.canonical([json.dumps(value)]) == [canonical(value).decode()]


def test_python_refuses_the_numbers_that_the_plugin_refuses(javascript: Signer) -> None:
    numbers = [*doubles(1_000), -0.0, 0.0, 2.0**53, SAFE, -SAFE, SAFE + 1, 10**20, 1e21, 1e300, -1e300]
    texts = [json.dumps({"n": [number]}) for number in numbers]
    assert javascript.portable(texts) == [is_signed(json.loads(text)) for text in texts]


def is_signed(payload: object) -> bool:
    try:
        sign_message(Message(payload=payload), NODE)
    except InvalidMessage:
        return False
    return True


async def test_signed_messages_through_agentic_flow(
    javascript: Signer, package: Package, start_node: StartNode, open_transport: OpenTransport
) -> None:
    node, transport = await start_node(package), await open_transport()
    box, mine, address = Mailbox(transport), Identity(), await serving(transport)

    for text in javascript.sign(SEED, messages()):
        await node.send(address, json.loads(text))
        verify_message((await box.take()).message, NODE.node_id)

    address = await listening(node)
    for message in messages():
        await transport.send(address, sign_message(Message(**message), mine))
    heard = [json.dumps(message) for message in await node.hear_many(len(messages()))]
    assert javascript.verify(mine.public_key, heard) == [True] * len(heard)
