"""What the Edge TPU's compiler made: the executables inside an ``_edgetpu.tflite``.

The custom operator's options are a flexbuffer with a DarwiNN package in it, a flatbuffer whose schema is
``executable/executable.fbs`` of https://github.com/google-coral/libedgetpu (Apache-2.0).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgelm.edgetpu.flatbuffer import Table, root_table
from edgelm.edgetpu.tflite import CUSTOM_OPERATOR, Operation, read_graphs
from edgelm.errors import InputError

__all__ = ["Compiled", "Executable", "inspect_compiled", "is_compiled"]

_IDENTIFIER = b"DWN1"
_KINDS: tuple[Literal["stand-alone", "parameter caching", "execution only"], ...] = (
    "stand-alone",
    "parameter caching",
    "execution only",
)


@dataclass(frozen=True)
class Executable:
    """A program for the chip.

    Attributes:
        kind: A *parameter caching* one loads weights into the chip's memory, once; an *execution only* one runs with them
            at each call; a *stand-alone* one does both at each call.
        parameter_bytes: Weights in it.
        instruction_bytes: Instructions in it.
        scratch_bytes: Memory of the host that it needs.
        inputs: Names of what goes in.
        outputs: Names of what comes out.
    """

    kind: Literal["stand-alone", "parameter caching", "execution only"]
    parameter_bytes: int
    instruction_bytes: int
    scratch_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Compiled:
    """A compiled file.

    Attributes:
        chip: What it was compiled for: ``beagle`` is the Edge TPU of every Coral product but the Micro's host.
        min_runtime_version: Of libedgetpu: 13 came in May 2020, 14 in November 2021.
        compiler_version: As the package tells it; "" where it does not.
        executables: In the order of the file.
        cached_bytes: Weights that stay in the chip's memory.
        streamed_bytes: Weights that are sent at each call.
        edgetpu_operators: Custom operators, one for each partition.
        cpu_operators: What is left for the processor, with how many of each.
    """

    chip: str
    min_runtime_version: int
    compiler_version: str
    executables: tuple[Executable, ...]
    cached_bytes: int
    streamed_bytes: int
    edgetpu_operators: int
    cpu_operators: Mapping[str, int]


def is_compiled(path: str | Path) -> bool:
    """Return whether a TFLite file was compiled for the Edge TPU.

    Raises:
        InputError: It is no TFLite file.
    """
    return any(operation.name == CUSTOM_OPERATOR for graph in read_graphs(path) for operation in graph.operations)


def inspect_compiled(path: str | Path) -> Compiled:
    """Look into a compiled file.

    Args:
        path: An ``_edgetpu.tflite``.

    Raises:
        InputError: It is no TFLite file, was not compiled for the Edge TPU, or is damaged.
    """
    operations = [operation for graph in read_graphs(path) for operation in graph.operations]
    compiled = [operation for operation in operations if operation.name == CUSTOM_OPERATOR]
    if not compiled:
        raise InputError(f"{path} was not compiled for the Edge TPU: it has no operator '{CUSTOM_OPERATOR}'.")
    try:
        packages = [_package(operation) for operation in compiled]
        programs = [program for package in packages for program in _programs(package)]
        executables = tuple(map(_executable, programs))
        chips = sorted({program.text(10) for program in programs})
        runtime = max(package.number(0, "<i") for package in packages)
        compiler = packages[0].text(4)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    cached = sum(program.parameter_bytes for program in executables if program.kind == "parameter caching")
    return Compiled(
        chip=", ".join(chips),
        min_runtime_version=runtime,
        compiler_version=compiler,
        executables=executables,
        cached_bytes=cached,
        streamed_bytes=sum(program.parameter_bytes for program in executables) - cached,
        edgetpu_operators=len(compiled),
        cpu_operators=dict(Counter(operation.name for operation in operations if operation.name != CUSTOM_OPERATOR)),
    )


def _package(operation: Operation) -> Table:
    options = operation.custom_options.tobytes()
    # The package is a string of the flexbuffer; its identifier stands behind the offset of its root.
    start = options.find(_IDENTIFIER) - 4
    if start < 0:
        raise InputError(f"An '{CUSTOM_OPERATOR}' holds no DarwiNN package: it was made by an unknown compiler.")
    return root_table(options[start:], _IDENTIFIER, "a DarwiNN package")


def _programs(package: Table) -> Iterator[Table]:
    # Neither the list nor the programs in it have an identifier of their own in every version of the compiler.
    listed = root_table(package.bytes(1), b"", "a list of executables")
    for program in listed.strings(0):
        yield root_table(program, b"", "an executable")


def _executable(program: Table) -> Executable:
    kind = program.number(13, "<h")
    if not 0 <= kind < len(_KINDS):
        raise InputError(f"An executable is of the unknown kind {kind}: the compiler is newer than edgelm knows.")
    return Executable(
        kind=_KINDS[kind],
        parameter_bytes=program.length(6),
        instruction_bytes=sum(chunk.length(0) for chunk in program.tables(5)),
        scratch_bytes=program.number(4, "<i"),
        inputs=tuple(layer.text(0) for layer in program.tables(8)),
        outputs=tuple(layer.text(0) for layer in program.tables(9)),
    )
