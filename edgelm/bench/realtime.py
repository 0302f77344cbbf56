"""Real time: queries that come when they like, and what becomes of them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from edgelm.bench.findings import Arrivals, RealTime, Spread
from edgelm.bench.run import Samples
from edgelm.bench.statistics import percentile, percentile_if_enough
from edgelm.errors import InputError

__all__ = ["OVERRUN", "arrival_times", "check_rate", "chunks", "real_time"]

OVERRUN = 2.0
"""A run whose queue grows is ended after so many times its length; what still waits then counts as late."""


def check_rate(rate_per_s: float | None, *, realtime: bool) -> None:
    """Refuse a rate that makes no sense.

    Raises:
        InputError: It is missing in real time, given elsewhere, or not above 0.
    """
    if realtime and rate_per_s is None:
        raise InputError("Real time needs to know how many queries arrive a second: give a rate with --rate.")
    if not realtime and rate_per_s is not None:
        raise InputError("A rate is for real time: leave the mode out, or take --mode realtime.")
    if rate_per_s is not None and not 0 < rate_per_s < math.inf:
        raise InputError(f"rate_per_s is {rate_per_s}, and must be a number above 0.")


def arrival_times(rate_per_s: float, seconds: float, arrivals: Arrivals, seed: int) -> tuple[float, ...]:
    """Return when queries arrive within a time, in rising order; at least one.

    Args:
        rate_per_s: On average.
        seconds: Of the time.
        arrivals: ``fixed`` is one every ``1 / rate_per_s``, the first at 0. ``poisson`` draws exponential gaps.
        seed: Of the draw.
    """
    if arrivals == "fixed":
        return tuple(index / rate_per_s for index in range(max(1, math.ceil(seconds * rate_per_s - 1e-9))))
    generator = random.Random(seed)  # noqa: S311 - a simulation, and no secret
    times = [generator.expovariate(rate_per_s)]
    while (following := times[-1] + generator.expovariate(rate_per_s)) < seconds:
        times.append(following)
    return tuple(times)


def chunks(times: Sequence[float], seconds: float) -> list[tuple[float, ...]]:
    """Return arrivals in pieces of a time each, without empty ones: what is asked for at once."""
    pieces: dict[int, list[float]] = {}
    for at in times:
        pieces.setdefault(int(at // seconds), []).append(at)
    return [tuple(piece) for piece in pieces.values()]


def real_time(
    samples: Samples, *, arrived: int, rate_per_s: float, arrivals: Arrivals, deadline_s: float | None
) -> RealTime:
    """Return how the queries fared.

    Args:
        samples: Of those that were answered, with their waiting.
        arrived: All that came.
        rate_per_s: As asked for.
        arrivals: As asked for.
        deadline_s: From arrival to answer; None if there is none.

    Raises:
        ValueError: The samples have no waiting.
    """
    if samples.queue_s is None or samples.at_s is None:
        raise ValueError("these queries followed each other, so none of them waited")
    response = [wait + took for wait, took in zip(samples.queue_s, samples.latency_s, strict=True)]
    span_s = samples.at_s[-1] + samples.latency_s[-1] - (samples.at_s[0] - samples.queue_s[0])
    hits = None if deadline_s is None else sum(took <= deadline_s for took in response) / arrived
    return RealTime(
        rate_per_s=rate_per_s,
        arrivals=arrivals,
        arrived=arrived,
        served=len(response),
        hit_rate=hits,
        utilisation=min(1.0, sum(samples.latency_s) / span_s),
        queue=_spread(samples.queue_s),
        service=_spread(samples.latency_s),
        response=_spread(response),
    )


def _spread(values: Sequence[float]) -> Spread:
    ordered = sorted(values)
    return Spread(
        p50_s=percentile(ordered, 500),
        p90_s=percentile_if_enough(ordered, 900),
        p99_s=percentile_if_enough(ordered, 990),
    )
