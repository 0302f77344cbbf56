"""The energy between two moments, and how far it can be off.

Watts are integrated by the trapezoid rule, joules are subtracted. What the sensor did not see is bounded under one
assumption: **between two readings the power stays within those two readings**, except at a peak or a valley, which may
reach as far as its two flanks do when they are prolonged to the middle between the readings. (For joules, within the mean
powers of the segment and of its two neighbours.) In a gap, the power stays within all that the trace has. A pulse that is
shorter than the time between two readings, and that none of them meets, is outside the assumption: no sensor of that
rate can know of it.

Two figures come of it. `Energy.uncertainty_j` is a bound: all that is unknown lies in the same direction, and as far as it
can. `Energy.standard_j` takes each unknown as even between its bounds and independent of the others: one standard
deviation, as long as the load does not keep time with the sensor.

The sensor's calibration (a shunt that is 1 % off) is in neither: it scales everything, and comparisons on one device do not
feel it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgelm.errors import MeterError
from edgelm.meters.meter import MeterFacts
from edgelm.meters.trace import FloatArray, Trace

__all__ = ["Energy", "energy_between", "window_needed_s"]

# A window of 100 periods keeps what is not known at its two edges (half a period each) to 1 % of the step in power there.
_PERIODS_NEEDED = 100
# Shorter windows are less than what a scheduler or a governor takes to settle.
_LEAST_WINDOW_S = 1.0
_MOST_IN_GAPS = 0.1


@dataclass(frozen=True, kw_only=True)
class Energy:
    """What a meter saw between two moments.

    Attributes:
        start_s: By the clock of the trace.
        end_s: Likewise.
        joules: The energy.
        uncertainty_j: A bound on its error, the sum of those that follow.
        standard_j: One standard deviation, where the load does not keep time with the sensor.
        edges_j: Of the bound: the two segments that the window cuts.
        between_j: What the power did between two readings; 0 for a counter.
        gaps_j: Likewise, in gaps.
        lag_j: How old a reading can be.
        resolution_j: The sensor's smallest step.
        clock_j: What is not known of the clock.
        gap_s: How much of the window lies in gaps.
        readings: In the window.
        reliable: Whether the window is long enough for the sensor, and whole.
        reason: Why it is not; None where it is.
    """

    start_s: float
    end_s: float
    joules: float
    uncertainty_j: float
    standard_j: float
    edges_j: float
    between_j: float
    gaps_j: float
    lag_j: float
    resolution_j: float
    clock_j: float
    gap_s: float
    readings: int
    reliable: bool
    reason: str | None

    @property
    def duration_s(self) -> float:
        """The length of the window."""
        return self.end_s - self.start_s

    @property
    def power_w(self) -> float:
        """The mean power."""
        return self.joules / self.duration_s


def window_needed_s(facts: MeterFacts, period_s: float | None = None) -> float:
    """Return how long a window must be at least, for a meter of these facts.

    Args:
        facts: Of the meter.
        period_s: The time between two readings, where it is longer than the sensor's own. A counter goes on between two
            readings, so of one it does not matter.

    Returns:
        100 periods, and 1 s at least.
    """
    between_s = period_s or 0.0 if facts.quantity == "watts" else 0.0
    return max(_LEAST_WINDOW_S, _PERIODS_NEEDED * max(1 / facts.rate_hz, between_s))


def energy_between(trace: Trace, start_s: float, end_s: float) -> Energy:
    """Return the energy between two moments of a trace.

    Args:
        trace: The readings.
        start_s: By the clock of the trace.
        end_s: Likewise, later.

    Raises:
        MeterError: The window is empty, or the trace does not cover it.
    """
    times = trace.time_s
    if not start_s < end_s:
        raise MeterError(f"A window from {start_s:g} s to {end_s:g} s is empty. Give a start before its end.")
    if start_s < times[0] or end_s > times[-1]:
        raise MeterError(
            f"{trace.facts.name} was read from {times[0]:g} s to {times[-1]:g} s, which does not cover the window from "
            f"{start_s:g} s to {end_s:g} s. Start the sampler before the load, and stop it after."
        )
    cut = _cut(trace, start_s, end_s)
    parts = _parts(trace, cut, start_s, end_s)
    reason = _reason(trace, cut, end_s - start_s)
    gap_s = float(cut.covered_s[cut.gap].sum())
    joules = float(np.sum(cut.mean_w * cut.covered_s))
    return Energy(
        start_s=start_s,
        end_s=end_s,
        joules=joules,
        uncertainty_j=sum(parts.values()) + _rounding(trace, cut, joules),
        standard_j=_standard(trace, cut, parts),
        gap_s=gap_s,
        readings=int(np.count_nonzero((times >= start_s) & (times <= end_s))),
        reliable=reason is None,
        reason=reason,
        **parts,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cut:
    """The S segments that a window touches.

    `length_s` is theirs, `covered_s` what the window has of it, `mean_w` the mean power in that part; `low_w` and `high_w`
    bound the power in the whole segment. `travel_w` is the way that it makes up and down, in all that can be read of them.
    """

    length_s: FloatArray
    covered_s: FloatArray
    mean_w: FloatArray
    low_w: FloatArray
    high_w: FloatArray
    travel_w: float
    gap: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

    @property
    def error_w(self) -> FloatArray:
        """How far the true mean of a segment's part can be from `mean_w`."""
        return np.asarray(np.maximum(self.high_w - self.mean_w, self.mean_w - self.low_w))

    @property
    def whole(self) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """Which segments lie in the window from end to end."""
        return np.asarray(self.covered_s >= self.length_s)


def _cut(trace: Trace, start_s: float, end_s: float) -> _Cut:
    times, values = trace.time_s, trace.value
    # Also of a moment without length (a clock's error of 1e-20 s) it is one segment at least.
    first = min(int(np.searchsorted(times, start_s, side="right")) - 1, len(times) - 2)
    stop = max(int(np.searchsorted(times, end_s, side="left")), first + 1)
    # What happens in the window may be read only after it.
    late = max(int(np.searchsorted(times, end_s + trace.facts.lag_s, side="left")), stop)
    # Two readings more at each side: the flanks of a peak, the neighbours of a segment.
    begin, end = max(0, first - 2), min(len(times), late + 3)
    near_t, near_v = times[begin:end], values[begin:end]
    length = np.diff(near_t)
    gap = trace.is_gap[begin : end - 1]
    mean = np.diff(near_v) / length
    if trace.facts.quantity == "joules":
        low, high, travel = _counter_ranges(mean)
        everything = np.diff(values) / np.diff(times)
    else:
        low, high, travel = _power_ranges(near_v, length)
        everything = values
    low = np.where(gap, min(float(everything.min()), float(low.min())), low)
    high = np.where(gap, max(float(everything.max()), float(high.max())), high)
    here = slice(first - begin, stop - begin)
    left, right = np.maximum(near_t[:-1][here], start_s), np.minimum(near_t[1:][here], end_s)
    if trace.facts.quantity == "watts":
        mean_here = (np.interp(left, near_t, near_v) + np.interp(right, near_t, near_v)) / 2
    else:
        mean_here = mean[here]
    return _Cut(
        length_s=length[here],
        covered_s=right - left,
        mean_w=mean_here,
        low_w=low[here],
        high_w=high[here],
        travel_w=float(travel[first - begin : late - begin].sum()),
        gap=gap[here],
    )


def _power_ranges(power: FloatArray, length: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return, of each segment between readings of power, the lowest, the highest, and the way between them."""
    before, after = power[:-1], power[1:]
    slope = np.diff(power) / length
    # How far the flanks rise towards the segment from outside, watts at its middle; a missing flank is taken as steep as
    # the one that is there.
    from_left = np.concatenate([[np.nan], slope[:-1]]) * length / 2
    from_right = -np.concatenate([slope[1:], [np.nan]]) * length / 2
    from_left, from_right = (
        np.where(np.isnan(from_left), np.nan_to_num(from_right), from_left),
        np.where(np.isnan(from_right), np.nan_to_num(from_left), from_right),
    )
    peak = np.clip(np.minimum(from_left, from_right), 0, None)
    valley = np.clip(np.minimum(-from_left, -from_right), 0, None)
    low, high = np.minimum(before, after) - valley, np.maximum(before, after) + peak
    return low, high, np.asarray(np.abs(after - before) + 2 * (peak + valley))


def _counter_ranges(mean: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return, of each segment of a counter, the lowest and the highest mean of the three around it, and their way."""
    padded = np.concatenate([mean[:1], mean, mean[-1:]])
    three = np.stack([padded[:-2], padded[1:-1], padded[2:]])
    low, high = three.min(axis=0), three.max(axis=0)
    return low, high, np.asarray(high - low)


def _parts(trace: Trace, cut: _Cut, start_s: float, end_s: float) -> dict[str, float]:
    """Return the parts of the bound, by their names in `Energy`."""
    counter = trace.facts.quantity == "joules"
    # The energy of a whole segment of a counter is known, so what is unknown of a part is no more than of the rest.
    unknown_s = np.minimum(cut.covered_s, cut.length_s - cut.covered_s) if counter else cut.covered_s
    unknown = np.maximum(unknown_s, 0) * cut.error_w
    ends = np.maximum(cut.high_w[[0, -1]], 0)
    if counter:
        lag = trace.facts.lag_s * float(ends.max())
        resolution = trace.facts.resolution
    else:
        lag = trace.facts.lag_s * cut.travel_w
        resolution = trace.facts.resolution / 2 * (end_s - start_s)
    return {
        "edges_j": float(unknown[~cut.whole & ~cut.gap].sum()),
        "between_j": float(unknown[cut.whole & ~cut.gap].sum()),
        "gaps_j": float(unknown[cut.gap].sum()),
        "lag_j": lag,
        "resolution_j": resolution,
        "clock_j": _clock(trace, cut, start_s, end_s),
    }


def _clock(trace: Trace, cut: _Cut, start_s: float, end_s: float) -> float:
    """Return how much a window that lies elsewhere by the error of the clock could have more or less in it."""
    error = trace.clock_error_s
    scaled = trace.clock_rate_error * float(np.sum(np.abs(cut.mean_w) * cut.covered_s))
    if error == 0:
        return scaled
    (start_low, start_high), (end_low, end_high) = (_powers_near(trace, at, error) for at in (start_s, end_s))
    return scaled + error * max(abs(end_high - start_low), abs(start_high - end_low))


def _powers_near(trace: Trace, at_s: float, error_s: float) -> tuple[float, float]:
    """Return the lowest and the highest power within an error of the clock from a moment."""
    times = trace.time_s
    left = max(float(times[0]), at_s - error_s)
    right = min(float(times[-1]), at_s + error_s)
    near = _cut(trace, left, right)
    return float(near.low_w.min()), float(near.high_w.max())


def _rounding(trace: Trace, cut: _Cut, joules: float) -> float:
    """Return what float64 itself loses: a unit in the last place of each term, and of a counter's readings."""
    terms = float(np.sum(np.abs(cut.mean_w) * cut.covered_s))
    counter = float(np.abs(trace.value[-1])) if trace.facts.quantity == "joules" else 0.0
    moment = float(np.abs(trace.time_s).max()) * float(np.abs(cut.mean_w).max())
    return float(np.finfo(np.float64).eps) * (len(cut.mean_w) * terms + abs(joules) + 4 * counter + 4 * moment)


def _standard(trace: Trace, cut: _Cut, parts: dict[str, float]) -> float:
    """Return one standard deviation: a value that is even between -b and b has the variance b² / 3."""
    counter = trace.facts.quantity == "joules"
    unknown_s = np.minimum(cut.covered_s, cut.length_s - cut.covered_s) if counter else cut.covered_s
    variance = float(np.sum((np.maximum(unknown_s, 0) * cut.error_w) ** 2))
    half_step = trace.facts.resolution / 2
    variance += 2 * half_step**2 if counter else float(np.sum((half_step * cut.covered_s) ** 2))
    variance += parts["lag_j"] ** 2 + parts["clock_j"] ** 2
    return float(np.sqrt(variance / 3))


def _reason(trace: Trace, cut: _Cut, duration_s: float) -> str | None:
    """Return why a window is not to be relied on, or None."""
    needed = window_needed_s(trace.facts, trace.period_s)
    gap_s = float(cut.covered_s[cut.gap].sum())
    largest_w = float(np.max(cut.high_w))
    if duration_s < needed:
        return (
            f"a window of {duration_s:.3g} s is too short for a meter of {trace.facts.rate_hz:.3g} Hz that is read every "
            f"{trace.period_s:.3g} s: measure for at least {needed:.3g} s"
        )
    if gap_s > _MOST_IN_GAPS * duration_s:
        return f"readings are missing in {gap_s:.3g} s of {duration_s:.3g} s"
    if trace.facts.range_j is not None and float(cut.length_s.max()) * largest_w >= trace.facts.range_j:
        return (
            f"the counter starts again after {trace.facts.range_j:.3g} J, and was not read for "
            f"{float(cut.length_s.max()):.3g} s: it may have done so more than once"
        )
    return None
