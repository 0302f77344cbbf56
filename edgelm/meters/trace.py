"""A trace: what a meter said over time, as arrays.

N is the number of readings; a *segment* is the time between two that follow each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgelm.errors import MeterError
from edgelm.meters.meter import MeterFacts

__all__ = ["FloatArray", "Trace", "make_trace", "unwrap"]

FloatArray = npt.NDArray[np.float64]

# A reading that is late by as much as a busy machine makes it is no gap; two that are missing are.
_GAP_PERIODS = 3.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """The readings of one meter. Made by `make_trace`, which checks them.

    Attributes:
        facts: Of the meter.
        time_s: float64 (N,), rising, at least two; by `time.monotonic` of the machine that ran the load, as far as
            `clock_error_s` allows.
        value: float64 (N,); joules since some moment, never falling, or watts.
        period_s: The time between two readings that was aimed at.
        clock_error_s: How far every `time_s` can be off, all by the same and less; 0 where the readings were timed by the
            machine that ran the load. From `align` for other clocks.
        clock_rate_error: How far the length of a second can be off, as a share.
        events: What went wrong while reading, for people.
    """

    facts: MeterFacts
    time_s: FloatArray
    value: FloatArray
    period_s: float
    clock_error_s: float = 0.0
    clock_rate_error: float = 0.0
    events: tuple[str, ...] = ()

    @property
    def gaps(self) -> tuple[tuple[float, float], ...]:
        """The times, start and end, in which at least two readings in a row are missing."""
        late = np.flatnonzero(self.is_gap)
        return tuple((float(self.time_s[i]), float(self.time_s[i + 1])) for i in late)

    @property
    def is_gap(self) -> npt.NDArray[np.bool_]:
        """Of each segment, whether it is one of `gaps`: bool (N - 1,)."""
        return np.asarray(np.diff(self.time_s) > _GAP_PERIODS * self.period_s)

    def on_clock(self, *, offset_s: float, rate: float, error_s: float, rate_error: float) -> Trace:
        """Return the same readings by another clock: ``time * (1 + rate) + offset``, with what is not known of it.

        Joules are counted by the meter, watts need its seconds: these are stretched with the times.
        """
        return replace(
            self,
            time_s=self.time_s * (1 + rate) + offset_s,
            period_s=self.period_s * (1 + rate),
            clock_error_s=error_s,
            clock_rate_error=rate_error,
        )


def make_trace(
    facts: MeterFacts,
    time_s: Sequence[float] | FloatArray,
    value: Sequence[float] | FloatArray,
    *,
    period_s: float | None = None,
    events: tuple[str, ...] = (),
) -> Trace:
    """Return readings as a trace.

    Args:
        facts: Of the meter.
        time_s: Seconds, (N,).
        value: Joules or watts, (N,).
        period_s: The time between two readings that was aimed at; the median of what there is where it is not given.
        events: What went wrong while reading.

    Raises:
        MeterError: There are fewer than two readings, time does not rise, a value is not finite, or joules fall: a counter
            that started again, which `unwrap` mends where its range is known.
    """
    times, values = np.array(time_s, dtype=np.float64), np.array(value, dtype=np.float64)
    if times.ndim != 1 or times.shape != values.shape or len(times) < 2:
        raise MeterError(
            f"{facts.name}: {times.size} times and {values.size} values are no trace; at least two of each are needed. "
            f"Measure for longer.{' ' + events[-1] if events else ''}"
        )
    if not (np.isfinite(times).all() and np.isfinite(values).all()):
        raise MeterError(f"{facts.name}: a time or a value is not finite. Leave such readings out.")
    steps = np.diff(times)
    if steps.min() <= 0:
        where = int(np.argmin(steps))
        raise MeterError(
            f"{facts.name}: time goes from {times[where]:g} s to {times[where + 1]:g} s. Sort the readings, and leave out "
            "what is there twice."
        )
    if facts.quantity == "joules" and np.diff(values).min() < 0:
        where = int(np.argmin(np.diff(values)))
        raise MeterError(
            f"{facts.name}: the counter falls from {values[where]:g} J to {values[where + 1]:g} J, so it started again. "
            "Use unwrap() with the range of the counter, or measure again."
        )
    period = float(np.median(steps)) if period_s is None else period_s
    return Trace(facts=facts, time_s=times, value=values, period_s=period, events=events)


def unwrap(value: Sequence[float] | FloatArray, range_j: float) -> FloatArray:
    """Return a counter that starts again at 0 after `range_j` as one that does not.

    Two starts between two readings look like one or none, and cannot be told from them.

    Args:
        value: (N,), in any unit.
        range_j: In the same unit.

    Raises:
        MeterError: A value is outside the range.
    """
    values = np.array(value, dtype=np.float64)
    if values.size and (values.min() < 0 or values.max() > range_j):
        raise MeterError(f"A counter reads {values.max():g}, outside its range of 0 to {range_j:g}. Correct the range.")
    starts = np.concatenate([[0.0], np.cumsum(np.diff(values) < 0)]) if values.size else values
    return np.asarray(values + starts * range_j, dtype=np.float64)
