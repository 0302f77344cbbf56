"""The arithmetic of a benchmark: percentiles, spread, and when a warm-up has settled.

Everything here is pure: numbers in, numbers out. Latencies are seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

__all__ = ["deadline_hit_rate", "jitter", "percentile", "percentile_if_enough", "samples_needed", "settled"]

# A warm-up has settled when the median of its last window is within this share of the median of the window before.
_SETTLED_WITHIN = 0.05


def percentile(ordered: Sequence[float], per_mille: int) -> float:
    """Return a percentile by the nearest-rank definition: the smallest value that `per_mille` ‰ of all do not exceed.

    It is always a value that was measured, never one interpolated between two; NumPy calls it ``inverted_cdf``. The
    rank is computed in whole numbers, so that no rounding of 0.999 moves it.

    Args:
        ordered: Values in rising order, at least one.
        per_mille: From 1 to 1000; 500 is p50, 999 is p99.9.

    Raises:
        ValueError: `ordered` is empty or `per_mille` is out of range.
    """
    if not ordered or not 1 <= per_mille <= 1000:
        raise ValueError(f"a percentile needs a value and 1 to 1000 per mille, got {len(ordered)} and {per_mille}")
    return ordered[-(-len(ordered) * per_mille // 1000) - 1]


def samples_needed(per_mille: int) -> int:
    """Return how many samples a percentile needs before it is stated: so many that one is expected to lie above it.

    2 for p50, 10 for p90, 100 for p99, 1000 for p99.9. With fewer, the percentile would be the maximum by another name.
    """
    return -(-1000 // (1000 - per_mille))


def percentile_if_enough(ordered: Sequence[float], per_mille: int) -> float | None:
    """Return `percentile`, or None where there are fewer samples than `samples_needed`. One sample is its own p50."""
    needed = 1 if per_mille <= 500 else samples_needed(per_mille)
    return percentile(ordered, per_mille) if len(ordered) >= needed else None


def jitter(values: Sequence[float]) -> float | None:
    """Return the jitter: the standard deviation of the sample (n − 1), or None of fewer than two values."""
    return stdev(values, fmean(values)) if len(values) >= 2 else None


def deadline_hit_rate(latencies: Sequence[float], deadline_s: float | None) -> float | None:
    """Return the share of latencies that do not exceed the deadline; None without a deadline or a latency."""
    if deadline_s is None or not latencies:
        return None
    return sum(latency <= deadline_s for latency in latencies) / len(latencies)


def settled(latencies: Sequence[float], window: int) -> bool:
    """Return whether the last latencies repeat those before them: the sign that caches and clocks are warm.

    Args:
        latencies: In the order of their measurement.
        window: How many to compare. A multiple of the number of inputs that are cycled through, so that both windows
            hold the same inputs.

    Returns:
        Whether the medians of the last window and of the one before differ by less than 5 %.
    """
    if len(latencies) < 2 * window:
        return False
    before, last = (percentile(sorted(part), 500) for part in (latencies[-2 * window : -window], latencies[-window:]))
    return math.isclose(before, last, rel_tol=_SETTLED_WITHIN)
