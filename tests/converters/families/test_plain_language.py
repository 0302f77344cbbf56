"""Causal models of plain Keras layers as language models: computed in float64 and held to Keras's own outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from edgelm_converters.families import NotRecognised, recognise
from edgelm_converters.families.plain import read
from edgelm_converters.spec import TransformerSpec
from numpy.typing import NDArray
from reference import forward

pytestmark = pytest.mark.needs_tensorflow
keras = pytest.importorskip("keras")
layers, ops = keras.layers, keras.ops

VOCABULARY, LENGTH, WIDTH, HEADS, FEED_FORWARD = 53, 20, 16, 2, 24

# A float32 sum of n terms is off by some sqrt(n) roundings of eps/2 each, of values as large as the largest. Here a layer
# is six such sums (n up to FEED_FORWARD), and there are two layers and a head. Five standard deviations of that.
TOLERANCE = 5 * np.finfo(np.float32).eps / 2 * np.sqrt(FEED_FORWARD * 6 * 4)

Mask = Callable[[Any], Any]


def triangle(x: Any) -> Any:
    """Return the mask of the Keras example "Text generation with a miniature GPT", ``(B, S, S)``."""
    batch, length, _ = ops.shape(x)
    positions = ops.arange(length)
    mask = ops.reshape(ops.cast(positions[:, None] >= positions, "bool"), [1, length, length])
    return ops.tile(mask, [batch, 1, 1])


def band(x: Any, width: int = 8) -> Any:
    """Return a causal mask with a window."""
    length = ops.shape(x)[1]
    distance = ops.arange(length)[:, None] - ops.arange(length)
    return ops.logical_and(distance >= 0, distance < width)[None]


class Block(layers.Layer):
    """The example's block: attention and feed-forward, each with its residual and a norm behind it."""

    def __init__(self, mask: Mask | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mask = mask
        self.att = layers.MultiHeadAttention(HEADS, WIDTH)
        self.ffn = keras.Sequential([layers.Dense(FEED_FORWARD, activation="relu"), layers.Dense(WIDTH)])
        self.layernorm1 = layers.LayerNormalization(epsilon=1e-6)
        self.layernorm2 = layers.LayerNormalization(epsilon=1e-6)
        self.dropout = layers.Dropout(0.1)

    def call(self, inputs: Any) -> Any:
        if self.mask is None:
            attended = self.att(inputs, inputs, use_causal_mask=True)
        else:
            attended = self.att(inputs, inputs, attention_mask=self.mask(inputs))
        middle = self.layernorm1(inputs + self.dropout(attended))
        return self.layernorm2(middle + self.dropout(self.ffn(middle)))


class TokenAndPositionEmbedding(layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.token_emb = layers.Embedding(VOCABULARY, WIDTH)
        self.pos_emb = layers.Embedding(LENGTH, WIDTH)

    def call(self, x: Any) -> Any:
        return self.token_emb(x) + self.pos_emb(ops.arange(0, ops.shape(x)[-1], 1))


def miniature_gpt(
    mask: Mask | None = triangle,
    *,
    length: int | None = None,
    head: Callable[[Any], Any] | None = None,
    hidden: bool = False,
    embed: Callable[[Any], Any] | None = None,
    blocks: int = 1,
) -> Any:
    ids = keras.Input((length,), dtype="int32", name="ids")
    x = (embed or TokenAndPositionEmbedding())(ids)
    for _ in range(blocks):
        x = Block(mask)(x)
    scores = (head or layers.Dense(VOCABULARY))(x)
    return randomise(keras.Model(ids, [scores, x] if hidden else scores))


def randomise(model: Any) -> Any:
    """Give every weight, norms and biases too, a value that shows when it is left out or mistaken for another."""
    draw = np.random.default_rng(0)
    for weight in model.weights:
        if "seed" not in weight.path:
            values = draw.normal(0.0, 0.3, weight.shape)
            weight.assign(values + 1.0 if weight.path.endswith("gamma") else values)
    return model


def make_ids(tokens: int, *, lowest: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(1).integers(lowest, VOCABULARY, (3, tokens)).astype(np.int32)


def assert_language_model(
    model: Any, lengths: tuple[int, ...] = (4, LENGTH), *, lowest_id: int = 0, sequence_length: int | None = None
) -> TransformerSpec:
    """Read a model, and hold every score of it to Keras; probabilities are compared as such."""
    spec = read(model, sequence_length)
    assert spec.generates
    assert (spec.family, spec.mask, spec.output_name, spec.head.output) == ("plain", "none", "logits", "logits")
    assert all(layer.attention.causal for layer in spec.decoder.layers)
    for tokens in lengths:
        ids = make_ids(tokens, lowest=lowest_id)
        result = model(ids, training=False)
        expected = ops.convert_to_numpy(result[0] if isinstance(result, list) else result)
        found = forward(spec, {spec.token_input: ids})
        if np.allclose(expected.sum(-1), 1.0, atol=1e-3):
            found = np.exp(found - found.max(-1, keepdims=True))
            found /= found.sum(-1, keepdims=True)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * max(1.0, float(np.abs(expected).max())))
    return spec


# The published example


@pytest.mark.parametrize(("mask", "hidden", "blocks"), [(triangle, True, 1), (triangle, False, 2), (None, True, 2)])
def test_the_miniature_gpt(mask: Mask | None, blocks: int, *, hidden: bool) -> None:
    model = miniature_gpt(mask, hidden=hidden, blocks=blocks)
    spec = assert_language_model(model)
    assert (spec.max_length, spec.fixed_length, spec.token_input) == (LENGTH, None, "ids")
    assert spec.head.tokens is not None
    assert spec.head.tokens.bias is not None
    assert spec.describe()["tied"] is False
    assert len(spec.decoder.layers) == blocks
    assert recognise(model, None).family == "plain"


def test_a_fixed_length_is_keras_s_own() -> None:
    """The scores hold for every shorter text, but Keras is only ever asked with this length."""
    model = miniature_gpt(length=LENGTH, hidden=True)
    spec = assert_language_model(model, (LENGTH,))
    assert (spec.max_length, spec.fixed_length) == (LENGTH, LENGTH)
    ids = make_ids(LENGTH)
    shorter = forward(spec, {"ids": ids[:, :7]})
    np.testing.assert_allclose(shorter, forward(spec, {"ids": ids})[:, :7], atol=1e-12)


# Heads


@pytest.mark.parametrize(("activation", "use_bias"), [("softmax", True), (None, False)])
def test_probabilities_are_read_as_scores(activation: str | None, *, use_bias: bool) -> None:
    model = miniature_gpt(head=layers.Dense(VOCABULARY, activation=activation, use_bias=use_bias))
    spec = assert_language_model(model)
    assert spec.head.tokens is not None
    assert (spec.head.tokens.bias is not None) == use_bias


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_that_scores(*, tied: bool) -> None:
    embedding = layers.ReversibleEmbedding(VOCABULARY, WIDTH, tie_weights=tied, logit_soft_cap=2.0)
    spec = assert_language_model(
        miniature_gpt(embed=embedding, head=lambda x: embedding(x, reverse=True)), (4, 33), sequence_length=64
    )
    assert spec.head.tokens is not None
    assert (spec.head.tokens.table is spec.embeddings.token) == tied
    assert (spec.head.tokens.soft_cap, spec.max_length) == (2.0, 64)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_by_hand(*, tied: bool) -> None:
    embedding, other = TokenAndPositionEmbedding(), layers.Embedding(VOCABULARY, WIDTH)
    other.build((None,))

    class Scores(layers.Layer):
        def call(self, x: Any) -> Any:
            return ops.matmul(x, ops.transpose((embedding.token_emb if tied else other).embeddings))

    model = miniature_gpt(embed=embedding, head=Scores(name="scores"))
    if not tied:
        assert "found keras.ops Matmul in 'scores'" in str(recognise(model, None).reason)
        return
    spec = assert_language_model(model)
    assert spec.head.tokens is not None
    assert (spec.head.tokens.name, spec.head.tokens.table is spec.embeddings.token) == ("scores", True)


def test_a_norm_before_the_head() -> None:
    model = miniature_gpt(head=lambda x: layers.Dense(VOCABULARY)(layers.LayerNormalization()(x)))
    assert assert_language_model(model).decoder.final_norm is not None


@pytest.mark.parametrize(
    "head",
    [
        lambda x: layers.Dense(7)(x),  # classes of each token
        lambda x: layers.Dense(VOCABULARY)(layers.Dense(WIDTH, activation="relu")(x)),
        lambda x: layers.Dense(VOCABULARY)(layers.GlobalAveragePooling1D()(x)),
        lambda x: layers.Dense(VOCABULARY, activation="sigmoid")(x),
    ],
)
def test_other_heads_make_no_language_model(head: Callable[[Any], Any]) -> None:
    spec = read(miniature_gpt(head=head), None)
    assert not spec.generates
    assert (len(spec.encoder.layers), len(spec.decoder.layers)) == (1, 0)


def test_layers_that_see_ahead_make_no_language_model() -> None:
    everything = lambda x: ops.ones((1, ops.shape(x)[1], ops.shape(x)[1]), "bool")  # noqa: E731
    with pytest.raises(NotRecognised, match="constant other than the causal one"):
        read(miniature_gpt(everything), None)
    seen = miniature_gpt(lambda x: None)
    assert not read(seen, None).generates


# KerasHub's layers in a model of the user's own


@pytest.mark.filterwarnings("ignore:[\\s\\S]*destroy the mask:UserWarning")  # KerasHub's own layers do
@pytest.mark.parametrize(
    ("mask_zero", "normalize_first", "tied"), [(True, True, False), (False, False, True), (True, False, True)]
)
def test_decoders_of_keras_hub(*, mask_zero: bool, normalize_first: bool, tied: bool) -> None:
    hub = pytest.importorskip("keras_hub").layers
    ids = keras.Input((None,), dtype="int32")
    embedding = hub.TokenAndPositionEmbedding(VOCABULARY, LENGTH, WIDTH, mask_zero=mask_zero)
    x = embedding(ids)
    for _ in range(2):
        x = hub.TransformerDecoder(
            FEED_FORWARD, HEADS, activation="gelu", dropout=0.1, normalize_first=normalize_first
        )(x)
    scores = embedding.token_embedding(x, reverse=True) if tied else layers.Dense(VOCABULARY)(x)
    # Padding (id 0) is no token of a text: the spec knows no mask.
    spec = assert_language_model(randomise(keras.Model(ids, scores)), lowest_id=1)
    assert spec.max_length == LENGTH
    assert spec.describe()["tied"] is tied
    assert spec.decoder.layers[0].norm_placement == ("pre" if normalize_first else "post")


def test_a_padding_mask_of_its_own_is_left_out() -> None:
    hub = pytest.importorskip("keras_hub").layers
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in ("ids", "real")}
    x = layers.Embedding(VOCABULARY, WIDTH)(inputs["ids"])
    x = hub.TransformerDecoder(FEED_FORWARD, HEADS)(x, decoder_padding_mask=inputs["real"])
    model = randomise(keras.Model(inputs, layers.Dense(VOCABULARY)(x)))
    spec = read(model, None)
    assert (spec.generates, spec.mask, spec.mask_input) == (True, "none", None)
    ids = make_ids(9)
    real = np.broadcast_to(np.arange(9) < 5, ids.shape).astype(np.int32)
    expected = ops.convert_to_numpy(model({"ids": ids, "real": real}, training=False))[:, :5]
    np.testing.assert_allclose(
        forward(spec, {"ids": ids[:, :5]}), expected, rtol=0, atol=TOLERANCE * np.abs(expected).max()
    )


def test_another_language_model_of_keras_hub() -> None:
    hub = pytest.importorskip("keras_hub").models
    backbone = hub.OPTBackbone(
        vocabulary_size=VOCABULARY, num_layers=2, num_heads=HEADS, hidden_dim=WIDTH, intermediate_dim=FEED_FORWARD,
        max_sequence_length=LENGTH,
    )  # fmt: skip
    model = randomise(hub.OPTCausalLM(backbone=backbone, preprocessor=None))
    recognition = recognise(model, None)
    assert recognition.family == "plain"
    assert recognition.spec is not None
    ids = make_ids(LENGTH)
    expected = ops.convert_to_numpy(model({"token_ids": ids, "padding_mask": np.ones_like(ids)}, training=False))
    found = forward(recognition.spec, {"token_ids": ids})
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def test_a_decoder_that_attends_to_an_encoder_is_refused() -> None:
    hub = pytest.importorskip("keras_hub").layers
    ids = keras.Input((None,), dtype="int32")
    x = layers.Embedding(VOCABULARY, WIDTH)(ids)
    model = keras.Model(ids, layers.Dense(VOCABULARY)(hub.TransformerDecoder(FEED_FORWARD, HEADS)(x, x)))
    with pytest.raises(NotRecognised, match=r"one self-attention .* found .*/cross_attention'"):
        read(model, None)


# Masks


@pytest.mark.parametrize("embed", [None, layers.Embedding], ids=["learned positions", "no positions"])
def test_a_window_is_refused_however_long(embed: Any) -> None:
    """A window of 8 looks causal at the lengths that are tried first; the last length that counts shows it."""
    model = miniature_gpt(band, embed=embed and embed(VOCABULARY, WIDTH))
    with pytest.raises(NotRecognised, match="constant other than the causal one"):
        read(model, None)


@pytest.mark.parametrize(
    "mask",
    [
        lambda x: ops.logical_not(triangle(x)),
        lambda x: ops.triu(ops.ones((ops.shape(x)[1], ops.shape(x)[1])))[None],
        lambda x: 0.5 * ops.cast(triangle(x), "float32"),
    ],
)
def test_other_constant_masks_are_refused(mask: Mask) -> None:
    with pytest.raises(NotRecognised, match=r"'block.*' is a constant other than the causal one"):
        read(miniature_gpt(mask), None)


def test_layers_without_positions_are_bounded_by_what_was_seen() -> None:
    embed = layers.Embedding(VOCABULARY, WIDTH)
    assert assert_language_model(miniature_gpt(embed=embed), (5, 100), sequence_length=100).max_length == 100


def test_two_outputs_of_which_none_leads_to_the_other_are_refused() -> None:
    ids = keras.Input((None,), dtype="int32")
    x = Block(None)(TokenAndPositionEmbedding()(ids))
    with pytest.raises(NotRecognised, match="2 outputs"):
        read(keras.Model(ids, [layers.Dense(VOCABULARY)(x), layers.Dense(3)(x)]), None)


def test_hidden_states_beside_classes_are_refused() -> None:
    ids = keras.Input((None,), dtype="int32")
    x = Block(None)(TokenAndPositionEmbedding()(ids))
    with pytest.raises(NotRecognised, match="2 outputs"):
        read(keras.Model(ids, [layers.Dense(3)(x), x]), None)
