"""Reading KerasHub's encoder-decoders: what T5, BART and Whisper share.

All three have one width, and a decoder whose tokens are scored by the table that looks them up. A decoder layer is
KerasHub's ``TransformerDecoder`` (BART), a subclass of it (Whisper), or T5's own.

Masks. The source's padding mask is an input, and hides padding from the encoder and from the decoder's cross-attention
alike. The decoder's own padding mask is none in the spec: the decoder is causal, so a token sees nothing behind it, and
padding stands behind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from edgelm_converters.families import NotRecognised
from edgelm_converters.families import keras_hub_layers as hub
from edgelm_converters.families.keras_hub_decoders import expect_class, token_head
from edgelm_converters.spec import Embeddings, Head, Layer, Source, Stack, TransformerSpec

__all__ = [
    "DECODER_TOKENS",
    "SOURCE_MASK",
    "SOURCE_TOKENS",
    "decoder_layers",
    "encoder_layers",
    "shared_table",
    "spec_of",
]

# Names of KerasHub's inputs.
SOURCE_TOKENS = "encoder_token_ids"
SOURCE_MASK = "encoder_padding_mask"
DECODER_TOKENS = "decoder_token_ids"


def encoder_layers(layers: Iterable[Any], name: str, attention: str, packages: Iterable[str]) -> tuple[Layer, ...]:
    """Return KerasHub's encoder blocks.

    Args:
        layers: In order.
        name: Their class: ``"TransformerEncoder"``, or a subclass with sublayers of the same names.
        attention: The class of their attention.
        packages: Where that class may be.

    Raises:
        NotRecognised: A layer is of another class.
    """
    found = []
    for layer in layers:
        expect_class(layer, name)
        expect_class(layer._self_attention_layer, attention, packages)
        found.append(hub.encoder_layer(layer))
    return tuple(found)


def decoder_layers(layers: Iterable[Any], name: str, attention: str) -> tuple[Layer, ...]:
    """Return KerasHub's decoder blocks with cross-attention.

    Args:
        layers: In order.
        name: Their class: ``"TransformerDecoder"``, or a subclass with sublayers of the same names.
        attention: The class of both their attentions.

    Raises:
        NotRecognised: A layer is of another class, or attends to no encoder.
    """
    found = []
    for layer in layers:
        expect_class(layer, name)
        if layer._cross_attention_layer is None:
            raise NotRecognised(f"The layer '{layer.path}' attends to no encoder, and a decoder of one was expected.")
        for sublayer in (layer._self_attention_layer, layer._cross_attention_layer):
            expect_class(sublayer, attention)
        piece = hub.encoder_layer(layer)  # its other sublayers have the names of a TransformerEncoder's
        found.append(
            dataclasses.replace(
                piece,
                attention=dataclasses.replace(piece.attention, causal=True),
                cross_attention=hub.attention(layer._cross_attention_layer),
                cross_attention_norm=hub.norm(layer._cross_attention_layer_norm),
            )
        )
    return tuple(found)


def shared_table(backbone: Any) -> Any:
    """Return the embedding of a backbone that looks tokens up and scores them.

    Raises:
        NotRecognised: It is no ``ReversibleEmbedding``.
    """
    return expect_class(backbone.token_embedding, "ReversibleEmbedding", ("keras", *hub.PACKAGES))


def spec_of(
    family: str,
    model: Any,
    embedding: Any,
    *,
    source: Source,
    embeddings: Embeddings,
    encoder: Stack,
    decoder: Stack,
    max_length: int | None,
) -> TransformerSpec:
    """Return the spec of an encoder-decoder of KerasHub.

    Args:
        family: The reader's name.
        model: The task, or the bare backbone.
        embedding: The layer that scores tokens, as `shared_table` gives it.
        source: What the encoder reads.
        embeddings: The decoder's, with the table of `embedding`.
        encoder: Its layers.
        decoder: Its layers.
        max_length: The most tokens of an answer; None where nothing bounds it.
    """
    return TransformerSpec(
        family=family,
        name=model.name,
        embeddings=embeddings,
        encoder=encoder,
        decoder=decoder,
        head=Head("none", (), "logits", tokens=token_head(embedding, embeddings.token)),
        mask="none",
        token_input=DECODER_TOKENS,
        output_name="logits",
        max_length=max_length,
        source=source,
    )
