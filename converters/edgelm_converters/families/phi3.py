"""Phi-3, as KerasHub builds it: ``Phi3CausalLM`` and ``Phi3Backbone``.

A Llama with a table of its own in the head. The models for long contexts divide the rotary frequencies by one of two lists
("su" scaling, LongRoPE): one for sequences up to the length of pretraining, one for longer ones.

Abdin et al. 2024, https://arxiv.org/abs/2404.14219; Ding et al. 2024, https://arxiv.org/abs/2402.13753.
"""

from __future__ import annotations

from typing import Any

from edgelm_converters.families import NotRecognised
from edgelm_converters.families import keras_hub_decoders as decoders
from edgelm_converters.families import keras_hub_layers as hub
from edgelm_converters.spec import Layer, Rotary, TransformerSpec

__all__ = ["read"]


def read(model: Any, sequence_length: int | None) -> TransformerSpec:
    """Return a Phi-3 of KerasHub as a spec.

    KerasHub turns the whole of a head, and chooses between the two lists of a "su" scaled model at each call, by the
    sequence's length then. A cache holds keys that are turned already, so a spec chooses once: the list for long
    sequences where `sequence_length` is above the length of pretraining, which is what KerasHub computes on sequences that
    long and not on shorter ones; otherwise the list for short ones, and the length of pretraining is the bound.

    Args:
        model: A ``keras.Model``.
        sequence_length: The most tokens that the user wants, or None.

    Raises:
        NotRecognised: It is not such a model, or one that the spec cannot hold.
        ModelError: It states a shorter sequence than `sequence_length` as its longest.
    """
    backbone = decoders.backbone_of(model, ("Phi3CausalLM",), ("Phi3Backbone",))
    max_length = decoders.check_stated_length(sequence_length, int(backbone.max_sequence_length))
    scaled = backbone.rope_scaling_type == "su"
    long = scaled and sequence_length is not None and sequence_length > backbone.pretraining_sequence_length
    if scaled and not long:
        max_length = min(max_length, int(backbone.pretraining_sequence_length))
    return decoders.language_model(
        "phi3",
        model,
        backbone,
        (_layer(layer, long=long) for layer in backbone.transformer_layers),
        final_norm=decoders.rms_norm(backbone.layer_norm, "Phi3LayerNorm"),
        max_length=max_length,
    )


def _layer(layer: Any, *, long: bool) -> Layer:
    decoders.expect_class(layer, "Phi3Decoder")
    part = decoders.expect_class(layer.attention, "Phi3Attention")
    return Layer(
        attention=decoders.attention(
            part.query_dense,
            part.key_dense,
            part.value_dense,
            part.output_dense,
            scale=part._inv_norm_factor,
            rotary=_rotary(part, long=long),
        ),
        attention_norm=decoders.rms_norm(layer.pre_attention_layernorm, "Phi3LayerNorm"),
        feed_forward=decoders.gated_feed_forward(
            gate=layer.feedforward_gate_dense,
            up=layer.feedforward_intermediate_dense,
            down=layer.feedforward_output_dense,
            activation=hub.activation(layer),
        ),
        feed_forward_norm=decoders.rms_norm(layer.post_attention_layernorm, "Phi3LayerNorm"),
        norm_placement="pre",
    )


def _rotary(part: Any, *, long: bool) -> Rotary:
    head_dim = int(part.query_dense.kernel.shape[-1])
    layer = part.rotary_embedding_layer
    if part.rope_scaling_type is None:
        return decoders.rotary(layer, "RotaryEmbedding", head_dim)
    if part.rope_scaling_type != "su":
        raise NotRecognised(
            f"The layer '{part.path}' scales its rotary embedding by '{part.rope_scaling_type}', and 'su' was expected."
        )
    divisors = layer.inverese_freq_long_factor if long else layer.inverese_freq_short_factor  # KerasHub's spelling
    return decoders.scaled_rotary(layer, "Phi3SuScaledRotaryEmbedding", head_dim, divisors)
