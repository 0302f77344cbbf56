"""The operators of a TFLite graph as functions: each appends one operator, and returns the tensor that it makes.

A `Graph` is one subgraph under construction. Constants live in the `Weights` of the whole file: the same array asked for by
several subgraphs is one buffer. Shapes are static and inferred here, so that a mistake shows when the file is written.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgelm_converters.emit.tflite_file import Blocks, Data, Model, Operator, Quantization, Subgraph, Tensor

__all__ = ["Constant", "Fused", "Graph", "Value", "Weights"]

Fused = Literal["none", "relu"]
Made = TypeVar("Made")

_FUSED: dict[Fused, int] = {"none": 0, "relu": 1}
_DTYPES = {"float32": 0, "int32": 2}


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of one graph."""

    index: int
    shape: tuple[int, ...]
    dtype: str
    quantization: Quantization | Blocks | None = None


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor with content, that every graph of the file may use.

    Attributes:
        scales: Of an int4 tensor ``(out, in)``: float16 ``(out, in / block)``, a tensor of its own in each graph.
    """

    buffer: int
    shape: tuple[int, ...]
    dtype: str
    quantization: Quantization | None = None
    scales: Constant | None = None


@dataclass(eq=False)
class Weights:
    """The constants of a file: each is stored once."""

    model: Model
    _known: dict[Hashable, Any] = field(default_factory=dict)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return what belongs to that key, a constant or several; it is made at the first call."""
        if key not in self._known:
            self._known[key] = make()
        made: Made = self._known[key]
        return made

    def add(
        self,
        dtype: str,
        shape: tuple[int, ...],
        make: Callable[[], NDArray[Any]],
        quantization: Quantization | None = None,
        scales: Constant | None = None,
    ) -> Constant:
        """Add a constant whose content is made when the file is written; int4 as bytes of two values, the lower bits first."""
        count = int(np.prod(shape, dtype=np.int64))
        size = (count + 1) // 2 if dtype == "int4" else count * np.dtype(dtype).itemsize
        self.model.buffers.append(Data(size, make))
        return Constant(len(self.model.buffers) - 1, shape, dtype, quantization, scales)

    def small(self, array: NDArray[Any]) -> Constant:
        """Return a constant with that content; equal content is one buffer."""
        key = (array.dtype.str, array.shape, array.tobytes())
        return self.once(key, lambda: self.add(array.dtype.name, array.shape, lambda: array))


class Graph:
    """One subgraph, built operator by operator."""

    def __init__(self, weights: Weights, name: str) -> None:
        self.weights = weights
        self.subgraph = Subgraph(name)
        weights.model.subgraphs.append(self.subgraph)
        self._made: dict[Hashable, Value] = {}

    def input(self, name: str, shape: tuple[int, ...], dtype: str) -> Value:
        """Add an input."""
        value = self._value(shape, dtype, name=name)
        self.subgraph.inputs.append(value.index)
        return value

    def output(self, name: str, value: Value) -> None:
        """Make a computed value the output of that name."""
        tensor = self.subgraph.tensors[value.index]
        self.subgraph.tensors[value.index] = Tensor(tensor.dtype, tensor.shape, name=name)
        self.subgraph.outputs.append(value.index)

    def constant(self, constant: Constant) -> Value:
        """Return a constant of the file as a value of this graph."""

        def make() -> Value:
            quantization: Quantization | Blocks | None = constant.quantization
            if constant.scales is not None:
                block = constant.shape[1] // constant.scales.shape[1]
                quantization = Blocks(self.constant(constant.scales).index, block)
            return self._value(constant.shape, constant.dtype, buffer=constant.buffer, quantization=quantization)

        return self.once(constant, make)

    def once(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the value of that key; it is made at the first call."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def floats(self, content: object) -> Value:
        """Return a small float32 constant."""
        return self.constant(self.weights.small(np.asarray(content, np.float32)))

    def integers(self, content: object) -> Value:
        """Return a small int32 constant."""
        return self.constant(self.weights.small(np.asarray(content, np.int32)))

    # Arithmetic

    def add(self, left: Value, right: Value) -> Value:
        """``left + right``; of equal ranks, since a GPU delegate broadcasts unequal ones wrongly, and says nothing."""
        return self._binary("ADD", "AddOptions", left, right)

    def subtract(self, left: Value, right: Value) -> Value:
        """``left - right``."""
        return self._binary("SUB", "SubOptions", left, right)

    def multiply(self, left: Value, right: Value) -> Value:
        """``left * right``."""
        return self._binary("MUL", "MulOptions", left, right)

    def divide(self, left: Value, right: Value) -> Value:
        """``left / right``."""
        return self._binary("DIV", "DivOptions", left, right)

    def minimum(self, left: Value, right: Value) -> Value:
        """The smaller of the two."""
        return self._binary("MINIMUM", "MaximumMinimumOptions", left, right)

    def maximum(self, left: Value, right: Value) -> Value:
        """The larger of the two."""
        return self._binary("MAXIMUM", "MaximumMinimumOptions", left, right)

    def unary(self, name: str, x: Value, options: tuple[str, dict[str, Any]] | None = None) -> Value:
        """Apply an operator that keeps shape and type, such as ``"RSQRT"``, ``"TANH"`` or ``"LOGISTIC"``."""
        return self._operator(name, (x,), x.shape, options=options)

    def gelu(self, x: Value, *, approximate: bool) -> Value:
        """GELU: with the error function, or with tanh in its place."""
        return self.unary("GELU", x, ("GeluOptions", {"Approximate": approximate}))

    def softmax(self, x: Value) -> Value:
        """Softmax over the last axis."""
        return self.unary("SOFTMAX", x, ("SoftmaxOptions", {"Beta": 1.0}))

    def cast(self, x: Value, dtype: str) -> Value:
        """Convert to another type."""
        options = ("CastOptions", {"InDataType": _DTYPES[x.dtype], "OutDataType": _DTYPES[dtype]})
        return self._operator("CAST", (x,), x.shape, dtype=dtype, options=options)

    def reduce(self, name: Literal["MEAN", "SUM", "REDUCE_MAX"], x: Value, axis: int) -> Value:
        """Reduce one axis to length 1."""
        axis %= len(x.shape)
        shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
        return self._operator(name, (x, self.integers([axis])), shape, options=("ReducerOptions", {"KeepDims": True}))

    # Products

    def fully_connected(self, x: Value, weight: Value, bias: Value | None, *, fused: Fused = "none") -> Value:
        """``x @ weight^T + bias``, x ``(n, in)`` or ``(…, in)``, weight ``(out, in)`` float or quantised, bias ``(out,)``."""
        hybrid = weight.dtype in ("int8", "int4")
        keep = len(x.shape) != 2
        # As TFLite's converter assigns them: 12 is float input with int8 weights and a scale per channel, 6 no bias, 5
        # more than two dimensions.
        version = 12 if hybrid else 6 if bias is None else 5 if keep else 1
        options = ("FullyConnectedOptions", {"FusedActivationFunction": _FUSED[fused], "KeepNumDims": keep})
        inputs = (x, weight, bias)
        return self._operator(
            "FULLY_CONNECTED", inputs, (*x.shape[:-1], weight.shape[0]), version=version, options=options
        )

    def batch_matmul(self, left: Value, right: Value, *, adjoint_right: bool = False) -> Value:
        """``left @ right``, or ``left @ right^T``, over the last two axes."""
        columns = right.shape[-2] if adjoint_right else right.shape[-1]
        batch = tuple(np.broadcast_shapes(left.shape[:-2], right.shape[:-2]))
        options = ("BatchMatMulOptions", {"AdjY": adjoint_right})
        return self._operator("BATCH_MATMUL", (left, right), (*batch, left.shape[-2], columns), options=options)

    # Layout

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """The same elements in another shape."""
        shape = tuple(shape)
        if shape == x.shape:
            return x
        return self._operator("RESHAPE", (x, self.integers(shape)), shape, options=("ReshapeOptions", {}))

    def transpose(self, x: Value, order: Sequence[int]) -> Value:
        """Reorder the axes."""
        shape = tuple(x.shape[axis] for axis in order)
        return self._operator("TRANSPOSE", (x, self.integers(order)), shape, options=("TransposeOptions", {}))

    def slice(self, x: Value, begin: Sequence[int], size: Sequence[int]) -> Value:
        """Cut a block out."""
        inputs = (x, self.integers(begin), self.integers(size))
        version = 2 if x.dtype == "int8" else 1
        options = ("SliceOptions", dict[str, Any]())
        return self._operator(
            "SLICE", inputs, tuple(size), version=version, options=options, quantization=x.quantization
        )

    def split(self, x: Value, axis: int, parts: int) -> list[Value]:
        """Cut into equal parts."""
        shape = list(x.shape)
        shape[axis] //= parts
        outputs = [self._value(tuple(shape), x.dtype) for _ in range(parts)]
        inputs = (self.integers(axis).index, x.index)
        options = ("SplitOptions", {"NumSplits": parts})
        self.subgraph.operators.append(Operator("SPLIT", 1, inputs, tuple(value.index for value in outputs), options))
        return outputs

    def concatenate(self, parts: Sequence[Value], axis: int) -> Value:
        """Join along an axis."""
        axis %= len(parts[0].shape)
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return self._operator("CONCATENATION", parts, tuple(shape), options=("ConcatenationOptions", {"Axis": axis}))

    def update(self, whole: Value, part: Value, start: Value) -> Value:
        """`whole` with `part` written over it from `start` on, int32 ``(rank,)``.

        The runtime moves `start` back where the part would not fit. It writes in place where input and output of the graph
        are one buffer.
        """
        options = ("DynamicUpdateSliceOptions", dict[str, Any]())
        return self._operator("DYNAMIC_UPDATE_SLICE", (whole, part, start), whole.shape, options=options)

    def gather(self, table: Value, ids: Value) -> Value:
        """Rows of a table ``(V, …)``, in the table's own type; ids int32 of any shape."""
        version = {"int8": 2, "int16": 4}.get(table.dtype, 1)
        return self._operator(
            "GATHER",
            (table, ids),
            (*ids.shape, *table.shape[1:]),
            version=version,
            options=("GatherOptions", {}),
            quantization=table.quantization,
        )

    def bitcast(self, x: Value, dtype: str) -> Value:
        """The same bits as another type of that size."""
        return self._operator("BITCAST", (x,), x.shape, dtype=dtype, options=("BitcastOptions", {}))

    def dequantize(self, x: Value) -> Value:
        """float16 or int8 as float32. XNNPACK does this once, when it takes the graph, if x is a constant."""
        channels = isinstance(x.quantization, Quantization) and len(x.quantization.scale) > 1
        version = 3 if x.dtype == "float16" else 5 if channels else 2
        return self._operator("DEQUANTIZE", (x,), x.shape, version=version, dtype="float32")

    # Plumbing

    def _binary(self, name: str, options: str, left: Value, right: Value, dtype: str | None = None) -> Value:
        if len(left.shape) != len(right.shape):
            raise ValueError(f"{name} of the ranks {left.shape} and {right.shape}: give both the same rank.")
        shape = tuple(np.broadcast_shapes(left.shape, right.shape))
        return self._operator(name, (left, right), shape, dtype=dtype, options=(options, {}))

    def _operator(
        self,
        name: str,
        inputs: Sequence[Value | None],
        shape: tuple[int, ...],
        *,
        version: int = 1,
        dtype: str | None = None,
        options: tuple[str, dict[str, Any]] | None = None,
        quantization: Quantization | Blocks | None = None,
    ) -> Value:
        first = inputs[0]
        if dtype is None:
            if first is None:
                raise ValueError(f"{name} needs its first input.")
            dtype = first.dtype
        result = self._value(shape, dtype, quantization=quantization)
        indices = tuple(-1 if value is None else value.index for value in inputs)
        self.subgraph.operators.append(Operator(name, version, indices, (result.index,), options))
        return result

    def _value(
        self,
        shape: tuple[int, ...],
        dtype: str,
        *,
        buffer: int = 0,
        quantization: Quantization | Blocks | None = None,
        name: str = "",
    ) -> Value:
        self.subgraph.tensors.append(Tensor(dtype, shape, buffer, quantization, name))
        return Value(len(self.subgraph.tensors) - 1, shape, dtype, quantization)
