"""KerasHub's language models as specs, computed in float64 and held to KerasHub's own scores at every position."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from edgelm_converters.families import NotRecognised, recognise
from edgelm_converters.spec import TransformerSpec, parameters
from numpy.typing import NDArray
from reference import forward

from edgelm.errors import ModelError

pytestmark = pytest.mark.needs_tensorflow
keras = pytest.importorskip("keras")
keras_hub = pytest.importorskip("keras_hub")

VOCABULARY, WIDTH, FEED_FORWARD, LAYERS, TOKENS = 61, 32, 40, 2, 13
SIZES: dict[str, Any] = {
    "vocabulary_size": VOCABULARY,
    "num_layers": LAYERS,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "hidden_dim": WIDTH,
    "intermediate_dim": FEED_FORWARD,
}
# Lengths of cosines, which the frequencies of Llama 3.1 fall on both sides of, and between.
LLAMA3_ROPE: dict[str, Any] = {
    "rope_max_wavelength": 1000,
    "rope_frequency_adjustment_factor": 8.0,
    "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0,
    "rope_pretraining_sequence_length": 64,
}
GEMMA2: dict[str, Any] = {
    "use_post_ffw_norm": True,
    "use_post_attention_norm": True,
    "attention_logit_soft_cap": 5.0,
    "final_logit_soft_cap": 3.0,
    "use_sliding_window_attention": True,
    "sliding_window_size": 4,
}
SU: dict[str, Any] = {
    "rope_scaling_type": "su",
    "rope_scaling_short_factor": [1.0, 1.1, 1.3, 1.7],
    "rope_scaling_long_factor": [1.0, 2.0, 5.0, 9.0],
}

# Family, task, and what differs from the sizes above.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("gpt2", "GPT2", {}),
    "llama": ("llama", "Llama", {}),
    "llama, tied": ("llama", "Llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama, as many key heads": ("llama", "Llama", {"num_key_value_heads": 4, "layer_norm_epsilon": 1e-3}),
    "llama, an unused scaling": ("llama", "Llama", {"rope_position_scaling_factor": 4.0}),
    "llama 3.1": ("llama", "Llama3", LLAMA3_ROPE),
    "llama 3.2": ("llama", "Llama3", {**LLAMA3_ROPE, "tie_word_embeddings": True}),
    "mistral": ("mistral", "Mistral", {"sliding_window": 5}),
    "mistral, no window": ("mistral", "Mistral", {"sliding_window": None, "rope_scaling_factor": 3.0}),
    "mistral, wide heads": ("mistral", "Mistral", {"head_dim": 12, "sliding_window": 2}),
    "gemma": ("gemma", "Gemma", {"head_dim": 12, "num_key_value_heads": 1}),
    "gemma 2": ("gemma", "Gemma", {"head_dim": 8, **GEMMA2}),
    "gemma 3": (
        "gemma3",
        "Gemma3",
        {**GEMMA2, "head_dim": 12, "num_layers": 7, "attention_logit_soft_cap": None, "final_logit_soft_cap": None},
    ),
    "gemma 3, stretched": (
        "gemma3",
        "Gemma3",
        {**GEMMA2, "head_dim": 8, "num_layers": 6, "global_rope_scaling_factor": 8.0, "local_rope_scaling_factor": 2.0},
    ),
    "gemma 3, no q/k norm": ("gemma3", "Gemma3", {"head_dim": 8, "use_query_key_norm": False}),
    "qwen": ("qwen", "Qwen", {}),
    "qwen, untied": ("qwen", "Qwen", {"tie_word_embeddings": False, "rope_scaling_factor": 2.0}),
    "qwen, window": ("qwen", "Qwen", {"use_sliding_window_attention": True, "sliding_window_size": 3}),
    "qwen3": ("qwen3", "Qwen3", {"head_dim": 12, "sliding_window_size": None}),
    "qwen3, untied": ("qwen3", "Qwen3", {"head_dim": 8, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3}),
    "qwen3, window": ("qwen3", "Qwen3", {"head_dim": 8, "sliding_window_size": 4, "rope_max_wavelength": 100}),
    "phi3": ("phi3", "Phi3", {}),
    "phi3, su": ("phi3", "Phi3", {**SU, "max_sequence_length": 64, "pretraining_sequence_length": 16}),
}


def make(case: str, **changes: Any) -> Any:
    """Return the task of a case, with random weights in all its variables."""
    _, task, settings = CASES[case]
    sizes = {**SIZES, **settings, **changes}
    if task == "GPT2":
        del sizes["num_query_heads"], sizes["num_key_value_heads"]
        sizes = {"num_heads": 4, "max_sequence_length": 16, **sizes}
    if task == "Gemma":
        sizes["intermediate_dim"] *= 2  # Gemma halves it
    if task == "Gemma3":
        sizes["image_size"] = 16
    backbone = getattr(keras_hub.models, f"{task}Backbone")(**sizes)
    return randomise(getattr(keras_hub.models, f"{task}CausalLM")(backbone=backbone, preprocessor=None))


def randomise(model: Any, seed: int = 0) -> Any:
    """Give every weight, norms and biases too, a value that shows when it is left out or mistaken for another."""
    draw = np.random.default_rng(seed)
    for weight in model.weights:
        values = draw.normal(0.0, 0.3, weight.shape)
        centre = 1.0 if weight.path.endswith(("gamma", "scale")) and "gemma" not in model.name else 0.0
        weight.assign(values + centre)
    return model


def make_ids(tokens: int = TOKENS, rows: int = 3) -> NDArray[np.int32]:
    return np.random.default_rng(1).integers(0, VOCABULARY, (rows, tokens)).astype(np.int32)


def scores(model: Any, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    return np.asarray(keras.ops.convert_to_numpy(model(inputs, training=False)), np.float32)


def tolerance(spec: TransformerSpec) -> float:
    """Return the error that float32 explains, relative to the largest score.

    A float32 sum of n terms is off by some sqrt(n) roundings of eps/2 each, of values as large as the largest. Here a layer
    is seven such sums, n up to the feed-forward's width, and each layer adds its own. Five standard deviations of that: up
    to 0.2 of it was seen. A rotary factor that is off by a thousandth is at 100 of it, a missing window at 100,000.
    """
    layers = len(spec.decoder.layers) + 1
    return float(5 * np.finfo(np.float32).eps / 2 * np.sqrt(FEED_FORWARD * 7 * layers))


def assert_same(spec: TransformerSpec, expected: NDArray[np.float32], ids: NDArray[np.int32]) -> None:
    found = forward(spec, {spec.token_input: ids})
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance(spec) * max(1.0, np.abs(expected).max()))


def read(model: Any, sequence_length: int | None = None) -> TransformerSpec:
    recognition = recognise(model, sequence_length)
    assert recognition.spec is not None, recognition.reason
    assert recognition.family == recognition.spec.family
    return recognition.spec


def refusal(model: Any, sequence_length: int | None = None) -> str:
    recognition = recognise(model, sequence_length)
    assert recognition.spec is None
    assert recognition.reason is not None
    assert "\n" not in recognition.reason
    return recognition.reason


@pytest.mark.parametrize("case", CASES)
def test_scores_at_every_position(case: str) -> None:
    model = make(case)
    spec = read(model)
    assert spec.family == CASES[case][0]
    assert spec.generates
    assert (spec.mask, spec.token_input, spec.output_name) == ("none", "token_ids", "logits")
    assert all(layer.attention.causal for layer in spec.decoder.layers)
    ids = make_ids()
    assert_same(spec, scores(model, ids), ids)


@pytest.mark.parametrize("case", CASES)
def test_every_weight_is_taken_once(case: str) -> None:
    model = make(case)
    spec = read(model)
    assert spec.head.tokens is not None
    frequencies = {id(layer.attention.rotary.frequencies) for layer in spec.decoder.layers if layer.attention.rotary}
    weights = [array for _, array in parameters(spec) if id(array) not in frequencies]
    assert sum(array.size for array in weights) == model.count_params()
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for _, array in parameters(spec))
    assert (spec.head.tokens.table is spec.embeddings.token) == model.backbone.token_embedding.tie_weights
