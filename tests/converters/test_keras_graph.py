"""A model as a graph of Keras's own layers and operations, and untouched by that."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from edgelm_converters.families import NotRecognised
from edgelm_converters.keras_graph import Constant, Node, Tensor, capture, model_inputs

pytestmark = pytest.mark.needs_tensorflow
keras = pytest.importorskip("keras")
layers, ops = keras.layers, keras.ops


class Block(layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.att = layers.MultiHeadAttention(2, 4, name="att")
        self.ffn = keras.Sequential(
            [layers.Dense(8, activation="gelu", name="up"), layers.Dense(8, name="down")], name="ffn"
        )
        self.dropout = layers.Dropout(0.5)

    def call(self, x: Any) -> Any:
        return x + self.dropout(self.ffn(self.att(x, x)))


def make_model(*blocks: Any) -> Any:
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = layers.Embedding(20, 8, mask_zero=not blocks, name="tokens")(ids)
    for block in blocks or (Block(name="block"),):
        x = block(x)
    return keras.Model(ids, layers.GlobalAveragePooling1D(name="pool")(x))


def kinds(model: Any, length: int = 4) -> list[str]:
    return [node.kind for node in capture(model, length).nodes]


def producers(node: Node) -> dict[str, str]:
    return {name: value.node.kind for name, value in node.arguments.items() if isinstance(value, Tensor)}


def test_custom_layers_are_unrolled_to_layers_of_keras() -> None:
    graph = capture(make_model(), 6)
    paths = {node.kind: node.path for node in graph.nodes}
    assert paths["MultiHeadAttention"] == "block/att"
    assert [node.path for node in graph.nodes if node.kind == "Dense"] == ["block/ffn/up", "block/ffn/down"]
    assert (paths["Gelu"], paths["Add"]) == ("block/ffn/up", "block")
    assert "Dropout" not in paths
    assert graph.length == 6
    assert graph.inputs[0].shape[1] == 6
    assert graph.outputs["output"].node.kind == "GlobalAveragePooling1D"


def test_masks_are_arguments_as_keras_propagates_them() -> None:
    nodes = {node.kind: node for node in capture(make_model(), 6).nodes}
    expected = {"query": "Embedding", "value": "Embedding", "query_mask": "NotEqual", "value_mask": "NotEqual"}
    assert producers(nodes["MultiHeadAttention"]) == expected
    assert producers(nodes["GlobalAveragePooling1D"]) == {"inputs": "Add", "mask": "NotEqual"}


def test_what_does_not_depend_on_the_inputs_is_a_constant() -> None:
    class Positions(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.table = layers.Embedding(9, 8)

        def call(self, x: Any) -> Any:
            return x + self.table(ops.arange(ops.shape(x)[1]))

    positions = Positions()
    graph = capture(make_model(positions), 5)
    (add,) = (node for node in graph.nodes if node.kind == "Add")
    constant = add.arguments["x2"]
    assert isinstance(constant, Constant)
    np.testing.assert_array_equal(constant.value, ops.convert_to_numpy(positions.table.embeddings)[:5])


def test_a_subclass_that_changes_no_computation_is_its_base() -> None:
    class Renamed(layers.Dense):
        """Only sets a default."""

        def __init__(self, **kwargs: Any) -> None:
            super().__init__(8, **kwargs)

    class Doubled(layers.Dense):
        def call(self, inputs: Any, training: Any = None) -> Any:
            return super().call(inputs, training) * 2.0

    assert kinds(make_model(Renamed())).count("Dense") == 1
    assert {"Matmul", "Multiply"} <= set(kinds(make_model(Doubled(8))))


def test_a_call_that_was_replaced_on_one_layer_is_seen() -> None:
    layer = layers.Dense(8)
    model = make_model(layer)
    layer.call = lambda inputs, training=None: ops.relu(inputs)
    assert "Dense" not in kinds(model)


def test_activations_given_as_functions_are_operations() -> None:
    model = make_model(layers.Dense(8, activation=lambda x: ops.tanh(x) * 3.0))
    assert kinds(model) == ["Input", "Embedding", "Dense", "Tanh", "Multiply", "GlobalAveragePooling1D"]


def test_inputs_by_name() -> None:
    ids, mask = keras.Input((7,), dtype="int32", name="ids"), keras.Input((7,), dtype="bool", name="mask")
    model = keras.Model(
        {"ids": ids, "mask": mask}, {"out": layers.Embedding(5, 3)(ids) * ops.cast(mask, "float32")[..., None]}
    )
    assert [(entry.name, entry.shape, entry.dtype) for entry in model_inputs(model)] == [
        ("ids", (7,), "int32"),
        ("mask", (7,), "bool"),
    ]
    graph = capture(model, 7)
    assert list(graph.outputs) == ["out"]
    assert [tensor.node.describe() for tensor in graph.inputs] == ["Input 'ids'", "Input 'mask'"]


# The model stays as it was


def snapshot(model: Any) -> dict[str, Any]:
    parts = list(model._flatten_layers())
    return {
        "layers": [(part.name, part.path, part.built, part._called, part.trainable) for part in parts],
        "nodes": [(len(part._inbound_nodes), len(part._outbound_nodes)) for part in parts],
        "weights": [(weight.path, np.array(ops.convert_to_numpy(weight))) for weight in model.weights],
    }


def assert_unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before["layers"] == after["layers"]
    assert before["nodes"] == after["nodes"]
    for (path, values), (other_path, others) in zip(before["weights"], after["weights"], strict=True):
        assert path == other_path
        np.testing.assert_array_equal(values, others)


class Counting(layers.Layer):
    """Keeps state in a variable, as a custom layer may."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x: Any) -> Any:
        self.calls.assign(self.calls + 1.0)
        return x


def _number(name: str) -> int:
    return int(name.rpartition("_")[2]) if "_" in name else 0


def test_a_model_is_left_as_it_was() -> None:
    model = make_model(Block(), Counting())
    before = snapshot(model)
    taken = layers.Average().name, layers.Add().name
    capture(model, 5)
    assert_unchanged(before, snapshot(model))
    # The names that Keras gives go on where they were, although the capture has made an Add of its own.
    assert [_number(name) for name in (layers.Average().name, layers.Add().name)] == [
        _number(name) + 1 for name in taken
    ]
    assert keras.config.is_traceback_filtering_enabled()
    kept = ops.convert_to_numpy(model(np.array([[1, 2, 0]])))
    np.testing.assert_array_equal(kept, ops.convert_to_numpy(model(np.array([[1, 2, 0]]))))


def test_a_model_that_cannot_be_captured_is_left_as_it_was() -> None:
    class Fails(layers.Layer):
        def call(self, x: Any) -> Any:
            import tensorflow as tf

            return tf.math.erf(x)

    from keras.src.layers.layer import Layer
    from keras.src.ops.operation import Operation

    originals = (Layer.symbolic_call, Operation.symbolic_call, Layer._maybe_build)
    model = make_model(Block(), Fails(name="fails"))
    before = snapshot(model)
    with pytest.raises(NotRecognised, match="the code of 'fails' does not run on symbolic tensors"):
        capture(model, 5)
    assert (Layer.symbolic_call, Operation.symbolic_call, Layer._maybe_build) == originals
    assert_unchanged(before, snapshot(model))
    assert make_model().layers[1]._inbound_nodes  # Keras's own graphs are made again


def test_nothing_is_warned_about() -> None:
    class Forgets(layers.Layer):
        """Does not support masking, of which Keras warns in every call."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.inner = layers.Embedding(9, 8, mask_zero=True), Outer()

        def call(self, ids: Any) -> Any:
            return self.inner(self.tokens(ids))

    class Outer(layers.Layer):
        def call(self, x: Any) -> Any:
            return x * 1.0

    ids = keras.Input((None,), dtype="int32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = keras.Model(ids, Forgets()(ids))
    capture(model, 3)


# What cannot be captured


def test_the_layer_that_fails_is_named_with_its_path() -> None:
    class Inner(layers.Layer):
        def call(self, x: Any) -> Any:
            return x if float(ops.convert_to_numpy(ops.sum(x))) else -x

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    class Outer(layers.Layer):
        def __init__(self) -> None:
            super().__init__(name="outer")
            self.inner = Inner(name="inner")

        def call(self, x: Any) -> Any:
            return self.inner(x)

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras cannot run it either without values
        model = make_model(Outer())
    with pytest.raises(NotRecognised, match="the code of 'outer/inner' does not run on symbolic tensors"):
        capture(model, 3)


class MakesLayers(keras.Model):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.tokens = layers.Embedding(9, 8)
        self.make = make

    def call(self, ids: Any) -> Any:
        return self.make(self.tokens(ids))


def test_layers_made_inside_of_call() -> None:
    model = MakesLayers(lambda x: layers.Dense(4, name="fresh")(x))
    model.tokens.build()
    model.built, model._build_shapes_dict = True, {"input_shape": (2, 4)}
    with pytest.raises(NotRecognised, match="Dense 'fresh' is made inside of call, with new weights each time"):
        capture(model, 3)
    model = MakesLayers(lambda x: layers.Add()([layers.Activation("relu")(x), layers.Dropout(0.1)(x)]))
    model(np.ones((2, 4), "int32"))
    assert kinds(model) == ["Input", "Embedding", "ReLU", "Add"]


def test_layers_without_weights() -> None:
    model = MakesLayers(lambda x: x)
    with pytest.raises(NotRecognised, match="never called"):
        capture(model, 3)
    model.built, model._build_shapes_dict = True, {"input_shape": (2, 4)}
    with pytest.raises(NotRecognised, match=r"Embedding 'embedding.*' has no weights yet"):
        capture(model, 3)
    assert not model.tokens.built
