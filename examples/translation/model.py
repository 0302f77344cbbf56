"""The translator: a textbook Transformer, encoder and decoder, in plain Keras 3.

It is the model of Keras's tutorial on English-to-Spanish translation, with layers normalised before each step and a
mask for every attention. Importing this file registers its layers, so that `keras.saving.load_model` can rebuild the
trained `translator.keras`.

Shapes: `B` sentences in a batch, `S` source and `T` target tokens in the longest, `D` the width of the model, `V` the
entries of the vocabulary that both languages share.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

__all__ = [
    "END_ID",
    "MAX_LENGTH",
    "PAD_ID",
    "START_ID",
    "UNKNOWN_ID",
    "PositionalEmbedding",
    "TransformerDecoder",
    "TransformerEncoder",
    "build_translator",
]

PAD_ID, START_ID, END_ID, UNKNOWN_ID = 0, 1, 2, 3
"""[PAD], [START], [END] and [UNK]: a source ends with [END], a target starts with [START] and ends with [END]."""

MAX_LENGTH = 64
"""The most tokens of a source or a target, [START] and [END] included: there are as many learned positions."""


@keras.saving.register_keras_serializable(package="edgelm_examples")
class PositionalEmbedding(layers.Layer):  # type: ignore[misc]  # keras ships no types
    """Embeds token ids ``(B, T)`` as ``(B, T, D)``: what the token is plus where it stands.

    Args:
        max_length: The most positions a sentence may have.
        vocabulary_size: Token ids run from 0 to `vocabulary_size` - 1.
        width: The size `D` of one embedding.
        dropout: The share of the output zeroed while training, in [0, 1).
    """

    def __init__(self, max_length: int, vocabulary_size: int, width: int, dropout: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.max_length = max_length
        self.vocabulary_size = vocabulary_size
        self.width = width
        self.dropout = dropout
        self.token_embedding = layers.Embedding(vocabulary_size, width, name="token")
        self.position_embedding = layers.Embedding(max_length, width, name="position")
        self.dropping = layers.Dropout(dropout, name="dropping")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weights."""
        self.token_embedding.build(input_shape)
        self.position_embedding.build(input_shape[-1:])
        self.dropping.build((*input_shape, self.width))
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the embeddings ``(B, T, D)`` of the token ids `inputs` ``(B, T)``."""
        positions = keras.ops.arange(0, keras.ops.shape(inputs)[-1])
        embedded = self.token_embedding(inputs) + self.position_embedding(positions)
        return self.dropping(embedded, training=training)

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
class TransformerEncoder(layers.Layer):  # type: ignore[misc]  # keras ships no types
    """One encoder block, ``(B, S, D)`` to ``(B, S, D)``: self-attention, then a feed-forward network.

    Each is normalised before (pre-norm) and added to its input. No token attends to padding.

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

    def build(self, inputs_shape: tuple[int | None, ...], padding_mask_shape: tuple[int | None, ...]) -> None:
        """Create the layers and their weights for inputs of width ``D = inputs_shape[-1]``."""
        width = _width(inputs_shape, self.heads)
        self.attention = _attention(self.heads, width, self.dropout, "attention")
        self.attention_normalization = _normalization("attention_normalization")
        self.attention_dropping = layers.Dropout(self.dropout, name="attention_dropping")
        self.expand = layers.Dense(self.feed_forward, activation="relu", name="expand")
        self.contract = layers.Dense(width, name="contract")
        self.feed_forward_normalization = _normalization("feed_forward_normalization")
        self.feed_forward_dropping = layers.Dropout(self.dropout, name="feed_forward_dropping")

        self.attention.build(inputs_shape, inputs_shape)
        self.attention_normalization.build(inputs_shape)
        self.expand.build(inputs_shape)
        self.contract.build((*inputs_shape[:-1], self.feed_forward))
        self.feed_forward_normalization.build(inputs_shape)
        self.built = True

    def call(self, inputs: Any, padding_mask: Any, training: bool | None = None) -> Any:
        """Return the block's output for `inputs` ``(B, S, D)``; `padding_mask` ``(B, S)`` is false at padding."""
        normalized = self.attention_normalization(inputs)
        attended = self.attention(normalized, normalized, attention_mask=padding_mask[:, None, :], training=training)
        hidden = inputs + self.attention_dropping(attended, training=training)
        transformed = self.contract(self.expand(self.feed_forward_normalization(hidden)))
        return hidden + self.feed_forward_dropping(transformed, training=training)

    def compute_output_shape(
        self, inputs_shape: tuple[int | None, ...], padding_mask_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        """Return the shape of `inputs`."""
        return inputs_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this layer."""
        return {
            **super().get_config(),
            "heads": self.heads,
            "feed_forward": self.feed_forward,
            "dropout": self.dropout,
        }


@keras.saving.register_keras_serializable(package="edgelm_examples")
class TransformerDecoder(layers.Layer):  # type: ignore[misc]  # keras ships no types
    """One decoder block, ``(B, T, D)`` to ``(B, T, D)``: self-attention, attention to the source, feed-forward network.

    Each is normalised before (pre-norm) and added to its input. A token attends to itself and to those before it, and to
    every token of the source that is not padding.

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

    def build(
        self,
        inputs_shape: tuple[int | None, ...],
        encoder_outputs_shape: tuple[int | None, ...],
        padding_mask_shape: tuple[int | None, ...],
    ) -> None:
        """Create the layers and their weights for targets of width ``D = inputs_shape[-1]``."""
        width = _width(inputs_shape, self.heads)
        self.attention = _attention(self.heads, width, self.dropout, "attention")
        self.attention_normalization = _normalization("attention_normalization")
        self.attention_dropping = layers.Dropout(self.dropout, name="attention_dropping")
        self.cross_attention = _attention(self.heads, width, self.dropout, "cross_attention")
        self.cross_attention_normalization = _normalization("cross_attention_normalization")
        self.cross_attention_dropping = layers.Dropout(self.dropout, name="cross_attention_dropping")
        self.expand = layers.Dense(self.feed_forward, activation="relu", name="expand")
        self.contract = layers.Dense(width, name="contract")
        self.feed_forward_normalization = _normalization("feed_forward_normalization")
        self.feed_forward_dropping = layers.Dropout(self.dropout, name="feed_forward_dropping")

        self.attention.build(inputs_shape, inputs_shape)
        self.attention_normalization.build(inputs_shape)
        self.cross_attention.build(inputs_shape, encoder_outputs_shape)
        self.cross_attention_normalization.build(inputs_shape)
        self.expand.build(inputs_shape)
        self.contract.build((*inputs_shape[:-1], self.feed_forward))
        self.feed_forward_normalization.build(inputs_shape)
        self.built = True

    def call(self, inputs: Any, encoder_outputs: Any, padding_mask: Any, training: bool | None = None) -> Any:
        """Return the block's output ``(B, T, D)``.

        Args:
            inputs: The target so far, ``(B, T, D)``.
            encoder_outputs: The source as the encoder gave it, ``(B, S, D)``.
            padding_mask: ``(B, S)``, false at the padding of the source.
            training: Whether dropout is on.
        """
        normalized = self.attention_normalization(inputs)
        attended = self.attention(normalized, normalized, use_causal_mask=True, training=training)
        hidden = inputs + self.attention_dropping(attended, training=training)
        looked_up = self.cross_attention(
            self.cross_attention_normalization(hidden),
            encoder_outputs,
            attention_mask=padding_mask[:, None, :],
            training=training,
        )
        hidden = hidden + self.cross_attention_dropping(looked_up, training=training)
        transformed = self.contract(self.expand(self.feed_forward_normalization(hidden)))
        return hidden + self.feed_forward_dropping(transformed, training=training)

    def compute_output_shape(
        self,
        inputs_shape: tuple[int | None, ...],
        encoder_outputs_shape: tuple[int | None, ...],
        padding_mask_shape: tuple[int | None, ...],
    ) -> tuple[int | None, ...]:
        """Return the shape of `inputs`."""
        return inputs_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this layer."""
        return {
            **super().get_config(),
            "heads": self.heads,
            "feed_forward": self.feed_forward,
            "dropout": self.dropout,
        }


def build_translator(
    vocabulary_size: int,
    *,
    width: int = 128,
    encoder_blocks: int = 3,
    decoder_blocks: int = 2,
    heads: int = 4,
    feed_forward: int = 512,
    dropout: float = 0.1,
    max_length: int = MAX_LENGTH,
) -> keras.Model:
    """Return a fresh translator.

    Its inputs are int32 token ids: `encoder_inputs` ``(B, S)``, the source with [END] behind it, and `decoder_inputs`
    ``(B, T)``, [START] and the target so far. Its output ``(B, T, V)`` is float32: at each place the logits of the next
    token of the target. Padding of the target needs no mask: it stands behind all tokens, where none of them looks.
    """
    source = keras.Input((None,), dtype="int32", name="encoder_inputs")
    target = keras.Input((None,), dtype="int32", name="decoder_inputs")
    # Given to every layer by hand. Keras can carry a mask with its tensor (`mask_zero`), but its MultiHeadAttention takes
    # the mask off the tensor that it attends to, so that the second decoder block would attend to padding.
    padding_mask = keras.ops.not_equal(source, PAD_ID)
    encoded = PositionalEmbedding(max_length, vocabulary_size, width, dropout, name="source_embedding")(source)
    for number in range(encoder_blocks):
        encoded = TransformerEncoder(heads, feed_forward, dropout, name=f"encoder_{number}")(encoded, padding_mask)
    encoded = _normalization("encoder_normalization")(encoded)
    decoded = PositionalEmbedding(max_length, vocabulary_size, width, dropout, name="target_embedding")(target)
    for number in range(decoder_blocks):
        decoded = TransformerDecoder(heads, feed_forward, dropout, name=f"decoder_{number}")(
            decoded, encoded, padding_mask
        )
    decoded = _normalization("decoder_normalization")(decoded)
    logits = layers.Dense(vocabulary_size, name="logits")(decoded)
    return keras.Model([source, target], logits, name="translator")


def _width(shape: tuple[int | None, ...], heads: int) -> int:
    width = shape[-1]
    if width is None or width % heads:
        raise ValueError(f"The width {width} does not divide into {heads} heads. Choose a multiple.")
    return width


def _attention(heads: int, width: int, dropout: float, name: str) -> Any:
    return layers.MultiHeadAttention(heads, key_dim=width // heads, dropout=dropout, name=name)


def _normalization(name: str) -> Any:
    return layers.LayerNormalization(epsilon=1e-5, name=name)
