"""T5, as KerasHub builds it: ``T5Seq2SeqLM`` and ``T5Backbone`` (T5, T5 1.1 and Flan-T5).

One token table serves both sides. There are no positions: the first layer of each stack has a table of biases by distance,
which all its layers add to their scores, and which cross-attention goes without. Scores are not scaled. Layers are pre-norm
with RMS norms and without biases, their feed-forward gated (1.1) or not.

Where the table also scores, the decoder's output is multiplied by ``1/sqrt(D)`` before: here the last norm's gamma is. A
bare backbone gives hidden states; it is read as the language model that ``T5Seq2SeqLM`` makes of it.

Raffel et al. 2020, https://arxiv.org/abs/1910.10683.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from edgelm_converters.families import NotRecognised
from edgelm_converters.families import keras_hub_layers as hub
from edgelm_converters.families import keras_hub_seq2seq as seq2seq
from edgelm_converters.families.keras_hub_decoders import backbone_of, expect_class
from edgelm_converters.spec import (
    Attention,
    Embeddings,
    FeedForward,
    Layer,
    Norm,
    RelativeBias,
    Source,
    Stack,
    TransformerSpec,
)

__all__ = ["read"]


def read(model: Any, sequence_length: int | None) -> TransformerSpec:
    """Return a T5 of KerasHub as a spec.

    Args:
        model: A ``keras.Model``.
        sequence_length: Not used: nothing in the model bounds a length.

    Raises:
        NotRecognised: It is not such a model, or one that the spec cannot hold.
    """
    del sequence_length
    backbone = backbone_of(model, ("T5Seq2SeqLM",), ("T5Backbone",))
    embedding = seq2seq.shared_table(backbone)
    table = hub.embedding(embedding)
    last = _norm(backbone.decoder_layer_norm)
    if embedding.tie_weights:
        last = dataclasses.replace(last, gamma=last.gamma * np.float32(backbone.hidden_dim**-0.5))
    return seq2seq.spec_of(
        "t5",
        model,
        embedding,
        source=Source(Embeddings(table, None), None, "input", seq2seq.SOURCE_TOKENS, mask_input=seq2seq.SOURCE_MASK),
        embeddings=Embeddings(table, None),
        encoder=Stack(
            _layers(backbone.encoder_transformer_layers, is_decoder=False), _norm(backbone.encoder_layer_norm)
        ),
        decoder=Stack(_layers(backbone.decoder_transformer_layers, is_decoder=True), last),
        max_length=None,
    )


def _layers(layers: list[Any], *, is_decoder: bool) -> tuple[Layer, ...]:
    for layer in layers:
        expect_class(layer, "T5TransformerLayer")
        if layer.is_decoder != is_decoder:
            raise NotRecognised(f"The layer '{layer.path}' belongs to the other stack.")
    first = layers[0].self_attention
    if not first.use_relative_attention_bias:
        raise NotRecognised(f"The layer '{first.path}' has no relative attention bias, and T5's first layer has it.")
    bias = RelativeBias(
        hub.array(first.relative_attention_bias), int(first.relative_attention_max_distance), not is_decoder
    )
    return tuple(_layer(layer, bias) for layer in layers)


def _layer(layer: Any, bias: RelativeBias) -> Layer:
    gate, up = None, hub.dense(layer.input_projector)
    if layer.use_gated_activation:
        gate, up = up, hub.dense(layer.gate_projector)
    return Layer(
        attention=_attention(layer.self_attention, bias),
        attention_norm=_norm(layer.self_attention_layer_norm),
        feed_forward=FeedForward(
            hub.activation(layer.input_projector), up=up, down=hub.dense(layer.output_projector), gate=gate
        ),
        feed_forward_norm=_norm(layer.layer_norm),
        norm_placement="pre",
        cross_attention=_attention(layer.cross_attention, None) if layer.is_decoder else None,
        cross_attention_norm=_norm(layer.cross_attention_layer_norm) if layer.is_decoder else None,
    )


def _attention(layer: Any, bias: RelativeBias | None) -> Attention:
    """Return self-attention, with a bias and causal where that is for one side, or cross-attention, which has no bias."""
    expect_class(layer, "T5MultiHeadAttention")
    return Attention(
        heads=int(layer.num_heads),
        kv_heads=int(layer.num_heads),
        head_dim=int(layer.key_value_dim),
        query=hub.dense(layer.query_projector),
        key=hub.dense(layer.key_projector),
        value=hub.dense(layer.value_projector),
        output=hub.dense(layer.output_projector),
        scale=1.0,
        causal=bias is not None and not bias.bidirectional,
        relative=bias,
    )


def _norm(layer: Any) -> Norm:
    expect_class(layer, "T5LayerNorm")
    return Norm("rms", hub.array(layer.weight), None, float(layer.epsilon))
