"""BART, as KerasHub builds it: ``BartSeq2SeqLM`` and ``BartBackbone``.

One token table serves both sides and scores the answer; each side has learned positions and a norm behind the sum. Layers
are post-norm with biases everywhere and the exact GELU. A bare backbone gives hidden states; it is read as the language
model that ``BartSeq2SeqLM`` makes of it.

Positions count from 0: the original's offset of two rows is not in KerasHub's tables. The original's bias of the scores is
all zeros, and KerasHub has none.

Lewis et al. 2019, https://arxiv.org/abs/1910.13461.
"""

from __future__ import annotations

from typing import Any

from edgelm_converters.families import keras_hub_layers as hub
from edgelm_converters.families import keras_hub_seq2seq as seq2seq
from edgelm_converters.families.keras_hub_decoders import backbone_of, expect_class
from edgelm_converters.spec import Embeddings, Source, Stack, TransformerSpec

__all__ = ["read"]


def read(model: Any, sequence_length: int | None) -> TransformerSpec:
    """Return a BART of KerasHub as a spec.

    Args:
        model: A ``keras.Model``.
        sequence_length: The most tokens that the user wants of a source and of an answer, or None.

    Raises:
        NotRecognised: It is not such a model, or one that the spec cannot hold.
        ModelError: It has fewer positions than `sequence_length`.
    """
    backbone = backbone_of(model, ("BartSeq2SeqLM",), ("BartBackbone",))
    embedding = seq2seq.shared_table(backbone)
    table = hub.embedding(embedding)
    read_at = hub.position_table(expect_class(backbone.encoder_position_embedding, "PositionEmbedding"))
    written_at = hub.position_table(expect_class(backbone.decoder_position_embedding, "PositionEmbedding"))
    return seq2seq.spec_of(
        "bart",
        model,
        embedding,
        source=Source(
            Embeddings(table, read_at, norm=hub.norm(backbone.encoder_embeddings_layer_norm)),
            None,
            "input",
            seq2seq.SOURCE_TOKENS,
            mask_input=seq2seq.SOURCE_MASK,
            max_length=hub.check_length(sequence_length, read_at),
        ),
        embeddings=Embeddings(table, written_at, norm=hub.norm(backbone.decoder_embeddings_layer_norm)),
        encoder=Stack(
            seq2seq.encoder_layers(
                backbone.encoder_transformer_layers, "TransformerEncoder", "MultiHeadAttention", ("keras",)
            )
        ),
        decoder=Stack(
            seq2seq.decoder_layers(
                backbone.decoder_transformer_layers, "TransformerDecoder", "CachedMultiHeadAttention"
            )
        ),
        max_length=hub.check_length(sequence_length, written_at),
    )
