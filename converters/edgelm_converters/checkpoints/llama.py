"""The weights of a Llama, whatever file they came from, and the KerasHub model that computes with them.

Dimensions: ``V`` vocabulary, ``D`` width, ``H`` query heads, ``K`` key/value heads, ``A`` width of a head, ``F`` feed-forward.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgelm.errors import ModelError
from edgelm_converters.frameworks import import_keras_hub
from edgelm_converters.spec import Float32

__all__ = ["LlamaCheckpoint", "LlamaLayer", "halves_from_pairs", "to_keras_hub"]


@dataclass(frozen=True, eq=False)
class LlamaLayer:
    """One block. Matrices are ``(out, in)``; queries and keys are rotated in halves of a head.

    Attributes:
        attention_norm: ``(D,)``.
        query: ``(H*A, D)``.
        key: ``(K*A, D)``.
        value: ``(K*A, D)``.
        output: ``(D, H*A)``.
        feed_forward_norm: ``(D,)``.
        gate: ``(F, D)``, what the activation is applied to.
        up: ``(F, D)``.
        down: ``(D, F)``.
    """

    attention_norm: Float32
    query: Float32
    key: Float32
    value: Float32
    output: Float32
    feed_forward_norm: Float32
    gate: Float32
    up: Float32
    down: Float32


@dataclass(frozen=True, eq=False)
class LlamaCheckpoint:
    """A whole Llama.

    Attributes:
        heads: Query heads ``H``.
        kv_heads: Key/value heads ``K``.
        context_length: The longest sequence that it was trained on.
        rope_base: Base of the rotary frequencies.
        norm_eps: Of every RMS normalisation.
        embedding: ``(V, D)``.
        layers: The blocks, first to last. They are read one at a time where the file is compressed.
        layer_count: How many there are.
        feed_forward: ``F``.
        final_norm: ``(D,)``.
        head: ``(V, D)``; None where the output is tied to `embedding`.
    """

    heads: int
    kv_heads: int
    context_length: int
    rope_base: float
    norm_eps: float
    embedding: Float32
    layers: Iterable[LlamaLayer]
    layer_count: int
    feed_forward: int
    final_norm: Float32
    head: Float32 | None


def halves_from_pairs(rows: Float32, heads: int) -> Float32:
    """Return the rows of a query or key matrix for rotation in halves, given those for rotation in pairs.

    Llama's own code and its descendants rotate the elements ``(2i, 2i+1)`` of a head together; Hugging Face and KerasHub
    rotate ``(i, i + A/2)``. The scores are the same where queries and keys are both put in order.

    Args:
        rows: ``(heads * A, D)``.
        heads: Number of heads in it.
    """
    count, width = rows.shape
    pairs = rows.reshape(heads, count // heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(count, width)


def to_keras_hub(checkpoint: LlamaCheckpoint, *, name: str, preprocessor: Any | None = None) -> Any:
    """Return a ``keras_hub.models.LlamaCausalLM`` with the weights of a checkpoint, in float32.

    Args:
        checkpoint: The weights.
        name: Of the Keras model.
        preprocessor: A ``LlamaCausalLMPreprocessor`` that the model carries with it; None: it takes ids.

    Raises:
        ModelError: The head's width is not the width over the heads, which KerasHub's Llama takes for granted.
        MissingPackageError: KerasHub is not installed.
    """
    keras_hub = import_keras_hub()
    vocabulary, width = checkpoint.embedding.shape
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=vocabulary,
        num_layers=checkpoint.layer_count,
        num_query_heads=checkpoint.heads,
        num_key_value_heads=checkpoint.kv_heads,
        hidden_dim=width,
        intermediate_dim=checkpoint.feed_forward,
        rope_max_wavelength=checkpoint.rope_base,
        layer_norm_epsilon=checkpoint.norm_eps,
        tie_word_embeddings=checkpoint.head is None,
        dtype="float32",
    )
    if checkpoint.head is None:
        _keep_tied(backbone)
    backbone.token_embedding.embeddings.assign(checkpoint.embedding)
    if checkpoint.head is not None:
        backbone.token_embedding.reverse_embeddings.assign(checkpoint.head.T)
    for number, (layer, weights) in enumerate(zip(backbone.transformer_layers, checkpoint.layers, strict=True)):
        _assign_layer(layer, weights, checkpoint, number)
    backbone.layer_norm.scale.assign(checkpoint.final_norm)
    return keras_hub.models.LlamaCausalLM(backbone=backbone, preprocessor=preprocessor, name=name)


def _keep_tied(backbone: Any) -> None:
    """Let the saved model say that its embedding is tied.

    KerasHub 0.32 forgets it (`LlamaBackbone.get_config`), and what was saved cannot be loaded: an output matrix is missing.
    """
    get_config = backbone.get_config
    backbone.get_config = lambda: {**get_config(), "tie_word_embeddings": True}


def _assign_layer(layer: Any, weights: LlamaLayer, checkpoint: LlamaCheckpoint, number: int) -> None:
    width = checkpoint.embedding.shape[1]
    head = width // checkpoint.heads
    if weights.query.shape[0] != checkpoint.heads * head:
        raise ModelError(
            f"Layer {number} has {weights.query.shape[0]} query rows for {checkpoint.heads} heads of a model {width} wide: "
            "KerasHub's Llama has heads of the width over their number only."
        )
    attention = layer._self_attention_layer
    attention._query_dense.kernel.assign(weights.query.T.reshape(width, checkpoint.heads, head))
    attention._key_dense.kernel.assign(weights.key.T.reshape(width, checkpoint.kv_heads, head))
    attention._value_dense.kernel.assign(weights.value.T.reshape(width, checkpoint.kv_heads, head))
    attention._output_dense.kernel.assign(weights.output.T.reshape(checkpoint.heads, head, width))
    layer._self_attention_layernorm.scale.assign(weights.attention_norm)
    layer._feedforward_layernorm.scale.assign(weights.feed_forward_norm)
    layer._feedforward_gate_dense.kernel.assign(weights.gate.T)
    layer._feedforward_intermediate_dense.kernel.assign(weights.up.T)
    layer._feedforward_output_dense.kernel.assign(weights.down.T)
