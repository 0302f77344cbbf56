"""From the latencies of a run to its results: pure arithmetic."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from statistics import fmean
from typing import TypeVar

from edgelm.bench.protocol import Loaded
from edgelm.bench.run import Bucket, Results, Samples
from edgelm.bench.statistics import deadline_hit_rate, jitter, percentile, percentile_if_enough

__all__ = ["join", "summarise"]

_Value = TypeVar("_Value", int, float)


def join(parts: Sequence[Samples]) -> Samples:
    """Return the samples of several turns, one after the other. A column that a part lacks is lacking in the whole."""
    return Samples(
        latency_s=tuple(chain.from_iterable(part.latency_s for part in parts)),
        tokenize_s=_join(part.tokenize_s for part in parts),
        run_s=_join(part.run_s for part in parts),
        tokens=_join(part.tokens for part in parts),
        sequence_length=_join(part.sequence_length for part in parts),
        block=_join(part.block for part in parts),
        at_s=_join(part.at_s for part in parts),
        queue_s=_join(part.queue_s for part in parts),
    )


def summarise(samples: Samples, *, loaded: Loaded, peak_memory_bytes: int | None, deadline_s: float | None) -> Results:
    """Return the results of a run.

    Args:
        samples: Every query, at least one.
        loaded: What was measured before.
        peak_memory_bytes: Of the process.
        deadline_s: What a query may take; None if there is no deadline.
    """
    ordered = sorted(samples.latency_s)
    p50, p99 = percentile(ordered, 500), percentile_if_enough(ordered, 990)
    return Results(
        queries=len(ordered),
        p50_s=p50,
        p90_s=percentile_if_enough(ordered, 900),
        p99_s=p99,
        p999_s=percentile_if_enough(ordered, 999),
        mean_s=fmean(ordered),
        min_s=ordered[0],
        max_s=ordered[-1],
        jitter_s=jitter(ordered),
        tail_s=None if p99 is None else p99 - p50,
        tokenize_p50_s=_p50(samples.tokenize_s),
        run_p50_s=_p50(samples.run_s),
        throughput_per_s=len(ordered) / sum(ordered),
        load_s=loaded.load_s,
        first_inference_s=loaded.first_inference_s,
        baseline_memory_bytes=loaded.baseline_memory_bytes,
        peak_memory_bytes=peak_memory_bytes,
        overhead_s=loaded.overhead_s,
        deadline_hit_rate=deadline_hit_rate(ordered, deadline_s),
        buckets=_buckets(samples),
    )


def _buckets(samples: Samples) -> tuple[Bucket, ...]:
    by_length: dict[int, list[float]] = defaultdict(list)
    for length, latency in zip(samples.sequence_length or (), samples.latency_s, strict=False):
        by_length[length].append(latency)
    return tuple(
        Bucket(sequence_length=length, queries=len(latencies), p50_s=percentile(sorted(latencies), 500))
        for length, latencies in sorted(by_length.items())
    )


def _p50(values: tuple[float, ...] | None) -> float | None:
    return percentile(sorted(values), 500) if values else None


def _join(columns: Iterable[tuple[_Value, ...] | None]) -> tuple[_Value, ...] | None:
    joined: list[_Value] = []
    for column in columns:
        if column is None:
            return None
        joined += column
    return tuple(joined)
