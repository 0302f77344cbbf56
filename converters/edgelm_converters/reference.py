"""The model as it came, as a plain function of arrays: what every artifact is compared with."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import Port
from edgelm.bundle.manifest import Role
from edgelm.errors import InputError, ModelError
from edgelm_converters.source import Source

__all__ = ["Reference", "make_reference"]


@dataclass(frozen=True)
class Reference:
    """Keras's own answer.

    Attributes:
        inputs: The model's inputs. The first axis is the batch (None); a free sequence axis is None.
        structure: How the inputs are handed to the model: ``dict``, ``list`` or ``single``.
        call: The model, called without training.
    """

    inputs: tuple[Port, ...]
    structure: str
    call: Any

    @property
    def token_input(self) -> Port | None:
        """The input that takes token ids; None where there is none."""
        return next((port for port in self.inputs if port.role == "token_ids"), None)

    def pack(self, inputs: Mapping[str, Any]) -> Any:
        """Return the inputs in the structure that the model is called with."""
        if self.structure == "dict":
            return {port.name: inputs[port.name] for port in self.inputs}
        values = [inputs[port.name] for port in self.inputs]
        return values if self.structure == "list" else values[0]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the model's outputs by name; one unnamed output is called ``output``.

        Raises:
            InputError: Keras refuses these inputs.
        """
        missing = [port.name for port in self.inputs if port.name not in inputs]
        if missing:
            names = ", ".join(port.name for port in self.inputs)
            raise InputError(f"The model's inputs are {names}; the data lack {', '.join(missing)}.")
        refusals: tuple[type[Exception], ...] = (ValueError, TypeError, ArithmeticError, *_tensorflow_errors())
        try:
            result = self.call(self.pack(inputs))
        except refusals as error:
            shapes = {name: np.shape(value) for name, value in inputs.items()}
            raise InputError(
                f"The model does not take inputs of the shapes {shapes}: {str(error).splitlines()[0]}"
            ) from error
        return name_outputs(result)


def _tensorflow_errors() -> tuple[type[Exception], ...]:
    """Return TensorFlow's own errors, which are no ValueErrors, where it is loaded."""
    tensorflow = sys.modules.get("tensorflow")
    return (tensorflow.errors.OpError,) if tensorflow is not None else ()


def name_outputs(result: Any) -> dict[str, NDArray[Any]]:
    """Return a model's result, in any structure, as arrays by name."""
    if isinstance(result, Mapping):
        return {str(name): np.asarray(value) for name, value in result.items()}
    if isinstance(result, (list, tuple)):
        return {f"output_{index}": np.asarray(value) for index, value in enumerate(result)}
    return {"output": np.asarray(result)}


def make_reference(source: Source) -> Reference:
    """Return the reference of a source.

    Raises:
        ModelError: The model was never built, or has inputs that no device takes (strings, ragged or sparse).
    """
    if source.kind == "saved_model":
        return _from_saved_model(source.model)
    return _from_keras(source.model)


def _from_keras(model: Any) -> Reference:
    if getattr(model, "_is_graph_network", False) or hasattr(model, "_inputs_struct"):
        struct = model._inputs_struct if hasattr(model, "_inputs_struct") else model.inputs
    elif type(model).__name__ == "Sequential" and model.built:
        struct = model.inputs[0] if len(model.inputs) == 1 else model.inputs
    else:
        return _from_subclassed(model)
    if isinstance(struct, Mapping):
        structure, tensors = "dict", list(struct.items())
    elif isinstance(struct, (list, tuple)):
        structure, tensors = "list", [(tensor.name, tensor) for tensor in struct]
    else:
        # Keras numbers its unnamed tensors, anew in each process: no name to call a model by.
        plain = "token_ids" if _reads_ids(model) else "input"
        structure, tensors = "single", [(plain if struct.name.startswith("keras_tensor") else struct.name, struct)]
    ports = [_port(name, str(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors]
    if len(ports) == 1 and len(ports[0].shape) == 2 and _reads_ids(model):
        # An Input takes float32 where nothing else is said, and an Embedding behind it takes that for ids.
        ports = [dataclasses.replace(ports[0], dtype="int32", role="token_ids")]
    return Reference(_one_token_input(ports), structure, lambda packed: model(packed, training=False))


def _reads_ids(model: Any) -> bool:
    return any(type(layer).__name__.endswith("Embedding") for layer in model._flatten_layers())


def _from_subclassed(model: Any) -> Reference:
    """Read the shapes that a subclassed model was first called with; Keras keeps no names and no dtypes for it."""
    shapes = list((getattr(model, "_build_shapes_dict", None) or {}).values())
    if not shapes or not model.built:
        raise ModelError(
            f"The model '{model.name}' has never been called, so its inputs are not known: call it once on a real batch "
            "(model(batch)) and save it again, or pass it from memory after that."
        )
    reads_ids = _reads_ids(model)
    struct = shapes[0]
    if isinstance(struct, Mapping):
        structure, named = "dict", list(struct.items())
    elif struct and isinstance(struct[0], (list, tuple)):
        structure, named = "list", [(f"input_{index}", shape) for index, shape in enumerate(struct)]
    else:
        structure, named = "single", [("token_ids" if reads_ids and len(struct) == 2 else "input", struct)]
    ports = [
        _port(name, "int32" if reads_ids and len(shape) == 2 else "float32", (None, *shape[1:]))
        for name, shape in named
    ]
    return Reference(_one_token_input(ports), structure, lambda packed: model(packed, training=False))


def _from_saved_model(function: Any) -> Reference:
    _, keywords = function.structured_input_signature
    ports = [_port(name, spec.dtype.name, tuple(spec.shape)) for name, spec in keywords.items()]

    def call(packed: Mapping[str, Any]) -> Any:
        import tensorflow as tf

        return function(**{port.name: tf.cast(packed[port.name], port.dtype) for port in ports})

    return Reference(_one_token_input(ports), "dict", call)


def _port(name: str, dtype: str, shape: tuple[int | None, ...]) -> Port:
    integer = dtype.startswith(("int", "uint", "bool"))
    if not integer and not dtype.startswith(("float", "bfloat")):
        raise ModelError(
            f"The model's input '{name}' is of type {dtype}, which no device takes: cut the model behind its text layers "
            "(TextVectorization and the like), and give the tokenizer to edgelm instead."
        )
    name = str(name).split(":")[0]
    return Port(name, dtype, (None, *shape[1:]), _role(name, integer=integer, rank=len(shape)))


def _role(name: str, *, integer: bool, rank: int) -> Role:
    if not integer or rank != 2:
        return "features"
    lowered = name.lower()
    if "mask" in lowered:
        return "padding_mask"
    if "segment" in lowered or "type" in lowered:
        return "segment_ids"
    return "token_ids"


def _one_token_input(ports: list[Port]) -> tuple[Port, ...]:
    """Keep the role `token_ids` only where exactly one input can have it."""
    if sum(port.role == "token_ids" for port in ports) == 1:
        return tuple(ports)
    return tuple(Port(port.name, port.dtype, port.shape, "features") for port in ports)
