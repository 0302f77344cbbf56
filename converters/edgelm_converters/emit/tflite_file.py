"""A TFLite model as plain records, written as a flatbuffer whose weights are streamed behind it.

The flatbuffer proper holds the graphs and is small: equal shapes, quantisation parameters and options are stored once and
pointed at from every subgraph. The weights follow it in the file, made and written one at a time, so that writing a model
takes little more memory than its largest weight.

The schema is that of ``ai_edge_litert.schema_py_generated``; ``schema.fbs`` in LiteRT's sources documents it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ConversionError

__all__ = ["Blocks", "Data", "Model", "Operator", "Quantization", "Subgraph", "Tensor", "write_model"]

_IDENTIFIER = b"TFL3"
_SCHEMA_VERSION = 3
# TFLite asks for 16; a weight begins with a cache line, so that its rows are not split over one more than they need.
_ALIGNMENT, _WEIGHT_ALIGNMENT, _WEIGHT_SIZE = 16, 64, 4096
_LARGEST_FILE = 2**31 - 1  # a flatbuffer's offsets
# The TFLite release that first had an operator's version, where that is younger than _OLDEST; from runtime_version.cc of
# LiteRT's versioning tools.
_OLDEST = (2, 3, 0)
_SINCE = {
    ("BITCAST", 1): (2, 13, 0),
    ("DEQUANTIZE", 5): (2, 7, 0),
    ("DYNAMIC_UPDATE_SLICE", 1): (2, 9, 0),
    ("FULLY_CONNECTED", 12): (2, 17, 0),
    ("GATHER", 4): (2, 4, 0),
    ("GELU", 1): (2, 9, 0),
}
_TYPES = {"float32": 0, "float16": 1, "int32": 2, "int16": 7, "int8": 9, "int4": 17}


@dataclass(frozen=True, eq=False)
class Data:
    """The content of a buffer, made only when it is written.

    Attributes:
        size: In bytes.
        make: Returns the array; it is written in its C order.
    """

    size: int
    make: Callable[[], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Quantization:
    """Scales of a tensor of integers, one for each slice along `axis`: ``value = scale * (integer - zero_point)``."""

    scale: NDArray[np.float32]
    axis: int
    zero_point: int = 0


@dataclass(frozen=True)
class Blocks:
    """Scales of an int4 tensor ``(out, in)``, one for each run of values along the last axis; the zero points are 0.

    Attributes:
        scales: Index of a float16 tensor ``(out, in / size)`` of the same graph.
        size: Values that share a scale.
    """

    scales: int
    size: int


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value of a graph; `buffer` is 0 for one that is computed. Only inputs and outputs have names."""

    dtype: str
    shape: tuple[int, ...]
    buffer: int = 0
    quantization: Quantization | Blocks | None = None
    name: str = ""


@dataclass(frozen=True, eq=False)
class Operator:
    """One step of a graph.

    Attributes:
        name: As the schema writes it, such as ``"FULLY_CONNECTED"``.
        version: The operator's version, by what it uses.
        inputs: Indices of tensors; -1 for an optional input that is left out.
        outputs: Indices of tensors.
        options: The name of the schema's options, such as ``"FullyConnectedOptions"``, and the fields that are not default.
    """

    name: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: tuple[str, dict[str, Any]] | None = None


@dataclass(eq=False)
class Subgraph:
    """One graph, which is one signature of the file."""

    name: str
    tensors: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Model:
    """A whole file. Buffer 0 is the empty one, as the format wants it."""

    description: str
    buffers: list[Data | None] = field(default_factory=lambda: [None])
    subgraphs: list[Subgraph] = field(default_factory=list)


def write_model(model: Model, path: Path) -> None:
    """Write a model.

    Raises:
        ConversionError: The file would be larger than 2 GiB, which the format cannot address.
    """
    # 16 bytes, filled up with zeros: the runtime reads them as a C string.
    version = np.frombuffer(_min_runtime_version(model).encode().ljust(16, b"\0"), np.uint8)
    buffers = [*model.buffers, Data(16, lambda: version)]
    graph = _Serializer(model, buffers).graph()
    positions = _place(buffers, len(graph), path)
    _point_at(graph, positions)
    with path.open("wb") as file:
        file.write(graph)
        for data, position in zip(buffers, positions, strict=True):
            if data is not None:
                _write(file, data, position)


def _min_runtime_version(model: Model) -> str:
    used = {(operator.name, operator.version) for graph in model.subgraphs for operator in graph.operators}
    return ".".join(map(str, max([_OLDEST, *(since for key, since in _SINCE.items() if key in used)])))


def _place(buffers: Sequence[Data | None], start: int, path: Path) -> list[int]:
    """Return where the content of each buffer begins; a vector's length, 4 bytes, stands before it."""
    positions = []
    end = start
    for data in buffers:
        alignment = _WEIGHT_ALIGNMENT if data is not None and data.size >= _WEIGHT_SIZE else _ALIGNMENT
        position = math.ceil((end + 4) / alignment) * alignment
        positions.append(position)
        end = position + data.size if data is not None else end
    if end > _LARGEST_FILE:
        raise ConversionError(
            f"{path.name} would take {end / 1e9:.1f} GB, and a TFLite file holds at most 2.1: "
            "choose --recipe dynamic_wi8_afp32 or fp16, or a smaller model."
        )
    return positions


def _point_at(graph: bytearray, positions: Sequence[int]) -> None:
    """Let each buffer of the finished flatbuffer point at its content behind it."""
    from ai_edge_litert import schema_py_generated as schema

    buffers: Any = schema.Model.GetRootAs(graph, 0)
    for index, position in enumerate(positions):
        table = buffers.Buffers(index)._tab
        slot = table.Offset(4)  # the field `data`: 0 where it is absent, as it is in buffer 0
        if slot:
            here = table.Pos + slot
            graph[here : here + 4] = (position - 4 - here).to_bytes(4, "little")


def _write(file: BinaryIO, data: Data, position: int) -> None:
    array = np.ascontiguousarray(data.make())
    if array.nbytes != data.size:
        raise ConversionError(
            f"A weight of {array.nbytes} bytes was announced with {data.size}: this is a fault of edgelm."
        )
    file.write(bytes(position - 4 - file.tell()))
    file.write(data.size.to_bytes(4, "little"))
    file.write(array.reshape(-1).view(np.uint8).data)


class _Serializer:
    """Packs the records back to front, as flatbuffers are built; what was packed before is pointed at again."""

    def __init__(self, model: Model, buffers: Sequence[Data | None]) -> None:
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema

        self.model = model
        self.buffers = buffers  # those of the model, and that of the metadata
        self.schema = schema
        self.builder: Any = flatbuffers.Builder(1 << 16)
        self.packed: dict[Hashable, int] = {}

    def graph(self) -> bytearray:
        codes = sorted({(op.name, op.version) for graph in self.model.subgraphs for op in graph.operators})
        parts = {
            "Buffers": self.tables([self.buffer(data) for data in self.buffers]),
            "Metadata": self.tables([self.metadata()]),
            "SignatureDefs": self.tables([self.signature(index) for index in range(len(self.model.subgraphs))]),
            "Subgraphs": self.tables([self.subgraph(graph, codes) for graph in self.model.subgraphs]),
            "Description": self.builder.CreateString(self.model.description),
            "OperatorCodes": self.tables([self.code(*code) for code in codes]),
        }
        root = self.table("Model", {"Version": _SCHEMA_VERSION, **parts})
        self.builder.Finish(root, file_identifier=_IDENTIFIER)
        return bytearray(self.builder.Output())

    def table(self, kind: str, fields: dict[str, Any]) -> int:
        """Pack a table of numbers and of offsets."""
        getattr(self.schema, f"{kind}Start")(self.builder)
        for name, value in fields.items():
            getattr(self.schema, f"{kind}Add{name}")(self.builder, value)
        return int(getattr(self.schema, f"{kind}End")(self.builder))

    def tables(self, offsets: Sequence[int]) -> int:
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return int(self.builder.EndVector())

    def integers(self, values: Iterable[int]) -> int:
        key = ("integers", *values)
        return self.once(key, lambda: self.builder.CreateNumpyVector(np.array(key[1:], np.int32)))

    def string(self, text: str) -> int:
        return self.once(("string", text), lambda: self.builder.CreateString(text))

    def once(self, key: Hashable, pack: Callable[[], int]) -> int:
        if key not in self.packed:
            self.packed[key] = pack()
        return self.packed[key]

    def buffer(self, data: Data | None) -> int:
        if data is None:
            return self.table("Buffer", {})
        # Any vector: _point_at gives it its place behind the flatbuffer.
        placeholder = self.once("placeholder", lambda: self.builder.CreateByteVector(b""))
        return self.table("Buffer", {"Data": placeholder})

    def metadata(self) -> int:
        name = self.string("min_runtime_version")
        return self.table("Metadata", {"Name": name, "Buffer": len(self.buffers) - 1})

    def code(self, name: str, version: int) -> int:
        number = getattr(self.schema.BuiltinOperator, name)
        # Old readers know a byte only; 127 there means "look at the new field".
        fields = {"DeprecatedBuiltinCode": min(number, 127), "Version": version, "BuiltinCode": number}
        return self.table("OperatorCode", fields)

    def signature(self, index: int) -> int:
        graph = self.model.subgraphs[index]
        maps = [
            self.tables([
                self.table("TensorMap", {"Name": name, "TensorIndex": tensor})
                for name, tensor in [(self.string(graph.tensors[tensor].name), tensor) for tensor in tensors]
            ])
            for tensors in (graph.inputs, graph.outputs)
        ]  # fmt: skip
        key = self.string(graph.name)
        fields = {"Inputs": maps[0], "Outputs": maps[1], "SignatureKey": key, "SubgraphIndex": index}
        return self.table("SignatureDef", fields)

    def subgraph(self, graph: Subgraph, codes: Sequence[tuple[str, int]]) -> int:
        fields = {
            "Tensors": self.tables([self.tensor(tensor) for tensor in graph.tensors]),
            "Inputs": self.integers(graph.inputs),
            "Outputs": self.integers(graph.outputs),
            "Operators": self.tables([self.operator(op, codes) for op in graph.operators]),
            "Name": self.string(graph.name),
        }
        return self.table("SubGraph", fields)

    def tensor(self, tensor: Tensor) -> int:
        quantization = tensor.quantization if isinstance(tensor.quantization, Blocks) else id(tensor.quantization)
        key = ("tensor", tensor.dtype, tensor.shape, tensor.buffer, quantization, tensor.name)
        return self.once(key, lambda: self.new_tensor(tensor))

    def new_tensor(self, tensor: Tensor) -> int:
        # A tensor without a name gets an empty one: the runtimes read it without asking whether it is there.
        fields = {
            "Shape": self.integers(tensor.shape),
            "Type": _TYPES[tensor.dtype],
            "Buffer": tensor.buffer,
            "Name": self.string(tensor.name),
            "HasRank": True,
        }
        if tensor.quantization is not None:
            fields["Quantization"] = self.quantization(tensor.quantization)
        return self.table("Tensor", fields)

    def quantization(self, quantization: Quantization | Blocks) -> int:
        if isinstance(quantization, Blocks):
            # The zero points' tensor, -1: none.
            details = {"Scales": quantization.scales, "ZeroPoints": -1, "BlockSize": quantization.size}
            fields = {
                "DetailsType": self.schema.QuantizationDetails.BlockwiseQuantization,
                "Details": self.table("BlockwiseQuantization", details),
            }
            return self.table("QuantizationParameters", fields)

        def pack() -> int:
            scale = self.builder.CreateNumpyVector(quantization.scale)
            # The runtimes want as many zero points as scales; one vector does for all tensors with as many of the same.
            count, zero_point = len(quantization.scale), quantization.zero_point
            points = self.once(
                ("zero points", count, zero_point),
                lambda: self.builder.CreateNumpyVector(np.full(count, zero_point, np.int64)),
            )
            fields = {"Scale": scale, "ZeroPoint": points, "QuantizedDimension": quantization.axis}
            return self.table("QuantizationParameters", fields)

        return self.once(("quantization", id(quantization)), pack)

    def operator(self, operator: Operator, codes: Sequence[tuple[str, int]]) -> int:
        """Pack an operator. Graphs of different lengths number their tensors alike, and so have most of them in common."""
        options = () if operator.options is None else tuple(operator.options[1].items())
        key = ("operator", operator.name, operator.version, operator.inputs, operator.outputs, options)
        return self.once(key, lambda: self.new_operator(operator, codes.index((operator.name, operator.version))))

    def new_operator(self, operator: Operator, code: int) -> int:
        fields: dict[str, Any] = {
            "OpcodeIndex": code,
            "Inputs": self.integers(operator.inputs),
            "Outputs": self.integers(operator.outputs),
        }
        if operator.options is not None:
            kind, values = operator.options
            fields["BuiltinOptionsType"] = getattr(self.schema.BuiltinOptions, kind)
            fields["BuiltinOptions"] = self.once(("options", kind, *values.items()), lambda: self.table(kind, values))
        return self.table("Operator", fields)
