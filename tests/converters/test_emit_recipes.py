"""Every recipe in both formats: a file computes what the weights that it holds say, and holds no more of them than it should.

Language models in ONNX have their own: `test_emit_onnx_decoder`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from edgelm_converters.emit.notes import encoder_notes
from edgelm_converters.emit.onnx import emit_onnx
from edgelm_converters.emit.tflite import emit_tflite
from edgelm_converters.emit.tflite_decoder import emit_tflite_decoder
from edgelm_converters.recipes import RECIPES
from edgelm_converters.spec import Embeddings, Layer, Linear, Norm, Stack, TransformerSpec
from numpy.typing import NDArray
from reference import forward
from spec_factory import random_decoder, random_inputs, random_spec
from stored import as_stored, form_of

interpreter = pytest.importorskip("ai_edge_litert.interpreter")
schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

NAMES = [recipe.name for recipe in RECIPES.values() if not recipe.static]
MIXED = ["dynamic_wi8_afp32", "weight_only_wi8_afp32", "dynamic_wi4b32_afp32"]  # whose pieces may ask for more bits
LENGTH = 48
Bits = Literal[4, 8, 16]
Target = Literal["tflite", "onnx"]
BYTES = {"float32": 4, "float16": 2, "int8": 1, "int4": 0.5}

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "first": {"pooling": "first", "mask": "input", "segments": 2},
    "shared layers": {"shared_layers": True, "pooling": "first"},
    "grouped, gated, rms": {
        "heads": 8, "kv_heads": 4, "gated": True, "activation": "silu", "norm": "rms", "biases": False, "causal": True,
    },
    "narrow embeddings": {"embedding_width": 64, "token_scale": 4.0},
    "pre-norm": {"norm_placement": "pre", "final_norm": True, "norm": "rms"},
    "blocks that are not filled": {"feed_forward": 333, "width": 96, "heads": 6},
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
    given: dict[str, Any] = {"width": 128, "heads": 8, "feed_forward": 256, "vocabulary": 200, "positions": LENGTH}
    spec = random_spec(**(given | {"activation": "gelu_tanh"} | options))
    return replace(spec, encoder=_with_plain_norms(spec.encoder))


def _with_plain_norms(stack: Stack) -> Stack:
    """Return layers whose gammas are 1, so that nothing is folded into the kernels but powers of 2.

    Where the norms come after the layers nothing is folded anyway, and they stay as they are.
    """

    def plain(norm: Norm) -> Norm:
        return replace(norm, gamma=np.ones_like(norm.gamma))

    if stack.layers[0].norm_placement == "post":
        return stack
    layers = tuple(
        replace(layer, attention_norm=plain(layer.attention_norm), feed_forward_norm=plain(layer.feed_forward_norm))
        for layer in stack.layers
    )
    return replace(stack, layers=layers)


def _mixed(spec: TransformerSpec) -> TransformerSpec:
    """Return an encoder some of whose pieces may not be stored as narrow as the others."""
    embeddings: Embeddings = replace(spec.embeddings, least_bits=16)
    return replace(spec, embeddings=embeddings, encoder=_mixed_stack(spec.encoder))


def _mixed_stack(stack: Stack) -> Stack:
    def least(linear: Linear, bits: Bits) -> Linear:
        return replace(linear, least_bits=bits)

    def mixed(layer: Layer) -> Layer:
        attention, block = layer.attention, layer.feed_forward
        attention = replace(attention, query=least(attention.query, 16), output=least(attention.output, 8))
        return replace(layer, attention=attention, feed_forward=replace(block, down=least(block.down, 16)))

    first = stack.layers[0]
    return replace(stack, layers=tuple(mixed(layer) if layer is first else layer for layer in stack.layers))


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


@pytest.mark.parametrize(
    ("name", "recipe", "mixed"),
    [(name, recipe, False) for name in OPTIONS for recipe in NAMES]
    + [(name, recipe, True) for name in ("plain", "first", "shared layers") for recipe in MIXED],
)
@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_a_file_computes_with_the_weights_that_its_recipe_says(
    target: Target, name: str, recipe: str, mixed: bool, tmp_path: Path
) -> None:
    spec = _spec(**OPTIONS[name])
    spec = _mixed(spec) if mixed else spec
    inputs = random_inputs(spec, LENGTH, real=11)
    emit = _tflite if target == "tflite" else _onnx
    answer = emit(spec, recipe, tmp_path / f"model.{target}", inputs)
    expected = forward(as_stored(spec, recipe, target), inputs)
    error = np.abs(answer - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE["dynamic" if RECIPES[recipe].activations == "dynamic" else "float32"]


@pytest.mark.parametrize(
    ("recipe", "mixed"), [*((recipe, False) for recipe in NAMES), *((recipe, True) for recipe in MIXED)]
)
@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_computes_with_the_weights_that_its_recipe_says(
    recipe: str, tied: bool, mixed: bool, tmp_path: Path
) -> None:
    spec = random_decoder(
        width=128, heads=8, kv_heads=4, feed_forward=256, vocabulary=200, tied=tied, max_length=LENGTH
    )
    spec = replace(spec, decoder=_with_plain_norms(spec.decoder))
    if mixed:
        head = spec.head.tokens
        assert head is not None
        spec = replace(
            spec,
            embeddings=replace(spec.embeddings, least_bits=16),
            decoder=_mixed_stack(spec.decoder),
            head=replace(spec.head, tokens=replace(head, least_bits=16)),
        )
    path = tmp_path / "model.tflite"
    signatures = emit_tflite_decoder(spec, path, recipe=recipe, caches=(LENGTH,), prefill=(1,), verify=(12,))
    signature = next(signature for signature in signatures if signature.kind == "verify")
    runner = interpreter.Interpreter(str(path), num_threads=1).get_signature_runner(signature.name)
    ids = random_inputs(spec, 12)[spec.token_input]
    cache = signature.cache
    assert cache is not None
    caches = {
        pattern.format(i=layer): np.zeros(cache.shape, np.float32)  # type: ignore[arg-type]
        for pattern in cache.inputs
        for layer in range(cache.layers)
    }
    answer = runner(tokens=ids, input_pos=np.arange(12, dtype=np.int32), **caches)["logits"]
    expected = forward(as_stored(spec, recipe, "tflite"), {spec.token_input: ids})
    error = np.abs(answer - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE["dynamic" if RECIPES[recipe].activations == "dynamic" else "float32"]


def _constants(path: Path) -> Counter[tuple[str, int]]:
    """Return the constants of 4096 values and more in a file, by type and number of values."""
    if path.suffix == ".onnx":
        names = {value: key.lower() for key, value in onnx.TensorProto.DataType.items()}
        found = ((names[item.data_type], int(np.prod(item.dims))) for item in onnx.load(str(path)).graph.initializer)
    else:
        model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
        names = {value: key.lower() for key, value in vars(schema.TensorType).items() if isinstance(value, int)}
        found = (
            (names[tensor.type], int(np.prod(tensor.shape)))
            for tensor in model.subgraphs[0].tensors
            if model.buffers[tensor.buffer].data is not None
        )
    return Counter((name, size) for name, size in found if size >= 4096)


@pytest.mark.parametrize("mixed", [False, True], ids=["one width", "mixed"])
@pytest.mark.parametrize("recipe", NAMES)
@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_every_weight_is_in_the_file_once_in_its_form(target: Target, recipe: str, mixed: bool, tmp_path: Path) -> None:
    spec = _spec(vocabulary=3000, feed_forward=192)  # 192 inputs fill no blocks of 128
    spec = _mixed(spec) if mixed else spec
    path = tmp_path / f"model.{target}"
    _emit(spec, recipe, path)
    forms, size = _expected(spec, recipe, target)
    found = _constants(path)
    # In ONNX float32 is FLOAT, and two values of 4 bits are a byte; in TFLite rows of float16 are gathered as bits.
    called = {"float": "float32", "uint8": "int4", "int16": "float16"}
    stored = Counter[str]()
    for (name, count), times in found.items():
        stored[called.get(name, name)] += times * count * (2 if name == "uint8" else 1)
    assert stored == forms
    # Graph, names, biases, norms and a small head: 35 KB.
    assert size <= path.stat().st_size < size + 35_000
    assert bool(encoder_notes(spec, recipe, target)) == (set(forms) != {RECIPES[recipe].weights})


def _emit(spec: TransformerSpec, recipe: str, path: Path) -> None:
    if path.suffix == ".onnx":
        emit_onnx(spec, path, recipe=recipe)
    else:
        emit_tflite(spec, path, recipe=recipe, lengths=(LENGTH,))


def _expected(spec: TransformerSpec, recipe: str, target: Target) -> tuple[Counter[str], float]:
    """Return how many weights have each form, and the bytes of all of them with their scales."""
    forms: Counter[str] = Counter()
    size = 0.0
    parts, block = spec.embeddings, RECIPES[recipe].block or 0
    for table in (parts.token, parts.position):
        assert table is not None
        form = form_of(recipe, max(parts.least_bits, 8), table.shape)
        forms[form] += table.size
        size += table.size * BYTES[form] + (2 * len(table) if form == "int8" else 0)
    for layer in spec.encoder.layers:
        attention, feed_forward = layer.attention, layer.feed_forward
        projections = (attention.query, attention.key, attention.value, attention.output)
        for linear in (*projections, feed_forward.up, feed_forward.down):
            form = form_of(recipe, linear.least_bits, linear.kernel.shape)
            forms[form] += linear.kernel.size
            size += linear.kernel.size * BYTES[form]
            if form == "int8":
                size += 4 * linear.kernel.shape[1]
            if form == "int4":
                size += linear.kernel.size / block * (2 if target == "tflite" else 4)
    return forms, size
