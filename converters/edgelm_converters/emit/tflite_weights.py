"""The weights of a TFLite file: what is folded into them, and how each recipe stores them.

An `Affine` is a linear layer that may have absorbed its neighbours (a factor, a norm, other layers side by side). Its kernel
is made only when it is stored, so that folding keeps no copies of the model in memory.

Dimensions: ``V`` vocabulary, ``E`` embedding width, ``n`` rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import RecipeError
from edgelm_converters.emit.quantize import quantize_weight, worth_quantizing
from edgelm_converters.emit.tflite_file import Quantization
from edgelm_converters.emit.tflite_graph import Constant, Fused, Graph, Value, Weights
from edgelm_converters.spec import Float32, Linear, Norm

__all__ = ["Affine", "Recipe", "Store", "after_norm", "plain", "scaled", "side_by_side"]

Recipe = Literal["fp32", "fp16", "dynamic_wi8_afp32"]


@dataclass(frozen=True, eq=False)
class Affine:
    """``y = x @ kernel() + bias``.

    Attributes:
        key: Equal for equal content: it is stored once.
        shape: Of the kernel, ``(in, out)``.
        kernel: Makes the kernel.
        bias: ``(out,)`` or None.
    """

    key: Hashable
    shape: tuple[int, int]
    kernel: Callable[[], Float32]
    bias: Float32 | None


def plain(linear: Linear) -> Affine:
    """Return a linear layer as it is."""
    rows, columns = linear.kernel.shape
    return Affine((id(linear.kernel), id(linear.bias)), (rows, columns), lambda: linear.kernel, linear.bias)


def scaled(affine: Affine, factor: float) -> Affine:
    """Return ``factor * affine``: the attention's scale costs nothing in the query's weights."""
    scale = np.float32(factor)
    bias = None if affine.bias is None else affine.bias * scale
    return Affine(("scaled", factor, affine.key), affine.shape, lambda: affine.kernel() * scale, bias)


def after_norm(affine: Affine, norm: Norm) -> Affine:
    """Return what follows a norm with the norm's gamma and beta inside: only the normalisation itself is left to do."""
    bias = affine.bias
    if norm.beta is not None:
        shift = norm.beta @ affine.kernel()
        bias = shift if bias is None else shift + bias
    key = ("after_norm", id(norm.gamma), id(norm.beta), affine.key)
    return Affine(key, affine.shape, lambda: norm.gamma[:, None] * affine.kernel(), bias)


def side_by_side(*parts: Affine) -> Affine:
    """Return several layers of one input as a single one, whose outputs follow each other."""
    bias = None
    if any(part.bias is not None for part in parts):
        zeros = [np.zeros(part.shape[1], np.float32) if part.bias is None else part.bias for part in parts]
        bias = np.concatenate(zeros)
    shape = (parts[0].shape[0], sum(part.shape[1] for part in parts))
    key = ("side_by_side", *(part.key for part in parts))
    return Affine(key, shape, lambda: np.concatenate([part.kernel() for part in parts], axis=1), bias)


@dataclass(frozen=True, eq=False)
class Store:
    """The constants of a file, stored as a recipe says."""

    weights: Weights
    recipe: Recipe

    def linear(self, graph: Graph, affine: Affine, x: Value, *, fused: Fused = "none") -> Value:
        """Apply a linear layer to ``(n, in)``."""
        weight = self.weights.once(("kernel", affine.key), lambda: self._kernel(affine))
        # The full precision of a bias costs nothing, and XNNPACK wants it.
        bias = None if affine.bias is None else graph.floats(affine.bias)
        return graph.fully_connected(x, self._place(graph, weight), bias, fused=fused)

    def lookup(self, graph: Graph, ids: Value, table: Float32, factor: float = 1.0) -> Value:
        """Return ``factor * table[ids]``, ids ``(n,)``.

        GATHER copies int8 rows as they are, and XNNPACK turns them into floats: 5 µs for 128 rows of 128, where
        EMBEDDING_LOOKUP's own loop takes 18. The scale of each row is gathered and multiplied apart: the format's scale per
        row brings a zero point of 8 bytes a row with it, and runtimes before 2.18 ignore it in silence.
        """
        if self.recipe == "dynamic_wi8_afp32" and worth_quantizing(table):
            values, scale = self.weights.once(("table", id(table), factor), lambda: self._int8_table(table, factor))
            rows = graph.dequantize(graph.gather(graph.constant(values), ids))
            return graph.multiply(rows, graph.gather(self._place(graph, scale), ids))
        make: Callable[[], Float32] = (lambda: table) if factor == 1.0 else (lambda: table * np.float32(factor))
        if self.recipe == "fp16" and worth_quantizing(table):
            # Rows are gathered as the bits that they are: runtimes before 2.18 gather no float16, and a DEQUANTIZE of the
            # whole table would hold it in memory once more for each signature, in float32.
            bits = self.weights.once(
                ("bits", id(table), factor),
                lambda: self.weights.add("int16", table.shape, lambda: _half(make()).view(np.int16)),
            )
            return graph.dequantize(graph.bitcast(graph.gather(graph.constant(bits), ids), "float16"))
        stored = self.weights.once(("table", id(table), factor), lambda: self.weights.add("float32", table.shape, make))
        return graph.gather(graph.constant(stored), ids)

    def rows(self, graph: Graph, table: Float32, count: int, lengths: tuple[int, ...]) -> Value:
        """Return the first `count` rows of a table, of which the graphs of the file use as many as `lengths` says.

        One table serves them all: cutting it takes less than 1 µs, and a copy for each length its bytes. The longest graph
        cuts too, if there are others: it then numbers its tensors as they do, and shares their operators.
        """

        def cut(whole: Value) -> Value:
            return whole if len(lengths) == 1 else graph.slice(whole, (0, 0), (count, whole.shape[1]))

        # The view is kept by the store, so that its id stays its own.
        used = self.weights.once(("used", id(table)), lambda: table[: lengths[-1]])
        if self.recipe == "dynamic_wi8_afp32" and worth_quantizing(used):
            values, scale = self.weights.once(("rows", id(used)), lambda: self._int8_table(used, 1.0))
            rows = graph.dequantize(cut(graph.constant(values)))
            return graph.multiply(rows, cut(self._place(graph, scale)))
        stored = self.weights.once(("rows", id(used)), lambda: self._floats(used.shape, lambda: used))
        return cut(self._place(graph, stored))

    def _kernel(self, affine: Affine) -> Constant:
        rows, columns = affine.shape
        if self.recipe != "dynamic_wi8_afp32" or not worth_quantizing(affine.shape):
            return self._floats((columns, rows), lambda: affine.kernel().T)
        values, scale = quantize_weight(affine.kernel(), axis=1)
        return self.weights.add("int8", (columns, rows), lambda: values.T, Quantization(scale, 0))

    def _int8_table(self, table: Float32, factor: float) -> tuple[Constant, Constant]:
        values, scale = quantize_weight(table, axis=0)
        # Scales as float16 shares of the largest: half the bytes, and off by at most 127 * 2^-11 = 6 % of a step.
        largest = scale.max()
        shares = (scale / largest).astype(np.float16)[:, None]
        step = Quantization(np.array([largest * np.float32(factor)], np.float32), 0)
        return (
            self.weights.add("int8", table.shape, lambda: values, step),
            self.weights.add("float16", shares.shape, lambda: shares),
        )

    def _floats(self, shape: tuple[int, ...], make: Callable[[], Float32]) -> Constant:
        """Store floats: as float16 where the recipe compresses and there are enough of them to show."""
        if self.recipe == "fp32" or not worth_quantizing(shape):
            return self.weights.add("float32", shape, make)
        return self.weights.add("float16", shape, lambda: _half(make()))

    def _place(self, graph: Graph, constant: Constant) -> Value:
        if constant.dtype != "float16":
            return graph.constant(constant)
        return graph.once(("float32", constant), lambda: graph.dequantize(graph.constant(constant)))


def _half(weight: Float32) -> NDArray[np.float16]:
    largest = float(np.abs(weight).max())
    if largest > float(np.finfo(np.float16).max):
        raise RecipeError(
            f"A weight of shape {weight.shape} reaches {largest:.3g}, and float16 ends at 65504: choose --recipe fp32."
        )
    return weight.astype(np.float16)
