"""Looks at a written file with the eyes of its target: by what is known of the runtime, without the device."""

from __future__ import annotations

import functools
import tempfile
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from edgelm.edgetpu import CompilerRecord, check_operators, run_compiler
from edgelm.edgetpu.tflite import Operation, TensorFacts, read_graphs
from edgelm.errors import ConversionError, RuntimeUnavailableError
from edgelm_converters.targets.table import Target

__all__ = ["check_file", "edgetpu_notes", "gpu_faults", "gpu_notes", "runtime_lacks"]

_ELEMENTWISE = frozenset(("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE"))


def check_file(target: Target, path: Path) -> tuple[str, ...]:
    """Check a TFLite file for its target, and return what the manifest should say.

    Raises:
        ConversionError: It holds what the target computes wrongly, or does not open.
    """
    if target.check == "edgetpu":
        return edgetpu_notes(path)
    if target.check == "gpu":
        faults = gpu_faults(path)
        if faults:
            raise ConversionError(
                f"The file holds what a GPU computes wrongly or stops at ({faults[0]}; {len(faults)} in all): convert it "
                "without --for."
            )
        return gpu_notes(path)
    if target.check == "tflite-runtime":
        lacks = runtime_lacks(path)
        if lacks:
            raise ConversionError(
                f"tflite-runtime 2.14 does not open the file, for it lacks {', '.join(lacks)}: use ai-edge-litert on the "
                "device, or a model that edgelm recognises."
            )
    return ()


def gpu_faults(path: Path) -> list[str]:
    """Return the operators of a file that LiteRT's GPU accelerator computes wrongly and silently, or ends the process at.

    All were run on LiteRT 2.3.0 with a Vulkan driver in software; the first is issue 8980 of LiteRT, seen on phones too.

    - Elementwise operators on tensors of different numbers of dimensions, but for a constant of one number.
    - A constant ``(n, D)``, n > 1, beside a computed ``(n, D)``: right with three dimensions.
    - A BATCH_MATMUL of a tensor with itself.
    - Shapes that are not fixed: the accelerator takes nothing of the graph.
    """
    return [
        f"operator {index} {operation.name} of {graph.name}: {fault}"
        for graph in read_graphs(path)
        for index, operation in enumerate(graph.operations)
        if (fault := _fault(operation)) is not None
    ]


def _fault(operation: Operation) -> str | None:
    tensors = [tensor for tensor in operation.inputs if tensor is not None]
    if any(extent < 0 for tensor in (*tensors, *operation.outputs) for extent in tensor.shape):
        return "its shape is not fixed"
    if operation.name in _ELEMENTWISE:
        if len({len(tensor.shape) for tensor in tensors}) > 1:
            return "its inputs have different numbers of dimensions"
        if any(_is_flat_table(tensor) for tensor in tensors):
            return "a constant of two dimensions"
    if operation.name == "BATCH_MATMUL" and tensors[0] is tensors[1]:
        return "a product of a tensor with itself"
    return None


def _is_flat_table(tensor: TensorFacts) -> bool:
    return tensor.constant_bytes is not None and len(tensor.shape) == 2 and tensor.shape[0] > 1


def gpu_notes(path: Path) -> tuple[str, ...]:
    """Return what of a file stays on the processor beside a GPU: what turns float16 weights into float32."""
    count = sum(operation.name == "DEQUANTIZE" for graph in read_graphs(path) for operation in graph.operations)
    if not count:
        return ()
    return (
        f"The processor turns float16 weights into float32 beside the GPU, {count} DEQUANTIZE, and keeps what comes before "
        "them; fp32 leaves it nothing.",
    )


def edgetpu_notes(path: Path) -> tuple[str, ...]:
    """Return what of a file the Edge TPU would take, by its documentation, and by its compiler where that is installed."""
    check = check_operators(path)
    notes = []
    for graph in check.graphs:
        first = graph.first_unmapped
        ends = "all of them" if first is None else f"it ends at operator {first.index}, {first.name}: {first.reason}"
        notes.append(
            f"Edge TPU, by Coral's documentation: {graph.mapped} of {graph.operators} operators of {graph.name} map; {ends}. "
            f"{len(graph.unmapped)} would not map by themselves."
        )
    room = "fit" if check.spare_bytes >= 0 else "do not fit"
    notes.append(
        f"Edge TPU: {check.weight_bytes:,} bytes of weights {room} the {check.on_chip_bytes:,} bytes on the chip."
    )
    with tempfile.TemporaryDirectory(prefix="edgelm-") as folder:
        try:
            notes.append(_said(run_compiler(path, folder=folder)))
        except RuntimeUnavailableError as error:
            notes.append(f"Edge TPU: not compiled, {error}")
        except ConversionError as error:
            notes.append(f"Edge TPU: {error}")
    return tuple(notes)


def _said(record: CompilerRecord) -> str:
    return (
        f"Edge TPU, by its compiler {record.version}: {record.mapped_operators} operators map, {record.cpu_operators} stay on "
        "the processor."
    )


def runtime_lacks(path: Path) -> list[str]:
    """Return the operators of a file that tflite-runtime 2.14.0 does not have in that version, such as ``GELU 3``."""
    from ai_edge_litert import schema_py_generated as schema

    newest = _runtime_versions()
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    model: Any = schema.Model.GetRootAs(path.read_bytes(), 0)
    lacks = set()
    for index in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(index)
        name = names.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "an operator without a name")
        if code.Version() > newest.get(name, 0):
            lacks.add(f"{name} {code.Version()}")
    return sorted(lacks)


@functools.cache
def _runtime_versions() -> Mapping[str, int]:
    text = (resources.files("edgelm_converters.targets") / "tflite_runtime_2_14.toml").read_text(encoding="utf-8")
    return {name: int(version) for name, version in tomllib.loads(text)["versions"].items()}
