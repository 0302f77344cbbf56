"""GPT-2, as KerasHub builds it: ``GPT2CausalLM`` and ``GPT2Backbone``.

Token and position embeddings are summed; then come pre-norm layers with biases everywhere and the tanh approximation of
GELU, and a last norm. The token embedding scores.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

from __future__ import annotations

from typing import Any

from edgelm_converters.families import keras_hub_decoders as decoders
from edgelm_converters.families import keras_hub_layers as hub
from edgelm_converters.spec import TransformerSpec

__all__ = ["read"]


def read(model: Any, sequence_length: int | None) -> TransformerSpec:
    """Return a GPT-2 of KerasHub as a spec.

    Args:
        model: A ``keras.Model``.
        sequence_length: The most tokens that the user wants, or None.

    Raises:
        NotRecognised: It is not such a model, or one that the spec cannot hold.
        ModelError: It has fewer positions than `sequence_length`.
    """
    backbone = decoders.backbone_of(model, ("GPT2CausalLM",), ("GPT2Backbone",))
    positions = hub.position_table(decoders.expect_class(backbone.position_embedding, "PositionEmbedding"))
    return decoders.language_model(
        "gpt2",
        model,
        backbone,
        map(decoders.transformer_decoder, backbone.transformer_layers),
        final_norm=hub.norm(backbone.layer_norm),
        position=positions,
        max_length=hub.check_length(sequence_length, positions),
    )
