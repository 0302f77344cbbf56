"""TFLite's operators on integers: each appends one operator whose result has the steps that it is told.

Versions are those that TensorFlow's converter writes for int8; for int16 it writes the same, and so does this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np

from edgelm_converters.emit.tflite_file import Operator, Quantization, Tensor
from edgelm_converters.emit.tflite_graph import Graph, Value
from edgelm_converters.static.ranges import Steps

__all__ = ["Quantizations", "append", "dequantized", "gathered_rows", "like", "quantized", "scale_of"]

_VERSIONS = {"RESHAPE": 1, "QUANTIZE": 1, "CAST": 1, "GATHER": 2, "FULLY_CONNECTED": 4}


@dataclass(frozen=True, eq=False)
class Quantizations:
    """The file's one record for each steps, so that all of its graphs point at it."""

    known: dict[Steps, Quantization] = field(default_factory=dict)

    def of(self, steps: Steps) -> Quantization:
        """Return the record of these steps."""
        if steps not in self.known:
            self.known[steps] = Quantization(np.array([steps.scale], np.float32), 0, steps.zero_point)
        return self.known[steps]


def append(
    graph: Graph,
    name: str,
    inputs: Sequence[Value | None],
    shape: Sequence[int],
    dtype: str,
    quantization: Quantization | None,
    options: tuple[str, dict[str, Any]] | None = None,
    *,
    version: int | None = None,
) -> Value:
    """Append an operator with one result of that type and quantisation; return the result."""
    indices = tuple(-1 if value is None else value.index for value in inputs)
    graph.subgraph.tensors.append(Tensor(dtype, tuple(shape), quantization=quantization))
    result = Value(len(graph.subgraph.tensors) - 1, tuple(shape), dtype, quantization)
    chosen = version if version is not None else _VERSIONS.get(name, 2)
    graph.subgraph.operators.append(Operator(name, chosen, indices, (result.index,), options))
    return result


def quantized(graph: Graph, x: Value, quantization: Quantization, dtype: str) -> Value:
    """Return floats, or integers in other steps, in these; the same is done once."""
    if x.quantization is quantization:
        return x
    key = ("quantized", x.index, quantization)
    return graph.once(key, lambda: append(graph, "QUANTIZE", (x,), x.shape, dtype, quantization))


def dequantized(graph: Graph, x: Value) -> Value:
    """Return integers as float32; floats as they are."""
    if x.dtype == "float32":
        return x
    return graph.once(("dequantized", x.index), lambda: append(graph, "DEQUANTIZE", (x,), x.shape, "float32", None))


def like(
    graph: Graph,
    name: str,
    x: Value,
    shape: Sequence[int],
    options: tuple[str, dict[str, Any]],
    *more: Value,
) -> Value:
    """Append an operator that moves elements, and leaves their steps as they are."""
    quantization = x.quantization
    if quantization is not None and not _is_one_scale(quantization):
        raise TypeError(f"{name} moves values with one scale for all of them, not {quantization}.")
    version = None if quantization is not None else 1
    return append(graph, name, (x, *more), shape, x.dtype, quantization, options, version=version)


def gathered_rows(graph: Graph, table: Value, ids: Value) -> Value:
    """Return rows of an integer table ``(V, E)``, with its own steps; ids ``(n,)``."""
    return like(graph, "GATHER", table, (*ids.shape, *table.shape[1:]), ("GatherOptions", {}), ids)


def _is_one_scale(quantization: object) -> TypeGuard[Quantization]:
    """Return whether it is one scale, and one zero point, for a whole tensor."""
    return isinstance(quantization, Quantization) and len(quantization.scale) == 1


def scale_of(x: Value) -> float:
    """Return the scale of an integer tensor."""
    if not _is_one_scale(x.quantization):
        raise TypeError("Only a tensor with one scale for all of it has a scale.")
    return float(x.quantization.scale[0])
