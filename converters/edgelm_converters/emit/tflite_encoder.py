"""An encoder as a TFLite graph, in the form that XNNPACK runs fastest.

Dimensions: ``n`` tokens, ``r`` rows that a layer computes (n, or 1 in a last layer of which only the first token is used),
``D`` width, ``H`` heads, ``K`` key/value heads, ``A`` width of a head. Activations are ``(n, D)``; batch 1.

What was measured for each choice (LiteRT 2.3, one AVX-512 core, int8 weights, 16 and 128 tokens, widths 128 to 384) stands
beside it. Everything after the gathering of embeddings is one XNNPACK partition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgelm_converters.emit.tflite_blocks import HIDDEN, activated, apply_norm, feed_forward, normalised
from edgelm_converters.emit.tflite_graph import Graph, Value
from edgelm_converters.emit.tflite_weights import Store, after_norm, plain, scaled
from edgelm_converters.relative import relative_bias
from edgelm_converters.spec import Attention, Embeddings, Head, Layer, Norm, RelativeBias, TransformerSpec

__all__ = ["Mask", "build_encoder", "by_heads", "embedded", "encoder_layer", "padding_mask"]


@dataclass(frozen=True)
class Mask:
    """Where the tokens are.

    Attributes:
        real: float32 ``(1, n)``, 1 where there is a token and 0 where there is padding; None where the model sees its padding.
        padding: What is added to the scores, ``(1, 1, 1, n)``: 0 or `HIDDEN`.
    """

    real: Value | None
    padding: Value | None


def build_encoder(graph: Graph, store: Store, spec: TransformerSpec, length: int, lengths: tuple[int, ...]) -> None:
    """Add a whole model for one sequence length to an empty graph, with its inputs and its output.

    Args:
        graph: The graph, named as its signature.
        store: Constants that it shares with the other graphs of the file.
        spec: The model.
        length: Tokens.
        lengths: Tokens of each graph in the file, ascending.
    """
    tokens = graph.input(spec.token_input, (1, length), "int32")
    given = graph.input(spec.mask_input, (1, length), "int32") if spec.mask_input is not None else None
    segments = graph.input(spec.segment_input, (1, length), "int32") if spec.segment_input is not None else None
    x = embedded(graph, store, spec.embeddings, tokens, segments, lengths)
    # XNNPACK has no int32: the cast is the one step of the mask that stays outside.
    counted = given if spec.mask == "input" else tokens if spec.mask == "nonzero" else None
    mask = padding_mask(graph, counted)
    for index, layer in enumerate(spec.encoder.layers):
        last = index == len(spec.encoder.layers) - 1
        first_only = last and spec.head.pooling == "first"
        x = encoder_layer(graph, store, layer, x, mask, first_only=first_only, shared=_shared(spec, index))
    if spec.encoder.final_norm is not None:
        x = apply_norm(graph, spec.encoder.final_norm, x)
    graph.output(spec.output_name, _head(graph, store, spec.head, x, mask))


def embedded(
    graph: Graph, store: Store, parts: Embeddings, tokens: Value, segments: Value | None, lengths: tuple[int, ...]
) -> Value:
    """Return the embeddings ``(n, D)`` of tokens int32 ``(1, n)``; `lengths` are those of all graphs of the file, ascending."""
    length = tokens.shape[1]
    # Ids in one dimension: the only kind that a GPU gathers.
    bits = parts.least_bits
    x = store.lookup(graph, graph.reshape(tokens, (length,)), parts.token, parts.token_scale, least_bits=bits)
    if segments is not None and parts.segment is not None:
        x = graph.add(x, store.lookup(graph, graph.reshape(segments, (length,)), parts.segment, least_bits=bits))
    if parts.position is not None:
        x = store.plus_rows(graph, x, parts.position, lengths, least_bits=bits)
    if parts.norm is not None:
        x = apply_norm(graph, parts.norm, x)
    return x if parts.projection is None else store.linear(graph, plain(parts.projection), x)


def padding_mask(graph: Graph, counted: Value | None) -> Mask:
    """Return the mask of an input int32 ``(1, n)``, 0 for padding, computed once for all layers.

    Adding it costs 1-2 % of the time; SELECT is no cheaper and needs bools.
    """
    if counted is None:
        return Mask(None, None)
    real = graph.minimum(graph.cast(counted, "float32"), graph.floats([[1.0]]))
    padding = graph.multiply(graph.subtract(graph.floats([[1.0]]), real), graph.floats([[HIDDEN]]))
    return Mask(real, graph.reshape(padding, (1, 1, 1, counted.shape[1])))


def _shared(spec: TransformerSpec, index: int) -> bool:
    """Return whether a layer has the attention weights of another one, as all of ALBERT's have."""
    mine = spec.encoder.layers[index].attention.query.kernel
    return any(layer.attention.query.kernel is mine for i, layer in enumerate(spec.encoder.layers) if i != index)


def encoder_layer(
    graph: Graph, store: Store, layer: Layer, x: Value, mask: Mask, *, first_only: bool, shared: bool
) -> Value:
    """Add a layer; with `first_only`, its output is the first token's row ``(1, D)``, which needs no other query.

    That is exact, and saves 40 % of the time of two layers, 20 % of four.
    """
    pre = layer.norm_placement == "pre"
    attention, block = layer.attention, layer.feed_forward
    seen = normalised(graph, layer.attention_norm, x) if pre else x
    norm = layer.attention_norm if pre else None
    mixed = _attention(graph, store, attention, seen, mask, norm, first_only=first_only, shared=shared)
    if first_only:
        x = _first_row(graph, x)
    x = graph.add(x, mixed)
    if pre:
        seen = normalised(graph, layer.feed_forward_norm, x)
        return graph.add(x, feed_forward(graph, store, block, seen, layer.feed_forward_norm))
    x = apply_norm(graph, layer.attention_norm, x)
    return apply_norm(graph, layer.feed_forward_norm, graph.add(x, feed_forward(graph, store, block, x, None)))


def _attention(
    graph: Graph,
    store: Store,
    attention: Attention,
    x: Value,
    mask: Mask,
    norm: Norm | None,
    *,
    first_only: bool,
    shared: bool,
) -> Value:
    """Return the attention's output, ``(r, D)``.

    The projections are one product where that is possible: the input is quantised once instead of three times (3 % of the
    time). The scale is inside the query's weights.
    """
    heads, groups, width = attention.heads, attention.kv_heads, attention.head_dim
    length = x.shape[0]
    rows = 1 if first_only else length
    query, key, value = (
        part if norm is None else after_norm(part, norm)
        for part in (
            scaled(plain(attention.query), attention.scale), plain(attention.key), plain(attention.value)
        )
    )  # fmt: skip
    if first_only and not shared:
        q = graph.reshape(store.linear(graph, query, _first_row(graph, x)), (1, heads, 1, width))
        k, v = by_heads(graph, store.joined(graph, (key, value), x), (groups, groups))
    else:
        together = store.joined(graph, (query, key, value), x)
        q, k, v = by_heads(graph, together, (heads, groups, groups))
        if first_only:  # of shared weights, a second copy only for this would weigh more than it saves
            q = graph.slice(q, (0, 0, 0, 0), (1, heads, 1, width))
    # Several query heads may share one key head: their rows follow each other under it, and nothing is repeated.
    scores = graph.batch_matmul(graph.reshape(q, (1, groups, heads // groups * rows, width)), k, adjoint_right=True)
    scores = graph.reshape(scores, (1, heads, rows, length))
    relative = None if attention.relative is None else _relative(graph, attention.relative, rows, length)
    for bias in (mask.padding, _causal(graph, rows, length) if attention.causal else None, relative):
        scores = scores if bias is None else graph.add(scores, bias)
    weights = graph.reshape(graph.softmax(scores), (1, groups, heads // groups * rows, length))
    mixed = graph.reshape(graph.batch_matmul(weights, v), (1, heads, rows, width))
    if rows > 1:
        mixed = graph.transpose(mixed, (0, 2, 1, 3))
    return store.linear(graph, plain(attention.output), graph.reshape(mixed, (rows, heads * width)))


def by_heads(graph: Graph, x: Value, counts: Sequence[int]) -> list[Value]:
    """Cut ``(n, sum(counts) * A)`` into one ``(1, count, n, A)`` for each count.

    One transpose for all, and a cut that is contiguous: as fast as any order tried, and up to 3 % faster than cutting first.
    """
    heads, length = sum(counts), x.shape[0]
    width = x.shape[1] // heads
    x = graph.transpose(graph.reshape(x, (length, heads, width)), (1, 0, 2))
    x = graph.reshape(x, (1, heads, length, width))
    if len(set(counts)) == 1:
        return graph.split(x, 1, len(counts))
    starts = [sum(counts[:index]) for index in range(len(counts))]
    return [
        graph.slice(x, (0, start, 0, 0), (1, count, length, width)) for start, count in zip(starts, counts, strict=True)
    ]


def _causal(graph: Graph, rows: int, length: int) -> Value:
    """Return what hides the tokens behind each row, ``(1, 1, r, n)``; computed, since a table of n² numbers weighs more."""

    def make() -> Value:
        ahead = graph.subtract(
            graph.floats(np.arange(rows).reshape(1, 1, rows, 1)),
            graph.floats(np.arange(length).reshape(1, 1, 1, length)),
        )
        return graph.multiply(graph.minimum(ahead, graph.floats([[[[0.0]]]])), graph.floats([[[[-HIDDEN]]]]))

    return graph.once(("causal", rows), make)


def _relative(graph: Graph, bias: RelativeBias, rows: int, length: int) -> Value:
    """Return T5's bias of the first r tokens, ``(1, H, r, n)``: once for all layers that share the table.

    It depends on the distance alone. The values of all distances, 2n of them in a circle from 0 on, are repeated for each row
    and then cut into rows of 2n - 1, so that each begins one distance earlier than the one before: nothing is gathered, and
    the file holds ``8nH`` bytes where a table of all pairs would take ``4n²H``.
    """

    def make() -> Value:
        heads = bias.table.shape[1]
        distances = np.concatenate([np.arange(length), np.arange(-length, 0)])  # that of -n is never read
        circle = relative_bias(bias, np.array([0]), distances)[:, 0].reshape(1, heads, 1, 2 * length)
        repeated = graph.add(graph.floats(circle), graph.floats(np.zeros((1, 1, rows, 1))))
        flat = graph.reshape(repeated, (1, 1, heads, rows * 2 * length))
        flat = graph.slice(flat, (0, 0, 0, 0), (1, 1, heads, rows * (2 * length - 1)))
        shifted = graph.reshape(flat, (1, heads, rows, 2 * length - 1))
        return graph.slice(shifted, (0, 0, 0, 0), (1, heads, rows, length))

    return graph.once(("relative", rows, id(bias.table), bias.max_distance, bias.bidirectional), make)


def _head(graph: Graph, store: Store, head: Head, x: Value, mask: Mask) -> Value:
    x = _pool(graph, head, x, mask)
    for layer in head.layers:
        x = activated(graph, store, plain(layer.linear), x, layer.activation)
    if head.output == "probabilities":
        x = graph.softmax(x)
    if head.output == "sigmoid":
        x = graph.unary("LOGISTIC", x)
    return graph.reshape(x, (1, *x.shape)) if head.pooling == "none" else x


def _pool(graph: Graph, head: Head, x: Value, mask: Mask) -> Value:
    """Return ``(1, D)``, or x itself where there is no pooling."""
    if head.pooling == "none":
        return x
    if head.pooling == "first":
        return _first_row(graph, x)
    real = mask.real if head.pooling_masked else None
    column = None if real is None else graph.reshape(real, (x.shape[0], 1))
    if head.pooling == "max":
        if column is not None:
            hidden = graph.multiply(graph.subtract(graph.floats([[1.0]]), column), graph.floats([[HIDDEN]]))
            x = graph.add(x, hidden)
        return graph.reduce("REDUCE_MAX", x, 0)
    if real is None or column is None:
        return graph.reduce("MEAN", x, 0)
    return graph.divide(graph.reduce("SUM", graph.multiply(x, column), 0), graph.reduce("SUM", real, 1))


def _first_row(graph: Graph, x: Value) -> Value:
    return x if x.shape[0] == 1 else graph.slice(x, (0, 0), (1, x.shape[1]))
