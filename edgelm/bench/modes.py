"""How much each mode measures, and in turns of which length."""

from __future__ import annotations

from dataclasses import dataclass

from edgelm.bench.findings import Mode
from edgelm.errors import InputError, unknown_name

__all__ = ["BLOCKS", "MODES", "TURN_S", "Amount", "amount_of", "check_mode"]

TURN_S = 0.25
"""Long enough that a change of turn costs little, short enough that a clock that falls hits all alike."""

BLOCKS = 20
"""Turns of each that a comparison aims at: a true difference of some percent shows in so many."""

MODES: tuple[Mode, ...] = ("quick", "standard", "sustained", "mlperf", "realtime")

# MLPerf Inference, SingleStream: at least 1024 queries and 60 s.
# https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc
MLPERF_QUERIES, MLPERF_S = 1024, 60.0


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much to measure of each target.

    With `queries`, that many; with `seconds`, that long; with both, whichever is reached first. With neither, at least
    `least_queries` and `least_s`, but not more than `most_s` or `most_queries`.
    """

    queries: int | None = None
    seconds: float | None = None
    least_queries: int = 200
    least_s: float = 3.0
    most_queries: int = 10_000
    most_s: float = 30.0

    def reached(self, queries: int, seconds: float) -> bool:
        """Return whether that is enough."""
        if self.queries is None and self.seconds is None:
            enough = queries >= self.least_queries and seconds >= self.least_s
            return enough or seconds >= self.most_s or queries >= self.most_queries
        by_count = self.queries is not None and queries >= self.queries
        by_time = self.seconds is not None and seconds >= self.seconds
        return by_count or by_time

    def share(self, queries: int, seconds: float) -> float:
        """Return how much of it that is, from 0 to 1."""
        if self.queries is None and self.seconds is None:
            share = min(queries / self.least_queries, seconds / self.least_s)
            return min(1.0, max(share, seconds / self.most_s, queries / self.most_queries))
        by_count = queries / self.queries if self.queries else 0.0
        by_time = seconds / self.seconds if self.seconds else 0.0
        return min(1.0, max(by_count, by_time))

    def turn_s(self, seconds: float, *, alone: bool) -> float:
        """Return how long the next turn may be after so many seconds: short enough for enough blocks to compare."""
        longest = TURN_S if alone else min(TURN_S, (self.seconds or self.least_s) / BLOCKS)
        return longest if self.seconds is None else min(longest, max(0.0, self.seconds - seconds))

    def turn_queries(self, queries: int, *, alone: bool) -> int:
        """Return how many queries the next turn may have after so many."""
        if self.queries is None:
            return self.most_queries if self.seconds is None else 1_000_000
        left = self.queries - queries
        return left if alone else min(left, -(-self.queries // BLOCKS))


def amount_of(mode: Mode, *, queries: int | None, seconds: float | None) -> Amount:
    """Return how much a mode measures of each target, or what the user asks for instead."""
    if mode == "quick":
        return Amount(queries=queries, seconds=seconds)
    if mode == "mlperf":
        unlimited = 10**9
        return Amount(
            queries=queries,
            seconds=seconds,
            least_queries=MLPERF_QUERIES,
            least_s=MLPERF_S,
            most_queries=unlimited,
            most_s=float(unlimited),
        )
    # 1000 queries state a p99.9, and 10 s hold 20 turns to compare and then some.
    return Amount(queries=queries, seconds=seconds, least_queries=1000, least_s=10.0, most_queries=100_000, most_s=60.0)


def check_mode(mode: str, *, generates: bool) -> Mode:
    """Return a mode by its name.

    Raises:
        InputError: There is none of that name, or not for language models.
    """
    if mode not in MODES:
        raise InputError(unknown_name("mode", mode, MODES))
    found = MODES[MODES.index(mode)]
    if generates and found in ("mlperf", "realtime"):
        raise InputError(f"The mode '{found}' is not for language models: take quick, standard or sustained.")
    return found
