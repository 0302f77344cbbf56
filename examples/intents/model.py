"""The intent classifier: a textbook Transformer encoder in plain Keras 3.

Importing this file registers its two layers, so that `keras.saving.load_model` can rebuild the trained `intents.keras`.

Shapes: `B` texts in a batch, `T` tokens in the longest of them, `D` the width of the model.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

__all__ = ["MAX_LENGTH", "PAD_ID", "TokenAndPositionEmbedding", "TransformerBlock", "build_classifier", "build_encoder"]

PAD_ID = 0
"""The token id that fills short texts up to the length of the batch; `mask_zero` relies on it being 0."""

MAX_LENGTH = 128
"""The most tokens a text may have; the tokenizer cuts longer ones."""


@keras.saving.register_keras_serializable(package="edgelm_examples")
class TokenAndPositionEmbedding(layers.Layer):  # type: ignore[misc]  # keras ships no types
    """Embeds token ids ``(B, T)`` as ``(B, T, D)``: what the token is plus where it stands, normalised.

    Args:
        max_length: The most positions a text may have.
        vocabulary_size: Token ids run from 0 to `vocabulary_size` - 1; 0 is padding and is masked.
        width: The size `D` of one embedding.
        dropout: The share of the output zeroed while training, in [0, 1).
    """

    def __init__(self, max_length: int, vocabulary_size: int, width: int, dropout: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.max_length = max_length
        self.vocabulary_size = vocabulary_size
        self.width = width
        self.dropout = dropout
        self.supports_masking = True
        self.token_embedding = layers.Embedding(vocabulary_size, width, mask_zero=True, name="token")
        self.position_embedding = layers.Embedding(max_length, width, name="position")
        self.normalization = layers.LayerNormalization(epsilon=1e-5, name="normalization")
        self.dropping = layers.Dropout(dropout, name="dropping")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weights."""
        embedded = (*input_shape, self.width)
        self.token_embedding.build(input_shape)
        self.position_embedding.build(input_shape[-1:])
        self.normalization.build(embedded)
        self.dropping.build(embedded)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the embeddings ``(B, T, D)`` of the token ids `inputs` ``(B, T)``."""
        positions = ops.arange(0, ops.shape(inputs)[-1])
        embedded = self.token_embedding(inputs) + self.position_embedding(positions)
        return self.dropping(self.normalization(embedded), training=training)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Return ``(B, T)`` booleans: true where there is a token, false where there is padding."""
        return self.token_embedding.compute_mask(inputs, mask)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return ``(B, T, D)``."""
        return (*input_shape, self.width)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this layer."""
        return {
            **super().get_config(),
            "max_length": self.max_length,
            "vocabulary_size": self.vocabulary_size,
            "width": self.width,
            "dropout": self.dropout,
        }


@keras.saving.register_keras_serializable(package="edgelm_examples")
class TransformerBlock(layers.Layer):  # type: ignore[misc]  # keras ships no types
    """One encoder block, ``(B, T, D)`` to ``(B, T, D)``: self-attention, then a feed-forward network.

    Each is normalised before (pre-norm) and added to its input, which trains well without a long warm-up. No token
    attends to padding.

    Args:
        heads: Attention heads; `D` must be a multiple of it.
        feed_forward: The width between the two Dense layers.
        dropout: The share of attention weights and of each branch's output zeroed while training, in [0, 1).
    """

    def __init__(self, heads: int, feed_forward: int, dropout: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.heads = heads
        self.feed_forward = feed_forward
        self.dropout = dropout
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the layers and their weights for inputs of width ``D = input_shape[-1]``."""
        width = input_shape[-1]
        if width is None or width % self.heads:
            raise ValueError(f"The width {width} does not divide into {self.heads} heads. Choose a multiple.")
        self.attention = layers.MultiHeadAttention(
            self.heads, key_dim=width // self.heads, dropout=self.dropout, name="attention"
        )
        self.attention_normalization = layers.LayerNormalization(epsilon=1e-5, name="attention_normalization")
        self.attention_dropping = layers.Dropout(self.dropout, name="attention_dropping")
        self.expand = layers.Dense(self.feed_forward, activation="relu", name="expand")
        self.contract = layers.Dense(width, name="contract")
        self.feed_forward_normalization = layers.LayerNormalization(epsilon=1e-5, name="feed_forward_normalization")
        self.feed_forward_dropping = layers.Dropout(self.dropout, name="feed_forward_dropping")

        self.attention.build(input_shape, input_shape)
        self.expand.build(input_shape)
        self.contract.build((*input_shape[:-1], self.feed_forward))
        for layer in (
            self.attention_normalization,
            self.attention_dropping,
            self.feed_forward_normalization,
            self.feed_forward_dropping,
        ):
            layer.build(input_shape)
        self.built = True

    def call(self, inputs: Any, mask: Any = None, training: bool | None = None) -> Any:
        """Return the block's output for `inputs` ``(B, T, D)``; `mask` ``(B, T)`` is false at padding."""
        attention_mask = None if mask is None else mask[:, None, :]
        normalized = self.attention_normalization(inputs)
        attended = self.attention(normalized, normalized, attention_mask=attention_mask, training=training)
        hidden = inputs + self.attention_dropping(attended, training=training)
        transformed = self.contract(self.expand(self.feed_forward_normalization(hidden)))
        return hidden + self.feed_forward_dropping(transformed, training=training)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Return `mask` unchanged: padding stays padding."""
        return mask

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this layer."""
        return {
            **super().get_config(),
            "heads": self.heads,
            "feed_forward": self.feed_forward,
            "dropout": self.dropout,
        }


def build_encoder(
    vocabulary_size: int,
    *,
    width: int = 128,
    blocks: int = 3,
    heads: int = 4,
    feed_forward: int = 512,
    dropout: float = 0.1,
    max_length: int = MAX_LENGTH,
) -> keras.Model:
    """Return a fresh encoder: int32 token ids ``(B, T)`` to one float32 vector per token ``(B, T, D)``."""
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    hidden = TokenAndPositionEmbedding(max_length, vocabulary_size, width, dropout, name="embedding")(token_ids)
    for number in range(blocks):
        hidden = TransformerBlock(heads, feed_forward, dropout, name=f"block_{number}")(hidden)
    hidden = layers.LayerNormalization(epsilon=1e-5, name="normalization")(hidden)
    return keras.Model(token_ids, hidden, name="encoder")


def build_classifier(encoder: keras.Model, classes: int, *, dropout: float = 0.1) -> keras.Model:
    """Return a classifier that shares the weights of `encoder`: int32 token ids ``(B, T)`` to logits ``(B, classes)``.

    The token vectors are averaged over the tokens that are not padding, so padding never changes the answer.
    """
    pooled = layers.GlobalAveragePooling1D(name="pooling")(encoder.output)
    logits = layers.Dense(classes, name="intent")(layers.Dropout(dropout, name="dropping")(pooled))
    return keras.Model(encoder.input, logits, name="intents")
