"""Seeded faults, and the trace that tells of them."""

from __future__ import annotations

import logging

from openline.testing import Fault, Faults, Host, Network, run


def test_a_plan_is_the_same_for_the_same_seed() -> None:
    async def main() -> None:
        network = Network(1)
        for index in range(3):
            network.host(f"10.0.0.{index + 1}")
        kinds = Faults.KINDS
        plans = [[str(fault) for fault in Faults(network, 7, kinds=kinds).plan(60, 30)] for _ in range(2)]
        assert plans[0] == plans[1] == sorted(plans[0])
        harmless = Faults(network, 7).plan(60, 200)
        assert not any("kill" in fault.what or "power" in fault.what for fault in harmless)

    run(main())


def test_everything_is_healed_in_the_end() -> None:
    async def main() -> None:
        network = Network(1, trace_lines=10_000)
        for index in range(3):
            network.host(f"10.0.0.{index + 1}", name="abc"[index])
        back: list[str] = []

        async def restarted(host: Host) -> None:
            back.append(host.name)

        faults = Faults(network, 6, kinds=Faults.KINDS, restarted=restarted)
        plan: list[Fault] = faults.plan(60, 100)
        await faults.play(plan)
        assert all(host.process.running for host in network.hosts)
        assert all(network.path(a, b).up for a in network.hosts for b in network.hosts)
        assert set(back) == {"a", "b", "c"}
        kinds = {fault.what.split()[0] for fault in plan}
        assert len(kinds) > 10
        assert "kill" in str(network.trace)

    run(main())


# The trace ------------------------------------------------------------------------------------------


def test_the_trace_keeps_the_last_lines_and_what_is_logged_where() -> None:
    async def main() -> None:
        network = Network(1, trace_lines=3)
        host = network.host("10.0.0.1", name="a")
        for number in range(5):
            network.trace.note("-", "note %d", number)
        with network.trace.logged():
            await host.run(log_something())
        logging.getLogger("openline").warning("not meanwhile")
        lines = str(network.trace).splitlines()
        assert lines[0] == "… 3 lines before"
        assert [line.split(None, 2)[1:] for line in lines[1:]] == [
            ["-", "note 3"],
            ["-", "note 4"],
            ["a", "x=1"],
        ]

    async def log_something() -> None:
        logging.getLogger("openline.part").debug("x=%d", 1)

    run(main())
