"""Llama 2 and 3, as KerasHub builds them: ``LlamaCausalLM``, ``Llama3CausalLM`` and their backbones.

Pre-norm layers with RMS norms, grouped heads, a rotary embedding and a gated feed-forward with SiLU; no biases. The head has
its own table, or the token embedding's (Llama 3.2). Llama 3.1 and later stretch their low frequencies. SmolLM2, TinyLlama
and Vicuna are Llamas too.

Touvron et al. 2023, https://arxiv.org/abs/2307.09288; Grattafiori et al. 2024, https://arxiv.org/abs/2407.21783.
"""

from __future__ import annotations

from typing import Any

from edgelm_converters.families import keras_hub_decoders as decoders
from edgelm_converters.families import keras_hub_layers as hub
from edgelm_converters.spec import Layer, TransformerSpec

__all__ = ["read"]


def read(model: Any, sequence_length: int | None) -> TransformerSpec:
    """Return a Llama of KerasHub as a spec.

    Nothing in KerasHub's model bounds its length.

    Args:
        model: A ``keras.Model``.
        sequence_length: Not used.

    Raises:
        NotRecognised: It is not such a model, or one that the spec cannot hold.
    """
    del sequence_length
    backbone = decoders.backbone_of(model, ("LlamaCausalLM", "Llama3CausalLM"), ("LlamaBackbone", "Llama3Backbone"))
    return decoders.language_model(
        "llama",
        model,
        backbone,
        map(_layer, backbone.transformer_layers),
        final_norm=decoders.rms_norm(backbone.layer_norm, "LlamaLayerNorm"),
        max_length=None,
    )


def _layer(layer: Any) -> Layer:
    decoders.expect_class(layer, "LlamaTransformerDecoder")
    part = decoders.expect_class(layer._self_attention_layer, "LlamaAttention")
    head_dim = int(part._query_dense.kernel.shape[-1])
    return Layer(
        attention=decoders.attention(
            part._query_dense,
            part._key_dense,
            part._value_dense,
            part._output_dense,
            scale=part._inv_norm_factor,
            rotary=decoders.rotary(part.rotary_embedding_layer, "LlamaRotaryEmbedding", head_dim),
        ),
        attention_norm=decoders.rms_norm(layer._self_attention_layernorm, "LlamaLayerNorm"),
        feed_forward=decoders.gated_feed_forward(
            gate=layer._feedforward_gate_dense,
            up=layer._feedforward_intermediate_dense,
            down=layer._feedforward_output_dense,
            activation=hub.activation(layer),
        ),
        feed_forward_norm=decoders.rms_norm(layer._feedforward_layernorm, "LlamaLayerNorm"),
        norm_placement="pre",
    )
