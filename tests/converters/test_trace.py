"""The traced way, and the silent failures of the converters that it must not let through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters.emit.tflite import operator_histogram
from edgelm_converters.reference import make_reference
from edgelm_converters.source import Source, load_source
from edgelm_converters.trace import trace_onnx, trace_tflite
from edgelm_runtimes.program import ProgramOptions
from edgelm_runtimes.registry import open_program

from edgelm.errors import ConversionError

keras = pytest.importorskip("keras")
pytestmark = pytest.mark.needs_tensorflow

# Float32 sums of at most 32 terms, three layers deep, in another order; int8 weights are off by half a step of 1/127.
_ATOL = {"fp32": 1e-5, "fp16": 5e-3, "dynamic_wi8_afp32": 5e-2}


@pytest.fixture(scope="module")
def source() -> Source:
    """A convolution over tokens: no Transformer, so nothing recognises it. Exact GELU, which tf2onnx writes as `Erfc`."""
    keras.utils.set_random_seed(3)
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    x = keras.layers.Embedding(50, 32)(ids)
    x = keras.layers.Conv1D(32, 3, padding="same", activation="gelu")(x)
    x = keras.layers.GlobalMaxPooling1D()(x)
    return load_source(keras.Model(ids, keras.layers.Dense(5)(x)))


def _outputs(runtime: str, path: Path, signatures: Any, ids: Any) -> Any:
    program = open_program(runtime, path, signatures, ProgramOptions(threads=1))
    signature = next(s for s in signatures if s.sequence_length in (None, ids.shape[1]))
    (output,) = program.run(signature, {"token_ids": ids}).values()
    program.close()
    return output


@pytest.mark.parametrize("recipe", list(_ATOL))
def test_traced_files_agree_with_keras_in_both_runtimes(tmp_path: Path, source: Source, recipe: str) -> None:
    reference = make_reference(source)
    tflite, onnx = tmp_path / "m.tflite", tmp_path / "m.onnx"
    in_tflite = trace_tflite(source, reference, tflite, recipe=recipe, lengths=(8, 16), role="raw")
    in_onnx = trace_onnx(source, reference, onnx, recipe=recipe, length=None, role="raw")
    assert [s.name for s in in_tflite] == ["serve_8", "serve_16"]
    for length in (8, 16):
        ids = np.random.default_rng(length).integers(0, 50, (1, length)).astype(np.int32)
        expected = np.asarray(source.model(ids))
        np.testing.assert_allclose(_outputs("litert", tflite, in_tflite, ids), expected, atol=_ATOL[recipe])
        np.testing.assert_allclose(_outputs("onnx", onnx, in_onnx, ids), expected, atol=_ATOL[recipe])


def test_weights_are_shared_between_lengths(tmp_path: Path, source: Source) -> None:
    reference = make_reference(source)
    sizes = []
    for lengths in ((8,), (8, 16, 32)):
        trace_tflite(source, reference, tmp_path / "m.tflite", recipe="fp32", lengths=lengths, role="raw")
        sizes.append((tmp_path / "m.tflite").stat().st_size)
    weights = 4 * source.model.count_params()
    assert sizes[1] < sizes[0] + weights / 2


def test_tensorflow_operators_are_never_written(tmp_path: Path) -> None:
    """TensorFlow's converter can put its own operators (Flex) into a file that no device then runs."""
    import tensorflow as tf

    class Determinant(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def call(self, x: Any) -> Any:
            return tf.linalg.det(tf.reshape(x, (-1, 2, 2)))[:, None]

    x = keras.Input((4,), name="x")
    source = load_source(keras.Model(x, Determinant()(x)))
    with pytest.raises(ConversionError, match="TensorFlow's converter fails on the model") as caught:
        trace_tflite(source, make_reference(source), tmp_path / "m.tflite", recipe="fp32", lengths=(None,), role="raw")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m.tflite").exists()


def test_the_histogram_names_tensorflow_operators_in_a_foreign_file(tmp_path: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    function = tf.function(lambda x: tf.linalg.det(tf.reshape(x, (-1, 2, 2))), input_signature=[tf.TensorSpec((1, 4))])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    (tmp_path / "flex.tflite").write_bytes(converter.convert())
    assert any(name.startswith("CUSTOM:Flex") for name in operator_histogram(tmp_path / "flex.tflite"))


def test_a_model_that_tensorflow_cannot_trace_gets_one_line(tmp_path: Path) -> None:
    class Concrete(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def call(self, x: Any) -> Any:
            return x * float(np.asarray(x).sum())

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    model = keras.Sequential([Concrete()])
    model(np.ones((1, 3), np.float32))
    source = load_source(model)
    with pytest.raises(ConversionError, match="TensorFlow cannot trace the model") as caught:
        trace_tflite(source, make_reference(source), tmp_path / "m.tflite", recipe="fp32", lengths=(None,), role="raw")
    assert "\n" not in str(caught.value)
