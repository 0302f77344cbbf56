"""ALBERT, as KerasHub builds it: ``AlbertTextClassifier`` and ``AlbertBackbone``.

Token, position and segment embeddings of the width E are summed, normalised and projected to the model's width D. A few
groups of post-norm encoder layers (tanh approximation of GELU) are each run several times over: the layers of a run
share their weights, and here they share their arrays. The pooled output is the first token through a dense layer with
tanh. Norms use an epsilon of 1e-12.

Lan et al. 2019, https://arxiv.org/abs/1909.11942.
"""

from __future__ import annotations

from typing import Any

from edgelm_converters.families import keras_hub_layers as hub
from edgelm_converters.spec import Embeddings, Head, Layer, Stack, TransformerSpec

__all__ = ["read"]


def read(model: Any, sequence_length: int | None) -> TransformerSpec:
    """Return an ALBERT of KerasHub as a spec.

    A classifier gives its classes. A bare backbone has two outputs, of which the spec takes ``pooled_output``,
    ``(D,)``: the vector that its classifier works on.

    Args:
        model: A ``keras.Model``.
        sequence_length: The most tokens that the user wants, or None.

    Raises:
        NotRecognised: It is not such a model, or one that the spec cannot hold.
        ModelError: It has fewer positions than `sequence_length`.
    """
    is_backbone = hub.class_name(model, ("AlbertTextClassifier", "AlbertBackbone")) == "AlbertBackbone"
    backbone = model if is_backbone else model.backbone
    hub.class_name(backbone, ("AlbertBackbone",))
    positions = hub.position_table(backbone.position_embedding)
    pooled = hub.head_layer(backbone.pooled_dense)
    return TransformerSpec(
        family="albert",
        name=model.name,
        embeddings=Embeddings(
            token=hub.embedding(backbone.token_embedding),
            position=positions,
            segment=hub.embedding(backbone.segment_embedding),
            norm=hub.norm(backbone.embeddings_layer_norm),
            projection=hub.dense(backbone.embeddings_projection),
        ),
        encoder=Stack(_repeated(backbone)),
        head=Head("first", (pooled,), "embedding") if is_backbone else hub.class_head((pooled,), model.output_dense),
        mask="input",
        token_input="token_ids",  # noqa: S106 - the name of an input
        mask_input="padding_mask",
        segment_input="segment_ids",
        output_name="pooled_output" if is_backbone else model.output_names[0],
        max_length=hub.check_length(sequence_length, positions),
    )


def _repeated(backbone: Any) -> tuple[Layer, ...]:
    """Return the layers in the order in which they run; the same object each time a layer comes again.

    ``num_layers`` counts runs of a group, not layers: with several layers in a group there are more layers than that.
    """
    runs = backbone.num_layers // backbone.num_groups
    groups = [[hub.encoder_layer(layer) for layer in group] for group in backbone.transformer_layers]
    return tuple(layer for group in groups for _ in range(runs) for layer in group)
