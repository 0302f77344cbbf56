from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters.emit.onnx import operator_histogram
from edgelm_converters.spec import TransformerSpec
from edgelm_converters.static.form import StaticResult
from edgelm_converters.static.onnx import emit_static_onnx
from numpy.typing import NDArray
from spec_factory import random_inputs
from static_cases import LENGTHS, OPTIONS, answer, error, make, rounded, samples, tolerance

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

RECIPES = {8: "static_wi8_ai8", 16: "static_wi8_ai16"}
SOME = (
    "plain",
    "first, causal, grouped",
    "mask input, segments",
    "rms, gated, grouped, causal",
    "max",
    "probabilities",
)
FORMS = [(name, bits, False) for name in OPTIONS for bits in (8, 16)] + [
    (name, bits, True) for name in SOME for bits in (8, 16)
]


def _emit(spec: TransformerSpec, path: Path, bits: int = 8, **options: Any) -> StaticResult:
    options = {"samples": samples(spec), "ranges": "minmax", **options}
    return emit_static_onnx(spec, path, recipe=RECIPES[bits], **options)


def _session(path: Path, optimized: Path | None = None) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    # As edgelm's own sessions: without it, a core that lacks VNNI saturates.
    settings.add_session_config_entry("session.x64quantprecision", "1")
    # ONNX Runtime makes MatMulNBits of products of 16 bits, which otherwise round the activations to 8.
    settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if optimized is not None:
        settings.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def _run(session: Any, result: StaticResult, inputs: dict[str, NDArray[np.int32]]) -> NDArray[Any]:
    (out,) = session.run(None, inputs)
    made: NDArray[Any] = out if result.answer is None else result.answer.dequantize(out)
    return made


@pytest.mark.parametrize(("name", "bits", "integer"), FORMS)
def test_is_the_model_with_rounded_weights(name: str, bits: int, integer: bool, tmp_path: Path) -> None:
    spec = make(name)
    result = _emit(spec, tmp_path / "m.onnx", bits, integer_io=integer)
    onnx.checker.check_model(str(tmp_path / "m.onnx"))
    session, held, pairs = _session(tmp_path / "m.onnx"), rounded(spec, tables=integer), []
    for seed in range(100, 108):
        inputs = random_inputs(spec, LENGTHS[seed % 2], seed=seed)
        pairs.append((_run(session, result, inputs)[0], answer(held, inputs)))
    # gamma and beta of 16 bits are finer than the int8 ones of `rounded`, which are off by 1/254 of their largest, 0.2 % of a
    # gamma: 1 % with the five norms, and twice that where outputs cancel.
    limit = 0.02 if bits == 16 and integer else tolerance(bits, integer=integer)
    assert error(pairs) < limit


@pytest.mark.parametrize("name", ["plain", "first, causal, grouped", "max", "mask input, segments"])
@pytest.mark.parametrize(("bits", "integer"), [(8, False), (8, True), (16, False)])
def test_padding_in_a_batch_changes_nothing(name: str, bits: int, integer: bool, tmp_path: Path) -> None:
    spec = make(name)
    result = _emit(spec, tmp_path / "m.onnx", bits, integer_io=integer)
    session, pairs = _session(tmp_path / "m.onnx"), []
    rows = [random_inputs(spec, 16, real=5, seed=seed) for seed in range(6)]
    together = _run(session, result, {key: np.concatenate([row[key] for row in rows]) for key in rows[0]})
    for row, long in zip(rows, together, strict=True):
        pairs.append((long, _run(session, result, {key: value[:, :5] for key, value in row.items()})[0]))
    # As in TFLite: what is left is the rounding of sums, one step here and there.
    assert error(pairs) < tolerance(bits, integer=integer) / 2


def test_both_formats_round_alike(tmp_path: Path) -> None:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    from edgelm_converters.static.tflite import emit_static_tflite

    spec = make("plain")
    result = _emit(spec, tmp_path / "m.onnx")
    session, pairs = _session(tmp_path / "m.onnx"), []
    emit_static_tflite(
        spec, tmp_path / "m.tflite", recipe="static_wi8_ai8", lengths=(16,), samples=samples(spec), ranges="minmax"
    )
    runner = interpreter.Interpreter(str(tmp_path / "m.tflite")).get_signature_runner("serve_16")
    for seed in range(100, 108):
        inputs = random_inputs(spec, 16, seed=seed)
        pairs.append((_run(session, result, inputs), runner(**inputs)[spec.output_name]))
    # The same steps everywhere; a value between two of them may fall to either side, and both are within the bound.
    assert error(pairs) < tolerance(8, integer=False)


def test_onnx_runtime_computes_the_products_in_integers(tmp_path: Path) -> None:
    _emit(make("first, shared layers"), tmp_path / "m.onnx")
    _session(tmp_path / "m.onnx", tmp_path / "o.onnx")
    runs = operator_histogram(tmp_path / "o.onnx")
    # Three layers of six products, and two of the head; two of attention a layer.
    assert runs["com.microsoft.QGemm"] == 20
    assert runs["QLinearMatMul"] == 6
    assert runs["com.microsoft.QLinearSoftmax"] == 3
    assert not {"Gemm", "MatMul"} & set(runs)


def test_answer_in_integers(tmp_path: Path) -> None:
    for bits, dtype in ((8, "int8"), (16, "int16")):
        result = _emit(make("first"), tmp_path / "m.onnx", bits, integer_io=True)
        assert not result.float_operators
        assert result.answer is not None
        assert result.answer.dtype == dtype == result.signatures[0].outputs[0].dtype
        session = _session(tmp_path / "m.onnx")
        assert [port.type for port in session.get_outputs()] == [f"tensor({dtype})"]
        assert {port.type for port in session.get_inputs()} == {"tensor(int32)"}


def test_kept_layers_are_float(tmp_path: Path) -> None:
    result = _emit(make("plain"), tmp_path / "m.onnx", keep_float={"layer_0/query", "layer_1/down", "head_1"})
    kept = [found for found in result.float_operators if found.operator == "Gemm"]
    assert [found.count for found in kept] == [3]
    _session(tmp_path / "m.onnx", tmp_path / "o.onnx")
    runs = operator_histogram(tmp_path / "o.onnx")
    assert (runs["Gemm"], runs["com.microsoft.QGemm"]) == (3, 11)


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("name", ["plain", "first, pre-norm", "rms, gated, grouped, causal", "max", "probabilities"])
def test_every_float_operator_is_told(name: str, integer: bool, tmp_path: Path) -> None:
    result = _emit(make(name), tmp_path / "m.onnx", integer_io=integer, samples=samples(make(name), 2))
    told: Counter[str] = Counter()
    for found in result.float_operators:
        told[found.operator] += found.count
    assert told == _between_no_conversions(tmp_path / "m.onnx")


def _between_no_conversions(path: Path) -> Counter[str]:
    """Return the operators that compute with numbers and whose result is not rounded."""
    model = onnx.load(str(path))
    counts: Counter[str] = Counter()
    moving = {
        "Reshape", "Transpose", "Gather", "Slice", "Cast", "Shape", "Concat", "Unsqueeze", "Squeeze", "Where", "Range",
        "LessOrEqual", "And", "Expand", "QuantizeLinear", "DequantizeLinear",
    }  # fmt: skip
    readers: dict[str, list[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    made = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        after = readers.get(node.output[0], [])
        table = node.op_type == "Mul" and any(made[name].op_type == "Cast" for name in node.input if name in made)
        before = made[node.input[0]].op_type if node.input[0] in made else ""
        rounded_both = before in ("DequantizeLinear", "Gemm") and after == ["QuantizeLinear"]
        if node.op_type not in moving and not table and not rounded_both:
            counts[node.op_type] += 1
    return counts
