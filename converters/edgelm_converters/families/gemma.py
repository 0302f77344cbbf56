"""Gemma 1 and 2, as KerasHub builds them: ``GemmaCausalLM`` and ``GemmaBackbone``.

The token's row is multiplied with the square root of the width. Pre-norm layers with RMS norms whose gamma is 1 + scale,
grouped heads of a width of their own, a rotary embedding and a feed-forward gated by GELU (tanh). The token embedding scores.
Gemma 2 also normalises what attention and feed-forward add, caps the scores of attention and of the tokens, and has a
sliding window in every other layer, the first one among them.

Gemma Team 2024, https://arxiv.org/abs/2403.08295 and https://arxiv.org/abs/2408.00118.
"""

from __future__ import annotations

import math
from typing import Any

from edgelm_converters.families import keras_hub_decoders as decoders
from edgelm_converters.spec import Attention, Layer, Norm, TransformerSpec

__all__ = ["read"]


def read(model: Any, sequence_length: int | None) -> TransformerSpec:
    """Return a Gemma 1 or 2 of KerasHub as a spec.

    Nothing in KerasHub's model bounds its length.

    Args:
        model: A ``keras.Model``.
        sequence_length: Not used.

    Raises:
        NotRecognised: It is not such a model, or one that the spec cannot hold.
    """
    del sequence_length
    backbone = decoders.backbone_of(model, ("GemmaCausalLM",), ("GemmaBackbone",))
    return decoders.language_model(
        "gemma",
        model,
        backbone,
        map(_layer, backbone.transformer_layers),
        final_norm=_norm(backbone.layer_norm),
        token_scale=decoders.square_root_scale(backbone.token_embedding, backbone.hidden_dim),
        max_length=None,
    )


def _layer(layer: Any) -> Layer:
    decoders.expect_class(layer, "GemmaDecoderBlock")
    return Layer(
        attention=_attention(decoders.expect_class(layer.attention, "CachedGemmaAttention")),
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
        # KerasHub then interleaves the two halves of queries and keys alike, which leaves their products as they are.
        rotary=decoders.rotary(part.rope_layer, "RotaryEmbedding", part.head_dim),
        soft_cap=part.logit_soft_cap,
        window=part.sliding_window_size if part.use_sliding_window_attention else None,
    )


def _norm(layer: Any) -> Norm:
    return decoders.rms_norm(layer, "RMSNormalization", offset=1.0)
