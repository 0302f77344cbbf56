from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters.emit.tflite import emit_tflite
from edgelm_converters.spec import Stack, TransformerSpec
from edgelm_converters.static.form import StaticResult
from edgelm_converters.static.tflite import emit_static_tflite
from numpy.typing import NDArray
from spec_factory import random_decoder, random_inputs, random_spec
from static_cases import LENGTHS, OPTIONS, answer, error, make, rounded, samples, tolerance

from edgelm.errors import ConversionError, InputError, RecipeError

interpreter = pytest.importorskip("ai_edge_litert.interpreter")
schema = pytest.importorskip("ai_edge_litert.schema_py_generated")

RECIPES = {8: "static_wi8_ai8", 16: "static_wi8_ai16"}


def _emit(spec: TransformerSpec, path: Path, bits: int = 8, **options: Any) -> StaticResult:
    options = {"samples": samples(spec), "ranges": "minmax", "lengths": LENGTHS, **options}
    return emit_static_tflite(spec, path, recipe=RECIPES[bits], **options)


def _run(path: Path, result: StaticResult, inputs: dict[str, NDArray[np.int32]], length: int) -> NDArray[Any]:
    runner = interpreter.Interpreter(str(path), num_threads=1).get_signature_runner(f"serve_{length}")
    (out,) = runner(**inputs).values()
    return out[0] if result.answer is None else result.answer.dequantize(out[0])


ALL = [(name, 8, False) for name in OPTIONS] + [(name, 16, False) for name in OPTIONS]
SOME = (
    "plain",
    "first, causal, grouped",
    "mask input, segments",
    "rms, gated, grouped, causal",
    "max",
    "probabilities",
)
FORMS = ALL + [(name, bits, True) for name in SOME for bits in (8, 16)]


@pytest.mark.parametrize(("name", "bits", "integer"), FORMS)
def test_is_the_model_with_rounded_weights(name: str, bits: int, integer: bool, tmp_path: Path) -> None:
    spec = make(name)
    result = _emit(spec, tmp_path / "m.tflite", bits, integer_io=integer)
    held = rounded(spec, tables=integer)
    pairs = []
    for seed in range(100, 108):
        length = LENGTHS[seed % 2]
        inputs = random_inputs(spec, length, seed=seed)
        pairs.append((_run(tmp_path / "m.tflite", result, inputs, length), answer(held, inputs)))
    # TFLite's RSQRT of 16 bits interpolates in a table of 256 segments: norms are then no finer than half an int8 step.
    limit = tolerance(8, integer=True) / 2 if bits == 16 and integer else tolerance(bits, integer=integer)
    assert error(pairs) < limit


@pytest.mark.parametrize("name", ["plain", "first, causal, grouped", "max", "mask input, segments"])
@pytest.mark.parametrize(("bits", "integer"), [(8, False), (8, True), (16, False)])
def test_padding_changes_nothing(name: str, bits: int, integer: bool, tmp_path: Path) -> None:
    spec = make(name)
    result = _emit(spec, tmp_path / "m.tflite", bits, integer_io=integer, lengths=(5, 16))
    pairs = []
    for seed in range(6):
        padded = random_inputs(spec, 16, real=5, seed=seed)
        alone = {key: value[:, :5] for key, value in padded.items()}
        short, long = (_run(tmp_path / "m.tflite", result, part, n) for part, n in ((alone, 5), (padded, 16)))
        pairs.append((long, short))
    # Integers of the same ranges: a hidden token's weight rounds to 0, and what is left is the rounding of the softmax's sum
    # and of the pooling's, one step here and there of tensors that are rounded anyway.
    # TFLite's softmax of 16 bits takes what is more than 10 below the largest score for 10 below: each of the 11 hidden tokens
    # weighs exp(-10) in each of the two layers, and its value differs from the others' by some two standard deviations.
    least = 2 * 2 * 11 * np.exp(-10) if bits == 16 else 0.0
    assert error(pairs) < tolerance(bits, integer=integer) / 2 + least


def test_input_and_answer_in_integers(tmp_path: Path) -> None:
    spec = make("first")
    for bits, dtype in ((8, "int8"), (16, "int16")):
        result = _emit(spec, tmp_path / "m.tflite", bits, integer_io=True)
        assert [port.dtype for signature in result.signatures for port in signature.outputs] == [dtype, dtype]
        assert result.answer is not None
        assert result.answer.dtype == dtype
        assert not result.float_operators
        runner = interpreter.Interpreter(str(tmp_path / "m.tflite")).get_signature_runner("serve_8")
        assert {detail["dtype"] for detail in runner.get_input_details().values()} == {np.int32}
        (detail,) = runner.get_output_details().values()
        assert detail["dtype"] == np.dtype(dtype)
        scale, zero_point = detail["quantization"]
        assert (np.float32(scale), zero_point) == (np.float32(result.answer.scale), result.answer.zero_point)
        assert "FLOAT32" not in {kind for _, kind in _operators(tmp_path / "m.tflite")}


def test_kept_layers_are_float(tmp_path: Path) -> None:
    spec = make("plain")
    chosen = {"layer_0/query", "layer_1/down", "head_1"}
    result = _emit(spec, tmp_path / "m.tflite", keep_float=chosen)
    products = [kinds for name, kinds in _operators(tmp_path / "m.tflite") if name == "FULLY_CONNECTED"]
    assert Counter(products) == {"FLOAT32": 3, "INT8": 11}
    assert sum(found.count for found in result.float_operators if found.operator == "FULLY_CONNECTED") == 3
    layers = list(spec.encoder.layers)
    up = replace(layers[1].feed_forward.up, least_bits=16)
    layers[1] = replace(layers[1], feed_forward=replace(layers[1].feed_forward, up=up))
    _emit(replace(spec, encoder=Stack(tuple(layers))), tmp_path / "m.tflite")
    products = [kinds for name, kinds in _operators(tmp_path / "m.tflite") if name == "FULLY_CONNECTED"]
    assert Counter(products) == {"FLOAT32": 1, "INT8": 13}


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("name", ["plain", "first, pre-norm", "rms, gated, grouped, causal", "max", "probabilities"])
def test_every_float_operator_is_told_with_its_reason(name: str, integer: bool, tmp_path: Path) -> None:
    result = _emit(make(name), tmp_path / "m.tflite", integer_io=integer, samples=samples(make(name), 2))
    told: Counter[str] = Counter()
    for found in result.float_operators:
        assert "fault" not in found.reason
        told[found.operator] += found.count
    kinds = _operators(tmp_path / "m.tflite")
    assert told == Counter(operator for operator, kind in kinds if kind == "FLOAT32" and operator != "DEQUANTIZE")


def test_lengths_share_weights_and_ranges(tmp_path: Path) -> None:
    spec = random_spec(width=128, feed_forward=512, layers=1)
    sizes = []
    for lengths in ((16,), (4, 8, 16, 32)):
        _emit(spec, tmp_path / "m.tflite", lengths=lengths, samples=samples(spec, 4))
        sizes.append((tmp_path / "m.tflite").stat().st_size)
    # The kernels have 197,000 bytes; three more graphs have their operators, shapes and tensors.
    assert sizes[1] - sizes[0] < 60_000
    emit_tflite(spec, tmp_path / "d.tflite", recipe="dynamic_wi8_afp32", lengths=(4, 8, 16, 32))
    assert abs(sizes[1] - (tmp_path / "d.tflite").stat().st_size) < 60_000


def test_refusals(tmp_path: Path) -> None:
    spec, path = make("plain"), tmp_path / "m.tflite"
    with pytest.raises(RecipeError, match="calibrated ranges"):
        emit_static_tflite(spec, path, recipe="fp32", lengths=(8,), samples=samples(spec, 2), ranges="minmax")
    with pytest.raises(RecipeError, match=re.escape("layer_0/quary")):
        _emit(spec, path, keep_float={"layer_0/quary"})
    with pytest.raises(InputError, match="--data"):
        _emit(spec, path, samples=[])
    with pytest.raises(InputError, match="ids up to 77"):
        _emit(spec, path, samples=[{"token_ids": np.array([[77]], np.int32)}])
    with pytest.raises(ConversionError, match="at most 64"):
        _emit(spec, path, lengths=(65,))
    with pytest.raises(ConversionError, match="language model"):
        _emit(random_decoder(), path, samples=[{"token_ids": np.array([[1]], np.int32)}])


def _operators(path: Path) -> list[tuple[str, str]]:
    """Return each operator of the first graph with the type of its result."""
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    kinds = {number: name for name, number in vars(schema.TensorType).items() if isinstance(number, int)}
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    graph = model.subgraphs[0]
    return [
        (names[model.operatorCodes[operator.opcodeIndex].builtinCode], kinds[graph.tensors[operator.outputs[0]].type])
        for operator in graph.operators
    ]
