"""RoBERTa, as KerasHub builds it: ``RobertaTextClassifier`` and ``RobertaBackbone``.

Token and position embeddings (no segments) are summed and normalised; then come post-norm encoder layers with the exact
GELU. The classifier takes the first token ``<s>`` through a dense layer with tanh. Norms use an epsilon of 1e-5.

Positions count from 0, whatever is padding: the original's offset of two rows is not in KerasHub's table.

Liu et al. 2019, https://arxiv.org/abs/1907.11692.
"""

from __future__ import annotations

from typing import Any

from edgelm_converters.families import keras_hub_layers as hub
from edgelm_converters.spec import Embeddings, Head, TransformerSpec

__all__ = ["read"]


def read(model: Any, sequence_length: int | None) -> TransformerSpec:
    """Return a RoBERTa of KerasHub as a spec.

    A classifier gives its classes; a bare backbone its only output, the sequence ``(n, D)``.

    Args:
        model: A ``keras.Model``.
        sequence_length: The most tokens that the user wants, or None.

    Raises:
        NotRecognised: It is not such a model, or one that the spec cannot hold.
        ModelError: It has fewer positions than `sequence_length`.
    """
    is_backbone = hub.class_name(model, ("RobertaTextClassifier", "RobertaBackbone")) == "RobertaBackbone"
    backbone = model if is_backbone else model.backbone
    hub.class_name(backbone, ("RobertaBackbone",))
    positions = hub.position_table(backbone.embeddings.position_embedding)
    head = Head("none", (), "raw")
    if not is_backbone:
        head = hub.class_head((hub.head_layer(model.pooled_dense),), model.output_dense)
    return TransformerSpec(
        family="roberta",
        name=model.name,
        embeddings=Embeddings(
            token=hub.embedding(backbone.embeddings.token_embedding),
            position=positions,
            norm=hub.norm(backbone.embeddings_layer_norm),
        ),
        encoder=hub.stack(backbone.transformer_layers),
        head=head,
        mask="input",
        token_input="token_ids",  # noqa: S106 - the name of an input
        mask_input="padding_mask",
        output_name="sequence_output" if is_backbone else model.output_names[0],
        max_length=hub.check_length(sequence_length, positions),
    )
