"""How a language model's weights enter an ONNX graph under each recipe: kernels, tables, and a head that shares its table.

int8 and int4 weights are ``MatMulNBits`` in blocks along the input, whose activations ONNX Runtime rounds to 8 bits block by
block (``accuracy_level`` 4). For int8 the other form is the encoder's, ``DynamicQuantizeLinear`` with an integer product: one
scale for all activations of a call. Measured with ONNX Runtime 1.32, one thread of an AMD EPYC core with AVX2 and without VNNI
(``session.x64quantprecision`` set), best ms, a 768×2048 kernel, rows of normal values in which 3 of 768 columns are eight
times as large. Error: of the product, root mean square, relative; and that of the other 63 tokens where one value of the
first is 300, as the first token's is in many trained models (Sun et al. 2024, https://arxiv.org/abs/2402.17762):

=============================  =====  =======  ========  =======  =========
form                           1 row  64 rows  256 rows  error    with 300
=============================  =====  =======  ========  =======  =========
float32                        0.314  3.04     17.3      0        0
one scale for all activations  0.123  1.77     10.5      1.2-5 %  34 %
int8, blocks of 128            0.157  5.39     25.4      1.3 %    1.3 %
int8, blocks of 32             0.160  6.92     32.6      0.9 %    0.8 %
int4, blocks of 32             0.100  2.67     20.8      8.1 %    8.1 %
=============================  =====  =======  ========  =======  =========

The one scale reads a prompt two to three times as fast and was left for what it does to it: worse than int4. A token at a time,
blocks are nearly as fast (at 2048×768 faster). Blocks of 128 rather than 32 are 8 % fewer bytes.
``benchmarks/results/perplexity.md`` has what the recipes cost in perplexity.

``weight_only_wi8_afp32`` has a scale for each output instead, and is made float32 when the file is loaded, as in an encoder
(`edgelm_converters.emit.onnx_weights` has what was measured). float16 likewise.

Dimensions: ``N`` rows, ``V`` entries of a table, ``D`` its width, ``b`` values of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import RecipeError
from edgelm_converters.emit.blocks import check_grid, pack_pairs, quantize_blocks, round_to
from edgelm_converters.emit.onnx_file import LazyArray
from edgelm_converters.emit.onnx_graph import Graph
from edgelm_converters.emit.onnx_weights import FLOAT
from edgelm_converters.emit.quantize import Form, Int8, quantize_weight, stored_form
from edgelm_converters.recipes import Recipe
from edgelm_converters.spec import Float32, Grid, Linear, TokenHead

__all__ = ["DecoderWeights", "Kernel", "linear_kernel"]

_BLOCKS = (128, 64, 32, 16)  # of int8; the longest that divides the input
_FILLED_UP = 32  # where none does: the input is filled up with zeros to a multiple of this
_LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Kernel:
    """A matrix ``(in, out)`` of the graph, put together when it is needed.

    Attributes:
        name: What it is called in the file.
        shape: ``(in, out)``.
        sources: The spec's arrays that it is made of.
        form: How it is made of them: the same sources in the same form are stored once.
        make: Returns it.
        grid: Of a kernel that was rounded to 4 bits before; None where it was not.
        least_bits: As `Linear.least_bits`.
    """

    name: str
    shape: tuple[int, int]
    sources: tuple[Float32, ...]
    form: str
    make: Callable[[], Float32]
    grid: Grid | None = None
    least_bits: int = 4


def linear_kernel(linear: Linear) -> Kernel:
    """Return a layer's kernel as it is."""
    kernel = linear.kernel
    shape = kernel.shape[0], kernel.shape[1]
    return Kernel(f"{linear.name}/kernel", shape, (kernel,), "as is", lambda: kernel, linear.grid, linear.least_bits)


@dataclass(frozen=True)
class DecoderWeights:
    """The graph that weights go into, and the recipe that says in which form.

    In which form each is stored says `edgelm_converters.emit.quantize.stored_form`; what is done with it:

    ``float32``: as it is. ``float16``: computed with in float32. ``int8``: in blocks where the recipe rounds activations, else
    with a scale for each output, and computed with in float32. ``int4``: in blocks of the recipe's size.
    """

    graph: Graph
    recipe: Recipe

    def linear(self, x: str, linear: Linear) -> str:
        """Return ``x @ kernel + bias`` for float32 rows `x` ``(N, in)``."""
        bias = None if linear.bias is None else self.graph.tensor(linear.bias, f"{linear.name}/bias")
        return self.product(x, linear_kernel(linear), bias)

    def product(self, x: str, kernel: Kernel, bias: str | None) -> str:
        """Return ``x @ kernel + bias`` for float32 rows `x` ``(N, in)`` and the tensor `bias` ``(out,)``."""
        form = stored_form(self.recipe, kernel.shape, kernel.least_bits)
        if self._in_blocks(form):
            return self._nbits(x, kernel, bias, 4 if form == "int4" else 8)
        return self.graph.node("Gemm", x, self._float(kernel, form), *(() if bias is None else (bias,)))

    def rows(self, table: Float32, name: str, ids: str, *, factor: float = 1.0, least_bits: int) -> str:
        """Return the rows of a table that ids int64 ``(N,)`` name, times `factor`, in float32 ``(N, D)``.

        `least_bits` as `Embeddings` has them.
        """
        graph = self.graph
        form = stored_form(self.recipe, table.shape, least_bits)
        if self._in_blocks(form):
            return self._rows_of_blocks(table, name, ids, factor)
        # The factor is no part of the table: a tied head reads the same bytes, without it.
        if form == "int8":
            values, scale = self._int8_rows(table, name)
            scale = graph.node("Gather", scale, ids)
            if factor != 1.0:
                scale = graph.node("Mul", scale, graph.constant(factor))
            return graph.node("Mul", graph.node("Cast", graph.node("Gather", values, ids), to=FLOAT), scale)
        if form == "float16":
            x = graph.node("Cast", graph.node("Gather", self._half(_whole(table, name)), ids), to=FLOAT)
        else:
            x = graph.node("Gather", graph.tensor(table, name), ids)
        return x if factor == 1.0 else graph.node("Mul", x, graph.constant(factor))

    def scores(self, x: str, head: TokenHead) -> str:
        """Return ``x @ table^T + bias`` for float32 rows `x` ``(N, D)``: ``(N, V)``, without the soft cap."""
        graph, table, name = self.graph, head.table, f"{head.name}/table"
        bias = None if head.bias is None else graph.tensor(head.bias, f"{head.name}/bias")
        form = stored_form(self.recipe, table.shape, head.least_bits)
        if self._in_blocks(form):
            return self._nbits(x, _turned(table, name), bias, 8)
        if form == "int8":
            values, scale = self._int8_rows(table, name)
            stored = graph.node("Mul", graph.node("Cast", values, to=FLOAT), scale)
        elif form == "float16":
            stored = graph.node("Cast", self._half(_whole(table, name)), to=FLOAT)
        else:
            stored = graph.tensor(table, name)
        return graph.node("Gemm", x, stored, *(() if bias is None else (bias,)), transB=1)

    def _in_blocks(self, form: Form) -> bool:
        return form == "int4" or (form == "int8" and self.recipe.activations == "dynamic")

    def _nbits(self, x: str, kernel: Kernel, bias: str | None, bits: int) -> str:
        values, scale, block = self._blocks(kernel, bits)
        inputs = (x, values, scale, *(() if bias is None else ("", "", bias)))
        return self.graph.node(
            "MatMulNBits", *inputs, contrib=True,
            K=kernel.shape[0], N=kernel.shape[1], bits=bits, block_size=block, accuracy_level=4,
        )  # fmt: skip

    def _rows_of_blocks(self, table: Float32, name: str, ids: str, factor: float) -> str:
        # GatherBlockQuantized takes 8 bits from ONNX Runtime 1.23 on, and another shape than MatMulNBits. At one row these
        # five nodes take as long as it does.
        graph, width = self.graph, table.shape[1]
        values, scale, block = self._blocks(_turned(table, name), 8)
        steps = graph.node("Cast", graph.node("Gather", values, ids), to=FLOAT)  # (N, blocks, b)
        scales = graph.node("Gather", scale, ids)
        if factor != 1.0:
            scales = graph.node("Mul", scales, graph.constant(factor))
        scales = graph.node("Unsqueeze", scales, graph.constant([2]))
        x = graph.node("Mul", graph.node("Sub", steps, graph.constant(128.0)), scales)
        x = graph.node("Reshape", x, graph.constant([-1, -(-width // block) * block]))
        if width % block:
            x = graph.node("Slice", x, graph.constant([0]), graph.constant([width]), graph.constant([1]))
        return x

    def _float(self, kernel: Kernel, form: Form) -> str:
        """Return a kernel as float32: what it takes to make one of a narrower form is folded when the file is loaded."""
        graph = self.graph
        if form == "float16":
            return graph.node("Cast", self._half(kernel), to=FLOAT)
        if form == "int8":
            values, scale = self._int8_columns(kernel)
            return graph.node("Mul", graph.node("Cast", values, to=FLOAT), scale)
        if kernel.form == "as is":
            return graph.tensor(kernel.sources[0], kernel.name)
        lazy = LazyArray(kernel.shape, np.dtype(np.float32), kernel.make)
        return graph.tensor(lazy, kernel.name, *kernel.sources, form=kernel.form)

    def _half(self, kernel: Kernel) -> str:
        peak = max(max(float(part.max()), -float(part.min())) for part in kernel.sources)
        if peak > _LARGEST_HALF:
            raise RecipeError(
                f"The weight {kernel.name} reaches {peak:.6g}, and float16 ends at {_LARGEST_HALF:.0f}: "
                "convert with the recipe fp32, or dynamic_wi8_afp32 with no part of the model kept in float16."
            )
        lazy = LazyArray(kernel.shape, np.dtype(np.float16), lambda: kernel.make().astype(np.float16))
        return self.graph.tensor(lazy, kernel.name, *kernel.sources, form=f"float16 {kernel.form}")

    def _int8_columns(self, kernel: Kernel) -> tuple[str, str]:
        """Return the names of a kernel's int8 values ``(in, out)`` and of their scales ``(out,)``."""
        return self._pair(kernel, "int8 columns", lambda: quantize_weight(kernel.make(), axis=1))

    def _int8_rows(self, table: Float32, name: str) -> tuple[str, str]:
        """Return the names of a table's int8 values ``(V, D)`` and of their scales ``(V, 1)``."""

        def make() -> tuple[Int8, Float32]:
            values, scale = quantize_weight(table, axis=0)
            return values, scale[:, None]

        return self._pair(_whole(table, name), "int8 rows", make)

    def _blocks(self, kernel: Kernel, bits: int) -> tuple[str, str, int]:
        """Return the names of the values, uint8 ``(out, blocks, b * bits / 8)``, and of the scales ``(out, blocks)``; and b."""
        inputs = kernel.shape[0]
        if bits == 4:
            block = self.recipe.block or inputs
            return *self._pair(kernel, "int4", lambda: _pack_int4(kernel, block)), block
        block = next((size for size in _BLOCKS if inputs % size == 0), _FILLED_UP)
        return *self._pair(kernel, "int8", lambda: _pack_int8(kernel.make(), block)), block

    def _pair(
        self, kernel: Kernel, form: str, make: Callable[[], tuple[NDArray[np.uint8] | Int8, Float32]]
    ) -> tuple[str, str]:
        """Return the names of values and scales that are made of a kernel, once for the same kernel in the same form."""
        graph = self.graph
        forms = f"{form} {kernel.form}", f"{form} scale {kernel.form}"
        found = graph.find(*kernel.sources, form=forms[0]), graph.find(*kernel.sources, form=forms[1])
        if found[0] is not None and found[1] is not None:
            return found[0], found[1]
        values, scale = make()
        return (
            graph.tensor(values, kernel.name, *kernel.sources, form=forms[0]),
            graph.tensor(scale, f"{kernel.name}/scale", *kernel.sources, form=forms[1]),
        )


def _whole(table: Float32, name: str) -> Kernel:
    """Return a table ``(V, D)`` to be stored as it is."""
    return Kernel(name, (table.shape[0], table.shape[1]), (table,), "as is", lambda: table)


def _turned(table: Float32, name: str) -> Kernel:
    """Return a table as the kernel ``(D, V)`` of a head: in blocks, a tied head shares it with the embedding."""
    return Kernel(name, (table.shape[1], table.shape[0]), (table,), "table", lambda: table.T)


def _pack_int8(kernel: Float32, block: int) -> tuple[NDArray[np.uint8], Float32]:
    """Return uint8 values ``(out, blocks, b)`` around 128, and scales ``(out, blocks)``; zeros fill up the last block."""
    inputs, outputs = kernel.shape
    if inputs % block:
        kernel = np.pad(kernel, ((0, -inputs % block), (0, 0)))
    steps, scale = quantize_weight(np.ascontiguousarray(kernel.T).reshape(-1, block), axis=0)
    values = steps.view(np.uint8) ^ np.uint8(128)  # two's complement plus 128
    return values.reshape(outputs, -1, block), scale.reshape(outputs, -1)


def _pack_int4(kernel: Kernel, block: int) -> tuple[NDArray[np.uint8], Float32]:
    """Return values around 8, two a byte with the first in the low half, ``(out, blocks, b / 2)``; scales ``(out, blocks)``."""
    made, grid = kernel.make(), kernel.grid
    if grid is None:
        steps, scale = quantize_blocks(made, bits=4, block=block, positive=False)
    else:
        check_grid(grid, len(made), block)
        steps, scale = round_to(made, grid.scale), grid.scale
    return pack_pairs(steps + np.int8(8)).reshape(*scale.shape, block // 2), scale
