"""Intervals for shares of right answers, and for the difference of two models on the same texts; the standard library alone."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["difference_interval", "mcnemar", "wilson"]

Z = 1.959963984540054  # the normal quantile of a two-sided 95 % interval


def wilson(right: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share (Wilson 1927)."""
    share, scale = right / total, 1 + Z * Z / total
    centre = (share + Z * Z / (2 * total)) / scale
    half = Z / scale * math.sqrt(share * (1 - share) / total + Z * Z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def difference_interval(won: int, lost: int, total: int) -> tuple[float, float]:
    """Return Tango's 95 % score interval of the difference of two shares on the same texts (Tango 1998).

    Unlike a bootstrap's it is no point where the two agree on every text: nothing lost of 872 is no proof of nothing lost.

    Args:
        won: Texts that only the second model has right.
        lost: Texts that only the first has right.
        total: All texts.
    """
    point = (won - lost) / total
    return (
        _cross(lambda delta: _score(won, lost, total, delta) - Z, -1.0, point),
        _cross(lambda delta: _score(won, lost, total, delta) + Z, point, 1.0),
    )


def _score(won: int, lost: int, total: int, delta: float) -> float:
    """Return how many standard errors the observed difference is above `delta`."""
    a = 2 * total
    b = -won - lost + (2 * total - won + lost) * delta
    c = -lost * delta * (1 - delta)
    only_first = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = total * (2 * only_first + delta * (1 - delta))
    gap = won - lost - total * delta
    return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap) if gap else 0.0


def _cross(value: Callable[[float], float], low: float, high: float) -> float:
    """Return where a falling function passes zero, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if value(middle) > 0 else (low, middle)
    return (low + high) / 2


def mcnemar(won: int, lost: int) -> float:
    """Return the exact two-sided p-value that wins and losses are as likely (McNemar 1947, binomial)."""
    count = won + lost
    tail = sum(math.comb(count, k) for k in range(min(won, lost) + 1)) / 2**count
    return min(1.0, 2 * tail)
