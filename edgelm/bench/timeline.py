"""From snapshots of the machine and the times of queries to a timeline."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

from edgelm.bench.context import Conditions
from edgelm.bench.findings import TimelinePoint
from edgelm.bench.statistics import percentile
from edgelm.bench.watch import Snapshot
from edgelm.errors import MeterError
from edgelm.meters import Trace, energy_between

__all__ = ["Work", "timeline"]

Work = tuple[float, float, float | None]
"""When something began, since the measurement did; how long it took; of a language model also tokens a second."""


def timeline(
    snapshots: Sequence[Snapshot], work: Sequence[Work], origin_s: float, *, trace: Trace | None = None
) -> tuple[TimelinePoint, ...]:
    """Return the machine and the speed at each snapshot that has clocks and temperatures, but for the first.

    Args:
        snapshots: In their order.
        work: In its order; a point has the median of what began since the point before.
        origin_s: When the measurement began, by `time.perf_counter`.
        trace: Of an energy meter, where one was read all the time.
    """
    ahead_s = time.monotonic() - time.perf_counter()  # the same clock on Linux, and not on Windows
    marks = [snapshot for snapshot in snapshots if snapshot.conditions is not None]
    points = []
    next_work = 0
    for before, now in pairwise(marks):
        begin = next_work
        while next_work < len(work) and work[next_work][0] < now.at_s - origin_s:
            next_work += 1
        done = work[begin:next_work]
        others = [s.others_cores for s in snapshots if before.at_s < s.at_s <= now.at_s and s.others_cores is not None]
        points.append(_point(now, origin_s, done, others, _power(trace, before, now, ahead_s)))
    return tuple(points)


def _point(
    snapshot: Snapshot, origin_s: float, done: Sequence[Work], others: Sequence[float], power_w: float | None
) -> TimelinePoint:
    conditions = snapshot.conditions
    rates = sorted(rate for _, _, rate in done if rate is not None)
    return TimelinePoint(
        at_s=round(snapshot.at_s - origin_s, 3),
        p50_s=percentile(sorted(took for _, took, _ in done), 500) if done else None,
        tokens_per_s=percentile(rates, 500) if rates else None,
        clock_hz=None if conditions is None else _clock(conditions),
        temperature_c=None
        if conditions is None
        else max((zone.temperature_c for zone in conditions.thermal_zones), default=None),
        limits=None if conditions is None or conditions.throttling is None else conditions.throttling.now,
        others_cores=round(sum(others) / len(others), 3) if others else None,
        power_w=power_w,
    )


def _clock(conditions: Conditions) -> float | None:
    """Return the mean of the cores' clocks."""
    clocks = [
        policy.current_hz
        for policy in conditions.frequency_policies
        for _ in policy.cpus or (0,)
        if policy.current_hz is not None
    ]
    return sum(clocks) / len(clocks) if clocks else None


def _power(trace: Trace | None, before: Snapshot, now: Snapshot, offset_s: float) -> float | None:
    if trace is None:
        return None
    try:
        return energy_between(trace, before.at_s + offset_s, now.at_s + offset_s).power_w
    except MeterError:
        return None  # the meter began later or ended earlier: this point has no power
