"""A load that goes on: when it is steady, and what became of the speed by then. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgelm.bench.findings import Checkpoint, Sustained, TimelinePoint
from edgelm.bench.statistics import percentile
from edgelm.bench.timeline import Work

__all__ = ["CHECKPOINTS_S", "SteadyRule", "is_steady", "slopes", "sustained"]

CHECKPOINTS_S = (60.0, 600.0, 1800.0)
"""Where the speed is told, apart from the start and the end."""

_WINDOW_S = 10.0


@dataclass(frozen=True)
class SteadyRule:
    """When a load is steady.

    A board under a fan's control swings by a few degrees in a minute or two, so the slope is that of five minutes. In a
    fifth of the time constant of a small heat sink (minutes) a slope of 0.2 °C a minute is below 1 °C from its end.

    Attributes:
        window_s: The time that slopes are taken over.
        p50_per_minute: The most that the median may change, as a share.
        temperature_c_per_minute: The most that the hottest sensor may.
    """

    window_s: float = 300.0
    p50_per_minute: float = 0.005
    temperature_c_per_minute: float = 0.2

    def __str__(self) -> str:
        return (
            f"over the last {self.window_s:g} s the p50 changes by at most {self.p50_per_minute:.1%} a minute, "
            f"and the hottest sensor by at most {self.temperature_c_per_minute:g} °C a minute"
        )


def slopes(points: Sequence[TimelinePoint], rule: SteadyRule) -> tuple[float | None, float | None]:
    """Return the slopes of the p50, as a share a minute, and of the temperature, in degrees a minute, over the last window.

    Each is None where the points do not cover the window, or do not have it. The slope is Theil and Sen's, the median of
    those between all pairs: one point beside a neighbour that woke up does not move it.
    """
    if not points or points[-1].at_s < rule.window_s:
        return None, None
    recent = [point for point in points if point.at_s >= points[-1].at_s - rule.window_s]
    p50s = [(point.at_s, point.p50_s) for point in recent if point.p50_s is not None]
    temperatures = [(point.at_s, point.temperature_c) for point in recent if point.temperature_c is not None]
    p50 = _slope(p50s)
    level = percentile(sorted(value for _, value in p50s), 500) if p50s else None
    return (None if p50 is None or level is None else p50 / level), _slope(temperatures)


def is_steady(points: Sequence[TimelinePoint], rule: SteadyRule) -> bool:
    """Return whether the load is steady by now. Without a temperature sensor the p50 alone decides."""
    p50, temperature = slopes(points, rule)
    calm = temperature is None or abs(temperature) <= rule.temperature_c_per_minute
    return p50 is not None and abs(p50) <= rule.p50_per_minute and calm


def sustained(points: Sequence[TimelinePoint], work: Sequence[Work], rule: SteadyRule) -> Sustained:
    """Return what became of the speed.

    Args:
        points: The timeline.
        work: In its order, at least one.
        rule: What counts as steady.
    """
    steady_at = next((points[: n + 1] for n in range(len(points)) if is_steady(points[: n + 1], rule)), None)
    p50, temperature = slopes(points, rule)
    return Sustained(
        steady=is_steady(points, rule),
        steady_at_s=None if steady_at is None or not is_steady(points, rule) else steady_at[-1].at_s,
        criterion=str(rule),
        p50_slope_per_minute=p50,
        temperature_slope_c_per_minute=temperature,
        checkpoints=_checkpoints(work),
    )


def _checkpoints(work: Sequence[Work]) -> tuple[Checkpoint, ...]:
    end_s = work[-1][0] + work[-1][1]
    # Of a run of some seconds, its quarters.
    window_s = min(_WINDOW_S, end_s / 4)
    moments = [*(at for at in CHECKPOINTS_S if at < end_s), end_s]
    found: list[Checkpoint] = []
    for at_s, begin, stop in [(0.0, 0.0, window_s), *((at, at - window_s, at) for at in moments)]:
        done = [one for one in work if begin <= one[0] < stop]
        # Where one takes longer than the window, the nearest stands for it.
        done = done or [_nearest(work, (begin + stop) / 2)]
        p50 = percentile(sorted(took for _, took, _ in done), 500)
        rates = sorted(rate for _, _, rate in done if rate is not None)
        found.append(
            Checkpoint(
                at_s=round(at_s, 3),
                p50_s=p50,
                tokens_per_s=percentile(rates, 500) if rates else None,
                ratio=p50 / (found[0].p50_s if found else p50),
            )
        )
    return tuple(found)


def _nearest(work: Sequence[Work], moment_s: float) -> Work:
    return min(work, key=lambda one: abs(one[0] - moment_s))


def _slope(values: Sequence[tuple[float, float]]) -> float | None:
    """Return Theil and Sen's slope a minute; None of fewer than three."""
    if len(values) < 3:
        return None
    times, levels = np.array(values, dtype=np.float64).T
    rows, columns = np.triu_indices(len(times), 1)
    return float(np.median((levels[columns] - levels[rows]) / (times[columns] - times[rows])) * 60)
