"""Qwen 3, as KerasHub builds it: ``Qwen3CausalLM`` and ``Qwen3Backbone``.

A Llama whose heads have a width of their own, and whose queries and keys are normalised head by head before they are turned.
No biases. The small ones score with the token embedding. A sliding window, where there is one, is every layer's.

Yang et al. 2025, https://arxiv.org/abs/2505.09388.
"""

from __future__ import annotations

from typing import Any

from edgelm_converters.families import keras_hub_decoders as decoders
from edgelm_converters.families import keras_hub_layers as hub
from edgelm_converters.spec import Layer, TransformerSpec

__all__ = ["read"]


def read(model: Any, sequence_length: int | None) -> TransformerSpec:
    """Return a Qwen 3 of KerasHub as a spec.

    Nothing in KerasHub's model bounds its length.

    Args:
        model: A ``keras.Model``.
        sequence_length: Not used.

    Raises:
        NotRecognised: It is not such a model, or one that the spec cannot hold.
    """
    del sequence_length
    backbone = decoders.backbone_of(model, ("Qwen3CausalLM",), ("Qwen3Backbone",))
    return decoders.language_model(
        "qwen3",
        model,
        backbone,
        map(_layer, backbone.transformer_layers),
        final_norm=decoders.rms_norm(backbone.layer_norm, "Qwen3LayerNorm"),
        max_length=None,
    )


def _layer(layer: Any) -> Layer:
    decoders.expect_class(layer, "Qwen3TransformerDecoder")
    part = decoders.expect_class(layer._self_attention_layer, "Qwen3Attention")
    head_dim = int(part._query_dense.kernel.shape[-1])
    return Layer(
        attention=decoders.attention(
            part._query_dense,
            part._key_dense,
            part._value_dense,
            part._output_dense,
            scale=part._inv_norm_factor,
            rotary=decoders.rotary(part.rotary_embedding_layer, "RotaryEmbedding", head_dim),
            query_norm=decoders.rms_norm(part._query_dense_layer_norm, "Qwen3LayerNorm"),
            key_norm=decoders.rms_norm(part._key_dense_layer_norm, "Qwen3LayerNorm"),
            # 0 is none, too. On JAX and torch, KerasHub 0.32 computes fused attention here and leaves the window out; the
            # model has it.
            window=part.sliding_window_size or None,
        ),
        attention_norm=decoders.rms_norm(layer._self_attention_layernorm, "Qwen3LayerNorm"),
        feed_forward=decoders.gated_feed_forward(
            gate=layer._feedforward_gate_dense,
            up=layer._feedforward_intermediate_dense,
            down=layer._feedforward_output_dense,
            activation=hub.activation(layer),
        ),
        feed_forward_norm=decoders.rms_norm(layer._feedforward_layernorm, "Qwen3LayerNorm"),
        norm_placement="pre",
    )
