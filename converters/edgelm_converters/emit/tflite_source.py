"""What an encoder-decoder reads, as a TFLite graph: a source becomes the keys and values that the decoder attends to.

Dimensions: ``n`` tokens or frames of the source, ``S`` positions of it in the encoder (n, or half of the frames), ``M`` mel
bands, ``D`` width, ``K`` key/value heads, ``A`` width of a head. Activations are ``(S, D)``; batch 1.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from edgelm_converters.emit.tflite_blocks import activated, apply_norm
from edgelm_converters.emit.tflite_encoder import Mask, by_heads, embedded, encoder_layer, padding_mask
from edgelm_converters.emit.tflite_graph import Graph, Value
from edgelm_converters.emit.tflite_weights import Store, plain
from edgelm_converters.spec import AudioFrontEnd, Float32, Linear, Source, TransformerSpec

__all__ = ["SOURCE_BIAS", "SOURCE_KEYS", "SOURCE_VALUES", "build_source", "mask_input", "source_positions"]

SOURCE_KEYS, SOURCE_VALUES, SOURCE_BIAS = "source_k_{i}", "source_v_{i}", "source_bias"
# Of what hears, 0.5 million of Whisper tiny's 37 million weights: int8 is as fast as the layers behind are, and 4 bits would
# save nothing that shows.
_AUDIO_BITS: Literal[8] = 8


def source_positions(source: Source, count: int) -> int:
    """Return the positions ``S`` that so many tokens or frames have in the encoder."""
    return count if source.audio is None else -(-count // 2)


def mask_input(source: Source) -> str | None:
    """Return the name of the input that tells which tokens of a source count; None where the source tells it, or is audio.

    A model that takes no mask has one here: a source of any length is filled up to the graph's, and that must not be seen.
    """
    if source.audio is not None or source.mask == "nonzero":
        return None
    return source.mask_input or "source_mask"


def build_source(graph: Graph, store: Store, spec: TransformerSpec, count: int, counts: tuple[int, ...]) -> None:
    """Add an encoder to an empty graph, with its inputs and outputs.

    Inputs are the source's: ids int32 ``(1, n)``, with a mask int32 ``(1, n)`` where `mask_input` names one, or frames float32
    ``(1, n, M)``. Outputs are ``source_k_0``, ``source_v_0`` and so on, float32 ``(1, K, S, A)``: the source's keys and values
    for every layer of the decoder, computed once for all tokens of all answers. Of tokens there is also ``source_bias``,
    float32 ``(1, 1, 1, S)``: what a decoder adds to the scores of them, which hides padding.

    Args:
        graph: The graph, named as its signature.
        store: Constants that it shares with the other graphs of the file.
        spec: An encoder-decoder.
        count: Tokens or frames.
        counts: Tokens or frames of each such graph in the file, ascending.
    """
    source = spec.source
    if source is None:
        raise ValueError(f"The model '{spec.name}' reads no source.")
    x, mask = _read(graph, store, source, count, counts)
    for layer in spec.encoder.layers:
        x = encoder_layer(graph, store, layer, x, mask, first_only=False, shared=False)
    if mask.padding is not None:
        graph.output(SOURCE_BIAS, mask.padding)
    if spec.encoder.final_norm is not None:
        x = apply_norm(graph, spec.encoder.final_norm, x)
    for index, layer in enumerate(spec.decoder.layers):
        attention = layer.cross_attention
        if attention is None:
            raise ValueError(f"Layer {index} of the decoder of '{spec.name}' has no cross-attention.")
        both = store.joined(graph, (plain(attention.key), plain(attention.value)), x)
        keys, values = by_heads(graph, both, (attention.kv_heads, attention.kv_heads))
        graph.output(SOURCE_KEYS.format(i=index), keys)
        graph.output(SOURCE_VALUES.format(i=index), values)


def _read(graph: Graph, store: Store, source: Source, count: int, counts: tuple[int, ...]) -> tuple[Value, Mask]:
    """Return what the first layer takes, ``(S, D)``, and where its padding is."""
    if source.audio is not None:
        frames = graph.input(source.input, (1, count, source.audio.kernels[0].shape[1]), "float32")
        return _heard(graph, store, source.audio, frames, tuple(source_positions(source, n) for n in counts)), Mask(
            None, None
        )
    if source.embeddings is None:
        raise ValueError("A source has either embeddings or an audio front end.")
    tokens = graph.input(source.input, (1, count), "int32")
    name = mask_input(source)
    counted = tokens if name is None else graph.input(name, (1, count), "int32")
    return embedded(graph, store, source.embeddings, tokens, None, counts), padding_mask(graph, counted)


def _heard(graph: Graph, store: Store, audio: AudioFrontEnd, frames: Value, lengths: tuple[int, ...]) -> Value:
    """Return ``(S, D)`` of frames ``(1, n, M)``.

    A convolution is one product over each run of three rows side by side, in the form that the recipe gives every kernel: of a
    CONV_2D there would be no int4, and its copy of the rows is the same.
    """
    x = graph.reshape(frames, frames.shape[1:])
    for which, rows in enumerate((_threes, _every_other_threes)):
        linear = _as_linear(store, audio.name[which], audio.kernels[which], audio.biases[which])
        x = activated(graph, store, plain(linear), rows(graph, x), "gelu")
    return store.plus_rows(graph, x, audio.position, lengths, least_bits=_AUDIO_BITS)


def _as_linear(store: Store, name: str, kernel: Float32, bias: Float32) -> Linear:
    """Return a convolution as a linear layer: the same object at every call, as what is stored goes by its array's id."""

    def make() -> Linear:
        return Linear(name, kernel.reshape(-1, kernel.shape[2]), bias, least_bits=_AUDIO_BITS)

    return store.weights.once(("convolution", id(kernel)), make)


def _threes(graph: Graph, x: Value) -> Value:
    """Return each row with its neighbours beside it, ``(n, 3 * M)``; zeros beyond both ends."""
    count, width = x.shape
    padded = graph.concatenate([_zeros(graph, 1, width), x, _zeros(graph, 1, width)], 0)
    return graph.concatenate([graph.slice(padded, (tap, 0), (count, width)) for tap in range(3)], 1)


def _every_other_threes(graph: Graph, x: Value) -> Value:
    """Return every other row with its neighbours, ``(ceil(n / 2), 3 * M)``: rows taken in pairs, so that no step skips one."""
    count, width = x.shape
    half = -(-count // 2)
    padded = graph.concatenate([_zeros(graph, 1, width), x, _zeros(graph, 2 * half + 1 - count, width)], 0)
    pairs = graph.reshape(padded, (half + 1, 2 * width))
    left, right = graph.slice(pairs, (0, 0), (half, 2 * width)), graph.slice(pairs, (1, 0), (half, width))
    return graph.concatenate([left, right], 1)


def _zeros(graph: Graph, rows: int, width: int) -> Value:
    return graph.floats(np.zeros((rows, width)))
