"""What every tensor of an encoder holds on calibration samples, and the integers that follow from it.

The samples run one at a time and without padding, each at its own length: what padding computes is never seen by a real
token, and all lengths of a file share one range a tensor.

Dimensions: those of `edgelm_converters.static.encoder`. Arithmetic is NumPy's, float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ConversionError, InputError
from edgelm_converters.activations import apply, hidden, softmax
from edgelm_converters.spec import Activation, FeedForward, Float32, Head, Linear, Norm, TransformerSpec
from edgelm_converters.static.encoder import walk
from edgelm_converters.static.ranges import Histogram, Range, Ranges, Steps, choose_range, make_steps

__all__ = ["FIXED", "Calibration", "Progress", "calibrate", "norm_points", "step_table"]

Progress = Callable[[str, int, int], None]

# What TFLite's kernels give, whatever the data: outputs of softmax and sigmoid in [0, 1), of tanh in [-1, 1).
FIXED: dict[tuple[str, int], Steps] = {
    ("unit", 8): Steps(1 / 256, -128, 8),
    ("unit", 16): Steps(1 / 32768, 0, 16),
    ("tanh", 8): Steps(1 / 128, 0, 8),
    ("tanh", 16): Steps(1 / 32768, 0, 16),
}


@dataclass(eq=False)
class Calibration:
    """What was collected.

    Attributes:
        histograms: By point.
        lowest_peak: By point of scores: the smallest of the rows' largest scores.
        samples: How many were run.
        tokens: Of them.
    """

    histograms: dict[str, Histogram] = field(default_factory=dict)
    lowest_peak: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    tokens: int = 0

    def see(self, point: str, values: NDArray[np.floating]) -> None:
        """Count values of a point."""
        self.histograms.setdefault(point, Histogram()).add(values, point)


def calibrate(
    spec: TransformerSpec, samples: Sequence[Mapping[str, NDArray[Any]]], *, norms: bool, progress: Progress
) -> Calibration:
    """Run samples through a prepared encoder.

    Args:
        spec: As `edgelm_converters.static.encoder.prepared` returns it.
        samples: Inputs by name, int32 ``(1, n)`` without padding. Of a model with a fixed length they are filled up with 0.
        norms: Whether the tensors inside of norms are looked at too, as files need that have them in integers.
        progress: Called with the step's description, and how much of it is done.

    Raises:
        InputError: There is no sample, or one does not fit the model.
        ConversionError: A tensor is NaN or infinite.
    """
    if not samples:
        raise InputError("Static quantisation finds its ranges on data, and was given none: give texts with --data.")
    found = Calibration()
    for number, sample in enumerate(samples):
        progress("Calibrating", number, len(samples))
        inputs = _fitted(spec, sample)
        walk(spec, _Watcher(spec, inputs, found, norms))
        found.samples += 1
        found.tokens += int(inputs[spec.token_input].size)
    progress("Calibrating", len(samples), len(samples))
    return found


def step_table(
    found: Calibration, method: Ranges, bits: Literal[8, 16], *, hides: bool, longest: int
) -> dict[str, Steps]:
    """Return the integers of each point.

    Args:
        found: What was collected.
        method: How ranges are chosen.
        bits: Of the integers.
        hides: Whether the model hides tokens: the range of scores then reaches so far down that its bottom hides one.
        longest: The most tokens of an input.
    """
    table = {}
    for point, histogram in found.histograms.items():
        chosen = choose_range(histogram, method, bits)
        if hides and point in found.lowest_peak:
            # Hidden tokens, all together, must weigh less than half a step of the softmax: exp(-margin) * n < 2^-bits / 2.
            margin = (bits + 1) * math.log(2) + math.log(longest)
            floor = found.lowest_peak[point] - margin
            chosen = Range(min(chosen.low, floor), chosen.high)
        table[point] = make_steps(chosen, bits)
    return table


def norm_points(norm: Norm, point: str) -> dict[str, str]:
    """Return the points inside of a norm, by what they are."""
    names = ["square", "variance", "inverse", "normalised"]
    names = [*(["mean", "centred"] if norm.kind == "layer" else []), *names]
    return {name: f"{point}/{name}" for name in [*names, *(["scaled"] if norm.beta is not None else [])]}


def _fitted(spec: TransformerSpec, sample: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    names = [name for name in (spec.token_input, spec.mask_input, spec.segment_input) if name is not None]
    missing = [name for name in names if name not in sample]
    if missing:
        raise InputError(f"A calibration sample lacks the input '{missing[0]}' of the model '{spec.name}'.")
    length = sample[spec.token_input].shape[1]
    limits = [limit for limit in (spec.fixed_length, spec.max_length) if limit is not None]
    if length < 1 or (limits and length > min(limits)):
        raise InputError(f"A calibration sample has {length} tokens, and '{spec.name}' takes 1 to {min(limits)}.")
    ids = sample[spec.token_input]
    if ids.min() < 0 or ids.max() >= spec.vocabulary_size:
        raise InputError(
            f"A calibration sample has ids up to {ids.max()}, and '{spec.name}' knows {spec.vocabulary_size}."
        )
    fill = 0 if spec.fixed_length is None else spec.fixed_length - length
    return {name: np.pad(sample[name], ((0, 0), (0, fill))) for name in names}


@dataclass(frozen=True)
class _Seen:
    """A tensor, and the point that it is."""

    values: Float32
    point: str


@dataclass(frozen=True, eq=False)
class _Watcher:
    """Operators that compute in NumPy, and look at each point."""

    spec: TransformerSpec
    inputs: Mapping[str, NDArray[Any]]
    found: Calibration
    norms: bool

    def embed(self, spec: TransformerSpec, point: str) -> _Seen:
        parts = spec.embeddings
        ids = self.inputs[spec.token_input][0]
        x = parts.token[ids] * np.float32(parts.token_scale)
        if parts.segment is not None and spec.segment_input is not None:
            x = x + parts.segment[self.inputs[spec.segment_input][0]]
            self.found.see(f"{point}/segment", x)
        return self._see(x if parts.position is None else x + parts.position[: len(ids)], point)

    def dense(self, x: _Seen, linear: Linear, activation: Activation, point: str) -> _Seen:
        y = self._see(apply(linear, x.values), point)
        if activation == "linear":
            return y
        return self._see(hidden(FeedForward(activation, linear, linear), x.values), f"{point}/{activation}")

    def add(self, x: _Seen, y: _Seen, point: str) -> _Seen:
        return self._see(x.values + y.values, point)

    def multiply(self, x: _Seen, y: _Seen, point: str) -> _Seen:
        return self._see(x.values * y.values, point)

    def norm(self, x: _Seen, norm: Norm, point: str) -> _Seen:
        mean = x.values.mean(axis=-1, keepdims=True)
        centred = x.values - mean if norm.kind == "layer" else x.values
        square = centred * centred
        variance = square.mean(axis=-1, keepdims=True)
        inverse = 1 / np.sqrt(variance + np.float32(norm.eps))
        normalised = centred * inverse
        scaled = normalised * norm.gamma
        if self.norms:
            inside = {
                "mean": mean, "centred": centred, "square": square, "variance": variance, "inverse": inverse,
                "normalised": normalised, "scaled": scaled,
            }  # fmt: skip
            for name, part in norm_points(norm, point).items():
                self.found.see(part, inside[name])
        return self._see(scaled if norm.beta is None else scaled + norm.beta, point)

    def first_row(self, x: _Seen) -> _Seen:
        return _Seen(x.values[:1], x.point)

    def split_heads(self, x: _Seen, heads: int, width: int) -> _Seen:
        return _Seen(x.values.reshape(len(x.values), heads, width).transpose(1, 0, 2), x.point)

    def scores(self, query: _Seen, key: _Seen, point: str) -> _Seen:
        repeats = len(query.values) // len(key.values)
        return _Seen(query.values @ key.values.repeat(repeats, axis=0).swapaxes(1, 2), point)

    def hide(self, scores: _Seen, *, causal: bool, point: str) -> _Seen:
        """Only what is seen counts for the range."""
        rows, length = scores.values.shape[1:]
        seen = np.tri(rows, length, dtype=bool) if causal else np.ones((rows, length), bool)
        self.found.see(point, scores.values[:, seen])
        rest = np.where(seen, scores.values, np.float32(-np.inf))
        peak = float(rest.max(axis=-1).min())
        self.found.lowest_peak[point] = min(self.found.lowest_peak.get(point, math.inf), peak)
        return _Seen(rest, point)

    def softmax(self, x: _Seen, point: str) -> _Seen:
        return self._see(softmax(x.values.copy()), point)

    def mix(self, weights: _Seen, value: _Seen, point: str) -> _Seen:
        return self._see(weights.values @ value.values.repeat(len(weights.values) // len(value.values), axis=0), point)

    def merge_heads(self, x: _Seen) -> _Seen:
        return _Seen(x.values.transpose(1, 0, 2).reshape(x.values.shape[1], -1), x.point)

    def pool(self, x: _Seen, head: Head, point: str) -> _Seen:
        reduce = np.mean if head.pooling == "mean" else np.max
        return self._see(reduce(x.values, axis=0, keepdims=True), point)

    def _see(self, values: NDArray[np.floating], point: str) -> _Seen:
        if values.dtype != np.float32:
            raise ConversionError(f"{point} was computed in {values.dtype}: this is a fault of edgelm.")
        self.found.see(point, values)
        return _Seen(values, point)
