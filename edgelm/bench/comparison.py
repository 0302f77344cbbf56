"""Whether one of two is faster: paired ratios of turns that were measured side by side, with a confidence interval.

In each round both answer the same inputs, in an order that is drawn anew. A round gives one number: the median, over these
inputs, of the logarithm of the ratio of both latencies. If there is no difference, it is as likely to be above 0 as below
by the same, because the draw decided who came first: what Wilcoxon's signed-rank test (1945) asks for, and no more. The
estimate is Hodges and Lehmann's (1963), the median of the means of all pairs of rounds; the interval is made of all
differences that the test does not reject (Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, 3.3). It needs
no normal distribution and no random numbers, and a round that a neighbour spoiled moves it by one rank.

Its rate: of 100 comparisons of a thing with itself, the interval leaves out a ratio of 1 about once (`CONFIDENCE`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["CONFIDENCE", "MARGIN", "PairedRatio", "block_ratios", "paired_ratio", "signed_rank_interval", "verdict_of"]

CONFIDENCE = 0.99
"""Of the intervals."""

MARGIN = 0.01
"""Two processes of one bundle differ by about that much for good, by where their memory came to lie (Mytkowicz et al.,
"Producing wrong data without doing anything obviously wrong", ASPLOS 2009): no number of queries would tell that away."""

# Up to here the distribution of the signed-rank sum is counted out; above, it is normal to 1e-4.
_COUNTED_OUT = 60

Verdict = Literal["faster", "slower", "no difference", "too few blocks"]


@dataclass(frozen=True, kw_only=True)
class PairedRatio:
    """A ratio of times.

    Attributes:
        ratio: The first to the second; None with too few blocks for the confidence.
        low: Lower end of its interval; None likewise.
        high: Upper end.
        blocks: Rounds that it comes from.
    """

    ratio: float | None
    low: float | None
    high: float | None
    blocks: int


def block_ratios(
    first: Mapping[int, Sequence[float]], second: Mapping[int, Sequence[float]]
) -> npt.NDArray[np.float64]:
    """Return the logarithm of the ratio of each round that both have, in the order of the rounds.

    Args:
        first: Latencies by round; in a round, the n-th of both answered the same input.
        second: Likewise.
    """
    return np.array(
        [
            median(math.log(one / other) for one, other in zip(first[block], second[block], strict=False))
            for block in sorted(first.keys() & second.keys())
        ],
        dtype=np.float64,
    )


def paired_ratio(
    first: Mapping[int, Sequence[float]], second: Mapping[int, Sequence[float]], *, confidence: float = CONFIDENCE
) -> PairedRatio:
    """Return the ratio of the first's times to the second's, with its interval.

    Args:
        first: As of `block_ratios`.
        second: Likewise.
        confidence: Above 0 and below 1.
    """
    logarithms = block_ratios(first, second)
    found = signed_rank_interval(logarithms, confidence=confidence)
    if found is None:
        return PairedRatio(ratio=None, low=None, high=None, blocks=len(logarithms))
    estimate, low, high = (math.exp(value) for value in found)
    return PairedRatio(ratio=estimate, low=low, high=high, blocks=len(logarithms))


def verdict_of(found: PairedRatio, *, margin: float = MARGIN) -> Verdict:
    """Return what an interval says: a difference only if all of it is beyond the margin."""
    if found.low is None or found.high is None:
        return "too few blocks"
    if found.high < 1 / (1 + margin):
        return "faster"
    return "slower" if found.low > 1 + margin else "no difference"


def signed_rank_interval(
    values: npt.NDArray[np.float64], *, confidence: float = CONFIDENCE
) -> tuple[float, float, float] | None:
    """Return the Hodges-Lehmann estimate of a centre of symmetry, and the ends of its signed-rank interval.

    Args:
        values: float64 (N,), independent, each symmetric about the same centre.
        confidence: That the interval has at least, above 0 and below 1.

    Returns:
        Estimate, lower end, upper end; None where N values cannot give that confidence: below 8 for 0.99.
    """
    count = len(values)
    most = _most_left_out(count, (1 - confidence) / 2)
    if most is None:
        return None
    rows, columns = np.triu_indices(count)
    averages = np.sort((values[rows] + values[columns]) / 2)
    return float(np.median(averages)), float(averages[most]), float(averages[len(averages) - 1 - most])


def _most_left_out(count: int, tail: float) -> int | None:
    """Return how many averages lie outside at each end: the largest k with P(signed-rank sum <= k) <= tail."""
    if count == 0:
        return None
    if count > _COUNTED_OUT:
        mean = count * (count + 1) / 4
        deviation = math.sqrt(count * (count + 1) * (2 * count + 1) / 24)
        return max(0, math.floor(mean - 0.5 + NormalDist().inv_cdf(tail) * deviation))
    ways = np.zeros(count * (count + 1) // 2 + 1)
    ways[0] = 1.0
    for rank in range(1, count + 1):  # each rank's sign is + or -, with a chance of a half
        shifted = np.concatenate([np.zeros(rank), ways[:-rank]])
        ways = (ways + shifted) / 2
    below = np.cumsum(ways) <= tail
    return int(np.count_nonzero(below)) - 1 if below[0] else None
