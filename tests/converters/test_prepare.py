"""A prepared model against the definitions: exact where nothing is rounded, closer than rounding to the nearest where it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters.activations import embed, layer_output, scores_of
from edgelm_converters.emit.blocks import choose_scales, round_to
from edgelm_converters.own_text import write_text
from edgelm_converters.prepare import prepare_weights
from edgelm_converters.rotation import hadamard, rotation
from edgelm_converters.rounding import drift_moments, make_up, refine, round_kernel, second_moments
from edgelm_converters.spec import TransformerSpec
from edgelm_runtimes.program import ProgramOptions
from edgelm_runtimes.registry import open_causal
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import forward
from spec_factory import random_decoder

INT8, INT4 = "dynamic_wi8_afp32", "dynamic_wi4b32_afp32"

OPTIONS: dict[str, dict[str, Any]] = {
    "llama": {},
    "one key head": {"kv_heads": 1},
    "gpt-2": {
        "norm": "layer", "positions": 80, "activation": "gelu_tanh", "gated": False, "biases": True, "kv_heads": 4,
    },
    "gelu": {"activation": "gelu", "gated": False},
    "gemma 2": {
        "soft_cap": 3.0, "head_soft_cap": 8.0, "post_norms": True, "windows": (5, None), "activation": "gelu_tanh",
        "token_scale": 8.0, "head_dim": 24,
    },
    "soft cap": {"soft_cap": 3.0, "windows": (5, None)},
    "qwen 3": {"query_key_norm": True, "head_dim": 24},
    "phi 3": {"rotary": 8, "rotary_factor": 1.2, "windows": (7,)},
    "qwen 2": {"biases": True, "tied": False},
    "head with bias": {"head_bias": True, "tied": False, "head_soft_cap": 2.0},
    "untied layer norm": {"norm": "layer", "tied": False},
    "post-norm": {"norm_placement": "post", "final_norm": False, "norm": "layer"},
    "no last norm": {"final_norm": False},
    "layer norm of query and key": {"norm": "layer", "query_key_norm": True},
    "relu": {"activation": "relu", "gated": False, "biases": True},
    "no run fits": {"feed_forward": 104},
}  # fmt: skip


def _spec(**options: Any) -> TransformerSpec:
    # Wide enough for every kernel and table to be quantised; 96 and 64 are multiples of a block.
    chosen: dict[str, Any] = {"width": 64, "feed_forward": 96, "vocabulary": 100} | options
    return random_decoder(**chosen)


def _ids(count: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, 100, count).astype(np.int32)


def _tied(spec: TransformerSpec) -> bool:
    assert spec.head.tokens is not None
    return spec.head.tokens.table is spec.embeddings.token


def _expected(spec: TransformerSpec, ids: NDArray[np.int32]) -> NDArray[np.float64]:
    return forward(spec, {"token_ids": ids[None]})[0]


@pytest.mark.parametrize("name", OPTIONS)
def test_activations_are_those_of_the_definitions(name: str) -> None:
    spec = _spec(**OPTIONS[name])
    sequences = [_ids(21), _ids(9, seed=1)]
    x = embed(spec, sequences)
    for layer in spec.decoder.layers:
        x = layer_output(layer, x, [21, 9])
    scores = scores_of(spec, x)
    expected = np.concatenate([_expected(spec, ids) for ids in sequences])
    # float32 sums of up to 128 terms, some 20 of them in a row: 4 * sqrt(128) * 2^-24 = 3e-6; 1.5e-7 of "gelu" are less.
    assert np.abs(scores - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", OPTIONS)
def test_without_rounding_the_model_stays_the_same(name: str) -> None:
    spec = _spec(**OPTIONS[name])
    prepared, notes = prepare_weights(spec, INT8, [_ids(40, seed=3)])
    ids = _ids(21)
    expected = _expected(spec, ids)
    # The definitions are computed in float64; what is left is that the new weights are float32: 2^-24 each, and the float32
    # sums that made them, sqrt(64) * 2^-24 = 5e-7, through the 10 products of two layers.
    assert np.abs(_expected(prepared, ids) - expected).max() < 1e-5 * np.abs(expected).max()
    assert _tied(prepared) == _tied(spec)
    stays = name in ("gemma 2", "post-norm")
    assert any("not rotated" in note for note in notes) == stays
    assert (prepared.embeddings.token is spec.embeddings.token) == stays


@pytest.mark.parametrize("block", [64, 128])
def test_kernels_are_rounded_in_the_blocks_of_the_recipe(block: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from edgelm_converters.emit.onnx_decoder import emit_onnx_decoder

    spec = _spec(width=128, feed_forward=256)
    first, second = spec.decoder.layers
    attention = first.attention
    attention = replace(
        attention,
        query=replace(attention.query, least_bits=16),
        value=replace(attention.value, least_bits=8),
    )
    spec = replace(spec, decoder=replace(spec.decoder, layers=(replace(first, attention=attention), second)))
    recipe = f"dynamic_wi4b{block}_afp32"
    prepared, _ = prepare_weights(spec, recipe, [_ids(60, seed=5)])
    for layer in prepared.decoder.layers:
        for linear in (layer.attention.query, layer.attention.key, layer.attention.value, layer.feed_forward.down):
            inputs, outputs = linear.kernel.shape
            assert (linear.grid is None) == (linear.least_bits > 4)
            assert linear.grid is None or linear.grid.scale.shape == (outputs, inputs // block)
    bits = [getattr(prepared.decoder.layers[0].attention, name).least_bits for name in ("query", "key", "value")]
    assert bits == [16, 4, 8]
    path, ids = tmp_path / "model.onnx", _ids(21)
    signatures = emit_onnx_decoder(prepared, path, recipe=recipe, context_length=32)
    program = open_causal("onnx", path, signatures, ProgramOptions(threads=1))
    found = np.array(program.forward(ids, 0, logits="all"))
    program.close()
    expected = _expected(prepared, ids)
    # As in `test_runtimes_compute_the_rounded_model`.
    assert np.abs(found - expected).max() < 0.08 * np.abs(expected).max()


def test_an_outlier_is_spread_over_all_channels() -> None:
    """A token with one channel 300 times the others', as trained models have it, keeps its other channels under int8."""
    spec = _spec(tied=True)
    spec.embeddings.token[:, 5] *= 300
    prepared, _ = prepare_weights(spec, INT8, [_ids(40)])

    def evenness(table: NDArray[np.float32]) -> float:
        return float((np.abs(table).max(axis=1) / np.sqrt(np.square(table).mean(axis=1))).mean())

    # One channel alone has sqrt(64) = 8; 64 normally distributed ones have sqrt(2 * ln(64)) = 2.9.
    assert evenness(spec.embeddings.token) > 7
    assert evenness(prepared.embeddings.token) < 4


def test_layers_that_share_weights_are_left_alone() -> None:
    spec = _spec()
    first = spec.decoder.layers[0]
    shared = replace(spec, decoder=replace(spec.decoder, layers=(first, first)))
    prepared, notes = prepare_weights(shared, INT4, [_ids(40)])
    assert prepared is shared
    assert "share" in notes[0]


@pytest.mark.parametrize("recipe", ["fp32", "fp16", "static_wi8_ai8"])
def test_some_recipes_need_no_preparation(recipe: str) -> None:
    spec = _spec()
    assert prepare_weights(spec, recipe, None) == (spec, ())


@pytest.mark.parametrize("name", OPTIONS)
def test_rounded_kernels_lie_on_their_grid(name: str) -> None:
    spec, _ = prepare_weights(_spec(**OPTIONS[name]), INT4, [_ids(60, seed=5)])
    for layer in spec.decoder.layers:
        attention, block = layer.attention, layer.feed_forward
        for linear in (attention.query, attention.key, attention.value, attention.output, block.up, block.gate):
            if linear is None:
                continue
            assert linear.grid is not None
            steps = linear.kernel.T.reshape(len(linear.grid.scale), -1, 32) / linear.grid.scale[:, :, None]
            assert (np.abs(steps - np.rint(steps)) < 1e-5).all()
            assert steps.min() >= -8
            assert steps.max() <= 7
        # 104 inner channels make no blocks of 32.
        assert (block.down.grid is None) == (name == "no run fits") == (block.down.least_bits == 8)


@pytest.mark.parametrize("runtime", ["litert", "onnx"])
@pytest.mark.parametrize("recipe", [INT8, INT4])
@pytest.mark.parametrize("name", OPTIONS)
def test_runtimes_compute_the_rounded_model(name: str, recipe: str, runtime: str, tmp_path: Path) -> None:
    """What the runtimes compute is the rounded model itself: what is left is the rounding of activations, tables and int8."""
    pytest.importorskip({"litert": "ai_edge_litert", "onnx": "onnxruntime"}[runtime])
    spec, _ = prepare_weights(_spec(**OPTIONS[name]), recipe, [_ids(60, seed=5)])
    ids = _ids(21)
    expected = _expected(spec, ids)
    if runtime == "litert":
        from edgelm_converters.emit.tflite_decoder import emit_tflite_decoder

        path = tmp_path / "model.tflite"
        signatures = emit_tflite_decoder(spec, path, recipe=recipe, caches=(32,), prefill=(4,), verify=(8,))
    else:
        pytest.importorskip("onnx")
        from edgelm_converters.emit.onnx_decoder import emit_onnx_decoder

        path = tmp_path / "model.onnx"
        signatures = emit_onnx_decoder(spec, path, recipe=recipe, context_length=32)
    program = open_causal(runtime, path, signatures, ProgramOptions(threads=1))
    found = np.array(program.forward(ids, 0, logits="all"))
    program.close()
    # int8: weights and activations by half of 1/127 of a row's largest, which is three times the typical value: 1.7 % together;
    # of some 10 products in a row 5 %, and 8 % where what is left after cancelling is smaller. int4 has no other error than
    # int8's: its kernels are exact here.
    assert np.abs(found - expected).max() < 0.08 * np.abs(expected).max()


def _expected_kernels(spec: TransformerSpec) -> list[NDArray[np.float32]]:
    """Return the 4-bit kernels ``(out, in)`` as they are in a file: query, key and value are one."""
    kernels = []
    for layer in spec.decoder.layers:
        attention, block = layer.attention, layer.feed_forward
        packed = np.concatenate([part.kernel for part in (attention.query, attention.key, attention.value)], axis=1)
        assert block.gate is not None
        kernels += [packed, attention.output.kernel, block.gate.kernel, block.up.kernel, block.down.kernel]
    return [kernel.T for kernel in kernels]


def _same(found: list[NDArray[np.float32]], expected: list[NDArray[np.float32]]) -> bool:
    return len(found) == len(expected) and all(any(np.array_equal(a, b) for a in found) for b in expected)


def test_a_tflite_file_holds_the_very_steps(tmp_path: Path) -> None:
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    from edgelm_converters.emit.tflite_decoder import emit_tflite_decoder

    spec, _ = prepare_weights(_spec(), INT4, [_ids(60, seed=5)])
    path = tmp_path / "model.tflite"
    emit_tflite_decoder(spec, path, recipe=INT4, caches=(32,), prefill=(), verify=(1,))
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    graph = model.subgraphs[0]
    found = []
    for tensor in graph.tensors:
        if tensor.type == schema.TensorType.INT4:
            pairs = model.buffers[tensor.buffer].data
            steps = np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1, 32).astype(np.int8)
            scales = model.buffers[graph.tensors[tensor.quantization.details.scales].buffer].data.view(np.float16)
            signed = np.where(steps > 7, steps - 16, steps)
            found.append((signed * scales.astype(np.float32)[:, None]).astype(np.float32).reshape(tensor.shape))
    assert _same(found, _expected_kernels(spec))


def test_an_onnx_file_holds_the_very_steps(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from edgelm_converters.emit.onnx_decoder import emit_onnx_decoder

    spec, _ = prepare_weights(_spec(), INT4, [_ids(60, seed=5)])
    path = tmp_path / "model.onnx"
    emit_onnx_decoder(spec, path, recipe=INT4, context_length=32)
    graph = onnx.load(path).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = []
    for node in graph.node:
        settings_ = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "MatMulNBits" and settings_["bits"] == 4:
            pairs, scales = arrays[node.input[1]], arrays[node.input[2]]
            steps = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(-1, 32).astype(np.float32) - 8
            found.append((steps * scales.reshape(-1, 1)).astype(np.float32).reshape(settings_["N"], settings_["K"]))
    assert _same(found, _expected_kernels(spec))


@given(st.integers(2, 300), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_a_rotation_is_orthogonal_and_keeps_the_mean(size: int, seed: int) -> None:
    turn = rotation(size, seed=seed)
    # float64 sums of 300 terms.
    np.testing.assert_allclose(turn @ turn.T, np.eye(size), atol=1e-12)
    np.testing.assert_allclose(turn.sum(axis=0), np.ones(size), atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 16, 32])
def test_a_hadamard_matrix_is_orthogonal_and_even(size: int) -> None:
    matrix = hadamard(size)
    np.testing.assert_allclose(matrix @ matrix, np.eye(size), atol=1e-6)  # float32 sums of 32 terms
    np.testing.assert_allclose(np.abs(matrix), size**-0.5, rtol=1e-6)


@given(st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_rounding_keeps_outputs_better_than_the_nearest_steps_do(seed: int) -> None:
    generator = np.random.default_rng(seed)
    # Activations of 64 channels that hang together: 16 causes behind them.
    causes = generator.standard_normal((16, 64))
    seen, unseen = (
        (generator.standard_normal((count, 16)) @ causes + 0.1 * generator.standard_normal((count, 64))).astype(
            np.float32
        )
        for count in (2000, 500)
    )
    kernel = generator.standard_normal((64, 48)).astype(np.float32)
    rounded, scale = round_kernel(kernel, second_moments(seen), block=32, damping=0.01)
    nearest_scale = choose_scales(kernel, 32)
    steps = round_to(kernel, nearest_scale).reshape(48, 2, 32)
    nearest = (steps * nearest_scale[:, :, None]).reshape(48, 64).T

    def error(candidate: NDArray[np.float32]) -> float:
        return float(np.square(unseen @ (candidate - kernel)).sum())

    # Three quarters of the directions are nearly free to take up errors; half is a wide margin.
    assert error(rounded) < 0.5 * error(nearest)
    restored = round_to(rounded, scale).reshape(48, 2, 32) * scale[:, :, None]
    np.testing.assert_array_equal(restored.reshape(48, 64).T, rounded)


def _correlated(seed: int, rows: int, inputs: int) -> NDArray[np.float32]:
    """Return activations of channels that hang together."""
    generator = np.random.default_rng(seed)
    mixed = generator.standard_normal((rows, inputs)) @ generator.standard_normal((inputs, inputs))
    return (mixed / inputs**0.5).astype(np.float32)


@given(st.integers(0, 1000), st.sampled_from((16, 32)))
@settings(max_examples=15, deadline=None)
def test_refining_makes_no_output_worse_and_most_better(seed: int, block: int) -> None:
    seen = _correlated(seed, 1000, 64)
    kernel = np.random.default_rng(seed).standard_normal((64, 24)).astype(np.float32)
    moments = second_moments(seen)
    rounded, scale = round_kernel(kernel, moments, block=block, damping=0.01)
    refined, refined_scale = refine(kernel, moments, rounded, scale, damping=0.01, sweeps=3)
    damped = moments.astype(np.float64) + 0.01 * np.eye(64) * np.diagonal(moments).mean()

    def errors(candidate: NDArray[np.float32]) -> NDArray[np.float64]:
        difference = candidate.astype(np.float64) - kernel
        return np.asarray((difference * (damped @ difference)).sum(axis=0))

    before, after = errors(rounded), errors(refined)
    # Both are float32 sums of 64 terms: they agree with these to some 1e-6.
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < before.sum()
    steps = refined.reshape(-1, block, 24) / refined_scale.T[:, None, :]
    assert np.abs(steps - np.rint(steps)).max() < 1e-5
    assert steps.min() > -8.5
    assert steps.max() < 7.5
    assert (refined_scale.view(np.uint32) & 0xFFFF == 0).all()  # 8 significant bits


def test_refining_finds_the_scales_of_a_kernel_that_lies_on_a_grid() -> None:
    generator = np.random.default_rng(3)
    steps = generator.integers(-8, 8, (2, 32, 40)).astype(np.float32)
    right = np.float32(2.0) ** generator.integers(-4, 0, (2, 1, 40)).astype(np.float32)
    kernel = (steps * right).reshape(64, 40)
    wrong = right * np.float32(1.125)
    moments = second_moments(_correlated(3, 1000, 64))
    found, scale = refine(
        kernel, moments, (steps * wrong).reshape(64, 40), wrong[:, 0].T.copy(), damping=0.01, sweeps=2
    )
    # Least squares: there is an answer without any error, and its scales are powers of 2, which no rounding moves.
    np.testing.assert_array_equal(found, kernel)
    np.testing.assert_array_equal(scale, right[:, 0].T)


def test_what_was_rounded_before_is_made_up_for() -> None:
    generator = np.random.default_rng(4)
    wanted = generator.standard_normal((1000, 32)).astype(np.float32)
    # What was rounded before left a part of each channel in its neighbour: a kernel can undo that.
    seen = wanted + 0.2 * np.roll(wanted, 1, axis=1)
    kernel = generator.standard_normal((32, 8)).astype(np.float32)
    made = make_up(kernel, second_moments(seen), drift_moments(seen, wanted), damping=1e-4)
    before, after = (np.square(seen @ candidate - wanted @ kernel).mean() for candidate in (kernel, made))
    # Damping of 1e-4 leaves some 1e-4 of the change, squared; float32 sums are off by less.
    assert after < 1e-4 * before
    unchanged = make_up(kernel, second_moments(seen), drift_moments(seen, seen), damping=0.1)
    np.testing.assert_array_equal(unchanged, kernel)


def test_channels_that_are_never_active_are_rounded_to_the_nearest() -> None:
    kernel = np.random.default_rng(2).standard_normal((64, 8)).astype(np.float32)
    rounded, scale = round_kernel(kernel, np.zeros((64, 64), np.float32), block=32, damping=0.1)
    np.testing.assert_array_equal(scale, choose_scales(kernel, 32))
    nearest = (round_to(kernel, scale).reshape(8, 2, 32) * scale[:, :, None]).reshape(8, 64).T
    np.testing.assert_array_equal(rounded, nearest)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_model_writes_what_it_finds_likely(name: str) -> None:
    """Its own cached steps against the definitions: the average of -log p(token) is the distribution's entropy."""
    spec = _spec(**OPTIONS[name])
    texts = write_text(spec, sequences=24, length=20)
    assert all(text.shape == (20,) and text.dtype == np.int32 for text in texts)
    gaps = []
    for text in texts:
        scores = _expected(spec, text)[:-1]
        logarithms = scores - np.log(np.exp(scores - scores.max(-1, keepdims=True)).sum(-1, keepdims=True))
        logarithms -= scores.max(-1, keepdims=True)
        entropy = -(np.exp(logarithms) * logarithms).sum(-1)
        gaps.append(-logarithms[np.arange(19), text[1:]] - entropy)
    values = np.concatenate(gaps)
    # The mean of 456 draws with this spread is within 4 standard errors of 0 but once in 16,000; the seed is fixed.
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))


def test_without_a_text_the_model_writes_its_own() -> None:
    steps: list[str] = []
    spec, notes = prepare_weights(_spec(max_length=32), INT4, None, lambda step, done, total: steps.append(step))
    assert spec.decoder.layers[0].attention.query.grid is not None
    assert any("wrote itself" in note for note in notes)
    assert {"Letting the model write", "Fitting the weights"} <= set(steps)
