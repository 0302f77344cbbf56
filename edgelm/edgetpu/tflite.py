"""The parts of a TFLite file that say what runs where: graphs, operators, shapes and types.

The field numbers are those of ``schema.fbs`` in LiteRT's sources.
"""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from edgelm.edgetpu.flatbuffer import Table, root_table
from edgelm.errors import InputError

__all__ = ["CUSTOM_OPERATOR", "Graph", "Operation", "TensorFacts", "builtin_codes", "read_graphs"]

CUSTOM_OPERATOR = "edgetpu-custom-op"

_IDENTIFIER = b"TFL3"
_CUSTOM = 32
_TYPES = {
    0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 5: "string", 6: "bool", 7: "int16", 8: "complex64",
    9: "int8", 10: "float64", 11: "complex128", 12: "uint64", 15: "uint32", 16: "uint16", 17: "int4",
}  # fmt: skip


@dataclass(frozen=True)
class TensorFacts:
    """A tensor.

    Attributes:
        name: As the file has it; may be empty.
        dtype: NumPy's name, or a number in words where edgelm knows none.
        shape: As the file has it; a free extent is -1.
        constant_bytes: Of its content where it is a constant; None where it is computed.
        buffer: The constant's number in the file: several graphs may share one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    constant_bytes: int | None
    buffer: int


@dataclass(frozen=True)
class Operation:
    """One step of a graph.

    Attributes:
        name: Of the schema, such as ``FULLY_CONNECTED``; a custom operator's own name.
        inputs: None for an optional one that is left out.
        outputs: What it computes.
        custom_options: Of a custom operator.
    """

    name: str
    inputs: tuple[TensorFacts | None, ...]
    outputs: tuple[TensorFacts, ...]
    custom_options: memoryview


@dataclass(frozen=True)
class Graph:
    """One graph of the file, in the order in which it runs."""

    name: str
    operations: tuple[Operation, ...]


@functools.cache
def builtin_codes() -> dict[int, str]:
    """Return the names of the built-in operators by their numbers in the schema."""
    text = (resources.files("edgelm.edgetpu") / "builtin_operators.toml").read_text(encoding="utf-8")
    return {number: name for name, number in tomllib.loads(text)["operators"].items()}


def read_graphs(path: str | Path) -> tuple[Graph, ...]:
    """Read the graphs of a TFLite file.

    Raises:
        InputError: The file is missing, is no TFLite file, or is damaged.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    try:
        model = root_table(content, _IDENTIFIER, "a TFLite file")
        sizes = [buffer.length(0) or buffer.number(2, "<Q") for buffer in model.tables(4)]
        names = [_operator_name(code) for code in model.tables(1)]
        return tuple(_graph(graph, names, sizes) for graph in model.tables(2))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except IndexError as error:
        raise InputError(f"{path}: It refers to a part that it does not have: it is damaged.") from error


def _operator_name(code: Table) -> str:
    # Old writers fill the first field only, and new ones write 127 there for what does not fit into a byte.
    number = max(code.number(0, "<b"), code.number(3, "<i"))
    return code.text(1) if number == _CUSTOM else builtin_codes().get(number, f"operator {number}")


def _graph(graph: Table, names: list[str], sizes: list[int]) -> Graph:
    tensors = [_tensor(tensor, sizes) for tensor in graph.tables(0)]
    operations = tuple(
        Operation(
            names[operator.number(0, "<I")],
            tuple(None if index < 0 else tensors[index] for index in operator.integers(1)),
            tuple(tensors[index] for index in operator.integers(2)),
            operator.bytes(5),
        )
        for operator in graph.tables(3)
    )
    return Graph(graph.text(4), operations)


def _tensor(tensor: Table, sizes: list[int]) -> TensorFacts:
    number = tensor.number(1, "<b")
    buffer = tensor.number(2, "<I")
    # The signature of a shape has -1 where the shape itself shows 1.
    shape = tensor.integers(7) or tensor.integers(0)
    return TensorFacts(tensor.text(3), _TYPES.get(number, f"type {number}"), shape, sizes[buffer] or None, buffer)
