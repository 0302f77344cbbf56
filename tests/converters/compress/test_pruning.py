"""Whole models pruned: what is asked for, what comes out, and that every emitter writes it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters.activations import layer_output, normalise
from edgelm_converters.compress.calibrate import calibration_chunks, stack_of, with_layers
from edgelm_converters.compress.importance import layers_by_influence, layers_by_output
from edgelm_converters.compress.pruning import Pruning, prune
from edgelm_converters.spec import Layer, TransformerSpec, parameters
from numpy.typing import NDArray
from reference import forward
from spec_factory import random_decoder, random_inputs, random_spec

from edgelm.errors import EdgelmError, InputError, RecipeError

# An encoder's output as it is, so that its layers are what is compared.
PLAIN: dict[str, Any] = {"pooling": "none", "head": (), "output": "raw", "mask": "none", "heads": 4, "feed_forward": 64}

MODELS: dict[str, TransformerSpec] = {
    "post-norm, segments": random_spec(**PLAIN, segments=2, layers=3),
    "segments, no positions": random_spec(**PLAIN, segments=2, positions=None, token_scale=2.0),
    "pre-norm, gated, groups": random_spec(
        **PLAIN | {"kv_heads": 2}, norm_placement="pre", norm="rms", gated=True, final_norm=True, activation="silu"
    ),
    "narrow embeddings": random_spec(**PLAIN, embedding_width=8, biases=False),
    "decoder": random_decoder(layers=3, feed_forward=96),
    "decoder, everything": random_decoder(
        feed_forward=96, query_key_norm=True, post_norms=True, windows=(5, None), soft_cap=4.0, head_soft_cap=9.0
    ),
    "decoder, positions, biases": random_decoder(
        feed_forward=96, norm="layer", positions=64, biases=True, gated=False, activation="gelu_tanh", kv_heads=4
    ),
}


def _samples(spec: TransformerSpec, count: int = 40, seed: int = 3) -> list[NDArray[np.int32]]:
    generator = np.random.default_rng(seed)
    return [
        generator.integers(1, spec.vocabulary_size, length).astype(np.int32)
        for length in generator.integers(3, 30, count)
    ]


def _inputs(spec: TransformerSpec, ids: NDArray[np.int32]) -> dict[str, NDArray[np.int32]]:
    inputs = {spec.token_input: ids[None]}
    if spec.segment_input is not None:
        inputs[spec.segment_input] = np.zeros_like(ids[None])
    return inputs


def _error(spec: TransformerSpec, smaller: TransformerSpec, samples: list[NDArray[np.int32]]) -> float:
    """Return the squared error of the outputs as a share of their squares, over some samples."""
    pairs = [(forward(spec, _inputs(spec, ids)), forward(smaller, _inputs(spec, ids))) for ids in samples[:8]]
    return float(sum(np.square(a - b).sum() for a, b in pairs) / sum(np.square(a).sum() for a, _ in pairs))


@pytest.mark.parametrize("name", MODELS)
def test_calibration_computes_what_the_model_computes(name: str) -> None:
    spec, samples = MODELS[name], _samples(MODELS[name], 6)
    if spec.generates:
        spec = dataclasses.replace(spec, head=dataclasses.replace(spec.head, tokens=None))
    x = np.concatenate([_through(spec, chunk) for chunk in calibration_chunks(spec, samples)])
    expected = np.concatenate([forward(spec, _inputs(spec, ids))[0] for ids in samples])
    # float32 through 3 layers of sums of up to 96 terms: sqrt(96) * 6e-8 each, of values of some 3.
    np.testing.assert_allclose(x, expected, atol=3e-5)


def _through(spec: TransformerSpec, chunk: Any) -> NDArray[np.float32]:
    x = chunk.x
    for layer in stack_of(spec).layers:
        x = layer_output(layer, x, chunk.lengths)
    final = stack_of(spec).final_norm
    return x if final is None else normalise(final, x)


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_is_pruned_and_made_up_for(name: str) -> None:
    spec = MODELS[name]
    samples = _samples(spec)
    pruning = Pruning.parse("heads=0.5,ffn=0.3")
    smaller, step = prune(spec, pruning, samples)
    cut, _ = prune(spec, dataclasses.replace(pruning, correct=False), samples)
    units, neurons = stack_of(spec).layers[0].attention.kv_heads, len(stack_of(spec).layers[0].feed_forward.down.kernel)
    for layer in stack_of(smaller).layers:
        assert layer.attention.kv_heads == units // 2
        assert layer.attention.heads * units == layer.attention.kv_heads * stack_of(spec).layers[0].attention.heads
        assert layer.feed_forward.up.kernel.shape[1] == {64: 32, 96: 64}[neurons]
    assert _error(spec, smaller, samples) < _error(spec, cut, samples)
    assert step.parameters_before == sum(array.size for _, array in parameters(spec))
    assert step.parameters_after == sum(array.size for _, array in parameters(smaller)) < step.parameters_before
    assert step.settings == {"heads": 0.5, "ffn": 0.3, "scope": "layer", "score": "obs", "correct": True}
    assert any("refitted on" in note for note in step.notes)
    # Embeddings, norms and what else stays are the given model's own, a tied head included.
    assert smaller.embeddings is spec.embeddings
    assert smaller.head is spec.head


def test_first_layers_keep_their_very_arrays_without_correction() -> None:
    spec = MODELS["decoder"]
    smaller, _ = prune(spec, Pruning(ffn=0.3, correct=False), _samples(spec))
    for before, after in zip(spec.decoder.layers, smaller.decoder.layers, strict=True):
        assert after.attention is before.attention


def _with_neurons(spec: TransformerSpec, change: Any) -> TransformerSpec:
    layers = [
        dataclasses.replace(layer, feed_forward=change(number, layer.feed_forward))
        for number, layer in enumerate(stack_of(spec).layers)
    ]
    return with_layers(spec, layers)


@pytest.mark.parametrize("score", ["obs", "activation", "magnitude"])
@pytest.mark.parametrize("name", MODELS)
def test_dead_neurons_go_and_nothing_is_lost(name: str, score: str) -> None:
    generator = np.random.default_rng(5)

    def kill(number: int, block: Any) -> Any:
        kernel = block.down.kernel.copy()
        kernel[generator.choice(len(kernel), 32, replace=False)] = 0
        return dataclasses.replace(block, down=dataclasses.replace(block.down, kernel=kernel))

    spec = _with_neurons(MODELS[name], kill)
    samples = _samples(spec)
    share = 32 / len(stack_of(spec).layers[0].feed_forward.down.kernel)
    cut, _ = prune(spec, Pruning(ffn=share, score=score, correct=False), samples)  # type: ignore[arg-type]
    assert _error(spec, cut, samples) < 1e-24  # the same sums in float64
    smaller, _ = prune(spec, Pruning(ffn=share, score=score), samples)  # type: ignore[arg-type]
    # What it is refitted to was computed in float32: some 1e-7 of each value, squared, and up to 100 times that through
    # what the kernels are badly determined by.
    assert _error(spec, smaller, samples) < 1e-11


@pytest.mark.parametrize("name", ["post-norm, segments", "decoder, everything"])
def test_twins_take_over_from_each_other(name: str) -> None:
    def double(number: int, block: Any) -> Any:
        half = len(block.down.kernel) // 2

        def twice(linear: Any) -> Any:
            kernel = np.concatenate([linear.kernel[:, :half]] * 2, axis=1)
            bias = None if linear.bias is None else np.concatenate([linear.bias[:half]] * 2)
            return dataclasses.replace(linear, kernel=kernel, bias=bias)

        gate = None if block.gate is None else twice(block.gate)
        return dataclasses.replace(block, up=twice(block.up), gate=gate)

    base = MODELS[name] if name.startswith("post") else random_decoder(feed_forward=64, post_norms=True)
    spec = _with_neurons(base, double)
    samples = _samples(spec, 100)
    smaller, _ = prune(spec, Pruning(ffn=0.5), samples)
    cut, _ = prune(spec, Pruning(ffn=0.5, correct=False), samples)
    # One of each pair is enough for everything. The ridge, 10 % of the mean moment, holds the kernel back by 0.1 / 1.1 = 9 % of
    # what a neuron of middling size took over, and by 0.1 / 0.35 = 29 % where its moment is a quarter of that: squared, 8 %.
    assert _error(spec, smaller, samples) < 0.1 * _error(spec, cut, samples)


def test_layers_that_do_nothing_go_and_nothing_is_lost() -> None:
    def idle(layer: Layer) -> Layer:
        attention, block = layer.attention, layer.feed_forward
        still = {
            name: np.zeros_like(kernel) for name, kernel in (("o", attention.output.kernel), ("d", block.down.kernel))
        }
        return dataclasses.replace(
            layer,
            attention=dataclasses.replace(attention, output=dataclasses.replace(attention.output, kernel=still["o"])),
            feed_forward=dataclasses.replace(block, down=dataclasses.replace(block.down, kernel=still["d"])),
        )

    spec = random_decoder(layers=5, feed_forward=64)
    layers = [idle(layer) if number in (1, 3) else layer for number, layer in enumerate(spec.decoder.layers)]
    spec = with_layers(spec, layers)
    samples = _samples(spec, 10)
    chunks = calibration_chunks(spec, samples)
    assert layers_by_output(spec.decoder, chunks, 2) == layers_by_influence(spec.decoder, chunks, 2) == [1, 3]
    smaller, step = prune(spec, Pruning(layers=2), samples)
    assert len(smaller.decoder.layers) == 3
    assert _error(spec, smaller, samples) < 1e-11  # refitted to float32 streams
    assert step.notes[0].startswith("Layers 2, 4 of 5 were removed")


def test_a_layer_that_is_missed_is_made_up_for_by_those_after_it() -> None:
    spec = random_decoder(layers=4, feed_forward=64)
    samples = _samples(spec, 100)
    smaller, _ = prune(spec, Pruning(layers=1), samples)
    cut, _ = prune(spec, Pruning(layers=1, correct=False), samples)
    assert _error(spec, smaller, samples) <= _error(spec, cut, samples)


@pytest.mark.parametrize(
    "text", ["sparsity=0.5", "pattern=2:4", "sparsity=0.5,score=magnitude", "heads=0.25,pattern=2:4"]
)
@pytest.mark.parametrize("name", ["post-norm, segments", "decoder, positions, biases"])
def test_single_weights_become_zero_in_every_kernel_of_the_layers(name: str, text: str) -> None:
    spec = MODELS[name]
    smaller, step = prune(spec, Pruning.parse(text), _samples(spec))
    kernels = [(path, array) for path, array in parameters(stack_of(smaller).layers) if path.endswith("kernel")]
    assert len(kernels) == 6 * len(stack_of(spec).layers)
    for path, kernel in kernels:
        assert (kernel == 0).mean() == 0.5, path
        if "2:4" in text:
            assert ((kernel.reshape(-1, 4, kernel.shape[1]) == 0).sum(axis=1) == 2).all(), path
    assert "no runtime that edgelm writes for skips them" in step.notes[-1]
    assert smaller.embeddings is spec.embeddings


def test_what_is_thinned_out_by_its_inputs_loses_less() -> None:
    spec = MODELS["decoder"]
    samples = _samples(spec, 100)
    by_inputs, _ = prune(spec, Pruning(sparsity=0.5), samples)
    by_size, _ = prune(spec, Pruning(sparsity=0.5, score="magnitude"), samples)
    assert _error(spec, by_inputs, samples) < _error(spec, by_size, samples)


def test_without_data_it_goes_by_magnitude_and_says_so() -> None:
    spec = MODELS["decoder"]
    smaller, step = prune(spec, Pruning(heads=0.5, ffn=0.3, sparsity=0.5, score="magnitude"), None)
    assert stack_of(smaller).layers[0].attention.kv_heads == 1
    assert "What stays was not refitted: there were no calibration data." in step.notes


def test_samples_are_spread_over_a_sorted_file_and_cut_to_the_model() -> None:
    spec = random_spec(**PLAIN | {"mask": "nonzero"}, positions=16)
    samples = [np.array([number % 49 + 1] * 20 + [0] * 4, np.int32) for number in range(100)]
    chunks = calibration_chunks(spec, samples, tokens=160)
    assert sum(len(chunk.lengths) for chunk in chunks) == 10
    assert all(length == 16 for chunk in chunks for length in chunk.lengths)
    firsts = [chunk.x[start] for chunk in chunks for start in range(0, len(chunk.x), 16)]
    assert len({row.tobytes() for row in firsts}) == 10
    fixed = dataclasses.replace(random_spec(**PLAIN), fixed_length=12)
    assert calibration_chunks(fixed, [np.array([3, 4], np.int32)], pad_id=1)[0].lengths == (12,)


# ------------------------------------------------------------------------------------------------------ emission


def _uneven() -> TransformerSpec:
    """Return an encoder whose layers differ in heads and neurons: one head of the second layer does nothing."""
    spec = random_spec(
        layers=3, width=64, heads=4, feed_forward=160, vocabulary=100, final_norm=True, norm_placement="pre"
    )
    layers = list(spec.encoder.layers)
    quiet = layers[1].attention.output
    kernel = quiet.kernel.copy()
    kernel[:32] *= 1e-3
    attention = dataclasses.replace(layers[1].attention, output=dataclasses.replace(quiet, kernel=kernel))
    down = layers[0].feed_forward.down
    block = dataclasses.replace(layers[0].feed_forward, down=dataclasses.replace(down, kernel=down.kernel * 0.05))
    layers[1] = dataclasses.replace(layers[1], attention=attention)
    layers[0] = dataclasses.replace(layers[0], feed_forward=block)
    smaller, step = prune(with_layers(spec, layers), Pruning.parse("heads=0.25,ffn=0.4,scope=global"), _samples(spec))
    assert ", " in step.notes[0]
    return smaller


def test_the_cheapest_of_all_layers_go_and_the_model_says_that_they_differ() -> None:
    spec = _uneven()
    heads = [layer.attention.heads for layer in spec.encoder.layers]
    neurons = [len(layer.feed_forward.down.kernel) for layer in spec.encoder.layers]
    assert (sum(heads), min(heads) >= 1, heads[1]) == (9, True, 2)
    assert (sum(neurons), [count % 32 for count in neurons]) == (3 * 96, [0, 0, 0])
    assert neurons[0] == 32
    figures = spec.describe()
    assert figures["heads"] == f"{min(heads)}-{max(heads)}"
    assert figures["feed_forward"] == f"{min(neurons)}-{max(neurons)}"
    assert figures["head_dim"] == 16


# As of tests/converters/test_emit_tflite.py: rounding of float32 sums and of int8 weights and activations, 2 layers; 3 here.
TOLERANCE = {"fp32": 1e-5, "dynamic_wi8_afp32": 0.1}


@pytest.mark.parametrize("recipe", TOLERANCE)
def test_uneven_encoders_are_written_for_both_runtimes(recipe: str, tmp_path: Path) -> None:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    ort = pytest.importorskip("onnxruntime")
    from edgelm_converters.emit.onnx import emit_onnx
    from edgelm_converters.emit.tflite import emit_tflite

    spec = _uneven()
    inputs = random_inputs(spec, 16)
    expected = forward(spec, inputs)
    emit_tflite(spec, tmp_path / "model.tflite", recipe=recipe, lengths=(16,))
    runner = interpreter.Interpreter(str(tmp_path / "model.tflite"), num_threads=1).get_signature_runner("serve_16")
    emit_onnx(spec, tmp_path / "model.onnx", recipe=recipe)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    for answer in (runner(**inputs)[spec.output_name], session.run(None, inputs)[0]):
        assert np.abs(answer - expected).max() / np.abs(expected).max() < TOLERANCE[recipe]


@pytest.mark.parametrize("runtime", ["litert", "onnx"])
@pytest.mark.parametrize("recipe", TOLERANCE)
def test_pruned_language_models_are_written_for_both_runtimes(recipe: str, runtime: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("ai_edge_litert")
    from edgelm_converters.emit.onnx_decoder import emit_onnx_decoder
    from edgelm_converters.emit.tflite_decoder import emit_tflite_decoder
    from edgelm_runtimes.program import ProgramOptions
    from edgelm_runtimes.registry import open_causal

    whole = random_decoder(layers=3, width=64, heads=8, kv_heads=4, head_dim=16, feed_forward=160, vocabulary=100)
    spec, _ = prune(whole, Pruning.parse("heads=0.25,ffn=0.4,scope=layer,layers=1"), _samples(whole))
    assert {(layer.attention.heads, layer.attention.kv_heads) for layer in spec.decoder.layers} == {(6, 3)}
    uneven, _ = prune(whole, Pruning.parse("ffn=0.4,scope=global"), _samples(whole))
    for number, model in enumerate((spec, uneven)):
        path = tmp_path / f"model{number}.{'tflite' if runtime == 'litert' else 'onnx'}"
        if runtime == "litert":
            signatures = emit_tflite_decoder(model, path, recipe=recipe, caches=(32,), prefill=(8,), verify=(8,))
        else:
            signatures = emit_onnx_decoder(model, path, recipe=recipe, context_length=32)
        ids = np.random.default_rng(0).integers(0, 100, 21).astype(np.int32)
        program = open_causal(runtime, path, signatures, ProgramOptions())
        try:
            answer = program.forward(ids, 0, logits="all")
        finally:
            program.close()
        expected = forward(model, {"token_ids": ids[None]})[0]
        assert np.abs(answer - expected).max() / np.abs(expected).max() < TOLERANCE[recipe]


# ------------------------------------------------------------------------------------------------------ refusals


def test_settings_are_read_from_a_line() -> None:
    pruning = Pruning.parse(
        "heads=0.25, ffn=0.3,layers=2,sparsity=0.5,pattern=2:4,scope=global,score=activation,correct=False"
    )
    assert pruning == Pruning(0.25, 0.3, 2, 0.5, "2:4", "global", "activation", False)
    assert Pruning.parse("pattern=2:4").share_at_zero == 0.5
    assert Pruning.parse("sparsity=0.7").share_at_zero == 0.7
    assert not Pruning.parse("sparsity=0.7").structured


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Nothing is to be pruned"),
        ("score=magnitude", "Nothing is to be pruned"),
        ("hats=1", "hats"),
        ("heads", "says no value"),
        ("heads=0.2,heads=0.3", "given twice"),
        ("heads=many", "heads=many: give a number between 0 and 1"),
        ("heads=nan", "heads=nan is no share"),
        ("heads=0", "heads=0 is no share"),
        ("ffn=1", "ffn=1 is no share"),
        ("sparsity=1.5", "sparsity=1.5 is no share"),
        ("ffn=-0.1", "ffn=-0.1 is no share"),
        ("layers=1.5", "layers=1.5: give a whole number"),
        ("layers=0", "layers=0 is no number of layers"),
        ("pattern=4:8", "4:8"),
        ("pattern=2:4,sparsity=0.7", "pattern=2:4 is a sparsity of 0.5"),
        ("heads=0.5,scope=world", "world"),
        ("layers=1,scope=global", "scope=global ranks heads and neurons"),
        ("heads=0.5,score=luck", "luck"),
        ("heads=0.5,correct=perhaps", "give true or false"),
    ],
)
def test_senseless_settings_are_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Pruning.parse(text)


_SHARED = random_spec(shared_layers=True, layers=3, feed_forward=64)


@pytest.mark.parametrize(
    ("spec", "text", "message"),
    [
        (_SHARED, "ffn=0.5", "share their weights"),
        (_SHARED, "sparsity=0.5", "share their weights"),
        (MODELS["decoder"], "heads=0.5,scope=global", "one shape of cache"),
        (MODELS["decoder"], "layers=3", "leaves nothing of 'random', which has 3"),
        (MODELS["decoder"], "heads=0.1", "removes none of the 2 groups of heads"),
        (random_decoder(kv_heads=1), "heads=0.9", "removes none of the 1 groups of heads"),
        (random_spec(heads=1), "heads=0.9", "removes none of the 1 heads"),
        (random_spec(feed_forward=32), "ffn=0.5", "removes none of the 32 neurons"),
        (MODELS["decoder"], "ffn=0.1", "removes none of the 96 neurons"),
    ],
)
def test_what_a_model_cannot_lose_is_refused(spec: TransformerSpec, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        prune(spec, Pruning.parse(text), _samples(spec, 3))


def test_layers_that_share_weights_can_go_as_a_whole() -> None:
    smaller, step = prune(_SHARED, Pruning(layers=1), _samples(_SHARED))
    assert len(smaller.encoder.layers) == 2
    assert smaller.encoder.layers[0] is _SHARED.encoder.layers[0]
    assert any("not refitted" in note for note in step.notes)


def test_a_model_that_was_prepared_for_few_bits_is_refused() -> None:
    from edgelm_converters.prepare import prepare_weights

    spec = random_decoder(width=64, feed_forward=96)
    prepared, _ = prepare_weights(spec, "dynamic_wi4b32_afp32", _samples(spec))
    with pytest.raises(RecipeError, match="prepared for few bits already: prune it before"):
        prune(prepared, Pruning(ffn=0.5), _samples(spec))


@pytest.mark.parametrize(
    ("text", "samples", "message"),
    [
        ("ffn=0.5", None, "Pruning with score=obs needs calibration data"),
        ("layers=1,score=magnitude", None, "Pruning with layers needs calibration data"),
        ("ffn=0.5,score=magnitude,scope=global", None, "Pruning with scope=global needs calibration data"),
        ("ffn=0.5", [], "hold no token"),
        ("ffn=0.5", [np.array([3, 500], np.int32)], "token id 500"),
    ],
)
def test_data_that_are_missing_or_do_not_fit_are_refused(text: str, samples: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        prune(MODELS["decoder"], Pruning.parse(text), samples)
    assert isinstance(caught.value, EdgelmError)
