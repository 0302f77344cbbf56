"""Whisper, as KerasHub builds it: ``WhisperBackbone``.

Two convolutions over log-mel frames, then positions, pre-norm layers with the exact GELU and a last norm, on both sides.
Projections have biases, but that of the keys has none. Audio has no padding mask: what is shorter than the model's 30
seconds is filled up with silence, which the model hears.

KerasHub 0.32 has no task that transcribes. The backbone's hidden states are scored as in the paper's own model, by the
decoder's token table: https://github.com/openai/whisper, model.py, ``TextDecoder.forward``.

Radford et al. 2022, https://arxiv.org/abs/2212.04356.
"""

from __future__ import annotations

from typing import Any

from edgelm_converters.families import NotRecognised
from edgelm_converters.families import keras_hub_layers as hub
from edgelm_converters.families import keras_hub_seq2seq as seq2seq
from edgelm_converters.families.keras_hub_decoders import backbone_of, expect_class
from edgelm_converters.spec import AudioFrontEnd, Embeddings, Source, Stack, TransformerSpec

__all__ = ["read"]

_ATTENTION = "WhisperCachedMultiHeadAttention"
_FRAMES = "encoder_features"


def read(model: Any, sequence_length: int | None) -> TransformerSpec:
    """Return a Whisper of KerasHub as a spec.

    Args:
        model: A ``keras.Model``.
        sequence_length: The most tokens that the user wants of an answer, or None.

    Raises:
        NotRecognised: It is not such a model, or one that the spec cannot hold.
        ModelError: It has fewer positions than `sequence_length`.
    """
    backbone = backbone_of(model, (), ("WhisperBackbone",))
    parts = expect_class(backbone.decoder_embeddings, "TokenAndPositionEmbedding")
    embedding = seq2seq.shared_table(backbone)
    table = hub.embedding(parts.token_embedding)
    positions = hub.position_table(expect_class(parts.position_embedding, "PositionEmbedding"))
    audio = _front_end(backbone)
    return seq2seq.spec_of(
        "whisper",
        model,
        embedding,
        source=Source(None, audio, "none", _FRAMES, max_length=2 * len(audio.position)),
        embeddings=Embeddings(table, positions),
        encoder=Stack(
            seq2seq.encoder_layers(backbone.encoder_transformer_layers, "WhisperEncoder", _ATTENTION, hub.PACKAGES),
            hub.norm(backbone.encoder_layer_norm),
        ),
        decoder=Stack(
            seq2seq.decoder_layers(backbone.decoder_transformer_layers, "WhisperDecoder", _ATTENTION),
            hub.norm(backbone.decoder_layer_norm),
        ),
        max_length=hub.check_length(sequence_length, positions),
    )


def _front_end(backbone: Any) -> AudioFrontEnd:
    """Return the two convolutions, of 3 frames each, the second by 2 frames, and their positions.

    Raises:
        NotRecognised: They are others.
    """
    first, second = backbone.encoder_conv_layer_1, backbone.encoder_conv_layer_2
    for layer, stride, padding in ((first, 1, "same"), (second, 2, "valid")):
        expect_class(layer, "Conv1D", ("keras",))
        hub.refuse_altered(layer)
        found = (
            tuple(layer.kernel_size),
            tuple(layer.strides),
            layer.padding,
            layer.groups,
            tuple(layer.dilation_rate),
        )
        if found != ((3,), (stride,), padding, 1, (1,)) or layer.bias is None:
            raise NotRecognised(
                f"The layer '{layer.path}' is another convolution than Whisper's, of 3 frames by {stride} with a bias."
            )
    return AudioFrontEnd(
        (first.path, second.path),
        (hub.array(first.kernel), hub.array(second.kernel)),
        (hub.array(first.bias), hub.array(second.bias)),
        hub.position_table(expect_class(backbone.encoder_position_embedding, "PositionEmbedding")),
    )
