"""An encoder as an ONNX graph of standard operators between QuantizeLinear and DequantizeLinear: what NPUs take too.

Weights are int8, activations of 8 bits uint8, the answer of the form for accelerators int8.

The batch and the sequence axis are free. Rows are ``(B*n, D)``, heads ``(B, H, r, A)``. 16 bits need ONNX Runtime's own form of
the two operators (``com.microsoft``), since the standard has it from opset 21 on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from edgelm_converters.emit.onnx_blocks import normalise
from edgelm_converters.emit.onnx_graph import Graph
from edgelm_converters.emit.onnx_weights import BOOL, FLOAT, Weights
from edgelm_converters.emit.quantize import quantize_weight
from edgelm_converters.recipes import find
from edgelm_converters.spec import Activation, Float32, Head, Linear, Norm, TransformerSpec
from edgelm_converters.static.calibrate import FIXED
from edgelm_converters.static.encoder import linears, walk
from edgelm_converters.static.form import FloatOperator, StaticForm
from edgelm_converters.static.ranges import Steps

__all__ = ["build_static_encoder"]

_RESIDUAL = "norms and residuals keep float32 in this form"
_KEPT = "layers that were to stay float"
_EMBEDDED = "embeddings are int8 rows with a scale each, summed in float32"
_LOWEST = float(np.finfo(np.float32).min)
_ACTIVATIONS = {"relu": "Relu", "gelu": "Gelu", "gelu_tanh": "Gelu", "tanh": "Tanh", "sigmoid": "Sigmoid"}


@dataclass(frozen=True)
class _Placed:
    """A tensor of the graph.

    Attributes:
        raw: What was computed, before it is rounded.
        point: Its point.
        steps: What it is rounded to for whoever reads it; None where it is float.
        heads: How many it is cut into; 0 where it is not.
        width: Of a head.
    """

    raw: str
    point: str
    steps: Steps | None = None
    heads: int = 0
    width: int = 0


def build_static_encoder(
    graph: Graph, spec: TransformerSpec, steps: Mapping[str, Steps], form: StaticForm
) -> tuple[list[FloatOperator], Steps | None]:
    """Add a prepared encoder to an empty graph, with the answer as its last node.

    Returns:
        floats: What of it computes in float32.
        answer: The steps of the answer, in the form for accelerators.
    """
    counted = spec.mask_input if spec.mask == "input" else spec.token_input if spec.mask == "nonzero" else None
    operators = _Operators(
        graph,
        spec,
        steps,
        form,
        graph.node("Shape", spec.token_input, start=0, end=1),
        graph.node("Shape", spec.token_input, start=1, end=2),
        None if counted is None else graph.node("Cast", counted, to=BOOL),
        Counter(id(linear.kernel) for linear in linears(spec)),
    )
    name, answer = operators.answer(walk(spec, operators), spec.head)
    graph.rename(name, spec.output_name)
    counts = Counter(operators.floats.values())
    return [FloatOperator(operator, count, reason) for (operator, reason), count in sorted(counts.items())], answer


@dataclass(frozen=True, eq=False)
class _Operators:
    graph: Graph
    spec: TransformerSpec
    steps: Mapping[str, Steps]
    form: StaticForm
    batch: str  # int64 (1,)
    length: str  # int64 (1,)
    real: str | None  # bool (B, n)
    uses: Mapping[int, int]  # products of each kernel, by its id
    floats: dict[str, tuple[str, str]] = field(default_factory=dict)  # by output: operator and reason

    # The embeddings

    def embed(self, spec: TransformerSpec, point: str) -> _Placed:
        graph, parts = self.graph, spec.embeddings
        zero, width = graph.constant([0]), int(parts.token.shape[1])
        segments = spec.segment_input if parts.segment is not None else None
        if self.form.integer:
            token = parts.token * np.float32(parts.token_scale)
            table, table_steps = self._table(token, parts.token, "embeddings/token")
            x = _Placed(self._gathered(table, table_steps, spec.token_input), point)
            if segments is not None and parts.segment is not None:
                table, table_steps = self._table(parts.segment, parts.segment, "embeddings/segment")
                row = self._gathered(table, table_steps, segments)
                name = f"{point}/segment"
                x = _Placed(graph.node("Add", x.raw, row), name, self.steps[name])
            if parts.position is not None:
                table, table_steps = self._table(parts.position, parts.position, "embeddings/position")
                rows = self._dequantize(graph.node("Slice", table, zero, self.length, zero), table_steps)
                x = _Placed(graph.node("Add", self._use(x), rows), point, self.steps[point])
            return self._reshaped(x, graph.constant([-1, width]))
        weights, bits = Weights(graph, find("dynamic_wi8_afp32")), parts.least_bits
        y = weights.rows(
            parts.token,
            "embeddings/token",
            lambda table: graph.node("Gather", table, spec.token_input),
            factor=parts.token_scale,
            least_bits=bits,
        )
        if segments is not None and parts.segment is not None:
            ids = segments
            y = self._float(
                "Add",
                _EMBEDDED,
                y,
                weights.rows(
                    parts.segment, "embeddings/segment", lambda table: graph.node("Gather", table, ids), least_bits=bits
                ),
            )
        if parts.position is not None:
            table = weights.rows(parts.position, "embeddings/position", lambda whole: whole, least_bits=bits)
            y = self._float("Add", _EMBEDDED, y, graph.node("Slice", table, zero, self.length, zero))
        return _Placed(graph.node("Reshape", y, graph.constant([-1, width])), point)

    def _gathered(self, table: str, steps: Steps, ids: str) -> str:
        """Return rows of an integer table: as every operator here, a lookup stands between two conversions.

        ONNX Runtime leaves them out. QNN takes a lookup with them, and refuses one of bare integers, which say no scale.
        """
        return self._round(self.graph.node("Gather", self._dequantize(table, steps), ids), steps)

    def _table(self, table: Float32, source: Float32, name: str) -> tuple[str, Steps]:
        peak = float(np.abs(table).max())
        steps = Steps(peak / 127 if peak else 1.0, 0, 8)
        return self.graph.tensor(_integers(table, steps), name, source, form="static table"), steps

    # Layers

    def dense(self, x: _Placed, linear: Linear, activation: Activation, point: str) -> _Placed:
        done = point if activation == "linear" else f"{point}/{activation}"
        if self.form.keeps(linear):
            y = Weights(self.graph, find("fp16")).linear(self._use(x), linear)
            self.floats[y] = ("Gemm", _KEPT)
            return _Placed(self._activated(y, activation, _KEPT), done)
        y = self._product(self._integers(x), linear, point)
        if activation == "linear":
            return _Placed(y, point, self.steps[point])
        if activation != "relu":  # which a range from 0 on is by itself: runtimes leave it out
            y = self._round(y, self.steps[point])
        if activation in ("tanh", "sigmoid"):
            kind = "tanh" if activation == "tanh" else "unit"
            return _Placed(self._activated(y, activation, None), done, FIXED[kind, self.form.bits])
        if activation == "silu":
            sigmoid = self._round(self.graph.node("Sigmoid", y), FIXED["unit", self.form.bits])
            return _Placed(self.graph.node("Mul", y, sigmoid), done, self.steps[done])
        return _Placed(self._activated(y, activation, None), done, self.steps[done])

    def _activated(self, x: str, activation: Activation, reason: str | None) -> str:
        """Apply an activation; in float where there is a reason."""
        if activation == "linear":
            return x
        if activation == "silu":
            made = [self.graph.node("Sigmoid", x)]
            made.append(self.graph.node("Mul", x, made[0]))
        else:
            operator = _ACTIVATIONS[activation]
            tanh = activation == "gelu_tanh"
            made = [self.graph.node(operator, x, approximate="tanh") if tanh else self.graph.node(operator, x)]
        if reason is not None:
            for name in made:
                operator = (
                    "Mul" if activation == "silu" and name == made[-1] else _ACTIVATIONS.get(activation, "Sigmoid")
                )
                self.floats[name] = (operator, reason)
        return made[-1]

    def _product(self, x: _Placed, linear: Linear, point: str) -> str:
        graph, kernel = self.graph, linear.kernel
        if x.steps is None:
            raise TypeError("A product of integers needs integers.")
        found = graph.find(kernel, form="static"), graph.find(kernel, form="static scale")
        if found[0] is None or found[1] is None:
            integers, scale = quantize_weight(kernel, axis=1)
            graph.tensor(integers, f"{linear.name}/kernel", kernel, form="static")
            graph.tensor(scale, f"{linear.name}/scale", kernel, form="static scale")
        values, scales = (graph.find(kernel, form=form) or "" for form in ("static", "static scale"))
        # Where session.x64quantprecision turns int8 constants into uint8 ones, ONNX Runtime 1.32 does so once a product, and
        # fails at the second ("Attempt to replace the existing tensor"): each product has its own zero points, and a kernel
        # that several share is cut at another place behind its end for each, which is folded when the file is loaded.
        zeros = graph.tensor(np.zeros(kernel.shape[1], np.int8), f"{linear.name}/zero", object(), form=point)
        if self.uses[id(kernel)] > 1:
            start, end = graph.constant([0]), graph.constant([kernel.shape[0] + 1 + graph.size])
            values = graph.node("Slice", values, start, end, start)
        weight = graph.node("DequantizeLinear", values, scales, zeros, axis=1)
        if linear.bias is None:
            return graph.node("Gemm", self._use(x), weight)
        _, scale = quantize_weight(kernel, axis=1)
        steps = x.steps.scale * scale.astype(np.float64)
        limit = float(np.iinfo(np.int32).max // 2)
        content = np.clip(np.rint(linear.bias / steps), -limit, limit).astype(np.int32)
        form = f"static {x.steps.scale}"
        bias = graph.tensor(content, f"{linear.name}/bias", linear.bias, kernel, form=form)
        bias_scale = graph.tensor(
            steps.astype(np.float32), f"{linear.name}/bias_scale", linear.bias, kernel, form=f"scale of {form}"
        )
        bias_zeros = graph.constant(np.zeros(kernel.shape[1], np.int32))
        bias = graph.node("DequantizeLinear", bias, bias_scale, bias_zeros, axis=0)
        return graph.node("Gemm", self._use(x), weight, bias)

    def add(self, x: _Placed, y: _Placed, point: str) -> _Placed:
        if self.form.integer:
            x, y = self._integers(x), self._integers(y)
            return _Placed(self.graph.node("Add", self._use(x), self._use(y)), point, self.steps[point])
        return _Placed(self._float("Add", _RESIDUAL, self._use(x), self._use(y)), point)

    def multiply(self, x: _Placed, y: _Placed, point: str) -> _Placed:
        x, y = self._integers(x), self._integers(y)
        return _Placed(self.graph.node("Mul", self._use(x), self._use(y)), point, self.steps[point])

    def norm(self, x: _Placed, norm: Norm, point: str) -> _Placed:
        if self.form.integer and norm.kind == "layer":
            rounded = [self._vector(norm.gamma, f"{point}/gamma")]
            rounded += [] if norm.beta is None else [self._vector(norm.beta, f"{point}/beta")]
            whole = self.graph.node(
                "LayerNormalization", self._use(self._integers(x)), *rounded, axis=-1, epsilon=norm.eps
            )
            return _Placed(whole, point, self.steps[point])
        y = normalise(self.graph, norm, self._use(x), point)
        if norm.kind == "layer":
            self.floats[y] = ("LayerNormalization", _RESIDUAL)
        else:
            reason = "an RMS norm is several operators in this opset" if self.form.integer else _RESIDUAL
            for operator in ("Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul"):
                self.floats[f"{y}/{operator}"] = (operator, reason)
        return _Placed(y, point)

    def _vector(self, values: Float32, name: str) -> str:
        """Return a gamma or a beta in integers with one scale."""
        peak = float(np.abs(values).max())
        steps = Steps(peak / (127 if self.form.bits == 8 else 32767) if peak else 1.0, 0, self.form.bits)
        return self._dequantize(self.graph.tensor(_integers(values, steps), name, values, form="static vector"), steps)

    # Attention

    def first_row(self, x: _Placed) -> _Placed:
        split = self._by_sequence(x)
        first = self.graph.node("Gather", self._use(split), self.graph.constant(np.array(0)), axis=1)
        return _Placed(first, x.point, x.steps)

    def split_heads(self, x: _Placed, heads: int, width: int) -> _Placed:
        shape = self.graph.node("Concat", self.batch, self.graph.constant([-1, heads, width]), axis=0)
        split = self._transposed(self._reshaped(self._integers(x), shape), (0, 2, 1, 3))
        return replace(split, heads=heads, width=width)

    def scores(self, query: _Placed, key: _Placed, point: str) -> _Placed:
        """Query heads that share a key head are rows under it, one head's behind the other's."""
        keys = self._transposed(key, (0, 1, 3, 2))
        asking = self._grouped(query, key.heads, self.graph.constant([query.width]))
        scores = _Placed(self.graph.node("MatMul", self._use(asking), self._use(keys)), point, self.steps[point])
        return self._grouped(replace(scores, heads=key.heads), query.heads, self.length)

    def _grouped(self, x: _Placed, heads: int, last: str) -> _Placed:
        """Return heads ``(B, H, r, last)`` as ``(B, heads, r * H / heads, last)``."""
        if x.heads == heads:
            return x
        shape = self.graph.node("Concat", self.batch, self.graph.constant([heads, -1]), last, axis=0)
        return replace(self._reshaped(x, shape), heads=heads)

    def hide(self, scores: _Placed, *, causal: bool, point: str) -> _Placed:
        """Add a whole range of steps to what is hidden, so that it ends at the bottom, and change nothing else."""
        graph, steps = self.graph, self.steps[point]
        seen = None if self.real is None else graph.node("Unsqueeze", self.real, graph.constant([1, 2]))
        if causal:
            scalar = graph.node("Squeeze", self.length)
            position = graph.node("Range", graph.constant(np.array(0)), scalar, graph.constant(np.array(1)))
            before = graph.node("LessOrEqual", position, graph.node("Unsqueeze", position, graph.constant([1])))
            seen = before if seen is None else graph.node("And", seen, before)
        if seen is None:
            return scores
        hiding = Steps(steps.scale, 127, 8) if steps.bits == 8 else Steps(2 * steps.scale, 0, 16)
        bottom = float(-255 * steps.scale if steps.bits == 8 else -2 * 32767 * steps.scale)
        added = self._round(graph.node("Where", seen, graph.constant(0.0), graph.constant(bottom)), hiding)
        return replace(scores, raw=graph.node("Add", self._use(scores), added))

    def softmax(self, x: _Placed, point: str) -> _Placed:
        weights = self.graph.node("Softmax", self._use(x), axis=-1)
        return _Placed(weights, point, FIXED["unit", self.form.bits], x.heads)

    def mix(self, weights: _Placed, value: _Placed, point: str) -> _Placed:
        shares = self._grouped(weights, value.heads, self.length)
        mixed = self.graph.node("MatMul", self._use(shares), self._use(value))
        placed = _Placed(mixed, point, self.steps[point], value.heads, value.width)
        return self._grouped(placed, weights.heads, self.graph.constant([value.width]))

    def merge_heads(self, x: _Placed) -> _Placed:
        return self._reshaped(self._transposed(x, (0, 2, 1, 3)), self.graph.constant([-1, x.heads * x.width]))

    # The head

    def pool(self, x: _Placed, head: Head, point: str) -> _Placed:
        graph = self.graph
        real = self.real if head.pooling_masked else None
        x = self._integers(x) if self.form.integer else x
        split = self._by_sequence(x)
        axes = graph.constant([1])
        if head.pooling == "max":
            value = self._use(split)
            if real is not None:
                bottom = _LOWEST if x.steps is None else float(x.steps.dequantize(np.array(x.steps.lowest)))
                value = graph.node(
                    "Where", graph.node("Unsqueeze", real, graph.constant([2])), value, graph.constant(bottom)
                )
                value = value if x.steps is None else self._round(value, x.steps)
            top = graph.node("ReduceMax", value, axes, keepdims=0)
            if x.steps is None:
                self.floats[top] = ("ReduceMax", _RESIDUAL)
            return _Placed(top, x.point, x.steps)
        if real is None:
            mean = graph.node("ReduceMean", self._use(split), axes, keepdims=0)
            if not self.form.integer:
                self.floats[mean] = ("ReduceMean", _RESIDUAL)
            return _Placed(mean, point, self.steps[point] if self.form.integer else None)
        reason = "no integer operator divides by the number of tokens"
        ones = graph.node("Cast", real, to=FLOAT)
        count = self._float("ReduceSum", reason, ones, axes, keepdims=1)
        share = graph.node("Unsqueeze", self._float("Div", reason, ones, count), axes)
        mean = self._float("MatMul", reason, share, self._use(split))
        return _Placed(graph.node("Squeeze", mean, axes), point)

    def answer(self, x: _Placed, head: Head) -> tuple[str, Steps | None]:
        """Return the output, the last node, and its steps in the form for accelerators."""
        steps = None
        x = self._integers(x) if self.form.integer else x
        operator = {"probabilities": "Softmax", "sigmoid": "Sigmoid"}.get(head.output)
        if operator is not None:
            used = self._use(x)
            made = (
                self.graph.node(operator, used, axis=-1) if operator == "Softmax" else self.graph.node(operator, used)
            )
            if not self.form.integer:
                self.floats[made] = (operator, "an answer in steps of 1/256 would say little of many classes")
            x = _Placed(made, x.point, FIXED["unit", self.form.bits] if self.form.integer else None)
        if head.pooling == "none":
            x = self._by_sequence(x)
        if not self.form.integer or x.steps is None:
            return self._use(x), None
        steps = x.steps
        # Rounded to uint8 first, as every activation, and then to the same steps in int8: a product whose answer is of another
        # type than its input is none of integers to QNN.
        return self._quantize(self._use(x), steps, signed=True), steps

    # Integers

    def _float(self, operator: str, reason: str, *inputs: str, keepdims: int | None = None) -> str:
        """Add a node that computes in float32, and why."""
        add = self.graph.node
        name = add(operator, *inputs) if keepdims is None else add(operator, *inputs, keepdims=keepdims)
        self.floats[name] = (operator, reason)
        return name

    def _integers(self, x: _Placed) -> _Placed:
        return x if x.steps is not None else _Placed(x.raw, x.point, self.steps[x.point])

    def _use(self, x: _Placed) -> str:
        """Return what reads x: rounded, if it is in integers."""
        return x.raw if x.steps is None else self._round(x.raw, x.steps)

    def _round(self, x: str, steps: Steps) -> str:
        return self._dequantize(self._quantize(x, steps), steps)

    def _quantize(self, x: str, steps: Steps, *, signed: bool = False) -> str:
        constants = self._constants(steps, signed=signed)
        return self.graph.node("QuantizeLinear", x, *constants, contrib=steps.bits == 16)

    def _dequantize(self, x: str, steps: Steps) -> str:
        constants = self._constants(steps, signed=False)
        return self.graph.node("DequantizeLinear", x, *constants, contrib=steps.bits == 16)

    def _constants(self, steps: Steps, *, signed: bool) -> tuple[str, str]:
        """Return scale and zero point: of uint8 values, 128 above int8's, where they are not signed.

        Under session.x64quantprecision ONNX Runtime 1.32 makes some int8 activations uint8 and leaves others, and then fuses no
        product between the two: six of the thirteen of a 2×128 encoder ran in float32.
        """
        scale = self.graph.constant(np.array(steps.scale, np.float32))
        if steps.bits == 16 or signed:
            return scale, self.graph.constant(np.array(steps.zero_point, steps.dtype))
        return scale, self.graph.constant(np.array(steps.zero_point + 128, np.uint8))

    def _by_sequence(self, x: _Placed) -> _Placed:
        """Return rows ``(B*n, D)`` as ``(B, n, D)``."""
        width = -1
        shape = self.graph.node("Concat", self.batch, self.length, self.graph.constant([width]), axis=0)
        return self._reshaped(x, shape)

    def _reshaped(self, x: _Placed, shape: str) -> _Placed:
        return replace(x, raw=self.graph.node("Reshape", self._use(x), shape))

    def _transposed(self, x: _Placed, order: tuple[int, ...]) -> _Placed:
        return replace(x, raw=self.graph.node("Transpose", self._use(x), perm=order))


def _integers(values: Float32, steps: Steps) -> NDArray[np.uint8] | NDArray[np.int16]:
    """Return a constant as it lies in the file: uint8 for steps of 8 bits, else int16."""
    integers = steps.quantize(values)
    return integers if steps.bits == 16 else (integers + 128).astype(np.uint8)
