"""Proofs over QUIC: wrong, replayed, altered, reflected, forwarded (rule 3.6)."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

import openline
from openline.backends.quic.framing import BINARY, HELLO
from openline.core.handshake import split_proof, with_proof

from ..transport.certificates import Certificate
from ..transport.helpers import DEADLINE, Box, eventually, task
from ..transport.proofs import FIELDS, altered, proof_frame, signed
from ..transport.rawsocket import Actor
from ..transport.wire import batch
from .conftest import Dial, Make, Serve
from .rawquic import Over, RawQuic, unit

SLOW = 4 * DEADLINE


async def serving(make: Make, **config: Any) -> tuple[openline.Transport, Box, int]:
    t = await make("server", **config)
    box = Box(t)
    return t, box, (await t.listen(0, host="127.0.0.1")).port


async def refused(t: openline.Transport, box: Box, port: int, dial: Dial, bad: RawQuic, code: int) -> Over:
    """It is out, nobody has got in, and who is right still does."""
    over = await bad.gone()
    assert over.code == code, over
    await eventually(lambda: t.stats().malformed == 1)
    assert (t.peers(), t.stats().active, t.stats().accepted, t.stats().pending_handshakes) == ([], 0, 0, 0)
    assert not box
    good = await dial(port, Actor())
    good.post(task("good"))
    await eventually(lambda: box.payloads == ["good"])
    return over


# A client's proof -----------------------------------------------------------------------------------


class Said:
    """What a client signs, with each part open to change."""

    def __init__(self, client: RawQuic) -> None:
        self._client = client
        self._hello = client.said

    def proof(self, **other: Any) -> bytes:
        identity: openline.Identity = other.pop("identity", self._client.actor.identity)
        said = {
            "role": "client",
            "client": self._hello[0],
            "server": self._hello[1],
            "certificate": self._client.certificate,
            **other,
        }
        return proof_frame(identity.sign(signed(**said)))


WRONG: dict[str, dict[str, Any]] = {
    "another key": {"identity": openline.Identity()},
    "the server's role": {"role": "server"},
    "no role": {"role": ""},
    "no certificate": {"certificate": None},
    "another certificate": {"certificate": b"0" * 300},
    "hellos swapped": {},
}


@pytest.mark.parametrize("how", WRONG)
async def test_a_wrong_proof(make: Make, dial: Dial, how: str) -> None:
    t, box, port = await serving(make)
    bad = await dial(port)
    await bad.greet(Actor())
    said = Said(bad)
    other = WRONG[how] or {"client": bad.said[1], "server": bad.said[0]}
    bad.prove(said.proof(**other))
    bad.post(task("forged"))
    await refused(t, box, port, dial, bad, 1002)


async def test_the_right_proof_by_hand(make: Make, dial: Dial) -> None:
    """So that the wrong ones are wrong for one reason only."""
    _, box, port = await serving(make)
    client = await dial(port)
    await client.greet(Actor())
    client.prove(Said(client).proof())
    await client.welcomed()
    client.post(task("in"))
    await eventually(lambda: box.payloads == ["in"])


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("side", ["client", "server"])
async def test_every_field_of_both_hellos_is_signed(make: Make, dial: Dial, field: str, side: str) -> None:
    t, box, port = await serving(make)
    bad = await dial(port)
    await bad.greet(Actor(8770))
    changed = altered(bad.said[0 if side == "client" else 1], field)
    bad.prove(Said(bad).proof(**{side: changed}))
    await refused(t, box, port, dial, bad, 1002)


@pytest.mark.parametrize("content", [b"", random.Random(64).randbytes(64), bytes(64), b"x" * 63, b"x" * 65])
async def test_no_signature_at_all(make: Make, dial: Dial, content: bytes) -> None:
    t, box, port = await serving(make)
    bad = await dial(port)
    await bad.greet(Actor())
    bad.prove(proof_frame(content))
    await refused(t, box, port, dial, bad, 1002)


async def test_a_message_instead_of_the_proof(make: Make, dial: Dial) -> None:
    t, box, port = await serving(make)
    bad = await dial(port)
    await bad.greet(Actor())
    bad.say(2, batch([task("forged")], opens={"default": 1}))
    await refused(t, box, port, dial, bad, 1002)


async def test_a_proof_on_a_track_is_none(make: Make, dial: Dial) -> None:
    t, box, port = await serving(make, handshake_timeout=0.5)
    bad = await dial(port)
    await bad.greet(Actor())
    bad.say(bad.track(1), bad.actor.prove(bad.transcript))
    await refused(t, box, port, dial, bad, 1008)


async def test_a_second_proof(make: Make, dial: Dial) -> None:
    t, _, port = await serving(make)
    bad = await dial(port, Actor())
    bad.prove()
    assert (await bad.gone()).code == 1002
    await eventually(lambda: t.stats().malformed == 1)


async def test_a_proof_of_another_connection(make: Make, dial: Dial) -> None:
    t, box, port = await serving(make)
    actor = Actor()
    first = await dial(port)
    await first.greet(actor)
    recorded = actor.prove(first.transcript)
    first.hang_up(0)
    await eventually(lambda: t.stats().pending_handshakes == 0)
    bad = await dial(port)
    await bad.greet(actor, first.said[0])  # the very same hello, too
    bad.prove(recorded)
    await refused(t, box, port, dial, bad, 1002)


async def test_our_own_proof_sent_back(make: Make, dial: Dial) -> None:
    """Reflected: the server's signature in place of the client's, in the name of the server's node."""
    t, box, port = await serving(make)
    bad = await dial(port)
    await bad.greet(Actor())
    bad.prove(proof_frame(bad.signature))
    await refused(t, box, port, dial, bad, 1002)


async def test_a_hello_with_our_own_node_id(make: Make, dial: Dial) -> None:
    """Somebody says it is we: another process with our key, or a lie. Neither gets in."""
    t, box, port = await serving(make)
    bad = await dial(port)
    liar = Actor()
    mine = liar.hello(1).replace(liar.node_id, t.node_id)
    bad.write(2, unit(HELLO, mine.encode()))
    await refused(t, box, port, dial, bad, 4002)


async def test_a_node_that_is_not_allowed(make: Make, dial: Dial) -> None:
    allowed = Actor()
    t = await make(allow=(allowed.node_id,))
    port = (await t.listen(0, host="127.0.0.1")).port
    bad = await dial(port)
    bad.write(2, unit(HELLO, Actor().hello(1).encode()))
    over = await bad.gone()
    assert over.code == 4003
    assert "allow" in over.reason
    assert t.stats().malformed == 1
    await dial(port, allowed)
    assert t.stats().active == 1


async def test_a_dialer_that_is_not_allowed_is_told(make: Make) -> None:
    server = await make(allow=(openline.Identity().node_id,))
    port = (await server.listen(0, host="127.0.0.1")).port
    client = await make()
    with pytest.raises(openline.Refused, match="allow"):
        await client.connect(f"quic://127.0.0.1:{port}")
    assert client.stats().active == server.stats().active == 0


# A server's proof -----------------------------------------------------------------------------------


async def answered_with(make: Make, listen: Serve, value: Any, address: str = "{url}") -> BaseException:
    """What the dialer raises where the server's hello is ``value(end, right)``; nothing has left then."""
    t, server, actor = await make(), listen(), Actor()
    target = address.format(url=server.url, at=server.address, node=actor.node_id)
    sending = asyncio.ensure_future(t.send(target, task("secret"), timeout=SLOW))
    end = await server.end()
    kind, client = await end.read(0)
    assert kind == HELLO
    mine = actor.hello()
    signature = actor.identity.sign(signed("server", client.decode(), mine, server.certificate))
    out = value(client.decode(), mine, signature, server.certificate, actor)
    end.write(3, unit(HELLO, out if isinstance(out, bytes) else out.encode()))
    with pytest.raises(openline.Error) as failed:
        await asyncio.wait_for(sending, SLOW)
    await end.gone()
    assert end.units == []
    assert (t.stats().active, t.stats().created, t.stats().messages_sent) == (0, 0, 0)
    assert "127.0.0.1" in str(failed.value)
    return failed.value


def other_key(client: str, mine: str, signature: bytes, certificate: bytes, actor: Actor) -> str:
    return with_proof(mine, openline.Identity().sign(signed("server", client, mine, certificate)))


def client_role(client: str, mine: str, signature: bytes, certificate: bytes, actor: Actor) -> str:
    return with_proof(mine, actor.identity.sign(signed("client", client, mine, certificate)))


def no_certificate(client: str, mine: str, signature: bytes, certificate: bytes, actor: Actor) -> str:
    return with_proof(mine, actor.identity.sign(signed("server", client, mine, None)))


def other_certificate(client: str, mine: str, signature: bytes, certificate: bytes, actor: Actor) -> str:
    return with_proof(mine, actor.identity.sign(signed("server", client, mine, b"x" * 99)))


def no_proof(client: str, mine: str, signature: bytes, certificate: bytes, actor: Actor) -> str:
    return mine


def reflected(client: str, mine: str, signature: bytes, certificate: bytes, actor: Actor) -> str:
    return with_proof(client, signature)


def changed_after(client: str, mine: str, signature: bytes, certificate: bytes, actor: Actor) -> str:
    return with_proof(altered(mine, "name"), signature)


@pytest.mark.parametrize(
    "value",
    [other_key, client_role, no_certificate, other_certificate, no_proof, reflected, changed_after],
)
async def test_a_wrong_proof_of_a_server(make: Make, listen: Serve, value: Any) -> None:
    error = await answered_with(make, listen, value)
    assert isinstance(error, openline.Refused | openline.IdentityConflict), repr(error)


@pytest.mark.parametrize("junk", [b"", b"2; x", b"\xff" * 40, b"1; node=x; proof=y", b"z" * 3000])
async def test_something_else_than_a_hello_of_a_server(make: Make, listen: Serve, junk: bytes) -> None:
    error = await answered_with(make, listen, lambda *_: junk)
    assert isinstance(error, openline.Refused | openline.Unreachable), repr(error)


async def test_the_wrong_node(make: Make, listen: Serve) -> None:
    wanted = openline.Identity().node_id
    error = await answered_with(
        make,
        listen,
        lambda client, mine, signature, *_: with_proof(mine, signature),
        f"quic://{wanted}@{{at}}",
    )
    assert isinstance(error, openline.Refused)
    assert "the node there is" in str(error)


# A man in the middle --------------------------------------------------------------------------------


async def test_a_man_in_the_middle_with_a_certificate_of_its_own(
    make: Make, dial: Dial, listen: Serve
) -> None:
    """It ends TLS on both sides and passes hellos and proofs on: both ends refuse it."""
    t, box, port = await serving(make)
    alice = await make("alice")
    middle = listen()
    connecting = asyncio.ensure_future(alice.connect(f"quic://{t.node_id}@{middle.address}"))
    front = await middle.end()
    back = await dial(port)
    kind, hello = await front.read(0)
    assert kind == HELLO
    back.write(2, unit(HELLO, hello))
    kind, answer = await back.read(0)
    assert kind == HELLO
    front.write(3, unit(HELLO, answer))
    with pytest.raises(openline.Refused, match="proof"):
        await asyncio.wait_for(connecting, SLOW)
    # And the server, where alice's proof is one for the middle's certificate.
    server_hello, _ = split_proof(answer.decode())
    proof = alice._node.door.identity.sign(signed("client", hello.decode(), server_hello, middle.certificate))
    back.write(2, unit(BINARY, proof_frame(proof)))
    await refused(t, box, port, dial, back, 1002)
    assert alice.stats().active == 0


async def test_a_middle_that_shows_a_copy_of_the_certificate_has_not_its_key(
    make: Make, listen: Serve
) -> None:
    """The transcript would match: so TLS itself must notice (CertificateVerify)."""
    t, box, port = await serving(make)
    alice = await make("alice")
    probe = await RawQuic.connect(port)
    from qh3._hazmat import Certificate

    middle = listen()
    middle.configuration.certificate = Certificate(probe.certificate)
    probe.close()
    with pytest.raises((openline.Unreachable, openline.Refused)):
        await alice.connect(f"quic://{t.node_id}@{middle.address}")
    assert not any(end.units for end in middle.ends)
    assert not box


async def test_a_proof_over_websocket_is_none_over_quic(make: Make, dial: Dial) -> None:
    """The same hellos, without a certificate in what is signed: see ``no certificate``; and back."""
    t, box, port = await serving(make)
    bad = await dial(port)
    await bad.greet(Actor())
    bad.prove(Said(bad).proof(certificate=b""))
    await refused(t, box, port, dial, bad, 1002)


async def test_a_handshake_that_began_before_the_certificate_was_renewed(
    make: Make, dial: Dial, certificate: Certificate, stranger: Certificate, tmp_path: Path
) -> None:
    """Its hello comes after the change: proofs are bound to the certificate that it was shown."""
    files = tmp_path / "live.pem", tmp_path / "live.key"
    for source, target in zip((certificate.cert, certificate.key), files, strict=True):
        shutil.copy(source, target)
    t, box, port = await serving(make, tls=openline.Tls(cert=str(files[0]), key=str(files[1])))
    before = await dial(port)
    for source, target in zip((stranger.cert, stranger.key), files, strict=True):
        shutil.copy(source, target)
    t.reload_tls()
    after = await dial(port)
    assert before.certificate != after.certificate
    for number, end in enumerate((before, after)):
        await end.enter(Actor())
        end.post(task(number))
    await eventually(lambda: sorted(box.payloads) == [0, 1])
