"""Signed messages: the canonical form (RFC 8785), and that nothing but the signed message verifies."""

from __future__ import annotations

import copy
import json
import math
import random
import struct
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import assume, given
from hypothesis import strategies as st

import openline
from openline import (
    Identity,
    InvalidMessage,
    InvalidSignature,
    Message,
    canonical,
    node_id_of,
    sign_message,
    verify_message,
)
from openline.core.frames import decode_plain, encode_plain

SAFE = 2**53 - 1
# The same in every run: tests are named after them.
ALICE, BOB = (Identity(Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32)) for n in (1, 2))


def portable(number: float) -> bool:
    if number == 0:
        return math.copysign(1, number) > 0
    return not number.is_integer() or abs(number) <= SAFE


numbers = st.integers(-SAFE, SAFE) | st.floats(allow_nan=False, allow_infinity=False).filter(portable)
scalars = st.none() | st.booleans() | numbers | st.text(st.characters(exclude_categories=["Cs"]))
keys = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)


# RFC 8785 ----------------------------------------------------------------------------------------

# Appendix B: the bits of a double, and its text.
APPENDIX_B = {
    "0000000000000000": "0",
    "8000000000000000": "0",
    "0000000000000001": "5e-324",
    "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308",
    "ffefffffffffffff": "-1.7976931348623157e+308",
    "4340000000000000": "9007199254740992",
    "c340000000000000": "-9007199254740992",
    "4430000000000000": "295147905179352830000",
    "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23",
    "44b52d02c7e14af7": "1.0000000000000001e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef4f": "999999999999999900000",
    "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332",
    "41b3de4355555554": "333333333.33333325",
    "41b3de4355555555": "333333333.3333333",
    "41b3de4355555556": "333333333.3333334",
    "41b3de4355555557": "333333333.33333343",
    "becbf647612f3696": "-0.0000033333333333333333",
    "43143ff3c1cb0959": "1424953923781206.2",
}


@pytest.mark.parametrize(("bits", "text"), APPENDIX_B.items())
def test_numbers_of_appendix_b(bits: str, text: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical(number).decode() == text


@pytest.mark.parametrize("bits", ["7fffffffffffffff", "7ff0000000000000", "fff0000000000000"])
def test_what_appendix_b_has_refused(bits: str) -> None:
    with pytest.raises(InvalidMessage, match="not representable"):
        canonical(struct.unpack(">d", bytes.fromhex(bits))[0])


def test_the_example_of_section_3_2_2() -> None:
    text = r"""{
      "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
      "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
      "literals": [null, true, false]
    }"""
    # Section 3.2.4 has the bytes.
    expected = """
        7b 22 6c 69 74 65 72 61 6c 73 22 3a 5b 6e 75 6c 6c 2c 74 72 75 65 2c 66 61 6c 73 65 5d 2c 22 6e
        75 6d 62 65 72 73 22 3a 5b 33 33 33 33 33 33 33 33 33 2e 33 33 33 33 33 33 33 2c 31 65 2b 33 30
        2c 34 2e 35 2c 30 2e 30 30 32 2c 31 65 2d 32 37 5d 2c 22 73 74 72 69 6e 67 22 3a 22 e2 82 ac 24
        5c 75 30 30 30 66 5c 6e 41 27 42 5c 22 5c 5c 5c 5c 5c 22 2f 22 7d"""
    assert canonical(json.loads(text)) == bytes.fromhex(expected)


def test_the_sorting_of_section_3_2_3() -> None:
    text = r"""{
      "\u20ac": "Euro Sign",
      "\r": "Carriage Return",
      "\ufb33": "Hebrew Letter Dalet With Dagesh",
      "1": "One",
      "\ud83d\ude00": "Emoji: Grinning Face",
      "\u0080": "Control",
      "\u00f6": "Latin Small Letter O With Diaeresis"
    }"""
    # By UTF-16 code units: the emoji, a surrogate pair, comes before U+FB33.
    assert list(json.loads(canonical(json.loads(text))).values()) == [
        "Carriage Return",
        "One",
        "Control",
        "Latin Small Letter O With Diaeresis",
        "Euro Sign",
        "Emoji: Grinning Face",
        "Hebrew Letter Dalet With Dagesh",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[ 56, {"d": true, "10": null, "1": [ ]} ]', '[56,{"1":[],"10":null,"d":true}]'),
        (
            '{"1": {"f": {"f": "hi", "F": 5}, "\\n": 56.0}, "": {}}',
            '{"":{},"1":{"\\n":56,"f":{"F":5,"f":"hi"}}}',
        ),
        ('{"péché": 1, "peach": 2, "pêche": 3}', '{"peach":2,"péché":1,"pêche":3}'),
        ('"A\\u030a"', '"A\u030a"'),
        ('"\\u0000\\u0008\\u0009\\u000c\\u001f\\u007f\\u2028"', '"\\u0000\\b\\t\\f\\u001f\x7f\u2028"'),
        ("true", "true"),
        (f"[{SAFE}, -{SAFE}, 1.0, -1.50, 1e2]", f"[{SAFE},-{SAFE},1,-1.5,100]"),
    ],
)
def test_canonical_forms(text: str, expected: str) -> None:
    assert canonical(json.loads(text)).decode() == expected


circle: list[Any] = []
circle.append(circle)


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


NOT_JSON = {
    "too large": SAFE + 1,
    "too small": -SAFE - 1,
    "too long to print": 10**5000,
    "nan": math.nan,
    "infinity": math.inf,
    "bytes": b"raw",
    "bytearray": bytearray(b"raw"),
    "bytes as key": {b"raw": 1},
    "number as key": {1: 1},
    "mixed keys": {"a": 1, 2: 1},
    "null as key": {None: 1},
    "lone surrogate": "\ud800",
    "lone surrogate as key": {"\udc00": 1},
    "set": {1, 2},
    "object": object(),
    "message": Message(),
    "circle": circle,
    "deep": nested(100_000),
}


@pytest.mark.parametrize("name", NOT_JSON)
@pytest.mark.parametrize(
    "wrap", [lambda value: value, lambda value: {"a": [value]}], ids=["itself", "inside"]
)
def test_what_has_no_canonical_form(name: str, wrap: Any) -> None:
    with pytest.raises(InvalidMessage, match="no canonical JSON form") as caught:
        canonical(wrap(NOT_JSON[name]))
    assert len(str(caught.value)) < 300


@given(values)
def test_canonical_is_json_of_the_same_value(value: Any) -> None:
    assert json.loads(canonical(value)) == value


@given(values)
def test_canonical_of_what_was_read_from_canonical_is_the_same(value: Any) -> None:
    assert canonical(json.loads(canonical(value))) == canonical(value)


@given(values, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(value: Any, dice: random.Random) -> None:
    assert canonical(shuffled(value, dice)) == canonical(value)


def shuffled(value: Any, dice: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(key, shuffled(item, dice)) for key, item in value.items()]
        dice.shuffle(items)
        return dict(items)
    return [shuffled(item, dice) for item in value] if isinstance(value, list) else value


@given(values, values)
def test_values_that_differ_have_forms_that_differ(one: Any, other: Any) -> None:
    # True == 1 in Python, not in JSON; 1.0 == 1 in both.
    assert (canonical(one) == canonical(other)) <= (one == other)


# Signing -----------------------------------------------------------------------------------------


def message(**fields: Any) -> Message:
    payload = {"job": {"n": 7, "ratio": 0.25}, "steps": ["ä", "😀"]}
    metadata = {"sourceNodeId": "node-a", "targetNodeId": "node-b", "sessionId": "s-1"}
    return Message(
        **{"id": "m-1", "type": "task-assignment", "payload": payload, "metadata": metadata, **fields}
    )


def signed(**fields: Any) -> Message:
    return sign_message(message(**fields), ALICE)


def test_the_form_is_that_of_the_federation_plugin() -> None:
    # Made in JavaScript, from the secret key of RFC 8032, test 1, and
    # {"id":"m-1","metadata":{"sessionId":"s-1","signatureVersion":"jcs-v1","sourceNodeId":...
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    identity = Identity(Ed25519PrivateKey.from_private_bytes(seed))
    metadata = sign_message(message(), identity).metadata
    assert metadata is not None
    assert metadata["signatureVersion"] == "jcs-v1"
    assert metadata["signature"] == (
        "b16f4294724b86737cd16a2080a500785890ac9fbbe96aa37ccf8053eb02d8cc"
        "6db430aa0dadb9f33190633f920383e575d49f46a0d29aa12aed963249a0c20e"
    )


@pytest.mark.parametrize("key", [ALICE.node_id, ALICE.public_key])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"metadata": None},
        {"metadata": {}},
        {"payload": None},
        {"id": 7},
        {"id": 0.5},
        {"payload": nested(100)},
    ],
)
def test_what_was_signed_verifies(fields: dict[str, Any], key: str | bytes) -> None:
    verify_message(signed(**fields), key)


def test_signing_leaves_the_message_as_it_was() -> None:
    original = message(stream_id=7, extra={"x": 1})
    before = copy.deepcopy(original)
    made = sign_message(original, ALICE)
    assert original == before
    assert made == msgspec.structs.replace(original, metadata=made.metadata)


def test_signing_adds_three_fields_to_the_metadata() -> None:
    metadata = signed(metadata={"k": 1}).metadata
    assert metadata is not None
    assert len(metadata.pop("signature")) == 128
    assert metadata == {"k": 1, "sourceNodeId": ALICE.node_id, "signatureVersion": "jcs-v1"}


def test_signing_again_replaces_the_signature() -> None:
    mine = sign_message(signed(), BOB)
    verify_message(mine, BOB.node_id)
    with pytest.raises(InvalidSignature):
        verify_message(mine, ALICE.node_id)
    assert sign_message(mine, ALICE) == signed()


def test_nobody_signs_in_the_name_of_another_node() -> None:
    with pytest.raises(InvalidMessage, match="sourceNodeId is another node's id"):
        sign_message(message(metadata={"sourceNodeId": BOB.node_id}), ALICE)
    posing = signed(metadata={"sourceNodeId": "alice"})
    verify_message(posing, ALICE.node_id)


def sign_anything(unsigned: Message, identity: Identity) -> Message:
    """What a peer can do that keeps to no rules but to those of the signature."""
    metadata = {**(unsigned.metadata or {}), "signatureVersion": "jcs-v1"}
    covered = {"id": unsigned.id, "type": unsigned.type, "payload": unsigned.payload, "metadata": metadata}
    signature = identity.sign(canonical(covered)).hex()
    return msgspec.structs.replace(unsigned, metadata={**metadata, "signature": signature})


def test_a_key_does_not_verify_for_another_node_id() -> None:
    posing = sign_anything(message(metadata={"sourceNodeId": BOB.node_id}), ALICE)
    with pytest.raises(InvalidSignature, match="sourceNodeId is another node's id"):
        verify_message(posing, ALICE.node_id)
    with pytest.raises(InvalidSignature, match="has not signed it"):
        verify_message(posing, BOB.node_id)
    verify_message(sign_anything(message(metadata=None), ALICE), ALICE.node_id)


@pytest.mark.parametrize("name", NOT_JSON)
@pytest.mark.parametrize("where", ["payload", "metadata"])
def test_what_has_no_canonical_form_is_not_signed(name: str, where: str) -> None:
    with pytest.raises(InvalidMessage, match="'m-1' cannot be signed"):
        signed(**{where: {"value": NOT_JSON[name]}})


# RFC 8785 has a form for them, but the plugin refuses them, as readers differ over them.
UNSAFE = {"minus zero": -0.0, "2**53": 2.0**53, "-(2**53)": -(2.0**53), "1e21": 1e21, "1e300": 1e300}


@pytest.mark.parametrize("name", UNSAFE)
@pytest.mark.parametrize(
    "wrap", [lambda value: value, lambda value: {"a": [value]}], ids=["itself", "inside"]
)
def test_numbers_that_not_everybody_reads_alike_are_not_signed(name: str, wrap: Any) -> None:
    with pytest.raises(InvalidMessage, match="'m-1' cannot be signed"):
        signed(payload=wrap(UNSAFE[name]))
    with pytest.raises(InvalidSignature, match="cannot be signed"):
        verify_message(sign_anything(message(payload=wrap(UNSAFE[name])), ALICE), ALICE.node_id)


@pytest.mark.parametrize("number", [0, 0.0, SAFE, float(SAFE), 0.1, 1e-7, 5e-324, -1.5])
def test_other_numbers_are(number: float) -> None:
    verify_message(signed(payload=[number]), ALICE.node_id)


# Altered messages --------------------------------------------------------------------------------


def altered_metadata(**changes: Any) -> Message:
    made = signed()
    metadata = {**(made.metadata or {}), **changes}
    return msgspec.structs.replace(made, metadata={k: v for k, v in metadata.items() if v is not None})


def signature(of: Message) -> str:
    return str((of.metadata or {})["signature"])


ALTERED = {
    "not signed": message(),
    "no metadata": message(metadata=None),
    "id": msgspec.structs.replace(signed(), id="m-2"),
    "id of another type": msgspec.structs.replace(signed(id=1), id="1"),
    "type": msgspec.structs.replace(signed(), type="task"),
    "payload": msgspec.structs.replace(signed(), payload=None),
    "deep in the payload": msgspec.structs.replace(
        signed(), payload={"job": {"n": 8, "ratio": 0.25}, "steps": ["ä", "😀"]}
    ),
    "unnormalized text": msgspec.structs.replace(signed(payload="\u00e5"), payload="a\u030a"),
    "order of a list": msgspec.structs.replace(signed(payload=[1, 2]), payload=[2, 1]),
    "true and 1": msgspec.structs.replace(signed(payload=True), payload=1),
    "text and number": msgspec.structs.replace(signed(payload=1), payload="1"),
    "empty list and object": msgspec.structs.replace(signed(payload=[]), payload={}),
    "no signature": altered_metadata(signature=None),
    "no version": altered_metadata(signatureVersion=None),
    "legacy version": altered_metadata(signatureVersion="legacy-v1"),
    "unknown version": altered_metadata(signatureVersion="jcs-v2"),
    "version that is no text": altered_metadata(signatureVersion=["jcs-v1"]),
    "metadata added": altered_metadata(extra=1),
    "metadata removed": altered_metadata(sessionId=None),
    "metadata changed": altered_metadata(targetNodeId="node-c"),
    "source changed": altered_metadata(sourceNodeId="node-b"),
    "source removed": altered_metadata(sourceNodeId=None),
    "signature of another message": altered_metadata(signature=signature(signed(id="m-2"))),
    "signature of another key": altered_metadata(signature=signature(sign_message(message(), BOB))),
    "signature in capitals": altered_metadata(signature=signature(signed()).upper()),
    "signature cut": altered_metadata(signature=signature(signed())[:-2]),
    "signature too long": altered_metadata(signature=signature(signed()) + "00"),
    "signature with a newline": altered_metadata(signature=signature(signed()) + "\n"),
    "signature with other digits": altered_metadata(signature="\u0661" * 128),
    "signature of zeros": altered_metadata(signature="0" * 128),
    "signature that is no text": altered_metadata(signature=[signature(signed())]),
    "no JSON any more": msgspec.structs.replace(signed(), payload=b"raw"),
    "nested too deeply": msgspec.structs.replace(signed(), payload=nested(100_000)),
}


@pytest.mark.parametrize("name", ALTERED)
def test_a_message_that_is_not_the_signed_one(name: str) -> None:
    with pytest.raises(InvalidSignature, match=r"^message ('m-\d'|'1'): |'m-1' cannot be") as caught:
        verify_message(ALTERED[name], ALICE.node_id)
    assert isinstance(caught.value, openline.Error)


@given(values, values)
def test_any_other_payload_fails(payload: Any, other: Any) -> None:
    assume(canonical(payload) != canonical(other))
    with pytest.raises(InvalidSignature):
        verify_message(msgspec.structs.replace(signed(payload=payload), payload=other), ALICE.node_id)


@given(values, st.data())
def test_any_change_inside_a_payload_fails(payload: Any, data: st.DataObject) -> None:
    other = changed_somewhere(payload, data)
    assume(canonical(payload) != canonical(other))
    with pytest.raises(InvalidSignature):
        verify_message(msgspec.structs.replace(signed(payload=payload), payload=other), ALICE.node_id)


def changed_somewhere(value: Any, data: st.DataObject) -> Any:
    if not value or not isinstance(value, dict | list) or data.draw(st.booleans()):
        return data.draw(values)
    other = copy.copy(value)
    place = data.draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    if data.draw(st.booleans()):
        del other[place]
    else:
        other[place] = changed_somewhere(value[place], data)
    return other


@given(values, st.integers(0, 511))
def test_any_changed_bit_of_a_signature_fails(payload: Any, bit: int) -> None:
    made = signed(payload=payload)
    changed = f"{int(signature(made), 16) ^ 1 << bit:0128x}"
    with pytest.raises(InvalidSignature):
        verify_message(
            msgspec.structs.replace(made, metadata={**(made.metadata or {}), "signature": changed}),
            ALICE.node_id,
        )


@given(st.builds(Message, id=scalars, type=st.text(), payload=values, metadata=st.dictionaries(keys, values)))
def test_noise_never_verifies(noise: Message) -> None:
    with pytest.raises(InvalidSignature):
        verify_message(noise, ALICE.node_id)
    metadata = {**(noise.metadata or {}), "signatureVersion": "jcs-v1", "signature": "ab" * 64}
    with pytest.raises(InvalidSignature):
        verify_message(msgspec.structs.replace(noise, metadata=metadata), ALICE.node_id)


# A point of order 1: under it, R = the neutral point and S = 0 "sign" everything.
NEUTRAL = (1).to_bytes(32, "little")


@pytest.mark.parametrize(
    "key",
    [
        *("", "alice", ALICE.node_id.upper(), ALICE.public_key.hex(), BOB.node_id, BOB.public_key),
        *(b"", ALICE.public_key[:-1], bytes(33), NEUTRAL, node_id_of(NEUTRAL)),
        *(None, 5, [], ["a"] * 32, ALICE),
    ],
)
def test_a_key_that_is_another_or_none(key: Any) -> None:
    with pytest.raises(InvalidSignature):
        verify_message(signed(), key)
    everything = altered_metadata(signature=(NEUTRAL + bytes(32)).hex())
    with pytest.raises(InvalidSignature):
        verify_message(everything, key)


# On the way --------------------------------------------------------------------------------------


@given(values)
def test_it_survives_the_json_of_plain_peers(payload: Any) -> None:
    verify_message(decode_plain(encode_plain(signed(payload=payload))), ALICE.node_id)


@given(values)
def test_it_survives_the_wire_between_openline_peers(payload: Any) -> None:
    packed = msgspec.msgpack.encode(signed(payload=payload))
    verify_message(msgspec.msgpack.decode(packed, type=Message), ALICE.node_id)


@given(values, st.randoms(use_true_random=False))
def test_it_survives_being_written_otherwise(payload: Any, dice: random.Random) -> None:
    wire = json.loads(encode_plain(signed(payload=payload)))
    other = json.dumps(shuffled(wire, dice), indent=2, ensure_ascii=True)
    verify_message(decode_plain(other.encode()), ALICE.node_id)


def test_stream_and_unknown_fields_are_not_covered() -> None:
    moved = msgspec.structs.replace(signed(), stream_id="other", extra={"x": 1})
    verify_message(moved, ALICE.node_id)
