"""Encoder-decoders to read: KerasHub's, and the two of keras.io's English-to-Spanish examples, all very small."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops

__all__ = [
    "BATCH",
    "FEED_FORWARD",
    "HEADS",
    "LENGTH",
    "SOURCE",
    "TARGET",
    "WIDTH",
    "example",
    "hub_example",
    "make_hub",
]
__all__ += ["PositionalEmbedding", "TransformerDecoder", "TransformerEncoder", "randomise"]

BATCH, WIDTH, HEADS, FEED_FORWARD, LENGTH = 4, 16, 2, 24, 14
SOURCE, TARGET = 41, 53  # vocabularies


def randomise(model: Any, seed: int = 0) -> Any:
    """Give every weight, norms and biases too, a value that shows when it is left out or mistaken for another."""
    draw = np.random.default_rng(seed)
    for weight in model.weights:
        if "seed" not in weight.path:
            values = draw.normal(0.0, 0.3, weight.shape)
            norm = "gamma" in weight.path or weight.path.endswith(("norm/weight", "weight"))
            weight.assign(values + 1.0 if norm else values)
    return model


def make_hub(family: str, **changes: Any) -> Any:
    """Return a backbone of KerasHub with random weights in all its variables."""
    import keras_hub

    sizes: dict[str, Any] = {
        "vocabulary_size": TARGET, "num_layers": 2, "num_heads": HEADS, "hidden_dim": WIDTH, "intermediate_dim": FEED_FORWARD,
        "dropout": 0.1,
    }  # fmt: skip
    own: dict[str, dict[str, Any]] = {
        "T5": {"key_value_dim": 12},
        "Bart": {"max_sequence_length": LENGTH},
        "Whisper": {"num_mels": 5, "max_encoder_sequence_length": 2 * LENGTH, "max_decoder_sequence_length": LENGTH},
    }
    return randomise(getattr(keras_hub.models, f"{family}Backbone")(**{**sizes, **own[family], **changes}))


# The layers of keras.io's "English-to-Spanish translation with a sequence-to-sequence Transformer", written after its text.


@keras.saving.register_keras_serializable("edgelm-tests")
class PositionalEmbedding(layers.Layer):
    def __init__(self, vocabulary: int, *, sinusoidal: bool = False, masks: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocabulary, self.sinusoidal, self.masks = vocabulary, sinusoidal, masks
        self.token_embeddings = layers.Embedding(vocabulary, WIDTH)
        self.position_embeddings = None if sinusoidal else layers.Embedding(LENGTH, WIDTH)

    def build(self, shape: Any) -> None:
        self.token_embeddings.build(shape)
        if self.position_embeddings is not None:
            self.position_embeddings.build((None,))
        super().build(shape)

    def call(self, inputs: Any) -> Any:
        positions = ops.arange(0, ops.shape(inputs)[-1], 1)
        if self.position_embeddings is not None:
            return self.token_embeddings(inputs) + self.position_embeddings(positions)
        angles = ops.cast(positions, "float32")[:, None] / 100.0 ** (ops.arange(WIDTH // 2, dtype="float32") / WIDTH)
        return self.token_embeddings(inputs) * WIDTH**0.5 + ops.concatenate([ops.sin(angles), ops.cos(angles)], -1)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        return ops.not_equal(inputs, 0) if self.masks else None

    def get_config(self) -> dict[str, Any]:
        own = {"vocabulary": self.vocabulary, "sinusoidal": self.sinusoidal, "masks": self.masks}
        return {**super().get_config(), **own}


class _Block(layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense_proj = keras.Sequential([layers.Dense(FEED_FORWARD, activation="relu"), layers.Dense(WIDTH)])
        self.norms = [layers.LayerNormalization() for _ in range(3)]
        self.supports_masking = True


@keras.saving.register_keras_serializable("edgelm-tests")
class TransformerEncoder(_Block):
    def __init__(self, *, hides: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hides = hides
        self.attention = layers.MultiHeadAttention(HEADS, WIDTH)

    def build(self, shape: Any) -> None:
        self.attention.build(shape, shape)
        for part in (self.dense_proj, *self.norms[:2]):
            part.build(shape)
        super().build(shape)

    def call(self, inputs: Any, mask: Any = None) -> Any:
        padding_mask = None if mask is None or not self.hides else ops.cast(mask[:, None, :], "int32")
        attended = self.attention(query=inputs, value=inputs, key=inputs, attention_mask=padding_mask)
        inner = self.norms[0](inputs + attended)
        return self.norms[1](inner + self.dense_proj(inner))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "hides": self.hides}


@keras.saving.register_keras_serializable("edgelm-tests")
class TransformerDecoder(_Block):
    """`cross` says whose mask is laid over the source: its own, or the target's, as the example once had it."""

    def __init__(self, *, cross: str = "source", built_in: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cross, self.built_in = cross, built_in
        self.attention_1 = layers.MultiHeadAttention(HEADS, WIDTH)
        self.attention_2 = layers.MultiHeadAttention(HEADS, WIDTH)

    def build(self, shapes: Any) -> None:
        self.attention_1.build(shapes[0], shapes[0])
        self.attention_2.build(shapes[0], shapes[1])
        for part in (self.dense_proj, *self.norms):
            part.build(shapes[0])
        super().build(shapes)

    def call(self, inputs: Any, mask: Any = None) -> Any:
        inputs, encoded = inputs
        own, other = mask if mask is not None else (None, None)
        if self.built_in:
            attended = self.attention_1(query=inputs, value=inputs, key=inputs, use_causal_mask=True)
        else:
            causal = self.causal_mask(inputs)
            attended = self.attention_1(query=inputs, value=inputs, key=inputs, attention_mask=causal, query_mask=own)
        first = self.norms[0](inputs + attended)
        if self.cross == "target":
            padding = ops.minimum(ops.cast(own[:, None, :], "int32"), self.causal_mask(inputs))
            crossed = self.attention_2(query=first, value=encoded, key=encoded, attention_mask=padding)
        else:
            crossed = self.attention_2(query=first, value=encoded, key=encoded, query_mask=own, key_mask=other)
        second = self.norms[1](first + crossed)
        return self.norms[2](second + self.dense_proj(second))

    def causal_mask(self, inputs: Any) -> Any:
        batch, length = ops.shape(inputs)[0], ops.shape(inputs)[1]
        positions = ops.arange(length)
        mask = ops.reshape(ops.cast(positions[:, None] >= positions, "int32"), (1, length, length))
        return ops.tile(mask, [batch, 1, 1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "cross": self.cross, "built_in": self.built_in}


def example(
    *,
    softmax: bool = True,
    sinusoidal: bool = False,
    masks: bool = True,
    hides: bool = True,
    cross: str = "source",
    built_in: bool = False,
    lengths: tuple[int | None, int | None] = (None, None),
    blocks: int = 1,
) -> Any:
    """Return the example's model: an encoder and a decoder, functional models inside of a third."""
    embed = {"sinusoidal": sinusoidal, "masks": masks}
    encoder_inputs = keras.Input((lengths[0],), dtype="int64", name="encoder_inputs")
    x = PositionalEmbedding(SOURCE, **embed)(encoder_inputs)
    for _ in range(blocks):
        x = TransformerEncoder(hides=hides)(x)
    encoder = keras.Model(encoder_inputs, x, name="encoder")
    decoder_inputs = keras.Input((lengths[1],), dtype="int64", name="decoder_inputs")
    x = PositionalEmbedding(TARGET, **embed)(decoder_inputs)
    for _ in range(blocks):
        x = TransformerDecoder(cross=cross, built_in=built_in)([x, encoder.output])
    x = layers.Dropout(0.5)(x)
    scores = layers.Dense(TARGET, activation="softmax" if softmax else None)(x)
    model = keras.Model(
        {"encoder_inputs": encoder_inputs, "decoder_inputs": decoder_inputs}, scores, name="transformer"
    )
    return randomise(model)


def hub_example(
    *, mask_zero: bool = False, first: bool = False, nested: bool = True, hides: tuple[str, ...] = (), blocks: int = 1
) -> Any:
    """Return the model of keras.io's "English-to-Spanish translation with KerasHub".

    `hides` names the stacks that are handed the source's padding mask as an argument, which the published model does not do.
    """
    import keras_hub

    def embed(vocabulary: int, ids: Any) -> Any:
        kind = keras_hub.layers.TokenAndPositionEmbedding
        return kind(vocabulary_size=vocabulary, sequence_length=LENGTH, embedding_dim=WIDTH, mask_zero=mask_zero)(ids)

    settings = {"intermediate_dim": FEED_FORWARD, "num_heads": HEADS, "normalize_first": first}
    encoder_inputs = keras.Input((None,), name="encoder_inputs")
    mask = ops.not_equal(encoder_inputs, 0) if hides else None
    encoded = embed(SOURCE, encoder_inputs)
    for _ in range(blocks):
        layer = keras_hub.layers.TransformerEncoder(**settings)
        encoded = layer(inputs=encoded, padding_mask=mask if "encoder" in hides else None)
    decoder_inputs = keras.Input((None,), name="decoder_inputs")
    state = keras.Input((None, WIDTH), name="decoder_state_inputs") if nested else encoded
    x = embed(TARGET, decoder_inputs)
    for _ in range(blocks):
        layer = keras_hub.layers.TransformerDecoder(**settings)
        x = layer(decoder_sequence=x, encoder_sequence=state, encoder_padding_mask=mask if "decoder" in hides else None)
    scores = layers.Dense(TARGET, activation="softmax")(layers.Dropout(0.5)(x))
    if nested:
        scores = keras.Model([decoder_inputs, state], scores)([decoder_inputs, encoded])
    return randomise(keras.Model([encoder_inputs, decoder_inputs], scores, name="transformer"))
