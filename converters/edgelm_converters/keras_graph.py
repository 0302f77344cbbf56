"""A Keras 3 model as a graph of Keras's own layers and operations, whatever classes it is made of.

The model is called once on symbolic tensors (``KerasTensor``), with Keras's own ``__call__`` at work, while every composite
(a custom layer, a subclassed, sequential or functional model) is unrolled: its ``call`` runs on the symbolic tensors
themselves. What is left are leaves: built-in layers and ``keras.ops`` operations, each a `Node`. Masks are those that Keras
propagates; dropout vanishes, since nothing is in training. A tensor that does not depend on the inputs, such as a position
embedding, is computed as usual and appears as a `Constant`.

The way that was rejected is to follow the nodes that a functional model keeps: they end at the border of every custom layer.

Unrolling needs a few private names of Keras (``Operation.symbolic_call``, ``Layer.symbolic_call``, ``Layer._maybe_build``,
``keras.src.layers.layer.Node``): they are patched for the time of one `capture`, in the whole process, so two captures must
not run at once in two threads.

Dimensions: ``B`` batch, ``S`` tokens.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgelm_converters.families import NotRecognised
from edgelm_converters.frameworks import import_keras

__all__ = ["Argument", "Constant", "Graph", "ModelInput", "Node", "Tensor", "capture", "model_inputs", "pack_inputs"]

_BATCH = 2  # not 1, so that nothing that broadcasts over the batch looks like something that does not

# Keras's own layers that are unrolled too: what they compute is one operation, or nothing outside of training.
_UNROLLED = ("keras.src.layers.activations.", "keras.src.layers.regularization.")
_UNROLLED_LAYERS = ("Identity", "Multiply")
# What a subclass of a built-in layer may define and still compute the same. Masks are asked for by Keras, so they count.
_HARMLESS = {"__init__", "get_config", "from_config", "compute_mask", "compute_output_shape"}
_HARMLESS |= {"__annotations__", "__doc__", "__firstlineno__", "__module__", "__qualname__", "__static_attributes__"}
_HARMLESS |= {"_api_export_path", "_api_export_symbol_id"}  # marks of KerasHub
# A layer of KerasHub that is a leaf: without a cache it computes what the MultiHeadAttention that it stands on does.
_CACHED_ATTENTION = "CachedMultiHeadAttention"


# Of a call: a `Tensor`, a `Constant`, a tuple or a dict of arguments, or a plain Python value.
Argument: TypeAlias = Any


@dataclass(frozen=True)
class ModelInput:
    """An input of a model.

    Attributes:
        name: As Keras names it; ``token_ids`` for the only input of a subclassed model, whose inputs have no names.
        shape: Without the batch axis; None where an axis is free.
        dtype: As Keras writes it.
        declared: Whether the model states its shape. A subclassed model does not: the shape is that of its first batch.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    declared: bool


@dataclass(frozen=True, eq=False)
class Node:
    """One call of a leaf.

    Attributes:
        kind: Class name of the layer or operation, such as ``"Dense"`` or ``"Add"``; ``"Input"`` for a model's input.
        path: Names of the layers around it and its own, such as ``"transformer_block/ffn/dense"``. An operation has no name
            that a user gave, so its path ends with the layer that calls it.
        operation: The Keras layer or operation; the `ModelInput` of an input.
        arguments: By the names of its ``call``'s parameters; masks that Keras passes are among them. A
            ``MultiHeadAttention`` has ``query_mask`` as its ``call`` reads it: the mask that hangs on the query.
    """

    kind: str
    path: str
    operation: Any = field(repr=False)
    arguments: Mapping[str, Argument] = field(repr=False)

    @property
    def is_layer(self) -> bool:
        """Whether it is a layer, and not an operation of ``keras.ops`` or an input."""
        return hasattr(self.operation, "trainable")

    def describe(self) -> str:
        """Return it in words, for a message.

        >>> Node("Add", "block", object(), {}).describe()
        "keras.ops Add in 'block'"
        """
        if self.is_layer or self.kind == "Input":
            return f"{self.kind} '{self.path}'"
        return f"keras.ops {self.kind} in '{self.path}'" if self.path else f"keras.ops {self.kind}"


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor that depends on the inputs: output `index` of `node`."""

    node: Node
    index: int
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that does not depend on the inputs, at the captured length."""

    value: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Graph:
    """What a model computes at one length.

    Attributes:
        length: S, of every input's free axis, or of each input's by its name.
        inputs: In the model's order.
        outputs: By name; a single output without a name is called ``output``.
        nodes: Every leaf that was called, in order. Some may not lead to an output.
    """

    length: int | Mapping[str, int]
    inputs: tuple[Tensor, ...]
    outputs: Mapping[str, Tensor]
    nodes: tuple[Node, ...]


def model_inputs(model: Any) -> tuple[ModelInput, ...]:
    """Return the inputs of a model, in its order.

    Raises:
        NotRecognised: A subclassed model was never called, or takes its inputs in a form that has no names.
    """
    return tuple(import_keras().tree.flatten(_input_structure(model)))


def pack_inputs(model: Any, values: Mapping[str, Any]) -> Any:
    """Return the values of a model's inputs, by name, in the structure that the model is called with."""
    return import_keras().tree.map_structure(lambda entry: values[entry.name], _input_structure(model))


def capture(model: Any, length: int | Mapping[str, int]) -> Graph:
    """Return what a model computes, without training, on `length` tokens.

    The model is not changed: no variable, no name, no built state. Its own ``call`` code is run, once.

    Args:
        model: A built ``keras.Model``.
        length: S, for every free axis but the batch; or one for each input, by name, where they differ.

    Raises:
        NotRecognised: Something in it cannot be run symbolically: code that calls TensorFlow itself, a branch on values, a
            layer that was never built. The message names the layer.
    """
    keras = import_keras()
    structure = _input_structure(model)
    recorder = _Recorder(keras, model)
    lengths = length if isinstance(length, Mapping) else dict.fromkeys(_names(structure), length)
    symbolic = keras.tree.map_structure(lambda entry: recorder.add_input(entry, lengths[entry.name]), structure)
    inputs = tuple(recorder.tensor(value) for value in keras.tree.flatten(symbolic))
    try:
        with _unchanged(keras, model), _patched(recorder):
            result = model(symbolic, training=False)
    except NotRecognised:
        raise
    except Exception as error:  # the model's own code runs here, and may raise anything
        where = f"'{recorder.failed_at}'" if recorder.failed_at else f"the model '{model.name}'"
        first = str(error).strip().splitlines()[:1]
        raise NotRecognised(
            f"the code of {where} does not run on symbolic tensors (only layers and keras.ops do): "
            f"{type(error).__name__}: {first[0] if first else ''}"
        ) from error
    return Graph(length, inputs, recorder.outputs(result), tuple(recorder.nodes))


def _input_structure(model: Any) -> Any:
    """Return the model's inputs, in the structure that it is called with."""
    keras = import_keras()
    if hasattr(model, "_inputs_struct"):
        declared = model._inputs_struct
    elif isinstance(model, keras.Sequential) and model.built:
        declared = model.inputs[0] if len(model.inputs) == 1 else model.inputs
    else:
        return _called_structure(model)
    if isinstance(declared, Mapping):
        return {name: _declared(name, tensor) for name, tensor in declared.items()}
    return keras.tree.map_structure(lambda tensor: _declared(tensor.name, tensor), declared)


def _names(structure: Any) -> list[str]:
    return [entry.name for entry in import_keras().tree.flatten(structure)]


def _declared(name: str, tensor: Any) -> ModelInput:
    return ModelInput(str(name), tuple(tensor.shape[1:]), str(tensor.dtype), declared=True)


def _called_structure(model: Any) -> Any:
    """Return the inputs of a subclassed model: the shapes of the batch that it was first called with."""
    shapes = list((getattr(model, "_build_shapes_dict", None) or {}).values())
    if not shapes or not model.built:
        raise NotRecognised(
            f"the model '{model.name}' was never called, so its layers have no weights: call it on a batch"
        )
    struct = shapes[0]
    if isinstance(struct, Mapping) and len(shapes) == 1:
        return {name: _called(str(name), shape) for name, shape in struct.items()}
    if len(shapes) > 1 or any(isinstance(entry, (list, tuple)) for entry in struct):
        raise NotRecognised(
            f"the subclassed model '{model.name}' takes several inputs without names: give them as a dict"
        )
    return _called("token_ids", struct)


def _called(name: str, shape: Any) -> ModelInput:
    return ModelInput(
        name, tuple(shape[1:]), "int32", declared=False
    )  # Keras keeps no dtype; ids are what is read here


class _Recorder:
    """The nodes of one capture while it runs."""

    def __init__(self, keras: Any, model: Any) -> None:
        self.nodes: list[Node] = []
        self.failed_at: str | None = None
        self._keras = keras
        self._model = model
        self._known = {id(layer) for layer in model._flatten_layers()}
        self._owners: list[str] = []
        self._tensors: dict[int, Tensor] = {}
        self._alive: list[Any] = []  # an id is its object's own only while the object lives
        self._in_leaf = False

    def add_input(self, entry: ModelInput, length: int) -> Any:
        """Return the symbolic tensor of an input."""
        shape = (_BATCH, *(length if extent is None or not entry.declared else extent for extent in entry.shape))
        symbolic = self._keras.KerasTensor(shape, dtype=entry.dtype, name=entry.name)
        self._record("Input", entry.name, entry, {}, symbolic)
        return symbolic

    def call_layer(self, layer: Any, args: Any, kwargs: Any) -> Any:
        """Unroll a composite, or record a leaf; in place of ``Layer.symbolic_call``."""
        if self._in_leaf:
            return layer.compute_output_spec(*args, **kwargs)
        with self._owned_by(layer):
            kind = _leaf_class(self._keras, layer)
            if kind is None:
                self._refuse_training(layer, kwargs)
                return layer.call(*args, **kwargs)
            return self._call_leaf(layer, kind, args, kwargs)

    def call_operation(self, operation: Any, args: Any, kwargs: Any) -> Any:
        """Record an operation; in place of ``Operation.symbolic_call``."""
        if self._in_leaf:
            return operation.compute_output_spec(*args, **kwargs)
        kind = type(operation).__name__
        known = self._known_result(operation, kind, args)
        if known is not None:
            return known
        outputs = operation.compute_output_spec(*args, **kwargs)
        self._record(kind, "/".join(self._owners), operation, _bind(operation.call, args, kwargs), outputs)
        return outputs

    def _known_result(self, operation: Any, kind: str, args: Any) -> Any:
        """Return the result of an operation that needs no node; None for any other."""
        if kind in ("OnesLike", "ZerosLike"):  # known from the shape alone, so a constant
            make = self._keras.ops.ones if kind == "OnesLike" else self._keras.ops.zeros
            return make(args[0].shape, dtype=operation.dtype or args[0].dtype)
        if kind in ("Cast", "ConvertToTensor") and operation.dtype in (None, args[0].dtype):
            return args[0]  # as on real tensors, so that its mask stays with it
        return None

    def build(self, layer: Any, call_spec: Any, original: Any) -> None:
        """Refuse a layer without its weights; in place of ``Layer._maybe_build``, which would make random ones."""
        if layer.built or self._in_leaf:
            return
        path = "/".join([*self._owners, layer.name])
        if id(layer) not in self._known:
            original(layer, call_spec)
            if layer.weights:
                raise NotRecognised(
                    f"{type(layer).__name__} '{path}' is made inside of call, with new weights each time"
                )
        elif _has_own_build(layer):
            raise NotRecognised(f"{type(layer).__name__} '{path}' has no weights yet: call the model on a batch first")

    def refuse_random(self) -> None:
        """Refuse a random number: in the capture, where no state changes, it would be a constant."""
        where = f"'{'/'.join(self._owners)}'" if self._owners else "the model"
        raise NotRecognised(f"the code of {where} draws random numbers, and not in training alone")

    def outputs(self, result: Any) -> dict[str, Tensor]:
        """Return a model's result by name."""
        if isinstance(result, Mapping):
            named = {str(name): value for name, value in result.items()}
        elif isinstance(result, (list, tuple)):
            named = {f"output_{index}": value for index, value in enumerate(result)}
        else:
            named = {"output": result}
        for name, value in named.items():
            if not isinstance(value, self._keras.KerasTensor):
                raise NotRecognised(f"the output '{name}' of the model does not depend on its inputs")
        return {name: self.tensor(value) for name, value in named.items()}

    def tensor(self, symbolic: Any) -> Tensor:
        """Return the tensor that a symbolic one stands for."""
        if id(symbolic) not in self._tensors:
            raise NotRecognised(f"the tensor '{symbolic.name}' comes from outside of the model")
        return self._tensors[id(symbolic)]

    def _call_leaf(self, layer: Any, kind: type, args: Any, kwargs: Any) -> Any:
        arguments = _bind(layer.call, args, kwargs)
        masked = [arguments.get(name) for name in ("query", "key", "value") if kind.__name__ == "MultiHeadAttention"]
        if masked:
            # Its call reads the query's own mask, and takes the masks off all three for whatever comes later. The same
            # tensor in a residual connection has then no mask: Keras's Add gives none on.
            arguments["query_mask"] = _mask(masked[0])
        if kind.__name__ == _CACHED_ATTENTION:
            outputs = self._cached_attention(layer, arguments)
        else:
            outputs = self._output_of(layer, args, kwargs)
        self._record(kind.__name__, "/".join(self._owners), layer, arguments, outputs)
        for value in masked:
            _set_mask(value, None)
        if kind.__name__ == "ReversibleEmbedding" and layer.mask_zero:
            _set_mask(outputs, self._keras.ops.not_equal(args[0], 0))  # set by its call, not by compute_mask
        if kind.__name__ in ("Dense", "EinsumDense") and layer.activation is not None:
            return layer.activation(outputs)
        return outputs

    def _output_of(self, layer: Any, args: Any, kwargs: Any) -> Any:
        self._in_leaf = True
        try:
            return layer.compute_output_spec(*args, **kwargs)
        finally:
            self._in_leaf = False

    def _cached_attention(self, layer: Any, arguments: dict[str, Any]) -> Any:
        """Return what KerasHub's attention gives; its ``compute_output_spec`` does not take the cache's arguments."""
        if arguments["cache"] is not None or arguments["return_attention_scores"]:
            raise NotRecognised(
                f"{_CACHED_ATTENTION} '{'/'.join(self._owners)}' is called with a cache, or for its scores"
            )
        return self._keras.KerasTensor(arguments["query"].shape, dtype=layer.compute_dtype)

    def _refuse_training(self, layer: Any, kwargs: Any) -> None:
        if type(layer).__module__.startswith("keras.src.layers.regularization.") and kwargs.get("training"):
            raise NotRecognised(
                f"{type(layer).__name__} '{'/'.join(self._owners)}' is called with training=True, so the model is random"
            )

    def _record(self, kind: str, path: str, operation: Any, arguments: dict[str, Any], outputs: Any) -> None:
        node = Node(kind, path, operation, {name: self._argument(value) for name, value in arguments.items()})
        self.nodes.append(node)
        for index, symbolic in enumerate(self._keras.tree.flatten(outputs)):
            self._alive.append(symbolic)
            self._tensors[id(symbolic)] = Tensor(node, index, tuple(symbolic.shape), str(symbolic.dtype))

    def _argument(self, value: Any) -> Argument:
        if isinstance(value, self._keras.KerasTensor):
            return self.tensor(value)
        if isinstance(value, (np.ndarray, np.generic)):
            return Constant(np.asarray(value))
        if isinstance(value, self._keras.Variable) or self._keras.ops.is_tensor(value):
            return Constant(np.asarray(self._keras.ops.convert_to_numpy(value)))
        if isinstance(value, (list, tuple)):
            return tuple(self._argument(entry) for entry in value)
        if isinstance(value, dict):
            return {str(name): self._argument(entry) for name, entry in value.items()}
        return value

    @contextmanager
    def _owned_by(self, layer: Any) -> Iterator[None]:
        owners = self._owners
        self._owners = owners if layer is self._model else [*owners, layer.name]
        try:
            yield
        except Exception:
            self.failed_at = self.failed_at or "/".join(self._owners)
            raise
        finally:
            self._owners = owners


def _leaf_class(keras: Any, layer: Any) -> type | None:
    """Return the built-in class that says what a layer computes; None for a composite."""
    if isinstance(layer, keras.Model):
        return None
    if "call" in vars(layer):  # somebody has put another function there
        return None
    for kind in type(layer).__mro__:
        if kind.__module__.startswith("keras.src."):
            unrolled = kind.__module__.startswith(_UNROLLED) or kind.__name__ in _UNROLLED_LAYERS
            return None if kind is keras.layers.Layer or unrolled else kind
        if kind.__name__ == _CACHED_ATTENTION and kind.__module__.split(".")[0] in ("keras_hub", "keras_nlp"):
            return kind
        if not vars(kind).keys() <= _HARMLESS:
            return None
    return None


def _has_own_build(layer: Any) -> bool:
    """Whether a layer makes weights of its own: not one that only holds others, nor one of arithmetic."""
    build = type(layer).build
    return not hasattr(build, "_is_default") and not build.__module__.startswith("keras.src.layers.merging.")


def _bind(function: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return the arguments of a call by name, defaults included."""
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _mask(symbolic: Any) -> Any:
    return getattr(symbolic, "_keras_mask", None)


def _set_mask(symbolic: Any, mask: Any) -> None:
    if symbolic is not None:
        symbolic._keras_mask = mask


@contextmanager
def _patched(recorder: _Recorder) -> Iterator[None]:
    """Let the recorder see every symbolic call of the process; it records those inside of it."""
    from keras.src.layers import layer as layer_module
    from keras.src.ops import operation as operation_module
    from keras.src.random import seed_generator as seed_module

    layer_class, operation_class = layer_module.Layer, operation_module.Operation
    build = layer_class._maybe_build
    replacements = (
        (operation_class, "symbolic_call", lambda self, *args, **kwargs: recorder.call_operation(self, args, kwargs)),
        (layer_class, "symbolic_call", lambda self, *args, **kwargs: recorder.call_layer(self, args, kwargs)),
        (layer_class, "_maybe_build", lambda self, call_spec: recorder.build(self, call_spec, build)),
        (layer_module, "Node", lambda **_: None),  # a layer would remember the call
        (seed_module.SeedGenerator, "next", lambda *_, **__: recorder.refuse_random()),
    )
    missing = [name for owner, name, _ in replacements if name not in vars(owner)]
    if missing:
        version = import_keras().version()
        raise NotRecognised(
            f"Keras {version} calls its layers in a way that edgelm does not know (it has no {missing[0]})"
        )
    originals = [(owner, name, vars(owner)[name]) for owner, name, _ in replacements]
    try:
        for owner, name, replacement in replacements:
            setattr(owner, name, replacement)
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


@contextmanager
def _unchanged(keras: Any, model: Any) -> Iterator[None]:
    """Take back what a call leaves behind: variables, marks on layers, counters of automatic names."""
    from keras.src.backend.common import global_state

    layers = [(layer, layer.built, layer._called) for layer in model._flatten_layers()]
    names = global_state.get_global_attribute("object_name_uids")
    counters = dict(names or {})
    filtering = keras.config.is_traceback_filtering_enabled()
    keras.config.disable_traceback_filtering()  # it would wrap every exception in one of its own
    try:
        with keras.StatelessScope(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as "destroys the mask": the graph shows it
            yield
    finally:
        if filtering:
            keras.config.enable_traceback_filtering()
        if names is not None:
            names.clear()
            names.update(counters)
        for layer, built, called in layers:
            if layer.built != built or layer._called != called:
                layer.built, layer._called = built, called
