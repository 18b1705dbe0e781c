"""How long to wait before dialing again."""

from __future__ import annotations


def full_jitter(failures: int, low: float, high: float, random: float) -> float:
    """Seconds to wait after ``failures`` failures in a row; ``random`` is uniform in [0, 1).

    Exponential with full jitter: a fleet that lost the same peer does not come back in step.
    ``low`` keeps the first steps from being no wait at all.
    """
    ceiling = min(high, low * 2.0 ** min(failures, 60))
    return low + random * (ceiling - low)
