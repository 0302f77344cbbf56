"""BERT, as KerasHub builds it: ``BertTextClassifier``, ``BertTextEmbedder`` and ``BertBackbone``.

Token, position and segment embeddings are summed and normalised; then come post-norm encoder layers with the tanh
approximation of GELU. The pooled output is the first token through a dense layer with tanh. Norms use an epsilon of
1e-12.

Devlin et al. 2018, https://arxiv.org/abs/1810.04805.
"""

from __future__ import annotations

from typing import Any, Literal

from edgelm_converters.families import NotRecognised
from edgelm_converters.families import keras_hub_layers as hub
from edgelm_converters.spec import Embeddings, Head, TransformerSpec

__all__ = ["read"]

_POOLING: dict[str, Literal["first", "mean", "max"]] = {"cls": "first", "mean": "mean", "max": "max"}


def read(model: Any, sequence_length: int | None) -> TransformerSpec:
    """Return a BERT of KerasHub as a spec.

    A classifier gives its classes, an embedder its pooled vector. A bare backbone has two outputs, of which the spec
    takes ``pooled_output``, ``(D,)``: the vector that its classifier works on.

    Args:
        model: A ``keras.Model``.
        sequence_length: The most tokens that the user wants, or None.

    Raises:
        NotRecognised: It is not such a model, or one that the spec cannot hold.
        ModelError: It has fewer positions than `sequence_length`.
    """
    kind = hub.class_name(model, ("BertTextClassifier", "BertTextEmbedder", "BertBackbone"))
    backbone = model if kind == "BertBackbone" else model.backbone
    hub.class_name(backbone, ("BertBackbone",))
    positions = hub.position_table(backbone.position_embedding)
    return TransformerSpec(
        family="bert",
        name=model.name,
        embeddings=Embeddings(
            token=hub.embedding(backbone.token_embedding),
            position=positions,
            segment=hub.embedding(backbone.segment_embedding),
            norm=hub.norm(backbone.embeddings_layer_norm),
        ),
        encoder=hub.stack(backbone.transformer_layers),
        head=_head(model, kind),
        mask="input",
        token_input="token_ids",  # noqa: S106 - the name of an input
        mask_input="padding_mask",
        segment_input="segment_ids",
        output_name="pooled_output" if kind == "BertBackbone" else model.output_names[0],
        max_length=hub.check_length(sequence_length, positions),
    )


def _head(model: Any, kind: str) -> Head:
    if kind == "BertBackbone":
        return Head("first", (hub.head_layer(model.pooled_dense),), "embedding")
    if kind == "BertTextClassifier":
        return hub.class_head((hub.head_layer(model.backbone.pooled_dense),), model.output_dense)
    if model.normalize:
        raise NotRecognised(
            "This BertTextEmbedder scales its vectors to length 1, which the spec does not hold. Build it with "
            "normalize=False and scale the vectors on the device."
        )
    return Head(_POOLING[model.pooling_mode], (), "embedding")
