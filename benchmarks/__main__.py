"""`python -m benchmarks [--quick] [--only NAME,...] [--rounds N] [--out FOLDER]`"""

import argparse
import sys
from pathlib import Path
from time import perf_counter

from benchmarks import machine, plot, quic_plot, report, runner, summary
from benchmarks.contenders import TABLE
from benchmarks.rounds import ROOT
from benchmarks.works import WORKS, Work

OUT = ROOT / "docs" / "benchmarks"


def main() -> int:
    options = parse(sys.argv[1:])
    began = perf_counter()
    described = machine.describe()
    works = chosen(options.only)
    results = runner.run_all(works, options.quick, options.rounds)
    print(report.tables(results))
    if folder := options.out or default_out(options):
        report.write(folder, results, described, command(options), options.quick)
        plot.draw(folder / "results.png", results)
        quic_plot.draw(folder / "quic.png", results)
        if folder == OUT:
            summary.update(ROOT / "README.md", results)
    print(f"{perf_counter() - began:.0f} s", file=sys.stderr)
    return int(any(row.note.startswith("failed") for rows in results.values() for row in rows.values()))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="about two minutes: small counts, one round")
    parser.add_argument("--only", type=names, default=(), help="works and/or contenders, with commas between")
    parser.add_argument("--rounds", type=int, help="rounds for each contender")
    parser.add_argument(
        "--out", type=Path, help="folder for results (default: docs/benchmarks, after a full run)"
    )
    return parser.parse_args(arguments)


def names(text: str) -> tuple[str, ...]:
    known = {work.name for work in WORKS} | set(TABLE)
    wanted = tuple(text.split(","))
    if unknown := set(wanted) - known:
        raise argparse.ArgumentTypeError(
            f"{', '.join(sorted(unknown))}: known are {', '.join(sorted(known))}"
        )
    return wanted


def chosen(only: tuple[str, ...]) -> list[Work]:
    """Names of works narrow the works, names of contenders narrow the contenders."""
    works = [work for work in WORKS if work.name in only] or list(WORKS)
    contenders = [name for name in only if name in TABLE] or list(TABLE)
    narrowed = [work.narrowed(contenders) for work in works]
    return [work for work in narrowed if work.contenders]


def default_out(options: argparse.Namespace) -> Path | None:
    """What is committed comes from full runs only."""
    return None if options.quick or options.only else OUT


def command(options: argparse.Namespace) -> str:
    """What measures the same again; where the results went does not matter."""
    quick = ["--quick"] if options.quick else []
    only = ["--only", ",".join(options.only)] if options.only else []
    rounds = ["--rounds", str(options.rounds)] if options.rounds else []
    arguments = " ".join(quick + only + rounds)
    return f"make bench BENCH_ARGS='{arguments}'" if arguments else "make bench"


if __name__ == "__main__":
    sys.exit(main())
