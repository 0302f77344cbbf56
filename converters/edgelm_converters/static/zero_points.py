"""TFLite tensors with a zero point, which `edgelm_converters.emit.tflite_file` writes as 0.

Its files are written, and then each zero point is appended behind the weights, and the tensor's quantisation pointed at it: a
flatbuffer's offsets lead forward, as far as one likes.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm_converters.emit.tflite_file import Model, Quantization, write_model

__all__ = ["Affine", "write_with_zero_points"]

_ZERO_POINT_SLOT = 10  # of a QuantizationParameters' table: 4 + 2 * 3, its fourth field


@dataclass(frozen=True, eq=False)
class Affine(Quantization):
    """One scale and one zero point for a whole tensor: ``value = scale * (integer - zero_point)``."""

    zero_point: int = 0


def write_with_zero_points(model: Model, path: Path) -> None:
    """Write a model, as `edgelm_converters.emit.tflite_file.write_model` does, with the zero points of each `Affine`.

    Raises:
        ConversionError: The file would be larger than 2 GiB.
    """
    write_model(model, path)
    wanted = {
        tensor.quantization.zero_point
        for graph in model.subgraphs
        for tensor in graph.tensors
        if isinstance(tensor.quantization, Affine) and tensor.quantization.zero_point
    }
    places: dict[int, int] = {}
    with path.open("r+b") as file:
        end = file.seek(0, 2)
        for zero_point in sorted(wanted):
            # A vector of one int64 on a multiple of 8, behind its length.
            end += -(end + 4) % 8
            places[zero_point] = end
            file.seek(end)
            file.write((1).to_bytes(4, "little") + zero_point.to_bytes(8, "little", signed=True))
            end += 12
        file.flush()
        if places:
            with mmap.mmap(file.fileno(), 0) as content:
                _point_at(content, model, places)


def _point_at(content: mmap.mmap, model: Model, places: dict[int, int]) -> None:
    from ai_edge_litert import schema_py_generated as schema

    root: Any = schema.Model.GetRootAs(content, 0)
    for index, graph in enumerate(model.subgraphs):
        subgraph = root.Subgraphs(index)
        for number, tensor in enumerate(graph.tensors):
            known = tensor.quantization
            if isinstance(known, Affine) and known.zero_point:
                table = subgraph.Tensors(number).Quantization()._tab
                here = table.Pos + table.Offset(_ZERO_POINT_SLOT)
                content[here : here + 4] = (places[known.zero_point] - here).to_bytes(4, "little")
