"""Scales of charts: from values to percent of the width or height, with round ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Axis", "number", "span_axis", "time_axis"]

_LOG_FROM_RATIO = 20.0
_TICKS = 5


@dataclass(frozen=True)
class Axis:
    """A scale from values to percent.

    Attributes:
        low: The value at 0 %.
        high: The value at 100 %.
        log: Whether equal ratios are equal distances.
    """

    low: float
    high: float
    log: bool

    def at(self, value: float) -> float:
        """Return where a value lies, in percent, kept within the axis."""
        kept = min(max(value, self.low), self.high)
        if self.log:
            return 100 * math.log(kept / self.low) / math.log(self.high / self.low)
        return 100 * (kept - self.low) / (self.high - self.low)

    def value(self, percent: float) -> float:
        """Return the value at a percentage."""
        if self.log:
            return self.low * math.exp(math.log(self.high / self.low) * percent / 100)
        return self.low + (self.high - self.low) * percent / 100

    def ticks(self) -> list[float]:
        """Return about five round values within the axis."""
        if not self.log:
            step = _round_step((self.high - self.low) / _TICKS)
            first = math.ceil(self.low / step)
            return [index * step for index in range(first, math.floor(self.high / step) + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for factors in ((1, 2, 5), (1, 3), (1,)):
            values = [factor * 10.0**decade for decade in decades for factor in factors]
            inside = [value for value in values if self.low <= value <= self.high]
            if len(inside) <= _TICKS + 2:
                break
        return inside


def time_axis(lows: Sequence[float], highs: Sequence[float]) -> Axis:
    """Return an axis for amounts that are above 0: from 0, or logarithmic where they differ more than 20-fold."""
    low, high = min(lows), max(highs)
    if high / low > _LOG_FROM_RATIO:
        return Axis(low * 0.85, high * 1.15, log=True)
    return Axis(0.0, high * 1.06, log=False)


def span_axis(values: Sequence[float], *, least_span: float) -> Axis:
    """Return an axis that just holds the values: for those that have no 0 to speak of, such as temperatures.

    Args:
        values: At least one.
        least_span: What it spans at least, so that noise does not fill it.
    """
    low, high = min(values), max(values)
    pad = max(0.08 * (high - low), (least_span - (high - low)) / 2)
    return Axis(low - pad, high + pad, log=False)


def number(value: float) -> str:
    """Return the label of a tick."""
    return f"{value:,.6g}"


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
