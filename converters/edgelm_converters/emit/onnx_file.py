"""ONNX files as bytes: written with their weights streamed from the arrays, and read without the weights.

The `onnx` package builds a model in memory and then serialises it: two more copies of every weight. A protobuf message is
a list of ``tag, length, bytes`` records, so the few fields that hold weights are written here, straight from the arrays,
and everything else by `onnx` itself. Field numbers are those of ``onnx.proto3``, which never change.
"""

from __future__ import annotations

import io
import math
import mmap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ConversionError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

__all__ = ["LazyArray", "operator_histogram", "write_model", "write_together"]

# A protobuf message ends at 2 GiB; from here on the weights lie in a file of their own.
_EXTERNAL_ABOVE = 1 << 30
# Shapes and scalars stay in the model file, where shape inference reads them: onnx's own threshold.
_EXTERNAL_TENSOR = 1024
_PAGE = 4096  # ONNX Runtime maps an external tensor into memory where its offset is a multiple of this

_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 1, 5, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class LazyArray:
    """An array that is made while the file is written, and dropped again: a whole model is never held twice.

    Attributes:
        shape: Of the array that `make` returns.
        dtype: Likewise.
        make: Returns it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    make: Callable[[], NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_model(
    model: ModelProto,
    tensors: Mapping[str, NDArray[Any] | LazyArray],
    path: Path,
    *,
    external_above: int | None = None,
) -> None:
    """Write a model whose graph has no initializers yet, with `tensors` as its initializers.

    Args:
        model: Everything but the initializers.
        tensors: float32, float16, int8, uint8, int64 or bool arrays by name.
        path: The ``.onnx`` file; it is overwritten.
        external_above: Bytes of weights from which on they go to ``NAME.onnx.data`` beside it; None: 1 GiB.
    """
    limit = _EXTERNAL_ABOVE if external_above is None else external_above
    if sum(array.nbytes for array in tensors.values()) > limit:
        write_together([(model, tensors, path)], path.with_name(path.name + ".data"))
    else:
        _write_file(model, tensors, path, "", {})


def write_together(
    models: Sequence[tuple[ModelProto, Mapping[str, NDArray[Any] | LazyArray], Path]], data_path: Path
) -> None:
    """Write models as `write_model` does, whose weights lie in one file, those that several of them use once.

    Args:
        models: Each without initializers, its tensors by name, and its file. A name is the same tensor in all of them.
        data_path: The file of the weights, beside the others; it is overwritten.
    """
    outside = {
        name: array for _, tensors, _ in models for name, array in tensors.items() if array.nbytes >= _EXTERNAL_TENSOR
    }
    places: dict[str, int] = {}
    end = 0
    for name, array in outside.items():
        places[name] = -(-end // _PAGE) * _PAGE
        end = places[name] + array.nbytes
    for model, tensors, path in models:
        _write_file(model, tensors, path, data_path.name, places)
    with data_path.open("wb") as file:
        for array in outside.values():
            file.write(b"\0" * (-file.tell() % _PAGE))
            _write_array(file, array)


def _write_file(
    model: ModelProto,
    tensors: Mapping[str, NDArray[Any] | LazyArray],
    path: Path,
    data_name: str,
    places: Mapping[str, int],
) -> None:
    """Write a model's own file; tensors that have a place in the file `data_name` are left out of it."""
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    records = []
    for name, array in tensors.items():
        header = _header(name, array)
        outside = name in places
        if outside:
            _point_outside(header, data_name, places[name], array.nbytes)
        head = header.SerializeToString()
        if not outside:
            head += _tag(_TENSOR_RAW_DATA, array.nbytes)
        records.append((head, array, outside))

    sizes = [len(head) + (0 if outside else array.nbytes) for head, array, outside in records]
    total = len(graph) + sum(len(_tag(_GRAPH_INITIALIZER, size)) + size for size in sizes)
    with path.open("wb") as file:
        file.write(model.SerializeToString() + _tag(_MODEL_GRAPH, total) + graph)
        for (head, array, outside), size in zip(records, sizes, strict=True):
            file.write(_tag(_GRAPH_INITIALIZER, size) + head)
            if not outside:
                _write_array(file, array)


def operator_histogram(path: Path) -> dict[str, int]:
    """Return how often each operator stands in an ONNX file, sorted by name, those of subgraphs included.

    Operators outside the standard are written with their domain: ``com.microsoft.FusedMatMul``. The weights are not read.

    Raises:
        ConversionError: The file is not an ONNX model.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx import NodeProto

    counts: Counter[str] = Counter()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            for number, start, end in _fields(view, 0, len(view)):
                if number == _MODEL_GRAPH:
                    for inner, node_start, node_end in _fields(view, start, end):
                        if inner == _GRAPH_NODE:
                            _count(NodeProto.FromString(view[node_start:node_end]), counts)
    except (DecodeError, IndexError, ValueError) as error:
        raise ConversionError(f"{path.name} is not an ONNX model ({error}): convert it again.") from error
    return dict(sorted(counts.items()))


def _header(name: str, array: NDArray[Any] | LazyArray) -> TensorProto:
    """Return a tensor without its values."""
    from onnx import TensorProto, helper

    return TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))


def _point_outside(header: TensorProto, file: str, offset: int, length: int) -> None:
    header.data_location = header.EXTERNAL
    for key, value in (("location", file), ("offset", str(offset)), ("length", str(length))):
        header.external_data.add(key=key, value=value)


def _write_array(file: BinaryIO | io.BufferedWriter, array: NDArray[Any] | LazyArray) -> None:
    """Write the values, little-endian and in row order, as ONNX stores them."""
    if isinstance(array, LazyArray):
        array = array.make()
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    file.write(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)


def _tag(field: int, length: int) -> bytes:
    """Return the tag and the length that stand before a field of `length` bytes."""
    return bytes([field << 3 | _BYTES]) + _varint(length)


def _varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _fields(view: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number, start and end of each length-delimited field of a message."""
    while start < end:
        tag, start = _read_varint(view, start)
        kind = tag & 7
        if kind == _BYTES:
            length, start = _read_varint(view, start)
            if start + length > end:
                raise ValueError("a record runs past its end")
            yield tag >> 3, start, start + length
            start += length
        elif kind == _VARINT:
            _, start = _read_varint(view, start)
        elif kind in (_FIXED64, _FIXED32):
            start += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a record has the unknown kind {kind}")


def _read_varint(view: mmap.mmap, start: int) -> tuple[int, int]:
    """Return the number at `start`, and where it ends."""
    value = shift = 0
    while True:
        byte = view[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
        shift += 7


def _count(node: NodeProto, counts: Counter[str]) -> None:
    standard = node.domain in ("", "ai.onnx")
    counts[node.op_type if standard else f"{node.domain}.{node.op_type}"] += 1
    for attribute in node.attribute:
        graphs: list[GraphProto] = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
        for graph in graphs:
            for inner in graph.node:
                _count(inner, counts)
