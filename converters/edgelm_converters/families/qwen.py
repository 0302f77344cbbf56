"""Qwen 2 and 2.5, as KerasHub builds them: ``QwenCausalLM`` and ``QwenBackbone``.

A Llama with biases on query, key and value. The small ones (0.5B to 3B) score with the token embedding, the larger ones have
a table of their own. Where a sliding window is on, every layer has it.

Yang et al. 2024, https://arxiv.org/abs/2412.15115.
"""

from __future__ import annotations

from typing import Any

from edgelm_converters.families import keras_hub_decoders as decoders
from edgelm_converters.families import keras_hub_layers as hub
from edgelm_converters.spec import Layer, TransformerSpec

__all__ = ["read"]


def read(model: Any, sequence_length: int | None) -> TransformerSpec:
    """Return a Qwen 2 or 2.5 of KerasHub as a spec.

    Nothing in KerasHub's model bounds its length.

    Args:
        model: A ``keras.Model``.
        sequence_length: Not used.

    Raises:
        NotRecognised: It is not such a model, or one that the spec cannot hold.
    """
    del sequence_length
    backbone = decoders.backbone_of(model, ("QwenCausalLM",), ("QwenBackbone",))
    return decoders.language_model(
        "qwen",
        model,
        backbone,
        map(_layer, backbone.transformer_layers),
        final_norm=decoders.rms_norm(backbone.layer_norm, "QwenLayerNorm"),
        max_length=None,
    )


def _layer(layer: Any) -> Layer:
    decoders.expect_class(layer, "QwenTransformerDecoder")
    part = decoders.expect_class(layer._self_attention_layer, "QwenAttention")
    head_dim = int(part._query_dense.kernel.shape[-1])
    return Layer(
        attention=decoders.attention(
            part._query_dense,
            part._key_dense,
            part._value_dense,
            part._output_dense,
            scale=part._inv_norm_factor,
            rotary=decoders.rotary(part.rotary_embedding_layer, "RotaryEmbedding", head_dim),
            # On JAX and torch, KerasHub 0.32 computes fused attention here and leaves the window out; the model has it.
            window=part.sliding_window_size if part.use_sliding_window_attention else None,
        ),
        attention_norm=decoders.rms_norm(layer._self_attention_layernorm, "QwenLayerNorm"),
        feed_forward=decoders.gated_feed_forward(
            gate=layer._feedforward_gate_dense,
            up=layer._feedforward_intermediate_dense,
            down=layer._feedforward_output_dense,
            activation=hub.activation(layer),
        ),
        feed_forward_norm=decoders.rms_norm(layer._feedforward_layernorm, "QwenLayerNorm"),
        norm_placement="pre",
    )
