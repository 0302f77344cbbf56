"""What Edge TPU's compiler would take of a file, by Coral's documentation: an honest guess before the compiler is asked.

The compiler maps the operators from the first one on until it meets one that it cannot map; that one and everything after it
runs on the processor ("the compiler will partition the graph at the first point where an unsupported operation occurs",
https://coral.ai/docs/edgetpu/models-intro/#compiling).
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from math import prod
from pathlib import Path

from edgelm_device_profiles import load

from edgelm.edgetpu.tflite import Graph, Operation, TensorFacts, read_graphs
from edgelm.errors import ProfileError

__all__ = ["GraphCheck", "OperatorCheck", "Unmapped", "check_operators", "documented_operators"]

_PROFILE = "coral-usb"
# Activations and weights; a bias is int32, and so are the constants that say which axis or shape.
_ACTIVATIONS = frozenset(("int8", "uint8"))
# The state of an LSTM's cell is int16; the compiler takes it (keras_lstm_mnist_ptq in Coral's test data).
_WITH_STATE = frozenset(("LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM"))
_MOST_DIMENSIONS = 3
_SOFTMAX_ELEMENTS = 16_000


@dataclass(frozen=True)
class Unmapped:
    """An operator that would stay on the processor.

    Attributes:
        index: Its place in the graph, from 0.
        name: Of the schema, such as ``GATHER``.
        tensor: The name of what it computes, which may carry the Keras layer's; may be empty.
        reason: Why, by the documentation.
    """

    index: int
    name: str
    tensor: str
    reason: str


@dataclass(frozen=True)
class GraphCheck:
    """One signature's graph.

    Attributes:
        name: The signature's.
        operators: How many it has.
        mapped: Those before the first one that the compiler cannot map.
        unmapped: Every operator that cannot be mapped for what it is itself, in order; the first of them ends the mapping.
        weight_bytes: Constants of the operators that are mapped.
    """

    name: str
    operators: int
    mapped: int
    unmapped: tuple[Unmapped, ...]
    weight_bytes: int

    @property
    def first_unmapped(self) -> Unmapped | None:
        """The operator that ends the mapping; None where all are mapped."""
        return self.unmapped[0] if self.unmapped else None


@dataclass(frozen=True)
class OperatorCheck:
    """A file.

    Attributes:
        graphs: Each signature.
        weight_bytes: Constants of the whole file, each counted once.
        on_chip_bytes: What the chip holds, program included: documented as roughly that.
        spare_bytes: Left beside the weights of the largest graph; negative is what would be sent again at each call.
    """

    graphs: tuple[GraphCheck, ...]
    weight_bytes: int
    on_chip_bytes: int
    spare_bytes: int


@functools.cache
def documented_operators() -> Mapping[str, str]:
    """Return the operators that Coral documents, each with its limits in a sentence, or ""."""
    text = (resources.files("edgelm.edgetpu") / "supported_operators.toml").read_text(encoding="utf-8")
    return {name: str(limits) for name, limits in tomllib.loads(text)["operators"].items()}


def check_operators(path: str | Path) -> OperatorCheck:
    """Say what the Edge TPU's compiler would take of a TFLite file.

    Args:
        path: A file that was not compiled yet.

    Raises:
        InputError: It is no TFLite file, or is damaged.
    """
    graphs = read_graphs(path)
    checks = tuple(map(_check_graph, graphs))
    on_chip = _on_chip_bytes()
    largest = max((_weight_bytes(graph.operations) for graph in graphs), default=0)
    return OperatorCheck(
        graphs=checks,
        weight_bytes=_weight_bytes(operation for graph in graphs for operation in graph.operations),
        on_chip_bytes=on_chip,
        spare_bytes=on_chip - largest,
    )


def _on_chip_bytes() -> int:
    for accelerator in load(_PROFILE).accelerators:
        if accelerator.on_chip_bytes is not None:
            return int(accelerator.on_chip_bytes.value)
    raise ProfileError(f"The profile '{_PROFILE}' has no on_chip_bytes: install edgelm again.")


def _check_graph(graph: Graph) -> GraphCheck:
    unmapped = tuple(
        Unmapped(index, operation.name, operation.outputs[0].name if operation.outputs else "", reason)
        for index, operation in enumerate(graph.operations)
        if (reason := _why_not(operation)) is not None
    )
    mapped = unmapped[0].index if unmapped else len(graph.operations)
    return GraphCheck(graph.name, len(graph.operations), mapped, unmapped, _weight_bytes(graph.operations[:mapped]))


def _weight_bytes(operations: Iterable[Operation]) -> int:
    """Return the bytes of every constant, counted once."""
    constants = {
        tensor.buffer: tensor.constant_bytes
        for operation in operations
        for tensor in operation.inputs
        if tensor is not None and tensor.constant_bytes is not None
    }
    return sum(constants.values())


def _why_not(operation: Operation) -> str | None:
    """Return why an operator would stay on the processor, or None if it would not."""
    documented = documented_operators()
    if operation.name not in documented:
        return "the Edge TPU has no such operator"
    # A convolution's weights have four dimensions; what is documented of dimensions and types is of what is computed.
    tensors = [tensor for tensor in (*operation.inputs, *operation.outputs) if tensor is not None]
    dtypes = _ACTIVATIONS | ({"int16"} if operation.name in _WITH_STATE else set())
    for tensor in [tensor for tensor in tensors if tensor.constant_bytes is None]:
        if any(extent < 0 for extent in tensor.shape):
            return f"its shape {list(tensor.shape)} is not fixed"
        if any(extent > 1 for extent in tensor.shape[:-_MOST_DIMENSIONS]):
            return f"its shape {list(tensor.shape)} has more than {_MOST_DIMENSIONS} dimensions that are larger than 1"
        if tensor.dtype not in dtypes:
            return f"it computes with {tensor.dtype}, not int8"
    limit = _limit(operation.name, operation.inputs, operation.outputs)
    return None if limit is None else f"{limit} (documented: {documented[operation.name]})"


def _limit(name: str, inputs: tuple[TensorFacts | None, ...], outputs: tuple[TensorFacts, ...]) -> str | None:
    """Return which documented limit an operator breaks, as far as shapes tell."""
    shape = outputs[0].shape if outputs else ()
    wide = sum(extent > 1 for extent in shape)
    if name == "FULLY_CONNECTED":
        if len(inputs) > 1 and inputs[1] is not None and inputs[1].constant_bytes is None:
            return "its weights are computed"
        if wide > 1:
            return f"its output {list(shape)} is not one-dimensional"
    if name == "SOFTMAX" and (wide > 1 or prod(shape) > _SOFTMAX_ELEMENTS):
        return f"its input {list(shape)} is not one-dimensional, or too large"
    return None
