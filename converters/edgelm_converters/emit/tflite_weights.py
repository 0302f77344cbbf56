"""The weights of a TFLite file: what is folded into them, and how each recipe stores them.

An `Affine` is a linear layer that may have absorbed its neighbours (a factor, a norm, other layers side by side). Its kernel
is made only when it is stored, so that folding keeps no copies of the model in memory.

Dimensions: ``V`` vocabulary, ``E`` embedding width, ``n`` rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import RecipeError
from edgelm_converters.emit.blocks import check_grid, choose_scales, pack_pairs, round_to
from edgelm_converters.emit.quantize import Form, quantize_weight, stored_form
from edgelm_converters.emit.tflite_file import Quantization
from edgelm_converters.emit.tflite_graph import Constant, Fused, Graph, Value, Weights
from edgelm_converters.recipes import Recipe
from edgelm_converters.spec import Float32, Grid, Linear, Norm

__all__ = ["Affine", "Store", "after_norm", "plain", "scaled"]


@dataclass(frozen=True, eq=False)
class Affine:
    """``y = x @ kernel() + bias``.

    Attributes:
        key: Equal for equal content: it is stored once.
        shape: Of the kernel, ``(in, out)``.
        kernel: Makes the kernel.
        bias: ``(out,)`` or None.
        grid: The steps that the kernel lies on, if it was rounded before: a factor of 1 or a gamma of ones keeps it.
        least_bits: As `Linear.least_bits`.
    """

    key: Hashable
    shape: tuple[int, int]
    kernel: Callable[[], Float32]
    bias: Float32 | None
    grid: Grid | None = None
    least_bits: int = 4


def plain(linear: Linear) -> Affine:
    """Return a linear layer as it is."""
    rows, columns = linear.kernel.shape
    key = (id(linear.kernel), id(linear.bias), linear.least_bits)
    return Affine(key, (rows, columns), lambda: linear.kernel, linear.bias, linear.grid, linear.least_bits)


def scaled(affine: Affine, factor: float) -> Affine:
    """Return ``factor * affine``: the attention's scale costs nothing in the query's weights."""
    scale = np.float32(factor)
    if scale == 1:
        return affine
    bias = None if affine.bias is None else affine.bias * scale
    key = ("scaled", factor, affine.key)
    return replace(affine, key=key, kernel=lambda: affine.kernel() * scale, bias=bias, grid=None)


def after_norm(affine: Affine, norm: Norm) -> Affine:
    """Return what follows a norm with the norm's gamma and beta inside: only the normalisation itself is left to do."""
    bias = affine.bias
    if norm.beta is None and (norm.gamma == 1).all():
        return affine
    if norm.beta is not None:
        shift = norm.beta @ affine.kernel()
        bias = shift if bias is None else shift + bias
    key = ("after_norm", id(norm.gamma), id(norm.beta), affine.key)
    return replace(affine, key=key, kernel=lambda: norm.gamma[:, None] * affine.kernel(), bias=bias, grid=None)


def _side_by_side(parts: Sequence[Affine]) -> Affine:
    """Return several layers of one input as a single one, whose outputs follow each other."""
    if len(parts) == 1:
        return parts[0]
    bias = None
    if any(part.bias is not None for part in parts):
        zeros = [np.zeros(part.shape[1], np.float32) if part.bias is None else part.bias for part in parts]
        bias = np.concatenate(zeros)
    shape = (parts[0].shape[0], sum(part.shape[1] for part in parts))
    key = ("side_by_side", *(part.key for part in parts))
    grids = [part.grid for part in parts if part.grid is not None]
    grid = Grid(np.concatenate([one.scale for one in grids])) if len(grids) == len(parts) else None
    least_bits = max(part.least_bits for part in parts)
    return Affine(key, shape, lambda: np.concatenate([part.kernel() for part in parts], axis=1), bias, grid, least_bits)


@dataclass(frozen=True, eq=False)
class Store:
    """The constants of a file, stored as a recipe says (`edgelm_converters.emit.quantize.stored_form`).

    Integers that are computed with in float32 (``weight_only_wi8_afp32``) pass a DEQUANTIZE, which XNNPACK runs once, when it
    takes the graph; it has no way to multiply floats with int8 weights that a file could ask for. The product is as fast as
    float32, and the memory is float32's too, and more: each signature keeps a float32 copy of the kernels beside the packed
    ones, which a cache of packed weights shares. 4×256 with 1, 2 and 4 signatures in LiteRT 2.3, all run once: 37, 52 and
    78 MB; float16, whose copies are shared, 23, 31 and 33; dynamic int8 with 4: 15. A language model of 15 million weights
    with 8 signatures: 501, 197 and 93 MB. It is the recipe for runtimes that know no dynamic int8 (tflite-runtime 2.14 computes
    it right, and as fast as float32), and for what must be accurate and small on disk alone.
    """

    weights: Weights
    recipe: Recipe

    def linear(self, graph: Graph, affine: Affine, x: Value, *, fused: Fused = "none") -> Value:
        """Apply a linear layer to ``(n, in)``."""
        weight = self.weights.once(("kernel", affine.key), lambda: self._kernel(affine))
        # The full precision of a bias costs nothing, and XNNPACK wants it.
        bias = None if affine.bias is None else graph.floats(affine.bias)
        return graph.fully_connected(x, self._place(graph, weight), bias, fused=fused)

    def joined(self, graph: Graph, parts: Sequence[Affine], x: Value) -> Value:
        """Apply several layers to ``(n, in)``; their outputs follow each other.

        They are one product, or one for each run of them that is stored in one form. Together in the widest form they would be
        larger, and float16 beside int8 is faster so: by 20-35 % at 1 token, 7 at 16, 1 at 128. int8 beside int4 is 7-11 %
        slower on a core that is faster with int8 anyway, and was kept for its bytes (LiteRT 2.3, one AVX2 core, 4×256).
        """
        shape = (parts[0].shape[0], sum(part.shape[1] for part in parts))
        runs = groupby(parts, key=lambda part: stored_form(self.recipe, shape, part.least_bits))
        products = [self.linear(graph, _side_by_side(list(run)), x) for _, run in runs]
        return products[0] if len(products) == 1 else graph.concatenate(products, 1)

    def lookup(self, graph: Graph, ids: Value, table: Float32, factor: float = 1.0, *, least_bits: int) -> Value:
        """Return ``factor * table[ids]``, ids ``(n,)``; the table in no less than `least_bits`, as `Embeddings` has them.

        GATHER copies int8 rows as they are, and XNNPACK turns them into floats: 5 µs for 128 rows of 128, where
        EMBEDDING_LOOKUP's own loop takes 18. The scale of each row is gathered and multiplied apart: the format's scale per
        row brings a zero point of 8 bytes a row with it, and runtimes before 2.18 ignore it in silence.
        """
        form = stored_form(self.recipe, table.shape, least_bits)
        if form == "int8":
            values, scale = self._int8_rows(table, factor)
            rows = graph.dequantize(graph.gather(graph.constant(values), ids))
            return graph.multiply(rows, graph.gather(self._place(graph, scale), ids))
        stored = self._float_table(table, form)
        if form == "float16":
            # Rows are gathered as the bits that they are: runtimes before 2.18 gather no float16, and a DEQUANTIZE of the
            # whole table would hold it in memory once more for each signature, in float32.
            bits = self.weights.once(("bits", stored), lambda: replace(stored, dtype="int16"))
            rows = graph.dequantize(graph.bitcast(graph.gather(graph.constant(bits), ids), "float16"))
        else:
            rows = graph.gather(graph.constant(stored), ids)
        return rows if factor == 1.0 else graph.multiply(rows, graph.floats([[factor]]))

    def scores(self, graph: Graph, x: Value, table: Float32, bias: Float32 | None, *, least_bits: int) -> Value:
        """Return ``x @ table^T + bias``, x ``(n, D)``, table ``(V, D)`` in no less than `least_bits`.

        Where the same table is also looked up, both use its one copy in the file; int8 where the recipe has integers: the
        scores of a language model lose too much in 4 bits.
        """
        form = stored_form(self.recipe, table.shape, least_bits)
        if form == "int8":
            values, scale = self._int8_table(table)
            weight = self.weights.once(
                ("scores", id(table)), lambda: replace(values, quantization=Quantization(scale, 0))
            )
        else:
            weight = self._float_table(table, form)
        return graph.fully_connected(x, self._place(graph, weight), None if bias is None else graph.floats(bias))

    def rows(self, graph: Graph, table: Float32, count: int, lengths: tuple[int, ...], *, least_bits: int) -> Value:
        """Return the first `count` rows of a table, of which the graphs of the file use as many as `lengths` says.

        One table serves them all: cutting it takes less than 1 µs, and a copy for each length its bytes. The longest graph
        cuts too, if there are others: it then numbers its tensors as they do, and shares their operators.
        """

        def cut(whole: Value) -> Value:
            return whole if len(lengths) == 1 else graph.slice(whole, (0, 0), (count, whole.shape[1]))

        used = self.used(table, lengths[-1])
        form = stored_form(self.recipe, used.shape, least_bits)
        if form == "int8":
            values, scale = self._int8_rows(used, 1.0)
            rows = graph.dequantize(cut(graph.constant(values)))
            return graph.multiply(rows, cut(self._place(graph, scale)))
        return cut(self._place(graph, self._float_table(used, form)))

    def plus_rows(self, graph: Graph, x: Value, table: Float32, lengths: tuple[int, ...], *, least_bits: int) -> Value:
        """Return ``x + rows``, x float32 ``(n, D)``; the rest as of `rows`.

        A GPU adds a constant ``(n, D)`` to a computed ``(n, D)`` wrongly and without a word, off by the numbers' own size
        (LiteRT 2.3's WebGPU accelerator), and one of three dimensions rightly. A file of several lengths cuts its rows from a
        table, and what an operator gives is no constant.
        """
        length, width = x.shape
        used = self.used(table, lengths[-1])
        if len(lengths) > 1 or stored_form(self.recipe, used.shape, least_bits) != "float32":
            return graph.add(x, self.rows(graph, table, length, lengths, least_bits=least_bits))
        whole = self.weights.once(("deep", id(used)), lambda: self._floats((1, *used.shape), lambda: used, "float32"))
        added = graph.add(graph.reshape(x, (1, length, width)), graph.constant(whole))
        return graph.reshape(added, (length, width))

    def used(self, table: Float32, count: int) -> Float32:
        """Return the first rows of a table, as the same array at every call: what is stored goes by its id."""
        return self.weights.once(("used", id(table), count), lambda: table[:count])

    def _kernel(self, affine: Affine) -> Constant:
        rows, columns = affine.shape
        form = stored_form(self.recipe, affine.shape, affine.least_bits)
        if form == "int4":
            return self._blocks(affine)
        if form == "int8":
            values, scale = quantize_weight(affine.kernel(), axis=1)
            return self.weights.add("int8", (columns, rows), lambda: values.T, Quantization(scale, 0))
        return self._floats((columns, rows), lambda: affine.kernel().T, form)

    def _blocks(self, affine: Affine) -> Constant:
        rows, columns = affine.shape
        values, scale = _four_bits(affine.kernel(), affine.grid, self.recipe.block or rows)
        packed = pack_pairs(values)
        scales = self.weights.add("float16", scale.shape, lambda: scale)
        return self.weights.add("int4", (columns, rows), lambda: packed, scales=scales)

    def _int8_table(self, table: Float32) -> tuple[Constant, Float32]:
        """Return the values of a table ``(V, E)``, and the scale of each row."""

        def make() -> tuple[Constant, Float32]:
            values, scale = quantize_weight(table, axis=0)
            return self.weights.add("int8", table.shape, lambda: values), scale

        return self.weights.once(("int8 table", id(table)), make)

    def _int8_rows(self, table: Float32, factor: float) -> tuple[Constant, Constant]:
        """Return the values of a table with the step of its largest row, and each row's share of that step, ``(V, 1)``."""

        def make() -> tuple[Constant, Constant]:
            values, scale = self._int8_table(table)
            # Scales as float16 shares of the largest: half the bytes, and off by at most 127 * 2^-11 = 6 % of a step.
            largest = scale.max()
            shares = (scale / largest).astype(np.float16)[:, None]
            step = Quantization(np.array([largest * np.float32(factor)], np.float32), 0)
            return replace(values, quantization=step), self.weights.add("float16", shares.shape, lambda: shares)

        return self.weights.once(("int8 rows", id(table), factor), make)

    def _float_table(self, table: Float32, form: Form) -> Constant:
        return self.weights.once(("table", id(table)), lambda: self._floats(table.shape, lambda: table, form))

    def _floats(self, shape: tuple[int, ...], make: Callable[[], Float32], form: Form) -> Constant:
        if form == "float32":
            return self.weights.add("float32", shape, make)
        return self.weights.add("float16", shape, lambda: _half(make()))

    def _place(self, graph: Graph, constant: Constant) -> Value:
        """Return a constant as what is computed with: integers under a dynamic recipe, else floats."""
        integer = constant.dtype in ("int8", "int4") and self.recipe.activations != "float32"
        if integer or constant.dtype == "float32":
            return graph.constant(constant)
        return graph.once(("float32", constant), lambda: graph.dequantize(graph.constant(constant)))


def _four_bits(kernel: Float32, grid: Grid | None, block: int) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Return the steps of a kernel ``(in, out)`` as ``(out, in)``, in [-8, 7], and their scales ``(out, in / block)``.

    XNNPACK takes the scales as float16, and refuses those that are subnormal in it.
    """
    if grid is not None:
        check_grid(grid, len(kernel), block)
    scale = choose_scales(kernel, block) if grid is None else grid.scale
    scale = np.maximum(scale, np.float32(np.finfo(np.float16).tiny))
    if float(scale.max()) > float(np.finfo(np.float16).max):
        raise RecipeError(
            f"A weight of shape {kernel.shape} needs a scale of {float(scale.max()):.3g}, and float16 ends at 65504: "
            "choose --recipe dynamic_wi8_afp32."
        )
    return round_to(kernel, scale), scale.astype(np.float16)


def _half(weight: Float32) -> NDArray[np.float16]:
    largest = float(np.abs(weight).max())
    if largest > float(np.finfo(np.float16).max):
        raise RecipeError(
            f"A weight of shape {weight.shape} reaches {largest:.3g}, and float16 ends at 65504: "
            "choose --recipe fp32, or dynamic_wi8_afp32 with no part of the model kept in float16."
        )
    return weight.astype(np.float16)
