"""Brings an external meter's clock to the load's, by the load's own pattern of on and off.

The meter's trace is slid along the pattern until both correlate best; then each change between on and off is looked up:
the meter saw it between two of its readings, so the offset of its clock lies between two bounds there. A line through all
of them gives the offset and the drift, and the farthest of those bounds from the line is how far the clock can still be
off: between the first change and the last, where two lines cannot part by more than they do at its ends.

The pattern must not repeat itself, or several offsets fit; `SYNC_PATTERN_S` is one that does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgelm.errors import MeterError
from edgelm.meters.trace import FloatArray, Trace

__all__ = ["SYNC_PATTERN_S", "Alignment", "align"]

SYNC_PATTERN_S: tuple[tuple[float, float], ...] = ((3.0, 2.0), (5.0, 4.0), (2.0, 6.0), (4.0, 3.0))
"""Load and pause, in seconds, that fit a meter of 2 readings a second and more. Stretch them for a slower one."""

_LEAST_CORRELATION = 0.5
# A second place that fits nearly as well is as likely to be the right one once there is noise.
_RIVAL = 0.9
_GRID_PER_PERIOD = 2
_LARGEST_GRID = 1 << 18
_DRIFT_NEEDS_EDGES = 4


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How a meter's clock stands to the load's: ``load_time = meter_time * (1 + rate) + offset_s``.

    Attributes:
        offset_s: As above.
        rate: How much longer a second of the meter is, as a share; 0 where there are too few changes to tell.
        uncertainty_s: A bound on the error of a time between the first change and the last.
        rate_uncertainty: A bound on the error of `rate`.
        correlation: Of the trace with the pattern, up to 1.
        edges: How many changes between on and off it was found from.
    """

    offset_s: float
    rate: float
    uncertainty_s: float
    rate_uncertainty: float
    correlation: float
    edges: int

    def apply(self, trace: Trace) -> Trace:
        """Return the trace by the load's clock, with what is not known of it."""
        return trace.on_clock(
            offset_s=self.offset_s, rate=self.rate, error_s=self.uncertainty_s, rate_error=self.rate_uncertainty
        )


def align(trace: Trace, load: Sequence[tuple[float, float]]) -> Alignment:
    """Return how a meter's clock stands to the clock of a load, from when the load was on.

    Power is taken to rise within the same reading as the load starts, and to stay nearer to "on" than to "off" until it
    ends. The device has to be idle before the first load and after the last for half of the shortest load or pause.

    Args:
        trace: By the meter's clock; it has to cover the whole pattern.
        load: Start and end of each load, in order, by the clock that is wanted.

    Raises:
        MeterError: The pattern is empty or out of order, the meter did not follow it or was read too rarely for it, or it
            fits in more than one place.
    """
    edges = np.array(load, dtype=np.float64).reshape(-1)
    if len(edges) < 2 or np.diff(edges).min() <= 0:
        raise MeterError(
            "Clocks are aligned by loads with a start before an end, one after the other. Give one or more."
        )
    shortest = float(np.diff(edges).min())
    if shortest < 2 * trace.period_s:
        raise MeterError(
            f"The shortest load or pause is {shortest:.3g} s, and the meter reads every {trace.period_s:.3g} s. "
            f"Clocks are aligned by a pattern whose parts last {2 * trace.period_s:.3g} s and longer."
        )
    power_t, power = _power(trace)
    offset, correlation = _slide(power_t, power, edges, shortest, trace.period_s)
    early, late = _crossings(power_t, power, edges - offset, shortest, trace)
    middle = (early + late) / 2
    rate, at_middle = _line(middle, edges - middle)
    centre = float(middle.mean())
    shift = at_middle + rate * (middle - centre)
    bound = float(np.max(np.abs(edges - middle - shift) + (late - early) / 2))
    return Alignment(
        offset_s=at_middle - rate * centre,
        rate=rate,
        uncertainty_s=bound,
        rate_uncertainty=2 * bound / float(middle[-1] - middle[0]),
        correlation=correlation,
        edges=len(edges),
    )


def _power(trace: Trace) -> tuple[FloatArray, FloatArray]:
    """Return times and power; of a counter the mean power of each segment, at its end."""
    if trace.facts.quantity == "watts":
        return trace.time_s, trace.value
    return trace.time_s[1:], np.asarray(np.diff(trace.value) / np.diff(trace.time_s))


def _slide(
    times: FloatArray, power: FloatArray, edges: FloatArray, shortest: float, period_s: float
) -> tuple[float, float]:
    """Return the offset at which a trace fits a pattern best, to about a reading, and its correlation there."""
    step = max(period_s / _GRID_PER_PERIOD, float(times[-1] - times[0]) / _LARGEST_GRID)
    grid = np.arange(times[0], times[-1], step)
    seen = np.interp(grid, times, power)
    pad = shortest / 2
    pattern_t = np.arange(edges[0] - pad, edges[-1] + pad, step)
    pattern = (np.searchsorted(edges, pattern_t, side="right") % 2).astype(np.float64)
    if len(pattern) > len(seen):
        raise MeterError(
            f"The meter was read for {times[-1] - times[0]:.3g} s, and the pattern lasts {edges[-1] - edges[0]:.3g} s with "
            f"{pad:.3g} s of rest at each end. Start the meter before the load, and stop it after."
        )
    fit = _correlation(seen, pattern)
    best = int(np.argmax(fit))
    if fit[best] < _LEAST_CORRELATION:
        raise MeterError(
            f"The meter does not follow the load: their best correlation is {fit[best]:.2f}, and {_LEAST_CORRELATION} is "
            "needed. Is it in the right supply line, and the load much above idle?"
        )
    away = np.abs(np.arange(len(fit)) - best) * step > shortest / 2
    if away.any() and fit[away].max() > _RIVAL * fit[best]:
        raise MeterError(
            f"The load's pattern fits the meter in two places ({fit[best]:.2f} and {fit[away].max():.2f}): it repeats itself. "
            "Use loads and pauses of different lengths, such as SYNC_PATTERN_S."
        )
    return float(pattern_t[0] - grid[best]), float(fit[best])


def _correlation(seen: FloatArray, pattern: FloatArray) -> FloatArray:
    """Return Pearson's correlation of a pattern with each stretch of its length: (len(seen) - len(pattern) + 1,)."""
    count = len(pattern)
    centred = pattern - pattern.mean()
    signal = seen - seen.mean()
    size = 1 << (len(seen) + count - 1).bit_length()
    spectrum = np.fft.rfft(signal, size) * np.conj(np.fft.rfft(centred, size))
    product = np.fft.irfft(spectrum, size)[: len(seen) - count + 1]
    sums, squares = (np.concatenate([[0.0], np.cumsum(part)]) for part in (signal, signal**2))
    variance = squares[count:] - squares[:-count] - (sums[count:] - sums[:-count]) ** 2 / count
    # Where nothing changes there is nothing to correlate with; what remains there is rounding.
    flat = variance <= 1e-12 * max(float(squares[-1]), np.finfo(np.float64).tiny)
    scale = np.sqrt(np.where(flat, 1.0, variance) * float(np.sum(centred**2)))
    return np.asarray(np.where(flat, 0.0, product / scale))


def _crossings(
    times: FloatArray, power: FloatArray, edges: FloatArray, shortest: float, trace: Trace
) -> tuple[FloatArray, FloatArray]:
    """Return the earliest and the latest moment, by the meter's clock, of each change between off and on."""
    on = np.searchsorted(edges, times, side="right") % 2 == 1
    within = (times >= edges[0] - shortest / 2) & (times <= edges[-1] + shortest / 2)
    halfway = (np.median(power[on & within]) + np.median(power[~on & within])) / 2
    above = power > halfway
    changes = np.flatnonzero(above[1:] != above[:-1])
    early, late = np.empty(len(edges)), np.empty(len(edges))
    for number, edge in enumerate(edges):
        rising = number % 2 == 0
        near = changes[(np.abs((times[changes] + times[changes + 1]) / 2 - edge) < shortest / 2)]
        right_way = near[above[near + 1] == rising]
        if not right_way.size:
            raise MeterError(
                f"The meter shows no {'rise' if rising else 'fall'} of the power near change {number + 1} of the load. "
                "Make loads and pauses longer, or the load heavier."
            )
        # Noise can cross the middle several times: the change is then somewhere from the first crossing to the last.
        early[number] = times[near.min()] - trace.facts.lag_s
        late[number] = times[near.max() + 1]
        if trace.facts.quantity == "joules":  # the power of a segment stands at its end, and began at its start
            early[number] -= trace.period_s
    return early, late


def _line(x: FloatArray, y: FloatArray) -> tuple[float, float]:
    """Return the slope of a line through points, and its height at their middle; level through few of them."""
    centred = x - x.mean()
    if len(x) < _DRIFT_NEEDS_EDGES:
        return 0.0, float(y.mean())
    return float(np.sum(centred * (y - y.mean())) / np.sum(centred**2)), float(y.mean())
