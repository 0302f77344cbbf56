"""What an encoder-decoder reads, as ONNX nodes: tokens or frames of audio become keys and values of cross-attention.

Dimensions: ``B`` sources, ``S`` source tokens (two frames of audio make one), ``D`` width, ``H`` heads, ``K`` key/value heads,
``A`` width of a head, ``M`` mel bands. Activations are rows ``(S*B, D)``, as in every encoder
(`edgelm_converters.emit.onnx_blocks`).

Tables are stored as the decoder's are, so that embeddings which both sides share are one. Kernels are an encoder's: int8 is a
product of integers with one scale for all activations, two to three times as fast as the decoder's blocks where a source has
some dozens of tokens (`edgelm_converters.emit.onnx_decoder_weights` has both measured).
"""

from __future__ import annotations

import numpy as np

from edgelm_converters.emit.onnx_blocks import Flow, encode_layer, normalise, shared_kernels
from edgelm_converters.emit.onnx_decoder_weights import DecoderWeights
from edgelm_converters.emit.onnx_graph import Graph
from edgelm_converters.emit.onnx_weights import BOOL, INT32, Weights
from edgelm_converters.recipes import Recipe
from edgelm_converters.spec import Attention, AudioFrontEnd, Embeddings, Float32, Source, TransformerSpec

__all__ = ["encode_source"]


def encode_source(
    graph: Graph, recipe: Recipe, spec: TransformerSpec, source: Source, names: tuple[tuple[str, str], str, str]
) -> None:
    """Build the graph of an encoder, up to the keys and values that the decoder asks.

    Args:
        graph: Empty; its inputs are `Source.input` and, of tokens, the mask.
        recipe: How weights are stored.
        spec: The model.
        source: What it reads.
        names: Of the keys and values (``{i}`` stands for the layer), of the mask, and of what the decoder gets for it.
    """
    crosses, mask, seen = names
    tables = DecoderWeights(graph, recipe)
    weights = Weights(graph, recipe, shared_kernels(spec))
    if source.audio is not None:
        flow, x = _hear(weights, tables, source.audio, source.input)
    else:
        flow = _read(weights, source, mask)
        x = _embed(flow, tables, source.embeddings) if source.embeddings is not None else ""
        graph.rename(graph.node("Cast", flow.real or "", to=INT32), seen)
    for layer in spec.encoder.layers:
        x = encode_layer(flow, layer, x, first_only=False)
    if spec.encoder.final_norm is not None:
        x = normalise(graph, spec.encoder.final_norm, x, "encoder/final_norm")
    for index, layer in enumerate(spec.decoder.layers):
        attention = layer.cross_attention
        if attention is None:
            continue
        for linear, name in zip((attention.key, attention.value), crosses, strict=True):
            heads = _heads(flow, attention, weights.linear(x, linear))
            graph.rename(graph.node("Transpose", heads, perm=(1, 2, 0, 3)), name.replace("{i}", str(index)))


def _heads(flow: Flow, attention: Attention, x: str) -> str:
    """Return keys or values ``(S*B, K*A)`` as ``(S, B, H, A)``, each as often as heads share it."""
    graph, times = flow.graph, attention.heads // attention.kv_heads
    if times == 1:
        return flow.split(x, -1, attention.heads, attention.head_dim)
    apart = flow.split(x, -1, attention.kv_heads, 1, attention.head_dim)
    repeated = graph.node("Expand", apart, graph.constant([1, 1, 1, times, 1]))
    return flow.split(repeated, -1, attention.heads, attention.head_dim)


def _read(weights: Weights, source: Source, mask: str) -> Flow:
    """Return the flow of source tokens, those that count marked: by the mask, and by the model where id 0 is padding."""
    graph = weights.graph
    tokens = graph.node("Transpose", source.input, perm=(1, 0))
    real = graph.node("Cast", mask, to=BOOL)
    if source.mask == "nonzero":
        real = graph.node("And", real, graph.node("Cast", source.input, to=BOOL))
    length, batch = (graph.node("Shape", tokens, start=axis, end=axis + 1) for axis in (0, 1))
    return Flow(weights=weights, tokens=tokens, segments=None, length=length, batch=batch, real=real)


def _embed(flow: Flow, tables: DecoderWeights, parts: Embeddings) -> str:
    """Return the embedded tokens as rows ``(S*B, D)``."""
    graph = flow.graph
    ids = graph.node("Reshape", flow.tokens, graph.constant([-1]))
    x = tables.rows(parts.token, "embeddings/token", ids, factor=parts.token_scale, least_bits=parts.least_bits)
    if parts.position is not None:
        x = _add_positions(flow, tables, parts.position, parts.least_bits, x)
    if parts.norm is not None:
        x = normalise(graph, parts.norm, x, "source/norm")
    return x if parts.projection is None else flow.weights.linear(x, parts.projection)


def _add_positions(flow: Flow, tables: DecoderWeights, table: Float32, least_bits: int, x: str) -> str:
    """Return rows `x` ``(S*B, E)`` with the first S rows of a table added."""
    graph, width = flow.graph, table.shape[1]
    zero, one = (graph.constant(np.array(value)) for value in (0, 1))
    places = graph.node("Range", zero, graph.node("Squeeze", flow.length), one)
    rows = tables.rows(table, "source/position", places, least_bits=least_bits)
    x = graph.node("Add", flow.split(x, -1, width), graph.node("Unsqueeze", rows, graph.constant([1])))
    return graph.node("Reshape", x, graph.constant([-1, width]))


def _hear(weights: Weights, tables: DecoderWeights, audio: AudioFrontEnd, frames: str) -> tuple[Flow, str]:
    """Return the flow of frames float32 ``(B, n, M)``, and the rows that two convolutions make of them."""
    graph = weights.graph
    x = graph.node("Transpose", frames, perm=(0, 2, 1))
    for name, kernel, bias, stride in zip(audio.name, audio.kernels, audio.biases, (1, 2), strict=True):
        turned = graph.tensor(np.ascontiguousarray(kernel.transpose(2, 1, 0)), f"{name}/kernel", kernel, form="conv")
        x = graph.node(
            "Conv", x, turned, graph.tensor(bias, f"{name}/bias"), kernel_shape=(3,), pads=(1, 1), strides=(stride,)
        )
        x = graph.node("Gelu", x)
    x = graph.node("Transpose", x, perm=(2, 0, 1))  # (S, B, D)
    length, batch = (graph.node("Shape", x, start=axis, end=axis + 1) for axis in (0, 1))
    flow = Flow(weights=weights, tokens="", segments=None, length=length, batch=batch, real=None)
    return flow, _add_positions(flow, tables, audio.position, 8, x)
