"""KerasHub's BERT, DistilBERT, RoBERTa and ALBERT as specs, computed in float64 and held to KerasHub's own outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from edgelm_converters.families import NotRecognised, albert, bert, distilbert, recognise, roberta
from edgelm_converters.spec import TransformerSpec, parameters
from numpy.typing import NDArray
from reference import forward

from edgelm.errors import ModelError

pytestmark = pytest.mark.needs_tensorflow
keras = pytest.importorskip("keras")
keras_hub = pytest.importorskip("keras_hub")

VOCABULARY, POSITIONS, WIDTH, FEED_FORWARD, HEADS, LAYERS, CLASSES = 61, 16, 24, 40, 3, 4, 5
SIZES: dict[str, Any] = {
    "vocabulary_size": VOCABULARY,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "hidden_dim": WIDTH,
    "intermediate_dim": FEED_FORWARD,
    "max_sequence_length": POSITIONS,
    "dropout": 0.1,
}
BACKBONES = {
    "bert": "BertBackbone",
    "distilbert": "DistilBertBackbone",
    "roberta": "RobertaBackbone",
    "albert": "AlbertBackbone",
}
READERS = {"bert": bert.read, "distilbert": distilbert.read, "roberta": roberta.read, "albert": albert.read}
FAMILIES = sorted(READERS)

# A float32 sum of n terms is off by some sqrt(n) roundings of eps/2 each, of values as large as the largest. Here a layer
# is six such sums (n up to FEED_FORWARD), and each layer adds its own. Five standard deviations of that: up to 0.06 of it
# was seen, and the other kind of GELU is at 9 and more.
TOLERANCE = 5 * np.finfo(np.float32).eps / 2 * np.sqrt(FEED_FORWARD * 6 * (LAYERS + 2))


def make_backbone(family: str, seed: int = 0, **changes: Any) -> Any:
    sizes = {**SIZES, **({"embedding_dim": 12} if family == "albert" else {}), **changes}
    return randomise(getattr(keras_hub.models, BACKBONES[family])(**sizes), seed)


def make_classifier(family: str, seed: int = 0, *, backbone: dict[str, Any] | None = None, **settings: Any) -> Any:
    name = BACKBONES[family].replace("Backbone", "TextClassifier")
    settings = {"num_classes": CLASSES, **settings}
    task = getattr(keras_hub.models, name)(backbone=make_backbone(family, seed, **backbone or {}), **settings)
    return randomise(task, seed)


def randomise(model: Any, seed: int) -> Any:
    """Give every weight, norms and biases too, a value that shows when it is left out or mistaken for another."""
    draw = np.random.default_rng(seed)
    for weight in model.weights:
        values = draw.normal(0.0, 0.3, weight.shape)
        weight.assign(values + 1.0 if "gamma" in weight.path else values)
    return model


def make_inputs(model: Any, seed: int = 1, *, rows: int = 6, tokens: int = 11) -> dict[str, NDArray[np.int32]]:
    """Return ids with padding of several lengths at the end, and with segments where the model takes them."""
    draw = np.random.default_rng(seed)
    lengths = np.linspace(1, tokens, rows).astype(int)
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int32)
    inputs = {"token_ids": draw.integers(0, VOCABULARY, (rows, tokens)).astype(np.int32), "padding_mask": mask}
    if "segment_ids" in model.input:
        inputs["segment_ids"] = draw.integers(0, 2, (rows, tokens)).astype(np.int32)
    return inputs


def assert_same(spec: TransformerSpec, model: Any, output: str | None = None, tolerance: float = TOLERANCE) -> None:
    inputs = make_inputs(model)
    expected = model(inputs, training=False)
    expected = keras.ops.convert_to_numpy(expected[output] if output else expected)
    found = forward(spec, inputs)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("activation", "output"), [(None, "logits"), ("softmax", "probabilities"), ("sigmoid", "sigmoid")]
)
def test_classifier(family: str, activation: str | None, output: str) -> None:
    model = make_classifier(family, activation=activation)
    spec = READERS[family](model, 8)
    assert (spec.family, spec.mask, spec.max_length, spec.head.output) == (family, "input", POSITIONS, output)
    assert (spec.vocabulary_size, spec.width, spec.output_name) == (VOCABULARY, WIDTH, "logits")
    assert_same(spec, model)


@pytest.mark.parametrize("family", FAMILIES)
def test_backbone_gives_its_own_output(family: str) -> None:
    model = make_backbone(family)
    spec = READERS[family](model, None)
    pooled = family in ("bert", "albert")
    assert (spec.output_name, spec.head.output) == (
        ("pooled_output", "embedding") if pooled else ("sequence_output", "raw")
    )
    assert_same(spec, model, "pooled_output" if pooled else None)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_of_readers_finds_the_family(family: str) -> None:
    recognition = recognise(make_classifier(family), None)
    assert recognition.family == family
    assert recognition.reason is None


@pytest.mark.parametrize("family", ["distilbert", "roberta"])
def test_hidden_layer_of_another_width(family: str) -> None:
    model = make_classifier(family, hidden_dim=33)
    assert_same(READERS[family](model, None), model)


@pytest.mark.parametrize(
    ("family", "eps"), [("bert", 1e-12), ("distilbert", 1e-12), ("roberta", 1e-5), ("albert", 1e-12)]
)
def test_epsilon_of_the_norms(family: str, eps: float) -> None:
    """The numbers above hardly show it: what the norms after the first divide by is far larger."""
    spec = READERS[family](make_backbone(family), None)
    norms = [spec.embeddings.norm]
    for layer in spec.encoder.layers:
        norms += [layer.attention_norm, layer.feed_forward_norm]
    assert all(norm is not None and norm.eps == eps for norm in norms)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_bert_embedder(pooling: str) -> None:
    if not hasattr(keras_hub.models, "BertTextEmbedder"):
        pytest.skip("this KerasHub has no embedder")
    embedder = keras_hub.models.BertTextEmbedder(make_backbone("bert"), pooling_mode=pooling, normalize=False)
    spec = bert.read(embedder, None)
    assert spec.head.output == "embedding"
    assert_same(spec, embedder)


def test_bert_embedder_of_unit_vectors_is_not_recognised() -> None:
    if not hasattr(keras_hub.models, "BertTextEmbedder"):
        pytest.skip("this KerasHub has no embedder")
    with pytest.raises(NotRecognised, match="length 1"):
        bert.read(keras_hub.models.BertTextEmbedder(make_backbone("bert")), None)


@pytest.mark.parametrize(
    ("groups", "repetitions", "layers", "distinct"), [(1, 1, 4, 1), (2, 1, 4, 2), (2, 2, 8, 4), (4, 1, 4, 4)]
)
def test_albert_shares_its_layers(groups: int, repetitions: int, layers: int, distinct: int) -> None:
    model = make_classifier("albert", backbone={"num_groups": groups, "num_inner_repetitions": repetitions})
    spec = albert.read(model, None)
    assert len(spec.encoder.layers) == layers
    assert len({id(layer.attention.query.kernel) for layer in spec.encoder.layers}) == distinct
    assert_same(spec, model, tolerance=TOLERANCE * np.sqrt(layers / LAYERS))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_taken_once(family: str) -> None:
    model = make_classifier(family)
    spec = READERS[family](model, None)
    assert sum(array.size for _, array in parameters(spec)) == model.count_params()
    assert all(array.dtype == np.float32 for _, array in parameters(spec))


@pytest.mark.parametrize("family", FAMILIES)
def test_segments_default_to_none_given(family: str) -> None:
    spec = READERS[family](make_classifier(family), None)
    assert spec.segment_input == ("segment_ids" if family in ("bert", "albert") else None)
    assert (spec.embeddings.segment is not None) == (spec.segment_input is not None)


@pytest.mark.parametrize("family", FAMILIES)
def test_more_tokens_than_positions_are_refused(family: str) -> None:
    with pytest.raises(ModelError, match="16 positions and cannot take 17 tokens"):
        READERS[family](make_classifier(family), 17)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "mixed_bfloat16"])
def test_other_dtypes_are_read_as_float32(dtype: str) -> None:
    model = make_backbone("bert", dtype=dtype)
    spec = bert.read(model, None)
    assert all(array.dtype == np.float32 for _, array in parameters(spec))
    kept = keras.ops.convert_to_numpy(model.token_embedding.embeddings).astype(np.float32)
    np.testing.assert_array_equal(spec.embeddings.token, kept)


@pytest.mark.parametrize("family", FAMILIES)
def test_foreign_models_are_turned_away(family: str) -> None:
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(NotRecognised, match="Sequential is not KerasHub's"):
        READERS[family](plain, None)
    other = make_backbone("distilbert" if family != "distilbert" else "roberta")
    with pytest.raises(NotRecognised, match="is not KerasHub's"):
        READERS[family](other, None)


def test_masked_language_models_are_turned_away() -> None:
    model = keras_hub.models.BertMaskedLM(backbone=make_backbone("bert"))
    with pytest.raises(NotRecognised, match="BertMaskedLM is not KerasHub's BertBackbone or"):
        bert.read(model, None)


def test_a_subclass_with_its_own_call_is_turned_away() -> None:
    class Doubled(keras_hub.models.BertTextClassifier):  # type: ignore[misc,name-defined]
        def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
            return 2 * super().call(inputs, training=training, mask=mask)

    model = Doubled(backbone=make_backbone("bert"), num_classes=CLASSES)
    with pytest.raises(NotRecognised, match=r"own Doubled\.call"):
        bert.read(model, None)


def test_a_subclass_that_changes_no_numbers_is_read() -> None:
    class Named(keras_hub.models.BertTextClassifier):  # type: ignore[misc,name-defined]
        def greet(self) -> str:
            return "hello"

    model = randomise(Named(backbone=make_backbone("bert"), num_classes=CLASSES), 0)
    assert_same(bert.read(model, None), model)


def test_another_last_activation_is_turned_away() -> None:
    with pytest.raises(NotRecognised, match="ends in 'tanh'"):
        bert.read(make_classifier("bert", activation="tanh"), None)


def test_a_user_s_activation_is_not_taken_for_keras_s() -> None:
    def relu(x: Any) -> Any:
        return keras.ops.relu(x) + 1

    model = make_classifier("distilbert")
    model.pooled_dense.activation = relu
    with pytest.raises(NotRecognised, match=r"the activation '.*relu'"):
        distilbert.read(model, None)


def test_lora_is_turned_away() -> None:
    model = make_classifier("bert")
    model.backbone.enable_lora(2)
    with pytest.raises(NotRecognised, match=r"LoRA.*Save the model's weights"):
        bert.read(model, None)


def test_keras_quantisation_is_turned_away() -> None:
    model = make_classifier("bert")
    model.output_dense.quantize("int8")
    with pytest.raises(NotRecognised, match=r"quantised by Keras \(int8\)"):
        bert.read(model, None)


def test_a_saved_model_reads_the_same(tmp_path: Any) -> None:
    model = make_classifier("bert")
    model.save(tmp_path / "model.keras")
    assert_same(bert.read(keras.saving.load_model(tmp_path / "model.keras", compile=False), None), model)
