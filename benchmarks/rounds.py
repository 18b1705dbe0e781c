"""One round of one contender: a fresh process, and the numbers that it prints."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.contenders import TABLE, agentic_flow
from benchmarks.measure import percentile
from benchmarks.works import Plan

ROOT = Path(__file__).resolve().parent.parent
# Peers that would talk on stdout or stderr otherwise.
QUIET = {"QUIET": "true", "GRPC_VERBOSITY": "NONE"}
LOUD = ("VERBOSE", "DEBUG", "NODE_ENV", "NODE_OPTIONS")

Numbers = dict[str, float]


class Failed(Exception):
    pass


@contextmanager
def command(name: str, plan: Plan) -> Iterator[list[str]]:
    plan_json = msgspec.json.encode(plan).decode()
    if not TABLE[name].kind:
        yield agentic_flow.command(plan_json)
        return
    python = [sys.executable, "-m", "benchmarks.worker", "run", name, plan_json]
    if not TABLE[name].alone:
        yield python
        return
    # Here, for whoever compares two openlines imports neither.
    from openline.testing.lab import netns

    with netns.TwoHosts() as hosts:
        yield hosts.command("A", python)


def one_round(name: str, plan: Plan, patience: float, source: Path | None = None) -> dict[str, Any]:
    """`source` is where to import openline from, if not from where this process did."""
    environment = {key: value for key, value in os.environ.items() if key not in LOUD} | QUIET
    environment |= {"PYTHONPATH": str(source)} if source else {}
    pipe = subprocess.PIPE
    # A session of its own, so that a round that hangs can be ended together with the processes it started.
    with (
        command(name, plan) as argv,
        subprocess.Popen(
            argv, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, start_new_session=True
        ) as process,
    ):
        try:
            output, errors = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            raise Failed(f"no result after {patience:.0f} s") from None
        finally:
            end_session(process.pid)
    return parse(output, errors, process.returncode)


def end_session(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def parse(output: bytes, errors: bytes, code: int) -> dict[str, Any]:
    if code == 0 and output.strip():
        return dict(msgspec.json.decode(output.strip().splitlines()[-1]))
    said = errors.decode(errors="replace").strip()
    print(said, file=sys.stderr)
    raise Failed(said.splitlines()[-1][:200] if said else f"exit code {code}")


def condense(raw: dict[str, Any]) -> Numbers:
    if times := raw.get("times_us"):
        return {"p50_us": percentile(times, 0.50), "p99_us": percentile(times, 0.99)} | cpu(raw)
    if "received" in raw:
        return condense_one_way(raw) | cpu(raw)
    return raw


def cpu(raw: dict[str, Any]) -> Numbers:
    """Of all ends together, where they are one process."""
    return {"cpu_us": raw["cpu_us"]} if "cpu_us" in raw else {}


def condense_one_way(raw: dict[str, Any]) -> Numbers:
    sent, received = raw["sent"], raw["received"]
    numbers = {"sent": sent, "received": received, "lost": sent - received, "acked": int(raw["acked"])}
    numbers["rate"] = received / raw["seconds"]
    return numbers if raw["closed"] is None else {**numbers, "closed": raw["closed"]}
