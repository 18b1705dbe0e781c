"""Two checkouts of openline beside each other: what did a change make faster, and what slower?

python -m benchmarks.compare --base FOLDER [--this FOLDER] [--rounds N] [--only NAME,...]

The works and contenders are those of this checkout's benchmark; only openline itself comes from the one
checkout or the other. Both have their turn before either has the next one: whatever disturbs one disturbs the
other.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

import msgspec

from benchmarks.contenders import TABLE
from benchmarks.rounds import ROOT, Failed, Numbers, condense, one_round
from benchmarks.works import WORKS, Work

# What a change is most often about, in about forty seconds a round. The last one has no openline in it: its
# ratio is what the noise of this machine looks like.
USUAL = (
    ("rtt", "openline"),
    ("rtt", "openline-handler"),
    ("rtt", "openline-send"),
    ("rtt", "plain-client"),
    ("one-way", "openline"),
    ("gather", "openline-gather"),
    ("quic-rtt", "openline-quic"),
    ("quic-rtt", "openline-quic-send"),
    ("quic-one-way", "openline-quic"),
    ("gather", "openline-quic-gather"),
    ("calls", "openline"),
    ("calls", "openline-send"),
    ("rtt", "tcp"),
)


class Shown(msgspec.Struct, frozen=True):
    unit: str
    factor: float = 1.0
    more_is_better: bool = False


SHOWN = {
    "p50_us": Shown("µs, p50"),
    "rate": Shown("k/s", 1e-3, more_is_better=True),
    # Hardly disturbed by other processes that want the same core.
    "cpu_us": Shown("µs of processor time"),
    "uvloop": Shown("calls, uvloop"),
    "asyncio": Shown("calls, asyncio"),
    "bytes": Shown("MB", 1e-6),
    "cpu": Shown("% of a core", 100.0),
    "cold_answered_ms": Shown("ms, cold"),
    "resumed_answered_ms": Shown("ms, resumed"),
    "p99_us_0": Shown("µs, p99"),
    "p99_us_5": Shown("µs, p99, 5 % lost"),
}
Case = tuple[Work, str]
Pairs = list[tuple[Numbers, Numbers]]


def main() -> None:
    options = parse(sys.argv[1:])
    sources = [source_of(folder) for folder in (options.base, options.this)]
    for folder, source in zip((options.base, options.this), sources, strict=True):
        print(f"{folder}: {commit(folder)}, {source}", file=sys.stderr)
    lines = [line for case in options.only for line in compare(case, sources, options.rounds, options.quick)]
    print(f"{'':<33} {'base':>9} {'this':>9}   this/base (lowest and highest pair), best round of each")
    print("\n".join(lines))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare")
    parser.add_argument("--base", type=Path, required=True, help="the checkout to compare with")
    parser.add_argument("--this", type=Path, default=ROOT, help="the checkout to judge (default: this one)")
    parser.add_argument("--rounds", type=int, default=7, help="pairs of each measurement (default: 7)")
    parser.add_argument("--only", type=cases, default=cases(""), help="works and/or contenders, with commas")
    parser.add_argument("--quick", action="store_true", help="small counts")
    return parser.parse_args(arguments)


def cases(text: str) -> list[Case]:
    """Names of works, of contenders, or both; without any the usual ones."""
    works = {work.name: work for work in WORKS}
    if not text:
        return [(works[work], name) for work, name in USUAL]
    names = set(text.split(","))
    if unknown := names - set(works) - set(TABLE):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    wanted = [work for work in WORKS if work.name in names] or list(WORKS)
    contenders = names & set(TABLE) or {
        name for name, entry in TABLE.items() if entry.who.startswith("openline")
    }
    return [(work, name) for work in wanted for name in work.contenders if name in contenders]


def source_of(folder: Path) -> Path:
    source = (folder / "src").resolve()
    if not (source / "openline").is_dir():
        raise SystemExit(f"{folder} is no checkout of openline")
    return source


def commit(folder: Path) -> str:
    """With a + where something is not committed."""
    argv = ["git", "-C", str(folder), "describe", "--always", "--dirty=+"]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip() or "no commit"


def compare(case: Case, sources: list[Path], rounds: int, quick: bool) -> list[str]:
    work, name = case
    pairs: Pairs = []
    for turn in range(rounds):
        # Who goes first changes each time.
        order = sources if turn % 2 == 0 else sources[::-1]
        numbers = [measured(work, name, source, quick) for source in order]
        base, this = numbers if turn % 2 == 0 else numbers[::-1]
        pairs.append((base, this))
        print(f"{work.name} {name} {turn + 1}/{rounds}", file=sys.stderr)
    return [line(work, name, key, pairs) for key in SHOWN if key in pairs[0][0]]


def measured(work: Work, name: str, source: Path, quick: bool) -> Numbers:
    try:
        numbers = condense(one_round(name, work.plan(quick), work.patience, source))
    except Failed as error:
        raise SystemExit(f"{work.name} {name} with {source}: {error}") from None
    if numbers.get("lost"):
        raise SystemExit(f"{work.name} {name} with {source}: {numbers['lost']:.0f} messages lost")
    return numbers


def line(work: Work, name: str, key: str, pairs: Pairs) -> str:
    shown = SHOWN[key]
    each = [(base[key] * shown.factor, this[key] * shown.factor) for base, this in pairs]
    base, this = (statistics.median(side) for side in zip(*each, strict=True))
    ratios = sorted(mine / theirs for theirs, mine in each)
    spread = f"{this / base:6.3f} × ({ratios[0]:.3f} to {ratios[-1]:.3f})"
    best = max if shown.more_is_better else min
    theirs, mine = (best(side) for side in zip(*each, strict=True))
    return (
        f"{work.name:<12} {name:<20} {base:>9.1f} {this:>9.1f}   {spread}   best {mine / theirs:.3f} ×"
        f"   {verdict(base, this, shown):<13} {shown.unit}"
    )


def verdict(base: float, this: float, shown: Shown) -> str:
    gain = (this - base) / base * (1 if shown.more_is_better else -1)
    return f"{abs(gain):.1%} {'better' if gain > 0 else 'worse'}" if gain else "same"


if __name__ == "__main__":
    main()
