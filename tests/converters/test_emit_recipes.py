"""Every recipe in both formats: an encoder's file computes what the weights that it holds say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from edgelm_converters.emit.onnx import emit_onnx
from edgelm_converters.emit.tflite import emit_tflite
from edgelm_converters.recipes import RECIPES
from edgelm_converters.spec import Embeddings, Layer, Linear, TransformerSpec
from numpy.typing import NDArray
from reference import forward
from spec_factory import random_inputs, random_spec
from stored import as_stored

interpreter = pytest.importorskip("ai_edge_litert.interpreter")
ort = pytest.importorskip("onnxruntime")

NAMES = [recipe.name for recipe in RECIPES.values() if not recipe.static]
LENGTH = 32
Bits = Literal[4, 8, 16]

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "first": {"pooling": "first", "mask": "input", "segments": 2},
    "shared layers": {"shared_layers": True, "pooling": "first"},
    "grouped, gated, rms": {
        "heads": 8, "kv_heads": 4, "gated": True, "activation": "silu", "norm": "rms", "biases": False, "causal": True,
    },
    "narrow embeddings": {"embedding_width": 64, "token_scale": 4.0},
}  # fmt: skip

# The error against the weights in the file, as a share of the largest output.
# Float arithmetic: 10 products a layer, each a sum of up to 256 terms off by sqrt(256) * 2^-24 = 1e-6, add up to
# sqrt(20) * 1e-6; twice that where outputs cancel.
# Activations of 8 bits lie in about 8 deviations, cut into 255 steps: 8 / 255 / sqrt(12) = 0.9 % of a deviation, the same share
# in each product's output; 10 products in a row give 2.9 %, and the extreme of the outputs is at 3 deviations.
TOLERANCE = {"float32": 1e-5, "dynamic": 0.087}


def _spec(**options: Any) -> TransformerSpec:
    # Every kernel and table has 4096 elements or more, heads of 16 have a scale of 1/4, which moves no rounding, and inputs of
    # 128 and 256 fill every block.
    given = {"width": 128, "heads": 8, "feed_forward": 256, "vocabulary": 200, "positions": LENGTH}
    return random_spec(**(given | options))


def _mixed(spec: TransformerSpec) -> TransformerSpec:
    """Return a model some of whose pieces may not be stored as narrow as the others."""

    def least(linear: Linear, bits: Bits) -> Linear:
        return replace(linear, least_bits=bits)

    def mixed(layer: Layer) -> Layer:
        attention, block = layer.attention, layer.feed_forward
        attention = replace(attention, query=least(attention.query, 16), output=least(attention.output, 8))
        return replace(layer, attention=attention, feed_forward=replace(block, down=least(block.down, 16)))

    first = spec.encoder.layers[0]
    layers = tuple(mixed(layer) if layer is first else layer for layer in spec.encoder.layers)
    embeddings: Embeddings = replace(spec.embeddings, least_bits=16)
    return replace(spec, embeddings=embeddings, encoder=replace(spec.encoder, layers=layers))


def _tflite(spec: TransformerSpec, recipe: str, path: Path, inputs: dict[str, NDArray[np.int32]]) -> NDArray[Any]:
    (signature,) = emit_tflite(spec, path, recipe=recipe, lengths=(LENGTH,))
    runner = interpreter.Interpreter(str(path), num_threads=1).get_signature_runner(signature.name)
    return np.array(runner(**inputs)[spec.output_name])


def _onnx(spec: TransformerSpec, recipe: str, path: Path, inputs: dict[str, NDArray[np.int32]]) -> NDArray[Any]:
    emit_onnx(spec, path, recipe=recipe)
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.add_session_config_entry("session.x64quantprecision", "1")  # as edgelm's own adapter does
    answer: NDArray[Any] = ort.InferenceSession(str(path), settings).run(None, inputs)[0]
    return answer


@pytest.mark.parametrize("mixed", [False, True], ids=["one width", "mixed"])
@pytest.mark.parametrize("recipe", NAMES)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_a_file_computes_with_the_weights_that_its_recipe_says(
    target: Literal["tflite", "onnx"], name: str, recipe: str, mixed: bool, tmp_path: Path
) -> None:
    spec = _spec(**OPTIONS[name])
    spec = _mixed(spec) if mixed else spec
    inputs = random_inputs(spec, LENGTH, real=11)
    emit = _tflite if target == "tflite" else _onnx
    answer = emit(spec, recipe, tmp_path / f"model.{target}", inputs)
    expected = forward(as_stored(spec, recipe, target), inputs)
    error = np.abs(answer - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE["dynamic" if RECIPES[recipe].activations == "dynamic" else "float32"]
