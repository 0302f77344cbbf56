"""Mistral, as KerasHub builds it: ``MistralCausalLM`` and ``MistralBackbone``.

A Llama whose layers all have a sliding window, and whose heads may have a width of their own (Mistral NeMo). The head has its
own table.

Jiang et al. 2023, https://arxiv.org/abs/2310.06825.
"""

from __future__ import annotations

from typing import Any

from edgelm_converters.families import keras_hub_decoders as decoders
from edgelm_converters.families import keras_hub_layers as hub
from edgelm_converters.spec import Layer, TransformerSpec

__all__ = ["read"]


def read(model: Any, sequence_length: int | None) -> TransformerSpec:
    """Return a Mistral of KerasHub as a spec.

    Nothing in KerasHub's model bounds its length.

    Args:
        model: A ``keras.Model``.
        sequence_length: Not used.

    Raises:
        NotRecognised: It is not such a model, or one that the spec cannot hold.
    """
    del sequence_length
    backbone = decoders.backbone_of(model, ("MistralCausalLM",), ("MistralBackbone",))
    return decoders.language_model(
        "mistral",
        model,
        backbone,
        map(_layer, backbone.transformer_layers),
        final_norm=decoders.rms_norm(backbone.layer_norm, "MistralLayerNormalization"),
        max_length=None,
    )


def _layer(layer: Any) -> Layer:
    decoders.expect_class(layer, "MistralTransformerDecoder")
    part = decoders.expect_class(layer._self_attention_layer, "CachedMistralAttention")
    head_dim = int(part._query_dense.kernel.shape[-1])
    return Layer(
        attention=decoders.attention(
            part._query_dense,
            part._key_dense,
            part._value_dense,
            part._output_dense,
            scale=part._inv_norm_factor,
            rotary=decoders.rotary(part.rotary_embedding_layer, "RotaryEmbedding", head_dim),
            window=layer.sliding_window,  # the block makes the mask: position i sees j where i < j + window
        ),
        attention_norm=decoders.rms_norm(layer._self_attention_layernorm, "MistralLayerNormalization"),
        feed_forward=decoders.gated_feed_forward(
            gate=layer._feedforward_gate_dense,
            up=layer._feedforward_intermediate_dense,
            down=layer._feedforward_output_dense,
            activation=hub.activation(layer),
        ),
        feed_forward_norm=decoders.rms_norm(layer._feedforward_layernorm, "MistralLayerNormalization"),
        norm_placement="pre",
    )
