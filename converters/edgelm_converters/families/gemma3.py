"""Gemma 3 for text, as KerasHub builds it: ``Gemma3CausalLM`` and ``Gemma3Backbone`` without a vision encoder.

A Gemma 2 without soft caps, whose queries and keys are normalised head by head before they are turned. Five layers with a
sliding window and a rotary base of 10,000 alternate with one that sees everything, with a base of 1,000,000 and often a
scaling of its own.

Gemma Team 2025, https://arxiv.org/abs/2503.19786.
"""

from __future__ import annotations

import math
from typing import Any

from edgelm_converters.families import NotRecognised
from edgelm_converters.families import keras_hub_decoders as decoders
from edgelm_converters.spec import Attention, Layer, Norm, TransformerSpec

__all__ = ["read"]


def read(model: Any, sequence_length: int | None) -> TransformerSpec:
    """Return a Gemma 3 of KerasHub as a spec.

    Nothing in KerasHub's model bounds its length.

    Args:
        model: A ``keras.Model``.
        sequence_length: Not used.

    Raises:
        NotRecognised: It is not such a model (EmbeddingGemma is none), takes images, or cannot be held by the spec.
    """
    del sequence_length
    backbone = decoders.backbone_of(model, ("Gemma3CausalLM",), ("Gemma3Backbone",))
    if backbone.vision_encoder is not None:
        raise NotRecognised(
            f"The model takes images through the layer '{backbone.vision_encoder.path}', and a Gemma 3 for text alone was "
            "expected (a preset with 'text' in its name)."
        )
    if backbone.use_bidirectional_attention or backbone.is_embedding_model:
        raise NotRecognised(
            f"The backbone '{backbone.name}' is an embedding model (EmbeddingGemma), and one that generates was expected."
        )
    return decoders.language_model(
        "gemma3",
        model,
        backbone,
        map(_layer, backbone.transformer_layers),
        final_norm=_norm(backbone.layer_norm),
        token_scale=decoders.square_root_scale(backbone.token_embedding, backbone.hidden_dim),
        max_length=None,
    )


def _layer(layer: Any) -> Layer:
    decoders.expect_class(layer, "Gemma3DecoderBlock")
    return Layer(
        attention=_attention(decoders.expect_class(layer.attention, "CachedGemma3Attention")),
        attention_norm=_norm(layer.pre_attention_norm),
        feed_forward=decoders.gated_feed_forward(
            gate=layer.gating_ffw, up=layer.gating_ffw_2, down=layer.ffw_linear, activation="gelu_tanh"
        ),
        feed_forward_norm=_norm(layer.pre_ffw_norm),
        norm_placement="pre",
        attention_post_norm=_norm(layer.post_attention_norm) if layer.use_post_attention_norm else None,
        feed_forward_post_norm=_norm(layer.post_ffw_norm) if layer.use_post_ffw_norm else None,
    )


def _attention(part: Any) -> Attention:
    width = part.head_dim if part.query_head_dim_normalize else part.hidden_dim // part.num_query_heads
    return decoders.attention(
        part.query_dense,
        part.key_dense,
        part.value_dense,
        part.output_dense,
        scale=1.0 / math.sqrt(width),
        rotary=decoders.rotary(part.rope_layer, "RotaryEmbedding", part.head_dim),
        query_norm=_norm(part.query_norm) if part.use_query_key_norm else None,
        key_norm=_norm(part.key_norm) if part.use_query_key_norm else None,
        soft_cap=part.logit_soft_cap,
        window=part.sliding_window_size if part.use_sliding_window_attention else None,
    )


def _norm(layer: Any) -> Norm:
    return decoders.rms_norm(layer, "RMSNormalization", offset=1.0)
