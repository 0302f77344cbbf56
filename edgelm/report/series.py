"""What the charts draw of a run's samples: as few points as the eye can tell apart. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median

import numpy as np

from edgelm.bench import GenerationRun, Run

__all__ = ["Moments", "distribution", "moments"]

_SHARES = 80
_MOMENTS = 60

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Moments:
    """A run over time; each is points of seconds since its beginning and a value, and empty where that is not known.

    Attributes:
        latency_s: Median latency, or time of a token.
        temperature_c: Of the hottest zone.
        clock_hz: Mean of the clocks.
    """

    latency_s: Points
    temperature_c: Points
    clock_hz: Points


def distribution(values: Sequence[float]) -> Points:
    """Return the empirical distribution: values with the share that does not exceed them, both rising.

    Args:
        values: At least one. Of more than 80, those at even steps of the share are taken, the least and the most included:
            a nearest rank each, so every value is one that was measured.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    ranks = np.unique(np.linspace(1, len(ordered), min(len(ordered), _SHARES)).round().astype(int))
    return tuple((float(ordered[rank - 1]), float(rank / len(ordered))) for rank in ranks)


def moments(run: Run | GenerationRun) -> Moments:
    """Return a run over time: from its timeline, or, where it has none, medians of its own samples."""
    points = run.timeline
    latency = tuple((point.at_s, point.p50_s) for point in points if point.p50_s is not None)
    temperature = tuple((point.at_s, point.temperature_c) for point in points if point.temperature_c is not None)
    clock = tuple((point.at_s, point.clock_hz) for point in points if point.clock_hz is not None)
    return Moments(_thin(latency or _of_samples(run)), _thin(temperature), _thin(clock))


def _of_samples(run: Run | GenerationRun) -> Points:
    samples = run.samples
    if isinstance(run, Run):
        latencies = run.samples.latency_s
        # Without the moments only the latencies are known, one after the other: pauses are then left out.
        begins = samples.at_s or tuple(accumulate(latencies, initial=0.0))[:-1]
    else:
        latencies = tuple(median(tokens) for tokens in run.samples.decode_s if tokens)
        begins = samples.at_s or ()
        if len(begins) != len(latencies):
            return ()
    if len(latencies) < 2:
        return ()
    parts = [part for part in np.array_split(np.arange(len(latencies)), _MOMENTS) if len(part)]
    return tuple((begins[int(part[0])], float(median(latencies[index] for index in part))) for part in parts)


def _thin(points: Points) -> Points:
    if len(points) <= _MOMENTS:
        return points
    kept = np.unique(np.linspace(0, len(points) - 1, _MOMENTS).round().astype(int))
    return tuple(points[index] for index in kept)
