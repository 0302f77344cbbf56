"""How weights enter an ONNX graph under each recipe: matrix products and rows of tables.

Measured with ONNX Runtime 1.32, one thread of an AMD EPYC core with AVX2 and without VNNI (``session.x64quantprecision``
set), a 4×256 encoder, best ms of one alternating run; in bold type what the files have:

=======================================  =======  =========  ==========
form of the kernels                      1 token  16 tokens  128 tokens
=======================================  =======  =========  ==========
float32                                  1.29     2.18       9.8
int8, **made float32 at load**           1.21     2.15       10.0
int8, MatMulNBits with float arithmetic  4.87     6.24       14.3
int4 in blocks of 32, **accuracy 4**     0.48     1.67       11.0
int4 in blocks of 32, float arithmetic   0.96     2.47       10.2
int4 in blocks of 128, **accuracy 4**    0.43     1.47       10.0
int4 in blocks of 128, float arithmetic  0.86     2.20       10.0
=======================================  =======  =========  ==========

MatMulNBits with float arithmetic keeps int8 weights as they are in memory (23 MB where float32 takes 43, and so does the form
that is made float32 at load). ``weight_only_wi8_afp32`` promises float32's speed.

Dimensions: ``N`` rows, ``V`` entries of a table, ``E`` its width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import RecipeError
from edgelm_converters.emit.blocks import check_grid, pack_pairs, quantize_blocks, round_to
from edgelm_converters.emit.onnx_graph import Graph
from edgelm_converters.emit.quantize import Form, quantize_weight, stored_form
from edgelm_converters.recipes import Recipe
from edgelm_converters.spec import Float32, Grid, Linear

__all__ = ["BOOL", "FLOAT", "INT32", "INT64", "Weights"]

FLOAT, INT32, INT64, BOOL = 1, 6, 7, 9  # onnx.TensorProto's numbers, as a Cast takes them

_LARGEST_HALF = float(np.finfo(np.float16).max)
_SMALLEST_HALF = float(np.finfo(np.float16).smallest_normal)
_LONG_TABLE, _WIDE_TABLE = 1024, 256


@dataclass(frozen=True)
class Weights:
    """The graph that weights go into, and the recipe that says in which form.

    In which form each is stored says `edgelm_converters.emit.quantize.stored_form`; what is done with it:

    ``float32``: as it is. ``float16``: cast to float32; ONNX Runtime folds the cast when it loads the file, so a product is
    as fast as with float32 and takes as much memory, while a table stays float16 and only its rows that are used are cast.
    ``int8``, a scale a column (a row, in a table): a product of integers where the recipe rounds activations; where it does
    not, multiplied by its scales and so made float32 when the file is loaded. ``int4``, a scale a block of inputs:
    MatMulNBits, which rounds the activations block by block (accuracy level 4).

    Attributes:
        shared: ``id()`` of the kernels that several products use.
    """

    graph: Graph
    recipe: Recipe
    shared: frozenset[int] = frozenset()

    def linear(self, x: str, linear: Linear) -> str:
        """Return ``x @ kernel + bias`` for float32 rows `x` ``(N, in)``."""
        bias = linear.bias
        return self.product(x, linear, None if bias is None else self.graph.tensor(bias, f"{linear.name}/bias"))

    def product(self, x: str, linear: Linear, bias: str | None) -> str:
        """Return ``x @ kernel + bias`` for float32 rows `x`, with the tensor `bias` in place of the layer's own."""
        kernel, name = linear.kernel, f"{linear.name}/kernel"
        form = stored_form(self.recipe, kernel.shape, linear.least_bits)
        if form == "int4":
            return self._four_bits(x, linear, name, bias)
        if form == "int8" and self.recipe.activations == "dynamic":
            return self._integers(x, kernel, name, bias)
        # Rows of two dimensions keep ONNX Runtime from merging Add and LayerNormalization into SkipLayerNormalization, which
        # takes 170 µs instead of 42 on 128×256 values (1.32: a scalar loop).
        return self.graph.node("Gemm", x, self._float(kernel, name, form), *(() if bias is None else (bias,)))

    def rows(
        self, table: Float32, name: str, pick: Callable[[str], str], *, factor: float = 1.0, least_bits: int
    ) -> str:
        """Return some rows of a table in float32, times `factor`.

        Args:
            table: ``(V, E)``.
            name: What it is called in the file.
            pick: Adds the nodes that pick rows out of a tensor ``(V, …)``, and returns their output.
            factor: On every value; it is folded into the stored table or its scales.
            least_bits: As `Embeddings` has them.
        """
        graph = self.graph
        form = stored_form(self.recipe, table.shape, least_bits)
        if form == "int8":
            values, scale = self._int8(table, name, axis=0, factor=factor)
            picked = pick(scale)
            if graph.is_half(scale):
                picked = graph.node("Cast", picked, to=FLOAT)
            return graph.node("Mul", graph.node("Cast", pick(values), to=FLOAT), picked)
        scaled = table if factor == 1.0 else table * np.float32(factor)
        if form == "float16":
            return graph.node("Cast", pick(self._half(scaled, name)), to=FLOAT)
        return pick(graph.tensor(scaled, name))

    def _four_bits(self, x: str, linear: Linear, name: str, bias: str | None) -> str:
        """Return a product whose kernel has a scale for each block of inputs; so have the rows, which are rounded to 8 bits."""
        inputs, outputs = linear.kernel.shape
        block = self.recipe.block or inputs
        values, scale = self._blocks(linear.kernel, name, block, linear.grid)
        return self.graph.node(
            "MatMulNBits", x, values, scale, *(() if bias is None else ("", "", bias)), contrib=True,
            K=inputs, N=outputs, bits=4, block_size=block, accuracy_level=4,
        )  # fmt: skip

    def _integers(self, x: str, kernel: Float32, name: str, bias: str | None) -> str:
        """Return a product of int8 values."""
        graph = self.graph
        values, scale = self._int8(kernel, name, axis=1)
        if id(kernel) in self.shared:
            # Folded when the file is loaded, so that each product has its own constant. Where x64quantprecision (below)
            # turns int8 weights into uint8 ones, ONNX Runtime 1.32 does so once a product, and fails at the second
            # ("Attempt to replace the existing tensor"). An end that is another one each time, and behind the
            # last row, keeps it from merging the copies again.
            zero, end = graph.constant([0]), graph.constant([kernel.shape[0] + 1 + graph.size])
            values = graph.node("Slice", values, zero, end, zero)
        # One scale for all of x, shared by the products that read it. ONNX Runtime merges the two nodes into
        # DynamicQuantizeMatMul where only one product does. 128 tokens of a 4×256 BERT, one thread, Zen 4 with VNNI:
        # 3.07 ms; with MatMulNBits of 8 bits (blocks of 128) 5.80, with uint8 weights 5.46, float32 7.72.
        # An x86 core without VNNI adds pairs of uint8 x int8 products in 16 bits and saturates. ONNX Runtime's option
        # session.x64quantprecision avoids it there; seven-bit or uint8 weights would cost every other device.
        x_values, x_scale, x_zero = graph.nodes("DynamicQuantizeLinear", x, outputs=3)
        inputs = (x_values, values, x_scale, scale, x_zero, *(() if bias is None else ("", bias)))
        return graph.node("MatMulIntegerToFloat", *inputs, contrib=True)

    def _float(self, kernel: Float32, name: str, form: Form) -> str:
        """Return a kernel as float32: what it takes to make one of a narrower form is folded when the file is loaded."""
        graph = self.graph
        if form == "float32":
            return graph.tensor(kernel, name)
        if form == "float16":
            return graph.node("Cast", self._half(kernel, name), to=FLOAT)
        values, scale = self._int8(kernel, name, axis=1)
        return graph.node("Mul", graph.node("Cast", values, to=FLOAT), scale)

    def _half(self, weight: Float32, name: str) -> str:
        found = self.graph.find(weight, form="float16")
        if found is not None:
            return found
        peak = max(float(weight.max()), -float(weight.min()))
        if peak > _LARGEST_HALF:
            raise RecipeError(
                f"The weight {name} reaches {peak:.6g}, and float16 ends at {_LARGEST_HALF:.0f}: "
                "convert with the recipe fp32, or dynamic_wi8_afp32 with no part of the model kept in float16."
            )
        return self.graph.tensor(weight.astype(np.float16), name, weight, form="float16")

    def _blocks(self, kernel: Float32, name: str, block: int, grid: Grid | None) -> tuple[str, str]:
        """Return the names of the 4-bit values, uint8 ``(out, blocks, block / 2)``, and of their scales ``(out, blocks)``."""
        graph = self.graph
        found = graph.find(kernel, form="int4"), graph.find(kernel, form="int4 scale")
        if found[0] is not None and found[1] is not None:
            return found[0], found[1]
        if grid is None:
            values, scale = quantize_blocks(kernel, bits=4, block=block, positive=False)
        else:
            check_grid(grid, len(kernel), block)
            values, scale = round_to(kernel, grid.scale), grid.scale
        packed = pack_pairs(values + np.int8(8)).reshape(*scale.shape, block // 2)
        return (
            graph.tensor(packed, name, kernel, form="int4"),
            graph.tensor(scale, f"{name}/scale", kernel, form="int4 scale"),
        )

    def _int8(self, weight: Float32, name: str, *, axis: int, factor: float = 1.0) -> tuple[str, str]:
        """Return the names of the int8 values and of their scales: ``(out,)`` for axis 1, ``(V, 1)`` for axis 0."""
        graph = self.graph
        scale_form = f"scale {axis} {factor}"
        found = graph.find(weight, form=f"int8 {axis}"), graph.find(weight, form=scale_form)
        if found[0] is not None and found[1] is not None:
            return found[0], found[1]
        values, scale = quantize_weight(weight, axis)
        scale = scale * np.float32(factor)
        if axis == 0:
            scale = _short(scale[:, None], weight)
        return (
            graph.tensor(values, name, weight, form=f"int8 {axis}"),
            graph.tensor(scale, f"{name}/scale", weight, form=scale_form),
        )


def _short(scale: Float32, table: Float32) -> NDArray[np.floating]:
    """Return the scales of a long, narrow table as float16 where that loses nothing that shows.

    Four bytes a row of 128 are 3 % of an int8 file. Above float16's subnormals a scale is off by at most 2^-12 of itself:
    a sixteenth of the rounding of the row's largest value.
    """
    worthwhile = table.shape[0] >= _LONG_TABLE and table.shape[1] < _WIDE_TABLE
    if worthwhile and scale.min() >= _SMALLEST_HALF and scale.max() <= _LARGEST_HALF:
        return scale.astype(np.float16)
    return scale
