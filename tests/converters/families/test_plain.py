"""Encoders of plain Keras layers as specs: computed in float64 and held to Keras's own outputs, or refused with a reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters.families import NotRecognised
from edgelm_converters.families.plain import read
from edgelm_converters.spec import TransformerSpec, parameters
from numpy.typing import NDArray
from reference import forward

pytestmark = pytest.mark.needs_tensorflow
keras = pytest.importorskip("keras")
layers, ops = keras.layers, keras.ops

VOCABULARY, LENGTH, WIDTH, HEADS, FEED_FORWARD, CLASSES = 53, 20, 16, 2, 24, 3

# A float32 sum of n terms is off by some sqrt(n) roundings of eps/2 each, of values as large as the largest. Here a layer
# is six such sums (n up to FEED_FORWARD), and there are two layers and a head. Five standard deviations of that.
TOLERANCE = 5 * np.finfo(np.float32).eps / 2 * np.sqrt(FEED_FORWARD * 6 * 4)


# The Keras example "Text classification with Transformer", as published, with switches for its mask and its Add.
@keras.saving.register_keras_serializable("edgelm_tests")
class TransformerBlock(layers.Layer):
    def __init__(self, embed_dim: int, num_heads: int, ff_dim: int, rate: float = 0.1, **kwargs: Any) -> None:
        supports_masking = kwargs.pop("masking", False)
        super().__init__(**kwargs)
        self.config = {"embed_dim": embed_dim, "num_heads": num_heads, "ff_dim": ff_dim, "rate": rate}
        self.att = layers.MultiHeadAttention(num_heads=num_heads, key_dim=embed_dim)
        self.ffn = keras.Sequential([layers.Dense(ff_dim, activation="relu"), layers.Dense(embed_dim)])
        self.layernorm1 = layers.LayerNormalization(epsilon=1e-6)
        self.layernorm2 = layers.LayerNormalization(epsilon=1e-6)
        self.dropout1 = layers.Dropout(rate)
        self.dropout2 = layers.Dropout(rate)
        self.supports_masking = supports_masking

    def call(self, inputs: Any) -> Any:
        attn_output = self.att(inputs, inputs)
        attn_output = self.dropout1(attn_output)
        out1 = self.layernorm1(inputs + attn_output)
        ffn_output = self.ffn(out1)
        ffn_output = self.dropout2(ffn_output)
        return self.layernorm2(out1 + ffn_output)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.config, "masking": self.supports_masking}


@keras.saving.register_keras_serializable("edgelm_tests")
class TokenAndPositionEmbedding(layers.Layer):
    def __init__(self, maxlen: int, vocab_size: int, embed_dim: int, mask_zero: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = {"maxlen": maxlen, "vocab_size": vocab_size, "embed_dim": embed_dim, "mask_zero": mask_zero}
        self.token_emb = layers.Embedding(input_dim=vocab_size, output_dim=embed_dim, mask_zero=mask_zero)
        self.pos_emb = layers.Embedding(input_dim=maxlen, output_dim=embed_dim)
        self.supports_masking = mask_zero

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        return self.token_emb.compute_mask(inputs)

    def call(self, x: Any) -> Any:
        maxlen = ops.shape(x)[-1]
        positions = ops.arange(start=0, stop=maxlen, step=1)
        positions = self.pos_emb(positions)
        x = self.token_emb(x)
        return x + positions

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.config}


def imdb(length: int | None = LENGTH, *, masked: bool = False, blocks: int = 1, dtype: str = "float32") -> Any:
    inputs = layers.Input(shape=(length,), dtype=dtype)
    x = TokenAndPositionEmbedding(LENGTH, VOCABULARY, WIDTH, mask_zero=masked)(inputs)
    for _ in range(blocks):
        x = TransformerBlock(WIDTH, HEADS, FEED_FORWARD, masking=masked)(x)
    x = layers.GlobalAveragePooling1D()(x)
    x = layers.Dropout(0.1)(x)
    x = layers.Dense(20, activation="relu")(x)
    x = layers.Dropout(0.1)(x)
    return keras.Model(inputs, layers.Dense(2, activation="softmax")(x))


def encoder(
    body: Callable[[Any], Any] | None = None,
    *,
    length: int | None = None,
    embed: Callable[[Any], Any] | None = None,
    head: Callable[[Any], Any] | None = None,
    mask_zero: bool = False,
) -> Any:
    """Return a functional model of three parts, each of which has a plain default."""
    ids = keras.Input((length,), dtype="int32", name="ids")
    x = (embed or layers.Embedding(VOCABULARY, WIDTH, mask_zero=mask_zero))(ids)
    x = (body or post_norm)(x)
    return keras.Model(ids, (head or classify)(x))


def classify(x: Any) -> Any:
    return layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x))


def attend(x: Any, **settings: Any) -> Any:
    return layers.MultiHeadAttention(HEADS, WIDTH // HEADS, name="att", **settings)(x, x)


def feed(x: Any, activation: Any = "relu", prefix: str = "") -> Any:
    hidden = layers.Dense(FEED_FORWARD, activation=activation, name=f"{prefix}up")(x)
    return layers.Dense(WIDTH, name=f"{prefix}down")(hidden)


def norm(x: Any) -> Any:
    return layers.LayerNormalization()(x)


def post_norm(x: Any, activation: Any = "relu", attention: Callable[[Any], Any] = attend, prefix: str = "") -> Any:
    x = norm(x + attention(x))
    return norm(x + feed(x, activation, prefix))


def pre_norm(x: Any, activation: Any = "relu") -> Any:
    x = x + attend(norm(x))
    return x + feed(norm(x), activation)


def randomise(model: Any, seed: int = 0) -> Any:
    """Give every weight, norms and biases too, a value that shows when it is left out or mistaken for another."""
    draw = np.random.default_rng(seed)
    for weight in model.weights:
        if "seed" not in weight.path:
            values = draw.normal(0.0, 0.3, weight.shape)
            weight.assign(values + 1.0 if weight.path.endswith(("gamma", "scale")) else values)
    return model


def make_ids(tokens: int, seed: int = 1, rows: int = 5) -> NDArray[np.int32]:
    """Return ids with padding (id 0) of several lengths at the end."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(1, VOCABULARY, (rows, tokens)).astype(np.int32)
    return ids * (np.arange(tokens) < np.linspace(1, tokens, rows).astype(int)[:, None])


def answers(model: Any, inputs: Any) -> NDArray[np.float32]:
    result = model(inputs, training=False)
    return np.asarray(ops.convert_to_numpy(next(iter(result.values())) if isinstance(result, dict) else result))


def assert_recognised(
    model: Any, sequence_length: int | None = None, lengths: tuple[int, ...] = (4, 11)
) -> TransformerSpec:
    """Read a model with random weights, and hold the spec to Keras at several lengths with padding."""
    spec = read(randomise(model), sequence_length)
    for tokens in (spec.max_length,) if not _is_free(model) and spec.max_length else lengths:
        ids = make_ids(tokens)
        expected = answers(model, ids)
        actual = forward(spec, {spec.token_input: ids})
        if spec.head.pooling == "none" and spec.mask != "none":
            expected, actual = (
                expected[ids != 0],
                actual[ids != 0],
            )  # what stands in the place of padding has no meaning
        np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * max(1.0, float(np.abs(expected).max())))
    return spec


def _is_free(model: Any) -> bool:
    shape = getattr(getattr(model, "_inputs_struct", None), "shape", None)
    return shape is None or shape[1] is None


def assert_refused(model: Any, *words: str) -> str:
    with pytest.raises(NotRecognised) as refusal:
        read(model, None)
    message = str(refusal.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


# The published example


def test_the_published_example() -> None:
    spec = assert_recognised(imdb())
    assert spec.describe() == {
        "layers": 1,
        "width": WIDTH,
        "heads": HEADS,
        "kv_heads": HEADS,
        "head_dim": WIDTH,
        "feed_forward": FEED_FORWARD,
        "activation": "relu",
        "norm": "post",
        "vocabulary": VOCABULARY,
        "max_length": LENGTH,
        "mask": "none",
        "pooling": "mean",
        "output": "probabilities",
    }
    assert (spec.family, spec.fixed_length, spec.output_name, spec.mask_input) == ("plain", LENGTH, "output", None)
    assert [layer.activation for layer in spec.head.layers] == ["relu", "linear"]


def test_the_published_example_with_a_free_length() -> None:
    spec = assert_recognised(imdb(None), lengths=(3, 7, LENGTH))
    assert (spec.max_length, spec.fixed_length) == (LENGTH, None)


@pytest.mark.parametrize("length", [LENGTH, None])
def test_the_published_example_with_masks(length: int | None) -> None:
    spec = assert_recognised(imdb(length, masked=True, blocks=2))
    assert (spec.mask, spec.head.pooling_masked, spec.max_length, spec.fixed_length) == ("nonzero", True, LENGTH, None)
    ids = make_ids(LENGTH)
    ids[:, 9:] = 0
    shorter = forward(spec, {spec.token_input: ids[:, :9]})
    np.testing.assert_allclose(shorter, forward(spec, {spec.token_input: ids}), atol=1e-12)


def test_names_are_paths_of_layers() -> None:
    class Named(TransformerBlock):
        def __init__(self) -> None:
            super().__init__(WIDTH, HEADS, FEED_FORWARD, name="block")
            self.att.name, self.ffn.name = "att", "ffn"
            self.ffn.layers[0].name, self.ffn.layers[1].name = "up", "down"

    (layer,) = read(encoder(Named()), None).encoder.layers
    linears = (layer.attention.query, layer.attention.output, layer.feed_forward.up, layer.feed_forward.down)
    expected = ["block/att/query", "block/att/attention_output", "block/ffn/up", "block/ffn/down"]
    assert [linear.name for linear in linears] == expected


# As published, the example's layers have no build method.
@pytest.mark.filterwarnings("ignore:.*does not have a `build:UserWarning")
def test_a_saved_and_reloaded_model(tmp_path: Path) -> None:
    model = randomise(imdb(None, masked=True))
    model.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    ids = make_ids(12)
    spec = read(reloaded, None)
    np.testing.assert_allclose(forward(spec, {spec.token_input: ids}), answers(model, ids), atol=TOLERANCE)


# Ways to write a model


def test_a_sequential_model() -> None:
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            TokenAndPositionEmbedding(LENGTH, VOCABULARY, WIDTH),
            TransformerBlock(WIDTH, HEADS, FEED_FORWARD),
            layers.GlobalAveragePooling1D(),
            layers.Dense(CLASSES),
        ]
    )
    assert assert_recognised(model).head.output == "logits"


class Subclassed(keras.Model):
    def __init__(self, maxlen: int = LENGTH) -> None:
        super().__init__()
        self.embedding = TokenAndPositionEmbedding(maxlen, VOCABULARY, WIDTH, mask_zero=True)
        self.blocks = [TransformerBlock(WIDTH, HEADS, FEED_FORWARD, masking=True) for _ in range(2)]
        self.pool = layers.GlobalAveragePooling1D()
        self.classifier = layers.Dense(CLASSES)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        x = self.embedding(inputs)
        for block in self.blocks:
            x = block(x, training=training)
        return ops.softmax(self.classifier(self.pool(x)))


def test_a_subclassed_model_built_by_a_call() -> None:
    model = Subclassed()
    model(make_ids(7))
    spec = assert_recognised(model)
    assert (spec.token_input, spec.mask, spec.max_length, spec.head.output) == (
        "token_ids",
        "nonzero",
        LENGTH,
        "probabilities",
    )


def test_a_subclassed_model_that_was_never_called() -> None:
    assert_refused(Subclassed(), "never called")


class ByName(keras.Model):
    """Takes its inputs as a dict, and gives its output in one."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = layers.Embedding(VOCABULARY, WIDTH)
        self.attention = layers.MultiHeadAttention(HEADS, 8)
        self.feed_forward = [layers.Dense(FEED_FORWARD, "gelu"), layers.Dense(WIDTH)]
        self.norms = [layers.LayerNormalization(), layers.LayerNormalization()]
        self.classifier = layers.Dense(1)

    def call(self, inputs: Any) -> Any:
        x = self.tokens(inputs["ids"])
        mask = inputs["mask"]
        x = self.norms[0](x + self.attention(x, x, attention_mask=ops.expand_dims(mask, 1)))
        x = self.norms[1](x + self.feed_forward[1](self.feed_forward[0](x)))
        return {"score": ops.sigmoid(self.classifier(x[:, 0]))}


def test_a_subclassed_model_with_named_inputs() -> None:
    model = ByName()
    ids = make_ids(9)
    inputs = {"ids": ids, "mask": (ids != 0).astype(np.int32)}
    model(inputs)
    spec = read(randomise(model), None)
    assert (spec.token_input, spec.mask_input, spec.output_name, spec.head.output) == (
        "ids",
        "mask",
        "score",
        "sigmoid",
    )
    np.testing.assert_allclose(forward(spec, inputs), answers(model, inputs), atol=TOLERANCE)


def test_a_model_inside_of_a_model() -> None:
    inner = encoder(head=lambda x: x, length=LENGTH)
    outer = keras.Model(inner.input, classify(inner(inner.input)))
    assert assert_recognised(outer).fixed_length == LENGTH


def test_a_table_of_one_length() -> None:
    class Constant(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = layers.Embedding(VOCABULARY, WIDTH)
            self.table = self.add_weight((1, LENGTH, WIDTH), name="table")

        def call(self, x: Any) -> Any:
            return self.tokens(x) + self.table

    model = encoder(embed=Constant(), length=LENGTH)
    assert assert_recognised(model).fixed_length == LENGTH


# Embeddings


def sinusoid(length: int, width: int) -> Any:
    angles = ops.arange(length, dtype="float32")[:, None] / 10_000 ** (ops.arange(0, width, 2, dtype="float32") / width)
    return ops.reshape(ops.stack([ops.sin(angles), ops.cos(angles)], axis=-1), (length, width))


class Sinusoidal(layers.Layer):
    """Scaled tokens and sinusoidal positions, as in the first Transformer."""

    def __init__(self, rows: int | None = None) -> None:
        super().__init__()
        self.tokens = layers.Embedding(VOCABULARY, WIDTH, mask_zero=True)
        self.supports_masking = True
        self.table = None if rows is None else np.asarray(ops.convert_to_numpy(sinusoid(rows, WIDTH)))

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        return self.tokens.compute_mask(inputs)

    def call(self, x: Any) -> Any:
        length = ops.shape(x)[1]
        x = self.tokens(x) * ops.sqrt(ops.cast(WIDTH, "float32"))
        return x + (sinusoid(length, WIDTH) if self.table is None else ops.convert_to_tensor(self.table)[None, :length])


def masked_block(x: Any) -> Any:
    return TransformerBlock(WIDTH, HEADS, FEED_FORWARD, masking=True)(x)


@pytest.mark.parametrize(("asked", "rows"), [(None, 512), (90, 90)])
def test_computed_positions_have_as_many_rows_as_asked_for(asked: int | None, rows: int) -> None:
    spec = assert_recognised(encoder(masked_block, embed=Sinusoidal()), asked, lengths=(4, 33))
    assert (spec.max_length, spec.embeddings.token_scale, spec.mask) == (rows, 4.0, "nonzero")


def test_a_constant_table_is_found_to_its_last_row() -> None:
    spec = assert_recognised(encoder(masked_block, embed=Sinusoidal(rows=37)), lengths=(4, 37))
    assert spec.max_length == 37
    assert spec.embeddings.position is not None
    assert spec.embeddings.position.shape == (37, WIDTH)


class CountedPositions(layers.Layer):
    """Positions counted over the ids themselves, and one more embedding that is the same for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = layers.Embedding(VOCABULARY, WIDTH), layers.Embedding(LENGTH, WIDTH)
        self.language = layers.Embedding(3, WIDTH)

    def call(self, ids: Any) -> Any:
        positions = ops.cumsum(ops.ones_like(ids), axis=1) - 1
        return self.tokens(ids) + self.positions(positions) + self.language(ops.zeros_like(ids))


def test_positions_that_are_counted() -> None:
    assert assert_recognised(encoder(embed=CountedPositions()), lengths=(4, LENGTH)).max_length == LENGTH


def test_no_positions_bound_nothing() -> None:
    spec = assert_recognised(encoder(), lengths=(2, 40))
    assert (spec.max_length, spec.fixed_length, spec.embeddings.position) == (None, None, None)


def bert_like(rows: tuple[int, int] = (VOCABULARY, 2)) -> Any:
    ids, segments = (keras.Input((None,), dtype="int32", name=name) for name in ("first", "second"))
    mask = keras.Input((None,), dtype="int32", name="third")
    x = layers.Embedding(rows[0], 8)(ids) + layers.Embedding(rows[1], 8)(segments)
    x = layers.Dense(WIDTH)(layers.Dropout(0.1)(layers.LayerNormalization(epsilon=1e-12)(x)))
    x = post_norm(x, "gelu", lambda x: attend_masked(x, mask))
    pooled = layers.Dense(WIDTH, activation="tanh")(x[:, 0, :])
    return keras.Model([ids, segments, mask], layers.Dense(CLASSES, activation="sigmoid")(pooled))


def attend_masked(x: Any, mask: Any) -> Any:
    return layers.MultiHeadAttention(HEADS, 8, dropout=0.1)(x, x, attention_mask=mask[:, None, :])


def test_segments_a_mask_and_the_first_token() -> None:
    model = randomise(bert_like())
    spec = read(model, None)
    ids = make_ids(9)
    segments = np.random.default_rng(3).integers(0, 2, ids.shape).astype(np.int32)
    inputs = {"first": ids, "second": segments, "third": (ids != 0).astype(np.int32)}
    expected = answers(model, list(inputs.values()))
    np.testing.assert_allclose(forward(spec, inputs), expected, atol=TOLERANCE)
    assert (spec.token_input, spec.segment_input, spec.mask_input) == ("first", "second", "third")
    assert (spec.head.pooling, spec.head.output, spec.mask) == ("first", "sigmoid", "input")
    assert [layer.activation for layer in spec.head.layers] == ["tanh", "linear"]
    assert spec.embeddings.projection is not None
    assert spec.embeddings.norm is not None
    assert spec.width == WIDTH


def test_two_tables_of_one_size_are_not_told_apart() -> None:
    assert_refused(bert_like((9, 9)), "which one holds the tokens")


# Layers


@pytest.mark.parametrize("block", [post_norm, pre_norm])
@pytest.mark.parametrize(
    ("activation", "name"),
    [
        ("relu", "relu"),
        ("gelu", "gelu"),
        ("silu", "silu"),
        ("swish", "silu"),
        ("tanh", "tanh"),
        (None, "linear"),
        (keras.activations.gelu, "gelu"),
        (lambda x: keras.activations.gelu(x, approximate=True), "gelu_tanh"),
        (keras.ops.gelu, "gelu_tanh"),
        (layers.ReLU(), "relu"),
        (layers.Activation("sigmoid"), "sigmoid"),
    ],
)
def test_activations_and_placements_of_the_norm(block: Callable[..., Any], activation: Any, name: str) -> None:
    spec = assert_recognised(encoder(lambda x: block(x, activation)), lengths=(6,))
    (layer,) = spec.encoder.layers
    assert layer.feed_forward.activation == name
    assert layer.norm_placement == block.__name__.split("_")[0]


def test_a_final_norm_and_layers_that_are_shared() -> None:
    block = TransformerBlock(WIDTH, HEADS, FEED_FORWARD)
    spec = assert_recognised(encoder(lambda x: norm(block(block(x)))))
    first, second = spec.encoder.layers
    assert first.attention.query.kernel is second.attention.query.kernel
    assert spec.encoder.final_norm is not None
    shared = sum(array.size for _, array in parameters(spec))
    assert shared == sum(
        int(np.prod(weight.shape)) for weight in encoder(lambda x: norm(block(block(x)))).trainable_weights
    )


def test_layers_of_addition() -> None:
    def body(x: Any) -> Any:
        x = norm(layers.Add()([attend(x), x]))
        return norm(layers.add([x, layers.Dropout(0.2)(feed(x))]))

    assert_recognised(encoder(body))


def test_a_causal_mask() -> None:
    spec = assert_recognised(
        encoder(lambda x: post_norm(x, attention=lambda x: layers.MultiHeadAttention(2, 5)(x, x, use_causal_mask=True)))
    )
    assert spec.encoder.layers[0].attention.causal


def test_attention_without_biases_and_with_fewer_keys() -> None:
    def grouped(x: Any) -> Any:
        return layers.GroupQueryAttention(4, 4, 2, use_bias=False)(x, x)

    attention = assert_recognised(encoder(lambda x: post_norm(x, attention=grouped))).encoder.layers[0].attention
    assert (attention.heads, attention.kv_heads, attention.head_dim, attention.query.bias) == (4, 2, 4, None)


@pytest.mark.parametrize("gate_first", [True, False])
def test_a_gated_feed_forward_and_rms_norms(*, gate_first: bool) -> None:
    def body(x: Any) -> Any:
        x = x + attend(layers.RMSNormalization()(x))
        y = layers.RMSNormalization(epsilon=1e-5)(x)
        branches = [layers.Dense(FEED_FORWARD, "silu", use_bias=False), layers.Dense(FEED_FORWARD, use_bias=False)]
        left, right = (branch(y) for branch in (branches if gate_first else branches[::-1]))
        return layers.RMSNormalization()(x + layers.Dense(WIDTH)(left * right))

    spec = assert_recognised(encoder(body))
    (layer,) = spec.encoder.layers
    assert layer.feed_forward.gate is not None
    assert (layer.feed_forward.activation, layer.feed_forward_norm.kind, layer.feed_forward_norm.eps) == (
        "silu",
        "rms",
        1e-5,
    )


def test_norms_without_scale_or_offset() -> None:
    def body(x: Any) -> Any:
        x = layers.LayerNormalization(scale=False)(x + attend(x))
        return layers.LayerNormalization(center=False, axis=2)(x + feed(x))

    (layer,) = assert_recognised(encoder(body)).encoder.layers
    assert layer.feed_forward_norm.beta is None


def test_mixed_precision_is_no_part_of_a_spec() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model, narrow = randomise(imdb(None, masked=True, dtype="int32")), imdb(None)
    finally:
        keras.config.set_dtype_policy("float32")
    spec = read(model, None)
    ids = make_ids(9)
    np.testing.assert_allclose(
        forward(spec, {spec.token_input: ids}), answers(model, ids), atol=0.05
    )  # float16: eps 1e-3
    assert spec.max_length == LENGTH  # its table is known for the model's variable, though it is added in float16
    assert_refused(narrow, "cast to float16", "dtype='int32'")


# Heads


@pytest.mark.parametrize(
    ("head", "pooling", "output", "activations"),
    [
        (lambda x: x, "none", "raw", []),
        (lambda x: layers.Dense(4)(x), "none", "logits", ["linear"]),
        (lambda x: layers.Dense(4, "softmax")(x), "none", "probabilities", ["linear"]),
        (lambda x: x[:, 0], "first", "embedding", []),
        (lambda x: layers.Dense(9, "tanh")(x[:, 0, :]), "first", "embedding", ["tanh"]),
        (lambda x: layers.GlobalAveragePooling1D()(x), "mean", "embedding", []),
        (lambda x: layers.Dense(1, "sigmoid")(layers.GlobalMaxPooling1D()(x)), "max", "sigmoid", ["linear"]),
        (lambda x: layers.Softmax()(layers.Dense(4)(ops.mean(x, axis=1))), "mean", "probabilities", ["linear"]),
        (
            lambda x: layers.Dense(4)(layers.Dense(8, "sigmoid")(ops.max(x, axis=1))),
            "max",
            "logits",
            ["sigmoid", "linear"],
        ),
        (lambda x: layers.Activation("sigmoid")(layers.Dense(4)(x[:, 0])), "first", "sigmoid", ["linear"]),
    ],
)
def test_heads(head: Any, pooling: str, output: str, activations: list[str]) -> None:
    spec = assert_recognised(encoder(head=head), lengths=(6,))
    assert (spec.head.pooling, spec.head.output) == (pooling, output)
    assert [layer.activation for layer in spec.head.layers] == activations


def test_a_sequence_comes_out_masked() -> None:
    assert assert_recognised(encoder(masked_block, head=lambda x: x, mask_zero=True)).mask == "nonzero"


# Masks


def two_inputs(attention_mask: Callable[[Any], Any], pool: Callable[[Any, Any], Any], dtype: str = "bool") -> Any:
    ids, mask = keras.Input((None,), dtype="int32", name="ids"), keras.Input((None,), dtype=dtype, name="real")
    x = layers.Embedding(VOCABULARY, WIDTH)(ids)

    def attention(x: Any) -> Any:
        return layers.MultiHeadAttention(HEADS, 8)(x, x, attention_mask=attention_mask(mask))

    x = post_norm(post_norm(x, attention=attention, prefix="first_"), attention=attention)
    return keras.Model({"ids": ids, "real": mask}, layers.Dense(CLASSES)(pool(x, mask)))


def average(x: Any, mask: Any) -> Any:
    return layers.GlobalAveragePooling1D()(x, mask=mask)


@pytest.mark.parametrize("dtype", ["bool", "int32", "float32"])
@pytest.mark.parametrize(
    ("attention_mask", "pool", "pooling_masked"),
    [
        (lambda mask: mask[:, None, :], average, True),
        (lambda mask: mask[:, None], lambda x, mask: layers.GlobalAveragePooling1D()(x), False),
        (lambda mask: ops.expand_dims(mask, 1), lambda x, mask: layers.GlobalMaxPooling1D()(x), False),
        (lambda mask: ops.cast(ops.expand_dims(mask, 1)[:, None], "bool"), average, True),
        (lambda mask: ops.not_equal(mask, 0)[:, :, None] & ops.not_equal(mask, 0)[:, None, :], average, True),
    ],
)
def test_a_mask_of_its_own(attention_mask: Any, pool: Any, dtype: str, *, pooling_masked: bool) -> None:
    model = randomise(two_inputs(attention_mask, pool, dtype))
    spec = read(model, None)
    assert (spec.mask, spec.mask_input, spec.head.pooling_masked) == ("input", "real", pooling_masked)
    ids = make_ids(8)
    inputs = {"ids": ids, "real": (ids != 0).astype(dtype)}
    np.testing.assert_allclose(forward(spec, inputs), answers(model, inputs), atol=TOLERANCE)


def test_a_mask_of_the_ids_by_hand() -> None:
    ids = keras.Input((LENGTH,), dtype="int32")
    real = ops.not_equal(ids, 0)
    x = layers.Embedding(VOCABULARY, WIDTH)(ids)
    x = post_norm(
        x, attention=lambda x: layers.MultiHeadAttention(2, 8)(x, x, attention_mask=ops.reshape(real, (-1, 1, LENGTH)))
    )
    masked = assert_recognised(keras.Model(ids, classify_masked(x, real)))
    assert (masked.mask, masked.fixed_length) == ("nonzero", None)
    seen = assert_recognised(keras.Model(ids, classify(x)))  # attention leaves padding out, and the mean takes it in
    assert (seen.mask, seen.head.pooling_masked, seen.fixed_length) == ("nonzero", False, LENGTH)


def classify_masked(x: Any, mask: Any) -> Any:
    return layers.Dense(CLASSES)(average(x, mask))


class LosesItsMask(keras.Model):
    """Written by hand: MultiHeadAttention takes the mask off its input, so that the Add after it has none to give on."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = layers.Embedding(VOCABULARY, WIDTH, mask_zero=True)
        self.attention = layers.MultiHeadAttention(HEADS, 8, name="att")
        self.feed_forward = keras.Sequential([layers.Dense(FEED_FORWARD, "relu"), layers.Dense(WIDTH)])
        self.norms = [layers.LayerNormalization(), layers.LayerNormalization()]
        self.add, self.pool = layers.Add(), layers.GlobalAveragePooling1D()

    def call(self, ids: Any) -> Any:
        x = self.tokens(ids)
        x = self.norms[0](self.add([x, self.attention(x, x)]))
        return self.pool(self.norms[1](self.add([x, self.feed_forward(x)])))


def test_a_mask_that_keras_loses_on_the_way() -> None:
    model = LosesItsMask()
    ids = make_ids(8)
    short, long = answers(model, ids[:1, :2]), answers(model, ids[:1])
    assert np.abs(short - long).max() > 0.01  # Keras itself sees the padding
    assert_refused(model, "mean pooling takes in padding", "'att'", "supports_masking")


def test_a_functional_model_keeps_its_mask() -> None:
    def body(x: Any) -> Any:
        x = norm(layers.Add()([x, attend(x)]))
        return norm(layers.Add()([x, feed(x)]))

    spec = assert_recognised(encoder(body, mask_zero=True))
    assert (spec.mask, spec.head.pooling_masked) == ("nonzero", True)


# KerasHub's layers in a model of the user's own


@pytest.mark.filterwarnings("ignore:[\\s\\S]*destroy the mask:UserWarning")  # KerasHub's own layers do
@pytest.mark.parametrize("normalize_first", [True, False])
def test_layers_of_keras_hub(*, normalize_first: bool) -> None:
    hub = pytest.importorskip("keras_hub").layers
    ids = keras.Input((None,), dtype="int32")
    x = hub.TokenAndPositionEmbedding(VOCABULARY, LENGTH, WIDTH, mask_zero=True)(ids)
    for _ in range(2):
        x = hub.TransformerEncoder(
            FEED_FORWARD, HEADS, activation="gelu", dropout=0.1, normalize_first=normalize_first
        )(x)
    spec = assert_recognised(keras.Model(ids, classify(x)))
    assert (spec.max_length, spec.mask, spec.encoder.layers[0].feed_forward.activation) == (LENGTH, "nonzero", "gelu")


def test_sinusoidal_positions_of_keras_hub() -> None:
    hub = pytest.importorskip("keras_hub").layers
    ids = keras.Input((None,), dtype="int32")
    x = layers.Embedding(VOCABULARY, WIDTH)(ids)
    x = hub.TransformerEncoder(FEED_FORWARD, HEADS)(x + hub.SinePositionEncoding()(x))
    assert assert_recognised(keras.Model(ids, classify(x)), 64).max_length == 64


@pytest.mark.parametrize("family", ["Bert", "DistilBert", "Roberta", "Albert"])
def test_a_head_of_ones_own_on_a_backbone_of_keras_hub(family: str) -> None:
    hub = pytest.importorskip("keras_hub").models
    sizes = {
        "vocabulary_size": VOCABULARY,
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": WIDTH,
        "max_sequence_length": LENGTH,
    }
    sizes |= {"intermediate_dim": FEED_FORWARD} | ({"embedding_dim": 8} if family == "Albert" else {})
    backbone = getattr(hub, f"{family}Backbone")(**sizes)
    sequence = backbone.output["sequence_output"] if isinstance(backbone.output, dict) else backbone.output
    model = randomise(keras.Model(backbone.input, classify(sequence)))
    spec = read(model, None)
    ids = make_ids(9)
    inputs = {"token_ids": ids, "padding_mask": (ids != 0).astype(np.int32), "segment_ids": ids % 2}
    inputs = {name: inputs[name] for name in backbone.input}
    np.testing.assert_allclose(forward(spec, inputs), answers(model, inputs), atol=TOLERANCE)
    assert (spec.mask, spec.max_length, spec.head.pooling_masked) == ("input", LENGTH, False)


# What is nearly such an encoder


class CallsTensorFlow(layers.Layer):
    def call(self, x: Any) -> Any:
        import tensorflow as tf

        return tf.nn.relu(x)


class Noise(layers.Layer):
    def call(self, x: Any) -> Any:
        return x + keras.random.normal((1, *x.shape[1:]))


class ForeignNoise(layers.Layer):
    def call(self, x: Any) -> Any:
        return x + np.random.default_rng().normal(size=x.shape[1:]).astype(np.float32)


class OwnAttention(layers.MultiHeadAttention):
    def _compute_attention(self, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        return super()._compute_attention(query, key, ops.relu(value), *args, **kwargs)


def quantised() -> Any:
    model = encoder(length=LENGTH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the layers that have no weights
        model.quantize("int8")
    return model


class CrossAttention(layers.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.attention = layers.MultiHeadAttention(HEADS, 8)

    def call(self, x: Any) -> Any:
        return self.attention(x, x * 2.0)


def attention_scores(x: Any) -> Any:
    result, scores = layers.MultiHeadAttention(1, WIDTH, name="att")(x, x, return_attention_scores=True)
    return result + ops.sum(scores)


class AlwaysRandom(layers.Layer):
    def __init__(self, layer: Any, *copies: bool) -> None:
        super().__init__(name="owner")
        self.layer, self.copies = layer, copies

    def call(self, x: Any) -> Any:
        return self.layer(x, *(x for _ in self.copies), training=True)


class MasksOneLayer(layers.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = layers.Embedding(VOCABULARY, WIDTH, mask_zero=True)
        self.blocks = [TransformerBlock(WIDTH, HEADS, FEED_FORWARD, name=f"block_{index}") for index in range(2)]

    def call(self, x: Any) -> Any:
        return self.blocks[1](self.blocks[0](self.embedding(x)))


NEAR_MISSES: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "an extra factor": (
        lambda: encoder(lambda x: post_norm(x, attention=lambda x: attend(x) * 0.5)),
        ("after MultiHeadAttention 'att', a residual Add was expected", "Multiply"),
    ),
    "no residual around attention": (
        lambda: encoder(lambda x: norm(feed(norm(attend(x))))),
        ("a self-attention with its residual was expected", "MultiHeadAttention 'att'"),
    ),
    "no residual around the feed-forward": (
        lambda: encoder(lambda x: norm(feed(norm(x + attend(x))))),
        ("a feed-forward's Dense layer and a residual Add was expected", "Dense 'up'"),
    ),
    "another residual": (
        lambda: encoder(lambda x: norm(x + attend(x) + x)),
        ("a residual Add was expected", "keras.ops Add and keras.ops Add"),
    ),
    "no norm": (
        lambda: encoder(lambda x: feed(x + attend(x))),
        ("a LayerNormalization was expected", "Dense 'up'"),
    ),
    "three dense layers": (
        lambda: encoder(lambda x: post_norm(x, layers.Dense(8, name="third"))),
        ("Dense",),
    ),
    "TensorFlow inside": (
        lambda: encoder(lambda x: post_norm(CallsTensorFlow(name="tf_layer")(x))),
        ("'tf_layer'", "symbolic"),
    ),
    "noise of a fixed length": (
        lambda: encoder(lambda x: post_norm(x), embed=lambda x: Noise()(layers.Embedding(9, WIDTH)(x)), length=LENGTH),
        ("the code of 'noise' draws random numbers",),
    ),
    "noise that Keras does not know of": (
        lambda: encoder(embed=lambda x: ForeignNoise(name="noise")(layers.Embedding(9, WIDTH)(x)), length=LENGTH),
        ("not the same each time",),
    ),
    "an attention of the user's own": (
        lambda: encoder(lambda x: post_norm(x, attention=lambda x: OwnAttention(2, 8, name="own")(x, x))),
        ("self-attention", "EinsumDense 'own/query'"),
    ),
    "weights that Keras quantised": (quantised, ("quantised by Keras (int8)",)),
    "attention over features": (
        lambda: encoder(
            lambda x: post_norm(
                x, attention=lambda x: layers.MultiHeadAttention(2, 8, attention_axes=2, name="att")(x, x)
            ),
            length=LENGTH,
        ),
        ("'att'",),
    ),
    "a convolution": (
        lambda: encoder(lambda x: post_norm(layers.Conv1D(WIDTH, 3, name="conv")(x))),
        ("Conv1D 'conv'",),
    ),
    "a recurrent layer": (
        lambda: encoder(lambda x: layers.LSTM(WIDTH, name="rnn")(x), head=lambda x: x),
        ("LSTM 'rnn'",),
    ),
    "cross-attention": (
        lambda: encoder(lambda x: post_norm(x, attention=CrossAttention())),
        ("was expected", "Multiply"),
    ),
    "cross-attention to the embeddings": (
        lambda: encoder(
            lambda x: post_norm(x, attention=lambda y: layers.MultiHeadAttention(2, 8, name="cross")(y, norm(y)))
        ),
        ("expected", "LayerNormalization"),
    ),
    "attention's scores": (
        lambda: encoder(lambda x: post_norm(x, attention=attention_scores)),
        ("second output", "'att'"),
    ),
    "dropout in inference": (
        lambda: encoder(lambda x: post_norm(AlwaysRandom(layers.Dropout(0.5, name="always"))(x))),
        ("Dropout 'owner/always'", "training=True"),
    ),
    "dropout of attention in inference": (
        lambda: encoder(
            lambda x: post_norm(
                x, attention=AlwaysRandom(layers.MultiHeadAttention(2, 8, dropout=0.1, name="att"), True)
            )
        ),
        ("'owner/att'", "training=True"),
    ),
    "a Lambda": (
        lambda: encoder(lambda x: post_norm(layers.Lambda(lambda t: t * 2.0, name="code")(x))),
        ("Lambda 'code'",),
    ),
    "batch normalisation": (
        lambda: encoder(lambda x: post_norm(layers.BatchNormalization(name="batch")(x))),
        ("BatchNormalization 'batch'",),
    ),
    "another activation": (lambda: encoder(lambda x: post_norm(x, "elu")), ("Elu in 'up'",)),
    "a bounded ReLU": (
        lambda: encoder(lambda x: post_norm(x, layers.ReLU(max_value=6))),
        ("second Dense layer", "'up"),
    ),
    "Flatten": (
        lambda: encoder(length=LENGTH, head=lambda x: layers.Dense(2)(layers.Flatten(name="flat")(x))),
        ("Flatten 'flat'",),
    ),
    "the last token": (lambda: encoder(head=lambda x: x[:, -1]), ("first token", "GetItem")),
    "a window": (
        lambda: encoder(
            lambda x: post_norm(
                x, attention=lambda x: layers.MultiHeadAttention(2, 8, sliding_window=3, name="near")(x, x)
            )
        ),
        ("'near'", "sliding window"),
    ),
    "values of another width": (
        lambda: encoder(
            lambda x: post_norm(x, attention=lambda x: layers.MultiHeadAttention(2, 8, value_dim=5, name="att")(x, x))
        ),
        ("'att'", "values of width 5"),
    ),
    "a mask in one layer": (
        lambda: encoder(lambda x: x, embed=MasksOneLayer()),
        ("'masks_one_layer/block_0/", "'masks_one_layer/block_1/", "do not have the same mask"),
    ),
    "two outputs": (
        lambda: keras.Model((ids := keras.Input((None,))), [layers.Embedding(9, 4)(ids), layers.Embedding(9, 4)(ids)]),
        ("2 outputs",),
    ),
    "no tokens": (
        lambda: keras.Sequential([keras.Input((4,)), layers.Dense(3, name="first")]),
        ("Embedding of the token ids", "Dense 'first'"),
    ),
    "positions by token": (
        lambda: encoder(
            embed=lambda x: layers.Embedding(VOCABULARY, WIDTH)(x) + layers.Embedding(VOCABULARY, WIDTH)(x)
        ),
        ("both look up",),
    ),
    "a softmax over tokens": (lambda: encoder(head=lambda x: layers.Softmax(axis=1)(layers.Dense(3)(x))), ("Softmax",)),
}


@pytest.mark.filterwarnings("ignore:[\\s\\S]*destroy the mask:UserWarning")
@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_are_refused(name: str) -> None:
    make, words = NEAR_MISSES[name]
    assert_refused(make(), *words)
