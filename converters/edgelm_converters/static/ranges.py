"""Ranges of activations: what a tensor held over all calibration samples, and where to cut it off.

A histogram is bounded in memory whatever it is fed: its bins double in width when a value falls outside of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ConversionError
from edgelm_converters.spec import Float32

__all__ = ["Histogram", "Range", "Ranges", "Steps", "choose_range", "make_steps"]

Ranges = Literal["minmax", "percentile", "mse"]
Float64 = NDArray[np.float64]

_BINS = 4096  # a power of two; at least 1024 of them, 4 an int8 step, hold the wider side of what was seen
# The share of values that "percentile" keeps. On banking77 (2×128, int8) 0.999 moves the logits by 2.8 % and 0.9999 by 1.7 %,
# as keeping all of them does.
_KEPT = 0.9999
_CANDIDATES = 128  # places tried for each end of a range by "mse"
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Range:
    """The real values that a tensor's integers span; `low` <= 0 <= `high`."""

    low: float
    high: float


@dataclass(frozen=True)
class Steps:
    """``value = scale * (integer - zero_point)``.

    Attributes:
        scale: A step, above 0.
        zero_point: The integer that is 0; itself 0 in 16 bits.
        bits: 8 (int8) or 16 (int16).
    """

    scale: float
    zero_point: int
    bits: Literal[8, 16]

    @property
    def dtype(self) -> Literal["int8", "int16"]:
        """NumPy's name of the integers."""
        return "int8" if self.bits == 8 else "int16"

    @property
    def lowest(self) -> int:
        """The smallest integer."""
        return -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        """The largest integer."""
        return (1 << (self.bits - 1)) - 1

    def quantize(self, values: NDArray[np.floating]) -> NDArray[np.int16]:
        """Return the nearest integers, cut off at the range's ends."""
        steps = np.rint(values / self.scale) + self.zero_point
        integers: NDArray[np.int16] = np.clip(steps, self.lowest, self.highest).astype(np.int16)
        return integers

    def dequantize(self, integers: NDArray[np.integer]) -> Float32:
        """Return the values of integers, float32."""
        return ((integers.astype(np.float64) - self.zero_point) * self.scale).astype(np.float32)


@dataclass(eq=False)
class Histogram:
    """What a tensor held.

    Attributes:
        low: The smallest value, exactly; infinite before the first one.
        high: The largest.
        limit: The bins cover ``[-limit, limit]`` evenly; a power of two.
        counts: int64 ``(4096,)``.
    """

    low: float = math.inf
    high: float = -math.inf
    limit: float = 2.0**-20
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))

    def add(self, values: NDArray[np.floating], name: str = "a tensor") -> None:
        """Count values of any shape.

        Raises:
            ConversionError: One is NaN or infinite.
        """
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ConversionError(
                f"On a calibration sample, {name} holds NaN or infinity: the model overflows, and has no range."
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        while max(-low, high) > self.limit:
            self._double()
        places = (values.reshape(-1).astype(np.float64) * (_BINS / 2 / self.limit) + _BINS / 2).astype(np.int64)
        self.counts += np.bincount(np.minimum(places, _BINS - 1), minlength=_BINS)

    def centres(self) -> Float64:
        """Return the middle of each bin."""
        centres: Float64 = (np.arange(_BINS, dtype=np.float64) + 0.5) * (2 * self.limit / _BINS) - self.limit
        return centres

    def _double(self) -> None:
        pairs = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.pad(pairs, _BINS // 4)
        self.limit *= 2


def choose_range(histogram: Histogram, method: Ranges, bits: int) -> Range:
    """Return the range to quantise a tensor in; it holds 0, which padding and masks need exactly.

    Args:
        histogram: What the tensor held.
        method: ``minmax``: all of it. ``percentile``: 99.99 % of it, the rest cut at both ends alike. ``mse``: the range whose
            squared error, that of rounding inside and of cutting off outside, is least.
        bits: Of the integers: the fewer, the more is cut by ``mse``.

    Raises:
        ConversionError: Nothing was counted.
    """
    if histogram.low > histogram.high:
        raise ConversionError("A tensor was never computed on the calibration samples: it has no range.")
    whole = Range(min(histogram.low, 0.0), max(histogram.high, 0.0))
    if method == "minmax" or whole.low == whole.high:
        return whole
    if method == "percentile":
        low, high = _percentiles(histogram, (1 - _KEPT) / 2)
    else:
        low, high = _least_error(histogram, whole, bits)
    return Range(min(max(low, whole.low), 0.0), max(min(high, whole.high), 0.0))


def make_steps(chosen: Range, bits: Literal[8, 16]) -> Steps:
    """Return the integers of a range.

    In 8 bits all 256 span it, with a zero point. In 16 bits they span twice of it to both sides of 0: TFLite's kernels have no
    zero point there, and one bit of 16 is a small price for holding what calibration did not see.
    """
    if bits == 16:
        scale = 2 * max(-chosen.low, chosen.high) / 32767
        return Steps(max(scale, _SMALLEST_SCALE) if scale else 1.0, 0, 16)
    scale = (chosen.high - chosen.low) / 255
    if not scale:
        return Steps(1.0, 0, 8)
    scale = max(scale, _SMALLEST_SCALE)
    return Steps(scale, int(np.clip(round(-128 - chosen.low / scale), -128, 127)), 8)


def _percentiles(histogram: Histogram, cut: float) -> tuple[float, float]:
    """Return the outer edges of the bins in which the two percentiles lie."""
    width = 2 * histogram.limit / _BINS
    seen = np.cumsum(histogram.counts)
    first = int(np.searchsorted(seen, cut * seen[-1], side="right"))
    last = int(np.searchsorted(seen, (1 - cut) * seen[-1], side="left"))
    return first * width - histogram.limit, (last + 1) * width - histogram.limit


def _least_error(histogram: Histogram, whole: Range, bits: int) -> tuple[float, float]:
    """Return the range with the least squared error.

    A value inside is off by a rounding error, ``scale**2 / 12`` on average; one outside by its distance to the range's end.
    """
    shares = np.arange(1, _CANDIDATES + 1) / _CANDIDATES
    lows = whole.low * shares if whole.low else np.zeros(1)
    highs = whole.high * shares if whole.high else np.zeros(1)
    counts, centres = histogram.counts.astype(np.float64), histogram.centres()
    many_above, cut_above = _beyond(counts, centres, highs)
    many_below, cut_below = _beyond(counts, -centres, -lows)
    low, high = lows[:, None], highs[None, :]
    scale = np.maximum(-low, high) / 32767 if bits == 16 else (high - low) / 255
    inside = counts.sum() - many_below[:, None] - many_above[None, :]
    error = inside * scale**2 / 12 + cut_below[:, None] + cut_above[None, :]
    row, column = np.unravel_index(int(error.argmin()), error.shape)
    return float(lows[row]), float(highs[column])


def _beyond(counts: Float64, centres: Float64, ends: Float64) -> tuple[Float64, Float64]:
    """Return how many values lie above each end, and the sum of their squared distances to it.

    From running sums, farthest first, of the counts and of their first two moments.
    """
    order = np.argsort(-centres)
    far = centres[order]
    sums = [np.concatenate([[0.0], np.cumsum(counts[order] * far**power)]) for power in range(3)]
    many, first, second = (moments[np.searchsorted(-far, -ends, side="left")] for moments in sums)
    return many, np.maximum(second - 2 * ends * first + ends**2 * many, 0.0)
