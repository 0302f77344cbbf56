"""An encoder as a TFLite graph in integers: `edgelm_converters.static.encoder.Operators` for LiteRT.

Batch 1, static shapes. A tensor that is in integers has the steps of its point in every graph of the file. Heads are
``(1, H, r, A)``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgelm_converters.emit.quantize import quantize_weight
from edgelm_converters.emit.tflite_blocks import HIDDEN, activated, apply_norm
from edgelm_converters.emit.tflite_file import Quantization
from edgelm_converters.emit.tflite_graph import Constant, Graph, Value, Weights
from edgelm_converters.emit.tflite_weights import Store, plain
from edgelm_converters.recipes import find
from edgelm_converters.spec import Activation, Float32, Head, Linear, Norm, TransformerSpec
from edgelm_converters.static.calibrate import FIXED, norm_points
from edgelm_converters.static.encoder import walk
from edgelm_converters.static.form import FloatOperator, StaticForm
from edgelm_converters.static.ranges import Steps
from edgelm_converters.static.tflite_operators import (
    Quantizations,
    append,
    dequantized,
    gathered_rows,
    like,
    quantized,
    scale_of,
)

__all__ = ["File", "build_static_encoder"]

_RESIDUAL = "norms and residuals keep float32 in this form"
_KEPT = "layers that were to stay float"
_ARITHMETIC = {"ADD": "AddOptions", "SUB": "SubOptions", "MUL": "MulOptions"}
_INT32 = 2  # schema.TensorType, as FULLY_CONNECTED's option for the type of a bias beside int16 takes it


@dataclass(frozen=True, eq=False)
class File:
    """What all graphs of a file share.

    Attributes:
        weights: The constants.
        steps: Of each point.
        form: How the file is quantised.
        lengths: Tokens of each graph, ascending.
        quantizations: The records of the steps.
    """

    weights: Weights
    steps: Mapping[str, Steps]
    form: StaticForm
    lengths: tuple[int, ...]
    quantizations: Quantizations = field(default_factory=Quantizations)

    @property
    def dtype(self) -> str:
        """Of activations in integers."""
        return "int8" if self.form.bits == 8 else "int16"


@dataclass(frozen=True)
class _Placed:
    """A tensor of the graph, and the point that it is."""

    value: Value
    point: str


def build_static_encoder(file: File, graph: Graph, spec: TransformerSpec, length: int) -> list[FloatOperator]:
    """Add a prepared encoder for one length to an empty graph; return what of it is float."""
    ids = graph.input(spec.token_input, (1, length), "int32")
    mask = graph.input(spec.mask_input, (1, length), "int32") if spec.mask_input is not None else None
    segments = graph.input(spec.segment_input, (1, length), "int32") if spec.segment_input is not None else None
    counted = mask if spec.mask == "input" else ids if spec.mask == "nonzero" else None
    real = None
    if counted is not None:
        real = graph.reshape(graph.minimum(counted, graph.integers([[1]])), (length,))
    operators = _Operators(file, graph, graph.reshape(ids, (length,)), segments, real)
    answer = operators.answer(walk(spec, operators), spec.head)
    tensor = graph.subgraph.tensors[answer.index]
    graph.subgraph.tensors[answer.index] = replace(tensor, name=spec.output_name)
    graph.subgraph.outputs.append(answer.index)
    return operators.float_operators()


@dataclass(frozen=True, eq=False)
class _Operators:
    file: File
    graph: Graph
    ids: Value  # int32 (n,)
    segments: Value | None  # int32 (1, n)
    real: Value | None  # int32 (n,), 1 where there is a token
    reasons: dict[int, str] = field(default_factory=dict)  # by operator's index, why it is float

    # The embeddings

    def embed(self, spec: TransformerSpec, point: str) -> _Placed:
        parts, graph, length = spec.embeddings, self.graph, self.ids.shape[0]
        segments = None if self.segments is None else graph.reshape(self.segments, (length,))
        if self.file.form.integer:
            x = self._rows(parts.token * np.float32(parts.token_scale), parts.token, self.ids)
            if segments is not None and parts.segment is not None:
                x = self._arithmetic("ADD", x, self._rows(parts.segment, parts.segment, segments), f"{point}/segment")
            if parts.position is not None:
                x = self._arithmetic("ADD", x, self._positions(parts.position, length), point)
            return _Placed(x, point)
        store, bits = Store(self.file.weights, find("dynamic_wi8_afp32")), parts.least_bits
        with self._floats("embeddings are int8 rows with a scale each, summed in float32"):
            x = store.lookup(graph, self.ids, parts.token, parts.token_scale, least_bits=bits)
            if segments is not None and parts.segment is not None:
                x = graph.add(x, store.lookup(graph, segments, parts.segment, least_bits=bits))
            if parts.position is not None:
                x = store.plus_rows(graph, x, parts.position, self.file.lengths, least_bits=bits)
        return _Placed(x, point)

    def _rows(self, table: Float32, source: Float32, ids: Value) -> Value:
        return self._wide(gathered_rows(self.graph, self.graph.constant(self._table(table, source)), ids))

    def _positions(self, table: Float32, length: int) -> Value:
        longest = self.file.lengths[-1]
        whole = self.graph.constant(self._table(table[:longest], table))
        if len(self.file.lengths) == 1:
            return self._wide(whole)
        begin, size = self.graph.integers([0, 0]), self.graph.integers([length, table.shape[1]])
        return self._wide(like(self.graph, "SLICE", whole, (length, table.shape[1]), ("SliceOptions", {}), begin, size))

    def _wide(self, x: Value) -> Value:
        """Return int8 rows in the type of activations; as int16 they are the same values, in steps of a 256th."""
        if self.file.form.bits == 8:
            return x
        record = self.file.quantizations.of(Steps(scale_of(x) / 256, 0, 16))
        return quantized(self.graph, x, record, self.file.dtype)

    def _table(self, table: Float32, source: Float32) -> Constant:
        """Return an int8 table with one scale, as an accelerator gathers it."""

        def make() -> Constant:
            peak = float(np.abs(table).max())
            steps = Steps(peak / 127 if peak else 1.0, 0, 8)
            record = self.file.quantizations.of(steps)
            return self.file.weights.add("int8", table.shape, lambda: steps.quantize(table).astype(np.int8), record)

        return self.file.weights.once(("static table", id(source)), make)

    # Layers

    def dense(self, x: _Placed, linear: Linear, activation: Activation, point: str) -> _Placed:
        done = point if activation == "linear" else f"{point}/{activation}"
        if self.file.form.keeps(linear):
            store = Store(self.file.weights, find("fp16"))
            with self._floats(_KEPT):
                y = activated(self.graph, store, plain(linear), self._float(x), activation)
            return _Placed(y, done)
        fused = activation == "relu"
        y = self._product(self._integers(x), linear, done if fused else point, relu=fused)
        if activation in ("linear", "relu"):
            return _Placed(y, done)
        if activation in ("gelu", "gelu_tanh"):
            options = ("GeluOptions", {"Approximate": activation == "gelu_tanh"})
            return _Placed(self._unary("GELU", y, self.file.steps[done], options), done)
        if activation == "tanh":
            return _Placed(self._unary("TANH", y, FIXED["tanh", self.file.form.bits]), done)
        sigmoid = self._unary("LOGISTIC", y, FIXED["unit", self.file.form.bits])
        return _Placed(sigmoid if activation == "sigmoid" else self._arithmetic("MUL", y, sigmoid, done), done)

    def add(self, x: _Placed, y: _Placed, point: str) -> _Placed:
        if self.file.form.integer:
            return _Placed(self._arithmetic("ADD", self._integers(x), self._integers(y), point), point)
        with self._floats(_RESIDUAL):
            return _Placed(self.graph.add(self._float(x), self._float(y)), point)

    def multiply(self, x: _Placed, y: _Placed, point: str) -> _Placed:
        return _Placed(self._arithmetic("MUL", self._integers(x), self._integers(y), point), point)

    def norm(self, x: _Placed, norm: Norm, point: str) -> _Placed:
        if not self.file.form.integer:
            with self._floats(_RESIDUAL):
                return _Placed(apply_norm(self.graph, norm, self._float(x)), point)
        points = norm_points(norm, point)
        centred = self._integers(x)
        if norm.kind == "layer":
            mean = self._mean(centred, -1, points["mean"])
            centred = self._arithmetic("SUB", centred, mean, points["centred"])
        square = self._arithmetic("MUL", centred, centred, points["square"])
        # eps is far below a step of the variance: RSQRT gives its largest value where the variance is 0 steps.
        variance = self._mean(square, -1, points["variance"])
        inverse = self._unary("RSQRT", variance, self.file.steps[points["inverse"]])
        y = self._arithmetic("MUL", centred, inverse, points["normalised"])
        y = self._arithmetic(
            "MUL", y, self._vector(norm.gamma, y), points["scaled"] if norm.beta is not None else point
        )
        if norm.beta is not None:
            y = self._arithmetic("ADD", y, self._vector(norm.beta, y), point)
        return _Placed(y, point)

    def _vector(self, values: Float32, beside: Value) -> Value:
        """Return a gamma or a beta in integers, ``(1, D)``."""
        bits = self.file.form.bits
        peak = float(np.abs(values).max())
        steps = Steps(peak / (127 if bits == 8 else 32767) if peak else 1.0, 0, bits)
        shape = (*(1 for _ in beside.shape[1:]), len(values))

        def make() -> Constant:
            content = steps.quantize(values).astype(self.file.dtype).reshape(shape)
            return self.file.weights.add(self.file.dtype, shape, lambda: content, self.file.quantizations.of(steps))

        return self.graph.constant(self.file.weights.once(("static vector", id(values)), make))

    # Attention

    def first_row(self, x: _Placed) -> _Placed:
        value = x.value
        if value.shape[0] == 1:
            return x
        begin, size = self.graph.integers([0, 0]), self.graph.integers([1, value.shape[1]])
        with self._floats(_RESIDUAL):
            row = like(self.graph, "SLICE", value, (1, value.shape[1]), ("SliceOptions", {}), begin, size)
        return _Placed(row, x.point)

    def split_heads(self, x: _Placed, heads: int, width: int) -> _Placed:
        value = self._integers(x)
        rows = value.shape[0]
        if rows == 1:
            return _Placed(self._reshape(value, (1, heads, 1, width)), x.point)
        value = self._transpose(self._reshape(value, (1, rows, heads, width)), (0, 2, 1, 3))
        return _Placed(value, x.point)

    def scores(self, query: _Placed, key: _Placed, point: str) -> _Placed:
        """Query heads that share a key head are rows under it, one head's behind the other's."""
        _, heads, rows, width = query.value.shape
        groups, length = key.value.shape[1:3]
        q = self._reshape(query.value, (1, groups, heads // groups * rows, width))
        scores = self._batch_matmul(q, key.value, point, adjoint_right=True)
        return _Placed(self._reshape(scores, (1, heads, rows, length)), point)

    def hide(self, scores: _Placed, *, causal: bool, point: str) -> _Placed:
        """Add a whole range of steps to what is hidden, so that it ends at the bottom, and change nothing else.

        The bottom is chosen low enough (`edgelm_converters.static.calibrate.step_table`); no other value of the range moves.
        """
        x = scores.value
        if causal:
            behind = np.tri(x.shape[2], x.shape[3], dtype=np.int32).reshape(1, 1, x.shape[2], x.shape[3])
            x = self._arithmetic("ADD", x, self.graph.constant(self._hiding(x, behind)), point)
        if self.real is not None:
            row = self._reshape(self._hiding_rows(x), (1, 1, 1, x.shape[3]))
            x = self._arithmetic("ADD", x, row, point)
        return _Placed(x, point)

    def _hiding_rows(self, x: Value) -> Value:
        """Return what hides padding when it is added to x, ``(n, 1)``."""
        if self.real is None:
            raise TypeError("There is nothing to hide.")
        table = self.graph.constant(self._hiding(x, np.array([[0], [1]])))
        return gathered_rows(self.graph, table, self.real)

    def _hiding(self, x: Value, seen: Any) -> Constant:
        """Return integers that are 0 where `seen` is 1, and elsewhere minus all of the range of x."""
        bits = self.file.form.bits
        # int8: 255 of x's steps down. int16 has no zero point: 2 * 32767 of them.
        steps = Steps(scale_of(x), 127, 8) if bits == 8 else Steps(2 * scale_of(x), 0, 16)
        lowest, zero = (-128, 127) if bits == 8 else (-32767, 0)
        content = np.where(seen, zero, lowest).astype(self.file.dtype)
        raw = self.file.weights.once(
            ("hiding", content.shape, content.tobytes()),
            lambda: self.file.weights.add(self.file.dtype, content.shape, lambda: content),
        )
        record = self.file.quantizations.of(steps)
        return self.file.weights.once(("hiding", raw, record), lambda: replace(raw, quantization=record))

    def softmax(self, x: _Placed, point: str) -> _Placed:
        options = ("SoftmaxOptions", {"Beta": 1.0})
        return _Placed(self._unary("SOFTMAX", x.value, FIXED["unit", self.file.form.bits], options), point)

    def mix(self, weights: _Placed, value: _Placed, point: str) -> _Placed:
        _, heads, rows, length = weights.value.shape
        groups, width = value.value.shape[1], value.value.shape[3]
        w = self._reshape(weights.value, (1, groups, heads // groups * rows, length))
        mixed = self._batch_matmul(w, value.value, point, adjoint_right=False)
        return _Placed(self._reshape(mixed, (1, heads, rows, width)), point)

    def merge_heads(self, x: _Placed) -> _Placed:
        _, heads, rows, width = x.value.shape
        value = x.value if rows == 1 else self._transpose(x.value, (0, 2, 1, 3))
        return _Placed(self._reshape(value, (rows, heads * width)), x.point)

    # The head

    def pool(self, x: _Placed, head: Head, point: str) -> _Placed:
        graph = self.graph
        real = self.real if head.pooling_masked else None
        if head.pooling == "mean" and real is None and self.file.form.integer:
            return _Placed(self._mean(self._integers(x), 0, point), point)
        if head.pooling == "max" and self.file.form.integer:
            value = self._integers(x)
            if real is not None:
                value = self._arithmetic("ADD", value, self._hiding_rows(value), x.point)
            options = ("ReducerOptions", {"KeepDims": True})
            top = like(graph, "REDUCE_MAX", value, (1, value.shape[1]), options, graph.integers([0]))
            return _Placed(top, x.point)
        with self._floats(
            "no integer operator divides by the number of tokens" if head.pooling == "mean" else _RESIDUAL
        ):
            value = self._float(x)
            column = None if real is None else graph.cast(graph.reshape(real, (value.shape[0], 1)), "float32")
            if head.pooling == "max":
                if column is not None:
                    hidden = graph.multiply(graph.subtract(graph.floats([[1.0]]), column), graph.floats([[HIDDEN]]))
                    value = graph.add(value, hidden)
                return _Placed(graph.reduce("REDUCE_MAX", value, 0), point)
            if column is None:
                return _Placed(graph.reduce("MEAN", value, 0), point)
            total = graph.reduce("SUM", graph.multiply(value, column), 0)
            return _Placed(graph.divide(total, graph.reduce("SUM", column, 0)), point)

    def answer(self, x: _Placed, head: Head) -> Value:
        """Return the output, with the answer's softmax or sigmoid: in float32, but of an accelerator's form."""
        value = self._integers(x) if self.file.form.integer else self._float(x)
        name, options = {
            "probabilities": ("SOFTMAX", ("SoftmaxOptions", {"Beta": 1.0})),
            "sigmoid": ("LOGISTIC", None),
        }.get(head.output, (None, None))
        if name is not None and self.file.form.integer:
            value = self._unary(name, value, FIXED["unit", self.file.form.bits], options)
        elif name is not None:
            with self._floats("an answer in steps of 1/256 would say little of many classes"):
                value = self.graph.unary(name, value, options)
        with self._floats("the answer of a whole sequence is float32"):
            return self._reshape(value, (1, *value.shape)) if head.pooling == "none" else value

    # Integers

    def float_operators(self) -> list[FloatOperator]:
        """Return what computes in float32, whatever made it."""
        counts: Counter[tuple[str, str]] = Counter()
        for index, operator in enumerate(self.graph.subgraph.operators):
            floats = self.graph.subgraph.tensors[operator.outputs[0]].dtype == "float32"
            if floats and operator.name != "DEQUANTIZE":
                counts[operator.name, self.reasons.get(index, "unknown: this is a fault of edgelm")] += 1
        return [FloatOperator(name, count, reason) for (name, reason), count in sorted(counts.items())]

    @contextmanager
    def _floats(self, reason: str) -> Iterator[None]:
        """Give the operators that are appended meanwhile a reason to be float."""
        first = len(self.graph.subgraph.operators)
        yield
        for index in range(first, len(self.graph.subgraph.operators)):
            self.reasons.setdefault(index, reason)

    def _record(self, point: str) -> Quantization:
        return self.file.quantizations.of(self.file.steps[point])

    def _integers(self, x: _Placed) -> Value:
        """Return x in integers: in its own steps where it has some, else in those of its point."""
        if x.value.dtype == self.file.dtype:
            return x.value
        return quantized(self.graph, x.value, self._record(x.point), self.file.dtype)

    def _float(self, x: _Placed) -> Value:
        return dequantized(self.graph, x.value)

    def _product(self, x: Value, linear: Linear, point: str, *, relu: bool) -> Value:
        weights, graph = self.file.weights, self.graph
        inputs, outputs = linear.kernel.shape
        values, scale = weights.once(
            ("static kernel", id(linear.kernel)), lambda: quantize_weight(linear.kernel, axis=1)
        )
        steps = scale_of(x) * scale.astype(np.float64)
        kernel = weights.once(
            ("static kernel constant", id(linear.kernel)),
            lambda: weights.add("int8", (outputs, inputs), lambda: values.T, Quantization(scale, 0)),
        )
        # XNNPACK wants a bias, as accelerators do.
        bias = np.zeros(outputs, np.float32) if linear.bias is None else linear.bias
        limit = float(np.iinfo(np.int32).max // 2)
        content = np.clip(np.rint(bias / steps), -limit, limit).astype(np.int32)
        record = Quantization(steps.astype(np.float32), 0)
        key = ("static bias", id(linear.kernel), id(linear.bias), scale_of(x))
        constant = weights.once(key, lambda: weights.add("int32", (outputs,), lambda: content, record))
        options: dict[str, Any] = {"FusedActivationFunction": 1 if relu else 0}
        if self.file.form.bits == 16:
            options["QuantizedBiasType"] = _INT32
        return append(
            graph, "FULLY_CONNECTED", (x, graph.constant(kernel), graph.constant(constant)), (x.shape[0], outputs),
            self.file.dtype, self._record(point), ("FullyConnectedOptions", options),
            version=12 if self.file.form.bits == 8 else 11,
        )  # fmt: skip

    def _batch_matmul(self, left: Value, right: Value, point: str, *, adjoint_right: bool) -> Value:
        columns = right.shape[-2] if adjoint_right else right.shape[-1]
        options = ("BatchMatMulOptions", {"AdjY": adjoint_right})
        shape = (*left.shape[:-1], columns)
        return append(self.graph, "BATCH_MATMUL", (left, right), shape, self.file.dtype, self._record(point), options)

    def _arithmetic(self, name: str, left: Value, right: Value, point: str) -> Value:
        shape = tuple(np.broadcast_shapes(left.shape, right.shape))
        options: dict[str, Any] = {"PotScaleInt16": False} if name != "MUL" and self.file.form.bits == 16 else {}
        return append(
            self.graph, name, (left, right), shape, self.file.dtype, self._record(point), (_ARITHMETIC[name], options)
        )

    def _mean(self, x: Value, axis: int, point: str) -> Value:
        axis %= len(x.shape)
        shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
        options = ("ReducerOptions", {"KeepDims": True})
        inputs = (x, self.graph.integers([axis]))
        return append(self.graph, "MEAN", inputs, shape, self.file.dtype, self._record(point), options)

    def _unary(self, name: str, x: Value, steps: Steps, options: tuple[str, dict[str, Any]] | None = None) -> Value:
        return append(self.graph, name, (x,), x.shape, self.file.dtype, self.file.quantizations.of(steps), options)

    def _reshape(self, x: Value, shape: tuple[int, ...]) -> Value:
        if shape == x.shape:
            return x
        return like(self.graph, "RESHAPE", x, shape, ("ReshapeOptions", {}), self.graph.integers(shape))

    def _transpose(self, x: Value, order: tuple[int, ...]) -> Value:
        shape = tuple(x.shape[axis] for axis in order)
        return like(self.graph, "TRANSPOSE", x, shape, ("TransposeOptions", {}), self.graph.integers(order))
