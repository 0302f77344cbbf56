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

Dimensions: ``N`` rows, ``V`` entries of a table, ``D`` its width, ``b`` values of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import RecipeError
from edgelm_converters.emit.blocks import quantize_blocks, round_to
from edgelm_converters.emit.onnx_file import LazyArray
from edgelm_converters.emit.onnx_graph import Graph
from edgelm_converters.emit.onnx_weights import FLOAT
from edgelm_converters.emit.quantize import quantize_weight, worth_quantizing
from edgelm_converters.spec import Float32, Linear, TokenHead

__all__ = ["DecoderWeights", "Kernel", "linear_kernel"]

_INT8, _INT4 = "dynamic_wi8_afp32", "dynamic_wi4b32_afp32"
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
        scale: Of a kernel that was rounded to 4 bits before, float32 ``(out, blocks)``; None where it was not.
        least_bits: 8 where a recipe of 4 bits stores it in 8.
    """

    name: str
    shape: tuple[int, int]
    sources: tuple[Float32, ...]
    form: str
    make: Callable[[], Float32]
    scale: Float32 | None = None
    least_bits: int = 4


def linear_kernel(linear: Linear) -> Kernel:
    """Return a layer's kernel as it is."""
    kernel = linear.kernel
    shape = kernel.shape[0], kernel.shape[1]
    scale = None if linear.grid is None else linear.grid.scale
    return Kernel(f"{linear.name}/kernel", shape, (kernel,), "as is", lambda: kernel, scale, linear.least_bits)


@dataclass(frozen=True)
class DecoderWeights:
    """The graph that weights go into, and the recipe that says in which form.

    ``fp32``: as they are. ``fp16``: stored as float16 and computed in float32. ``dynamic_wi8_afp32``: int8 in blocks.
    ``dynamic_wi4b32_afp32``: kernels int4 in blocks of 32, tables and head int8.
    """

    graph: Graph
    recipe: str

    def linear(self, x: str, linear: Linear) -> str:
        """Return ``x @ kernel + bias`` for float32 rows `x` ``(N, in)``."""
        bias = None if linear.bias is None else self.graph.tensor(linear.bias, f"{linear.name}/bias")
        return self.product(x, linear_kernel(linear), bias)

    def product(self, x: str, kernel: Kernel, bias: str | None) -> str:
        """Return ``x @ kernel + bias`` for float32 rows `x` ``(N, in)`` and the tensor `bias` ``(out,)``."""
        if self.recipe in (_INT8, _INT4) and worth_quantizing(kernel.shape):
            bits = 4 if self.recipe == _INT4 and kernel.least_bits == 4 else 8
            values, scale, block = self._blocks(kernel, bits)
            return self._nbits(x, values, scale, bias, kernel.shape, bits, block)
        return self.graph.node("Gemm", x, self._float(kernel), *(() if bias is None else (bias,)))

    def rows(self, table: Float32, name: str, ids: str, *, factor: float = 1.0) -> str:
        """Return the rows of a table that ids int64 ``(N,)`` name, times `factor`, in float32 ``(N, D)``."""
        graph = self.graph
        if self._quantizes(table):
            return self._quantized_rows(table, name, ids, factor)
        x = graph.node("Gather", self._stored_table(table, name), ids)
        if self.recipe == "fp16" and worth_quantizing(table):
            x = graph.node("Cast", x, to=FLOAT)
        # The factor is no part of the table: a tied head reads the same bytes, without it.
        return x if factor == 1.0 else graph.node("Mul", x, graph.constant(factor))

    def scores(self, x: str, head: TokenHead) -> str:
        """Return ``x @ table^T + bias`` for float32 rows `x` ``(N, D)``: ``(N, V)``, without the soft cap."""
        graph, table = self.graph, head.table
        bias = None if head.bias is None else graph.tensor(head.bias, f"{head.name}/bias")
        if self._quantizes(table):
            values, scale, block = self._table_blocks(table, f"{head.name}/table")
            return self._nbits(x, values, scale, bias, (table.shape[1], table.shape[0]), 8, block)
        stored = self._stored_table(table, f"{head.name}/table")
        if self.recipe == "fp16" and worth_quantizing(table):
            stored = graph.node("Cast", stored, to=FLOAT)
        return graph.node("Gemm", x, stored, *(() if bias is None else (bias,)), transB=1)

    def _quantizes(self, table: Float32) -> bool:
        return self.recipe in (_INT8, _INT4) and worth_quantizing(table)

    def _nbits(
        self, x: str, values: str, scale: str, bias: str | None, shape: tuple[int, int], bits: int, block: int
    ) -> str:
        inputs = (x, values, scale, *(() if bias is None else ("", "", bias)))
        return self.graph.node(
            "MatMulNBits", *inputs, contrib=True, K=shape[0], N=shape[1], bits=bits, block_size=block, accuracy_level=4
        )

    def _quantized_rows(self, table: Float32, name: str, ids: str, factor: float) -> str:
        # GatherBlockQuantized takes 8 bits from ONNX Runtime 1.23 on, and another shape than MatMulNBits. At one row these
        # five nodes take as long as it does.
        graph, width = self.graph, table.shape[1]
        values, scale, block = self._table_blocks(table, name)
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

    def _stored_table(self, table: Float32, name: str) -> str:
        if self.recipe != "fp16" or not worth_quantizing(table):
            return self.graph.tensor(table, name)
        return self._half(Kernel(name, (table.shape[0], table.shape[1]), (table,), "as is", lambda: table))

    def _float(self, kernel: Kernel) -> str:
        if self.recipe == "fp16" and worth_quantizing(kernel.shape):
            return self.graph.node("Cast", self._half(kernel), to=FLOAT)
        if kernel.form == "as is":
            return self.graph.tensor(kernel.sources[0], kernel.name)
        lazy = LazyArray(kernel.shape, np.dtype(np.float32), kernel.make)
        return self.graph.tensor(lazy, kernel.name, *kernel.sources, form=kernel.form)

    def _half(self, kernel: Kernel) -> str:
        peak = max(max(float(part.max()), -float(part.min())) for part in kernel.sources)
        if peak > _LARGEST_HALF:
            raise RecipeError(
                f"The weight {kernel.name} reaches {peak:.6g}, and float16 ends at {_LARGEST_HALF:.0f}: "
                f"convert with the recipe fp32 or {_INT8}."
            )
        lazy = LazyArray(kernel.shape, np.dtype(np.float16), lambda: kernel.make().astype(np.float16))
        return self.graph.tensor(lazy, kernel.name, *kernel.sources, form=f"float16 {kernel.form}")

    def _table_blocks(self, table: Float32, name: str) -> tuple[str, str, int]:
        """Return a table's values, scales and block as of a kernel ``(D, V)``: what a tied head shares with the embedding."""
        return self._blocks(Kernel(name, (table.shape[1], table.shape[0]), (table,), "table", lambda: table.T), 8)

    def _blocks(self, kernel: Kernel, bits: int) -> tuple[str, str, int]:
        """Return the names of the values, uint8 ``(out, blocks, b * bits / 8)``, and of the scales ``(out, blocks)``; and b."""
        graph, (inputs, _) = self.graph, kernel.shape
        block = 32 if bits == 4 else next((size for size in _BLOCKS if inputs % size == 0), _FILLED_UP)
        forms = f"int{bits} {kernel.form}", f"int{bits} scale {kernel.form}"
        found = graph.find(*kernel.sources, form=forms[0]), graph.find(*kernel.sources, form=forms[1])
        if found[0] is not None and found[1] is not None:
            return found[0], found[1], block
        made = kernel.make()
        if inputs % block:
            made = np.pad(made, ((0, -inputs % block), (0, 0)))
        values, scale = _pack_int4(made, block, kernel.scale) if bits == 4 else _pack_int8(made, block)
        return (
            graph.tensor(values, kernel.name, *kernel.sources, form=forms[0]),
            graph.tensor(scale, f"{kernel.name}/scale", *kernel.sources, form=forms[1]),
            block,
        )


def _pack_int8(kernel: Float32, block: int) -> tuple[NDArray[np.uint8], Float32]:
    """Return uint8 values ``(out, blocks, b)`` around 128, and scales ``(out, blocks)``."""
    outputs = kernel.shape[1]
    steps, scale = quantize_weight(np.ascontiguousarray(kernel.T).reshape(-1, block), axis=0)
    values = steps.view(np.uint8) ^ np.uint8(128)  # two's complement plus 128
    return values.reshape(outputs, -1, block), scale.reshape(outputs, -1)


def _pack_int4(kernel: Float32, block: int, scale: Float32 | None) -> tuple[NDArray[np.uint8], Float32]:
    """Return values around 8, two a byte with the first in the low half, ``(out, blocks, b / 2)``; scales ``(out, blocks)``.

    Args:
        kernel: ``(in, out)``.
        block: Values of a block, b.
        scale: That the kernel was rounded with before; None chooses.
    """
    if scale is None:
        steps, scale = quantize_blocks(kernel, bits=4, block=block, positive=False)
    else:
        steps = round_to(kernel, scale)
    values = (steps + np.int8(8)).view(np.uint8)
    packed = values[:, 0::2] | values[:, 1::2] << np.uint8(4)
    return packed.reshape(len(packed), -1, block // 2), scale
