from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters.emit import onnx_file
from edgelm_converters.emit.onnx import emit_onnx, operator_histogram
from edgelm_converters.emit.quantize import quantize_weight, worth_quantizing
from edgelm_converters.spec import TransformerSpec
from edgelm_runtimes.adapters.onnx_session import int8_saturates
from edgelm_runtimes.machine import machine_facts
from numpy.typing import NDArray
from reference import forward
from spec_factory import random_inputs, random_spec

from edgelm.bundle import Port, Signature
from edgelm.errors import ConversionError, ModelError, RecipeError

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

# Wide enough for matrices of 4096 elements, which is where fp16 and int8 begin.
WIDE: dict[str, Any] = {"width": 64, "heads": 4, "feed_forward": 96, "vocabulary": 100}

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mask input, segments": {"mask": "input", "segments": 2},
    "no mask": {"mask": "none"},
    "first token": {"pooling": "first", "mask": "input"},
    "first token, pre-norm": {"pooling": "first", "norm_placement": "pre", "final_norm": True},
    "first token, causal": {"pooling": "first", "causal": True},
    "max": {"pooling": "max"},
    "max of all": {"pooling": "max", "pooling_masked": False},
    "mean of all": {"pooling_masked": False},
    "sequence": {"pooling": "none", "mask": "input"},
    "sequence, no head": {"pooling": "none", "head": (), "output": "raw"},
    "pre-norm": {"norm_placement": "pre", "final_norm": True},
    "rms, gated": {"norm": "rms", "gated": True, "activation": "silu"},
    "rms, pre-norm": {"norm": "rms", "norm_placement": "pre", "final_norm": True},
    "causal": {"causal": True},
    "causal, no mask": {"causal": True, "mask": "none"},
    "shared key heads": {"kv_heads": 2, "heads": 4},
    "one key head, causal": {"kv_heads": 1, "causal": True},
    "wide heads": {"head_dim": 24},
    "narrow embeddings": {"embedding_width": 8},
    "token scale": {"token_scale": 3.0},
    "shared layers": {"shared_layers": True},
    "no positions": {"positions": None},
    "no embedding norm": {"embedding_norm": False},
    "probabilities": {"output": "probabilities"},
    "sigmoid": {"output": "sigmoid"},
    "no biases": {"biases": False},
    "no head": {"head": (), "output": "embedding"},
    "one layer": {"layers": 1, "pooling": "first"},
    **{name: {"activation": name} for name in ("linear", "relu", "gelu_tanh", "tanh", "sigmoid")},
}


def run(path: Path, inputs: dict[str, NDArray[np.int32]], **options: str) -> NDArray[np.float32]:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    # As edgelm's own adapter does on an x86 core without VNNI, whose fast int8 kernels saturate; without effect elsewhere.
    settings.add_session_config_entry("session.x64quantprecision", "1")
    for key, value in options.items():
        setattr(settings, key, value)
    session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, inputs)[0]
    return result


def padded_batch(spec: TransformerSpec, length: int, *real: int) -> dict[str, NDArray[np.int32]]:
    rows = [random_inputs(spec, length, real=count, seed=seed) for seed, count in enumerate(real)]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def relative_error(path: Path, spec: TransformerSpec, reference: TransformerSpec | None = None) -> float:
    """Return the largest error over several shapes, as a share of the largest expected value."""
    errors = []
    for inputs in (padded_batch(spec, 1, 1), padded_batch(spec, 7, 7), padded_batch(spec, 16, 16, 9, 1)):
        expected = forward(reference or spec, inputs)
        answer = run(path, inputs)
        assert answer.dtype == np.float32
        assert answer.shape == expected.shape
        errors.append(np.abs(answer - expected).max() / np.abs(expected).max())
    return float(max(errors))


def map_matrices(spec: TransformerSpec, change: Any) -> TransformerSpec:
    """Return the spec with each matrix that a recipe may compress replaced; tables are scaled a row, kernels a column."""

    def walk(value: Any, *, table: bool) -> Any:
        if isinstance(value, np.ndarray):
            return change(value, 0 if table else 1) if worth_quantizing(value) else value
        if isinstance(value, tuple):
            return tuple(walk(item, table=table) for item in value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            tables = type(value).__name__ == "Embeddings"
            return dataclasses.replace(value, **{name: walk(part, table=tables) for name, part in parts.items()})
        return value

    result: TransformerSpec = walk(spec, table=False)
    return result


def rounded_to_int8(weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    values, scale = quantize_weight(weight, axis)
    return values * (scale if axis == 1 else scale[:, None])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_float32_is_the_reference(options: dict[str, Any], tmp_path: Path) -> None:
    spec = random_spec(**options)
    path = tmp_path / "model.onnx"
    emit_onnx(spec, path, recipe="fp32")
    onnx.checker.check_model(str(path), full_check=True)
    # 2 layers of some 20 operations, each off by 2^-24 of values near 1, and sums of up to 32 such: 40 * sqrt(32) * 6e-8.
    assert relative_error(path, spec) < 1.4e-5


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_float16_rounds_the_weights_and_nothing_else(options: dict[str, Any], tmp_path: Path) -> None:
    spec = random_spec(**{**WIDE, **options})
    path = tmp_path / "model.onnx"
    emit_onnx(spec, path, recipe="fp16")
    onnx.checker.check_model(str(path), full_check=True)
    stored = map_matrices(spec, lambda weight, axis: weight.astype(np.float16).astype(np.float32))
    if spec.embeddings.token_scale == 1.0:  # else the scale is folded in before the rounding
        # The value's bias (0.1) goes through the exact output kernel, not the rounded one: 0.1 * 2^-12 a layer, at 3 sigma.
        assert relative_error(path, spec, stored) < 2 * 0.1 * 2**-12 * 3
    # Each weight is off by up to 2^-11 of itself; 10 products in a row add up like sqrt(10), the extreme output is at 3 sigma.
    assert relative_error(path, spec) < 2**-11 * 10**0.5 * 3


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_int8_loses_half_a_step_of_weights_and_activations(options: dict[str, Any], tmp_path: Path) -> None:
    spec = random_spec(**{**WIDE, **options})
    path = tmp_path / "model.onnx"
    emit_onnx(spec, path, recipe="dynamic_wi8_afp32")
    onnx.checker.check_model(str(path), full_check=True)
    # Activations lie in about 8 sigma, cut into 255 steps: an error of 8 / 255 / sqrt(12) = 0.9 % of sigma each, the same
    # share in each product's output; 10 products in a row add up to 2.9 %, and the extreme of the outputs is at 3 sigma.
    assert relative_error(path, spec, map_matrices(spec, rounded_to_int8)) < 0.087


def test_int8_without_activations_to_round_is_exact(tmp_path: Path) -> None:
    # No layers and no head: what is left are the int8 tables, with scales that float16 holds to 2^-11.
    spec = random_spec(width=64, vocabulary=2000, token_scale=2.0, layers=1, pooling="none", head=(), output="raw")
    spec = dataclasses.replace(spec, encoder=dataclasses.replace(spec.encoder, layers=()))
    path = tmp_path / "model.onnx"
    emit_onnx(spec, path, recipe="dynamic_wi8_afp32")
    assert relative_error(path, spec, map_matrices(spec, rounded_to_int8)) < 2**-11


@pytest.mark.parametrize("recipe", ["fp32", "dynamic_wi8_afp32"])
def test_nothing_hangs_on_the_optimiser(recipe: str, tmp_path: Path) -> None:
    if recipe == "dynamic_wi8_afp32" and int8_saturates(machine_facts().isa):
        pytest.skip("int8 products saturate on this processor unless the optimiser replaces them")
    spec = random_spec(**WIDE, norm="rms", pooling="first")
    path = tmp_path / "model.onnx"
    emit_onnx(spec, path, recipe=recipe)
    inputs = padded_batch(spec, 7, 7, 3)
    plain = run(path, inputs, graph_optimization_level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    # The same products and the same rounding of activations; a value on the edge of a step may fall to either side.
    np.testing.assert_allclose(plain, run(path, inputs), atol=1e-5 if recipe == "fp32" else 0.02)


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_onnx_runtime_makes_the_fast_operators_of_it(norm: str, placement: str, tmp_path: Path) -> None:
    path, optimised = tmp_path / "model.onnx", tmp_path / "optimised.onnx"
    spec = random_spec(**WIDE, norm=norm, norm_placement=placement, mask="input", pooling="first")
    emit_onnx(spec, path, recipe="fp32")
    run(path, padded_batch(spec, 7, 7), optimized_model_filepath=str(optimised))
    operators = operator_histogram(optimised)
    # Merged with the addition before it, a norm takes four times as long.
    assert not [name for name in operators if "Skip" in name]
    assert operators["LayerNormalization" if norm == "layer" else "SimplifiedLayerNormalization"] == 5
    emit_onnx(spec, path, recipe="dynamic_wi8_afp32")
    run(path, padded_batch(spec, 7, 7), optimized_model_filepath=str(optimised))
    assert operator_histogram(optimised)["com.microsoft.DynamicQuantizeMatMul"] == 2 * 3 + 1


def test_hidden_channels_are_turned(tmp_path: Path) -> None:
    spec = random_spec(gated=True)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((16, 16)))[0].astype(np.float32)
    layers = tuple(
        dataclasses.replace(layer, feed_forward=dataclasses.replace(layer.feed_forward, turn=turn))
        for layer in spec.encoder.layers
    )
    turned = dataclasses.replace(spec, encoder=dataclasses.replace(spec.encoder, layers=layers))
    path = tmp_path / "model.onnx"
    emit_onnx(turned, path, recipe="fp32")
    assert relative_error(path, turned) < 1.4e-5  # as float32 above
    assert relative_error(path, spec) > 0.01  # another model


def test_a_fixed_length_is_that_of_the_file(tmp_path: Path) -> None:
    spec = dataclasses.replace(random_spec(mask="none", pooling="none", causal=True), fixed_length=9)
    path = tmp_path / "model.onnx"
    (signature,) = emit_onnx(spec, path, recipe="fp32")
    assert signature == Signature(
        "main",
        9,
        (Port("token_ids", "int32", (None, 9), "token_ids"),),
        (Port("answer", "float32", (None, 9, 5), "logits"),),
    )
    inputs = padded_batch(spec, 9, 9, 9)
    np.testing.assert_allclose(run(path, inputs), forward(spec, inputs), atol=1e-5)
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidArgument, match="Expected: 9"):
        run(path, padded_batch(spec, 8, 8))


def test_the_signature_names_what_the_file_has(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    (signature,) = emit_onnx(random_spec(mask="input", segments=2, output="sigmoid"), path, recipe="fp32")
    assert [(port.name, port.role, port.shape) for port in signature.inputs] == [
        ("token_ids", "token_ids", (None, None)),
        ("padding_mask", "padding_mask", (None, None)),
        ("segment_ids", "segment_ids", (None, None)),
    ]
    assert signature.outputs == (Port("answer", "float32", (None, 5), "sigmoid"),)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for ports, values in ((signature.inputs, session.get_inputs()), (signature.outputs, session.get_outputs())):
        assert [port.name for port in ports] == [value.name for value in values]
        for port, value in zip(ports, values, strict=True):
            assert [size if isinstance(size, int) else None for size in value.shape] == list(port.shape)
    assert session.get_inputs()[0].shape == ["batch", "sequence"]


def test_padding_changes_nothing(tmp_path: Path) -> None:
    spec = random_spec(mask="input")
    path = tmp_path / "model.onnx"
    emit_onnx(spec, path, recipe="fp32")
    inputs = padded_batch(spec, 12, 5)
    longer = run(path, inputs)
    shorter = run(path, {name: values[:, :5] for name, values in inputs.items()})
    np.testing.assert_allclose(longer, shorter, atol=2e-6)  # float32 sums of other lengths
    inputs["token_ids"][:, 5:] = 7
    np.testing.assert_array_equal(run(path, inputs), longer)


@pytest.mark.parametrize(("recipe", "share"), [("fp16", 0.5), ("dynamic_wi8_afp32", 0.25)])
def test_size(recipe: str, share: float, tmp_path: Path) -> None:
    spec = random_spec(width=128, heads=4, feed_forward=512, vocabulary=5000, positions=128, segments=2, mask="input")
    plain, small = tmp_path / "plain.onnx", tmp_path / "small.onnx"
    emit_onnx(spec, plain, recipe="fp32")
    emit_onnx(spec, small, recipe=recipe)
    assert small.stat().st_size < share * 1.05 * plain.stat().st_size


@pytest.mark.parametrize("recipe", ["fp32", "fp16", "dynamic_wi8_afp32"])
def test_layers_that_share_their_weights_are_stored_once(recipe: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    counts = []
    for layers in (1, 5):
        emit_onnx(random_spec(**WIDE, layers=layers, shared_layers=True), path, recipe=recipe)
        initializers = onnx.load(str(path)).graph.initializer
        names = [tensor.name for tensor in initializers]
        assert len(set(names)) == len(names)
        counts.append(sum(len(tensor.raw_data) > 8 for tensor in initializers))  # without the ends of slices
    assert counts[0] == counts[1]


def test_large_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_EXTERNAL_ABOVE", 10_000)
    spec = random_spec(**WIDE)
    path = tmp_path / "model.onnx"
    emit_onnx(spec, path, recipe="fp32")
    assert path.stat().st_size < 20_000 < (tmp_path / "model.onnx.data").stat().st_size
    onnx.checker.check_model(str(path), full_check=True)
    assert relative_error(path, spec) < 1.4e-5
    offsets = [
        int(entry.value)
        for tensor in onnx.load(str(path), load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset"
    ]
    assert offsets
    assert all(offset % 4096 == 0 for offset in offsets)


def test_histogram_counts_subgraphs_and_names_domains(tmp_path: Path) -> None:
    helper, FLOAT = onnx.helper, onnx.TensorProto.FLOAT
    value = helper.make_tensor_value_info
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "branch", [], [value("y", FLOAT, [1])])
    nodes = [
        helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch),
        helper.make_node("FastGelu", ["z"], ["out"], domain="com.microsoft"),
    ]
    inputs = [value("c", onnx.TensorProto.BOOL, []), value("x", FLOAT, [1])]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, [value("out", FLOAT, [1])]))
    onnx.save(model, str(tmp_path / "model.onnx"))
    assert operator_histogram(tmp_path / "model.onnx") == {"If": 1, "Relu": 2, "com.microsoft.FastGelu": 1}


@pytest.mark.parametrize("content", [b"", b"\x3a\xff\xff\x7fPK", b"\x3a\x02\x0a\x30", b"not a model at all"])
def test_histogram_refuses_what_is_no_model(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ConversionError, match=r"model\.onnx is not an ONNX model"):
        operator_histogram(tmp_path / "model.onnx")


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(RecipeError, match="No recipe is called 'fp8'"):
        emit_onnx(random_spec(), path, recipe="fp8")
    spec = random_spec(**WIDE)
    spec.encoder.layers[1].feed_forward.up.kernel[3, 4] = 1e6
    with pytest.raises(RecipeError, match=r"layer_1/up/kernel reaches 1e\+06, and float16 ends at 65504"):
        emit_onnx(spec, path, recipe="fp16")
    spec.encoder.layers[1].feed_forward.up.kernel[3, 4] = np.nan
    with pytest.raises(ModelError, match="holds 1 NaN or infinite values"):
        emit_onnx(spec, path, recipe="fp32")
    assert not path.exists()
