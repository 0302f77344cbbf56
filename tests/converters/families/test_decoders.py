"""KerasHub's language models as specs, computed in float64 and held to KerasHub's own scores at every position."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from edgelm_converters.families import recognise
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
    assert_every_weight_once(spec, model)


def assert_every_weight_once(spec: TransformerSpec, model: Any) -> None:
    assert spec.head.tokens is not None
    frequencies = {id(layer.attention.rotary.frequencies) for layer in spec.decoder.layers if layer.attention.rotary}
    weights = [array for _, array in parameters(spec) if id(array) not in frequencies]
    assert sum(array.size for array in weights) == model.count_params()
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for _, array in parameters(spec))
    assert (spec.head.tokens.table is spec.embeddings.token) == model.backbone.token_embedding.tie_weights


@pytest.mark.parametrize(
    "case", ["gpt2", "llama, tied", "mistral", "gemma 2", "gemma 3", "qwen, untied", "qwen3", "phi3"]
)
def test_a_bare_backbone_is_its_language_model(case: str) -> None:
    task = make(case)
    backbone = task.backbone
    spec = read(backbone)
    assert spec.generates
    assert spec.name == backbone.name
    ids = make_ids()
    hidden = backbone({"token_ids": ids, "padding_mask": np.ones_like(ids)}, training=False)
    expected = keras.ops.convert_to_numpy(backbone.token_embedding(hidden, reverse=True))
    assert_same(spec, expected, ids)


@pytest.mark.parametrize("case", ["gpt2", "llama", "gemma 2", "qwen3, window"])
def test_padding_behind_a_text_changes_nothing_in_it(case: str) -> None:
    """The spec has no mask: what KerasHub scores with padding and its mask is what the spec scores without either."""
    model = make(case)
    ids = make_ids()
    mask = np.broadcast_to(np.arange(TOKENS) < 7, ids.shape).astype(np.int32)
    expected = keras.ops.convert_to_numpy(model({"token_ids": ids, "padding_mask": mask}, training=False))
    assert_same(read(model), expected[:, :7], ids[:, :7])


# What only one family has


def test_llama_takes_no_notice_of_its_position_scaling() -> None:
    """KerasHub 0.32's own layer does not, so neither does the spec; its low frequencies of Llama 3.1 are other ones."""
    frequencies = {}
    for case in ("llama", "llama, an unused scaling", "llama 3.1"):
        rotary = read(make(case)).decoder.layers[0].attention.rotary
        assert rotary is not None
        frequencies[case] = rotary.frequencies
    np.testing.assert_array_equal(frequencies["llama"], frequencies["llama, an unused scaling"])
    bases = 1000.0 ** (-np.arange(0, 8, 2) / 8)
    lengths = 2 * np.pi / bases  # 6, 35, 199, 1117 positions a turn; above 64 the frequency is divided by 8
    np.testing.assert_allclose(frequencies["llama 3.1"][lengths < 16], bases[lengths < 16], rtol=1e-6)
    np.testing.assert_allclose(frequencies["llama 3.1"][lengths > 64], bases[lengths > 64] / 8, rtol=1e-6)
    between = (lengths > 16) & (lengths < 64)
    assert between.any()
    assert (frequencies["llama 3.1"][between] < bases[between]).all()
    assert (frequencies["llama 3.1"][between] > bases[between] / 8).all()


def test_windows_of_the_layers() -> None:
    def windows(case: str) -> list[int | None]:
        return [layer.attention.window for layer in read(make(case)).decoder.layers]

    assert windows("mistral") == [5, 5]
    assert windows("gemma 2") == [4, None]
    assert windows("gemma 3") == [4, 4, 4, 4, 4, None, 4]
    assert windows("qwen") == [None, None]
    assert windows("qwen, window") == [3, 3]
    assert windows("qwen3") == [None, None]


def test_gemma_3_turns_near_and_far_layers_differently() -> None:
    layers = read(make("gemma 3, stretched")).decoder.layers
    near, far = layers[0].attention.rotary, layers[5].attention.rotary
    assert near is not None
    assert far is not None
    powers = np.arange(0, 8, 2) / 8
    np.testing.assert_allclose(near.frequencies, 10_000.0**-powers / 2, rtol=1e-6)
    np.testing.assert_allclose(far.frequencies, 1_000_000.0**-powers / 8, rtol=1e-6)


def test_gemma_rounds_its_scale_as_it_computes() -> None:
    assert read(make("gemma", hidden_dim=20)).embeddings.token_scale == np.sqrt(np.float32(20))
    assert read(make("gemma", hidden_dim=20, dtype="bfloat16")).embeddings.token_scale == 4.46875  # 4.4721 in 8 bits


@pytest.mark.parametrize(
    ("case", "eps"),
    [("gpt2", 1e-5), ("llama", 1e-6), ("llama, as many key heads", 1e-3), ("gemma 2", 1e-6), ("qwen3, untied", 1e-3)],
)
def test_epsilon_of_the_norms(case: str, eps: float) -> None:
    spec = read(make(case))
    norms = [spec.decoder.final_norm]
    for layer in spec.decoder.layers:
        norms += [layer.attention_norm, layer.feed_forward_norm]
    assert all(norm is not None and norm.eps == eps for norm in norms)


def test_other_dtypes_are_read_as_float32() -> None:
    model = make("llama", dtype="bfloat16")
    spec = read(model)
    assert all(array.dtype == np.float32 for _, array in parameters(spec))
    kept = keras.ops.convert_to_numpy(model.backbone.token_embedding.embeddings).astype(np.float32)
    np.testing.assert_array_equal(spec.embeddings.token, kept)


# Lengths


@pytest.mark.parametrize("case", ["llama 3.1", "mistral", "gemma", "gemma 3, no q/k norm", "qwen", "qwen3"])
def test_nothing_bounds_a_rotary_model(case: str) -> None:
    assert read(make(case), 100_000).max_length is None


def test_learned_positions_bound_gpt2() -> None:
    assert read(make("gpt2"), 16).max_length == 16
    with pytest.raises(ModelError, match="16 positions and cannot take 17 tokens"):
        recognise(make("gpt2"), 17)


def test_phi3_states_its_longest_sequence() -> None:
    assert read(make("phi3", max_sequence_length=32)).max_length == 32
    with pytest.raises(ModelError, match="states 32 tokens as its longest sequence and 33 were asked for"):
        recognise(make("phi3", max_sequence_length=32), 33)


@pytest.mark.parametrize(("asked", "tokens", "max_length"), [(None, 16, 16), (16, 16, 16), (17, 17, 64), (64, 40, 64)])
def test_phi3_chooses_its_factors_once(asked: int | None, tokens: int, max_length: int) -> None:
    """KerasHub chooses by each sequence's length; a spec by the length asked for, which holds for sequences as long."""
    model = make("phi3, su")
    spec = read(model, asked)
    assert spec.max_length == max_length
    rotary = spec.decoder.layers[0].attention.rotary
    assert rotary is not None
    assert rotary.factor == pytest.approx(np.sqrt(1 + np.log(64 / 16) / np.log(16)))
    ids = make_ids(tokens)
    assert_same(spec, scores(model, ids), ids)


# Refusals


def put(layer: Any, **sublayers: Any) -> None:
    """Put sublayers in the place of others, which Keras forbids once a layer is built."""
    layer.__dict__.update(sublayers)


def test_a_changed_layer_is_named() -> None:
    class Louder(type(make("llama").backbone.layer_norm)):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return 2 * super().call(x)

    model = make("llama")
    layer = Louder(name="louder")
    layer.build((None, None, WIDTH))
    put(model.backbone.transformer_layers[1], _feedforward_layernorm=layer)
    message = refusal(model)
    assert message.startswith("The layer 'louder' is a ")
    assert "Louder, and KerasHub's LlamaLayerNorm was expected" in message


def test_keras_s_own_rms_normalization_is_not_gemma_s() -> None:
    """They have one name; only Gemma's adds 1 to its scale."""
    model = make("gemma")
    layer = keras.layers.RMSNormalization(name="plain_norm")
    layer.build((None, None, WIDTH))
    put(model.backbone.transformer_layers[0], pre_ffw_norm=layer)
    assert "The layer 'plain_norm' is a keras." in refusal(model)


def test_an_activation_of_one_s_own_is_named() -> None:
    model = make("llama")
    model.backbone.transformer_layers[0].activation = lambda x: x
    assert "'transformer_layer_0' has the activation" in refusal(model)


@pytest.mark.parametrize("case", ["llama 3.1", "gemma", "qwen", "phi3"])
def test_lora_is_named(case: str) -> None:
    model = make(case)
    model.backbone.enable_lora(2)
    assert "has LoRA weights beside its own" in refusal(model)


def test_lora_of_gpt2_is_read_as_plain_layers() -> None:
    """GPT-2 is made of layers that the reader of plain models knows too, and that one merges the weights."""
    model = make("gpt2")
    model.backbone.enable_lora(2)
    randomise(model)
    recognition = recognise(model, None)
    assert recognition.family == "plain"
    assert recognition.spec is not None
    ids = make_ids()
    assert_same(recognition.spec, scores(model, ids), ids)


@pytest.mark.parametrize("part", ["token_embedding", "_feedforward_gate_dense", "_query_dense"])
def test_keras_quantisation_is_named(part: str) -> None:
    model = make("llama 3.1")
    layer = model.backbone.transformer_layers[1]
    for owner in (model.backbone, layer, layer._self_attention_layer):
        if hasattr(owner, part):
            getattr(owner, part).quantize("int8")
    assert "was quantised by Keras (int8)" in refusal(model)


def test_a_subclass_with_its_own_call_is_named() -> None:
    class Doubled(keras_hub.models.LlamaCausalLM):  # type: ignore[misc,name-defined]
        def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
            return 2 * super().call(inputs, training=training, mask=mask)

    assert "own Doubled.call" in refusal(Doubled(backbone=make("llama").backbone, preprocessor=None))


def test_gemma_3_with_images_is_named() -> None:
    vision = keras_hub.models.Gemma3VisionEncoder(
        image_size=16, patch_size=4, num_heads=2, hidden_dim=8, num_layers=1, intermediate_dim=16, output_dim=WIDTH,
        pool_size=2, layer_norm_epsilon=1e-6,
    )  # fmt: skip
    assert "takes images through the layer" in refusal(make("gemma 3", vision_encoder=vision))


def test_an_embedding_model_is_named() -> None:
    model = keras_hub.models.Gemma3Backbone(
        **SIZES, image_size=16, head_dim=8, is_embedding_model=True, pooling_intermediate_dim=8, embedding_dim=8
    )
    assert "is an embedding model" in refusal(model)


def test_a_mixture_of_experts_is_named() -> None:
    model = keras_hub.models.MixtralCausalLM(keras_hub.models.MixtralBackbone(num_experts=2, **SIZES))
    assert "is a MixtralSparseMoeBlock, and one feed-forward without experts was expected" in refusal(model)


def test_a_family_without_a_reader_is_named() -> None:
    backbone = keras_hub.models.FalconBackbone(
        vocabulary_size=VOCABULARY, num_layers=1, num_attention_heads=4, hidden_dim=WIDTH, intermediate_dim=FEED_FORWARD
    )
    message = refusal(keras_hub.models.FalconCausalLM(backbone=backbone, preprocessor=None))
    assert "The layer 'transformer_layer_0' is a FalconTransformerDecoder" in message


def test_a_saved_model_reads_the_same(tmp_path: Any) -> None:
    model = make("qwen, window")
    model.save(tmp_path / "model.keras")
    ids = make_ids()
    assert_same(read(keras.saving.load_model(tmp_path / "model.keras", compile=False)), scores(model, ids), ids)
