"""The lines that ``openline listen`` reads and writes."""

from __future__ import annotations

from .programs import DEADLINE, Start


async def test_lines_are_sent_in_order_and_answered_on_the_same_connection(listen: Start) -> None:
    alice = await listen("--name", "alice")
    bob = await listen("--name", "bob", "--peer", alice.address)
    bob.write(*({"to": alice.address, "payload": n, "id": f"m{n}"} for n in range(200)))
    assert [(await bob.record())["sent"] for _ in range(200)] == [f"m{n}" for n in range(200)]
    received = [await alice.record() for _ in range(200)]
    assert [r["payload"] for r in received] == list(range(200))
    assert {(r["name"], r["from"]) for r in received} == {("bob", bob.address)}
    alice.write({"to": bob.address, "payload": "back", "type": "status", "streamId": 7, "metadata": {"a": 1}})
    outcome = await alice.record()
    assert (outcome["attempts"], outcome["direction"]) == (1, "inbound")
    back = await bob.record()
    assert (back["type"], back["streamId"], back["metadata"]) == ("status", 7, {"a": 1})


async def test_a_line_can_ask_and_its_answer_is_told_apart(listen: Start) -> None:
    alice, bob = await listen(), await listen()
    bob.write({"to": alice.address, "payload": "?", "id": "q1", "request": True, "timeout": DEADLINE})
    question = await alice.record()
    assert question["id"] == "q1"
    alice.write({"to": question["from"], "payload": "!", "metadata": {"replyTo": "q1"}})
    answer = await bob.record()
    assert (answer["answers"], answer["from"], answer["payload"]) == ("q1", alice.address, "!")


async def test_bad_lines_are_reported_and_stop_nothing(listen: Start, closed_port: str) -> None:
    program = await listen()
    program.write(
        "hello",
        "",
        '{"payload": 1, "id": "a"}',
        {"to": closed_port, "stream": 1},
        {"to": "nowhere", "id": 5},
        '{"to": "x", "payload": ' + "[" * 5000,
    )
    errors = [await program.record() for _ in range(5)]
    assert [(e["kind"], e["line"], e.get("id")) for e in errors] == [
        ("BadLine", 1, None),
        ("BadLine", 3, "a"),
        ("BadLine", 4, None),
        ("BadLine", 5, 5),
        ("BadLine", 6, None),
    ]
    program.write({"to": closed_port, "id": "x", "request": True}, {"to": closed_port, "id": "y"})
    failed = [await program.record() for _ in range(2)]
    assert {(e["kind"], e["id"], e["to"]) for e in failed} == {
        ("Unreachable", "x", closed_port),
        ("Unreachable", "y", closed_port),
    }
    assert all("ECONNREFUSED" in e["error"] for e in failed)
    program.write({"to": program.address, "payload": "still here"})
    assert program.address in [(await program.record()).get("to") for _ in range(2)]


async def test_a_person_sees_readable_lines(start: Start, listen: Start) -> None:
    other = await listen("--name", "alice")
    program = await start("listen", 0, "--host", "127.0.0.1")
    address = (await program.line()).split()[2].removeprefix("ws://")
    other.write({"to": address, "payload": "\x1b[31m", "id": "m1"})
    line = await program.line()
    assert f' "alice" {other.node_id[:8]} {other.address} task ' in line
    assert r'"\u001b[31m"  id=m1' in line
    program.write({"to": other.address, "payload": 1, "id": "m2"}, "?")
    lines = sorted([await program.line(), await program.line()])
    assert lines[0].startswith("error: line 2: not a line such as {")
    assert lines[1].startswith(f"sent m2 to {other.address} (attempts 1, inbound")
    assert "\x1b" not in line + "".join(lines)
