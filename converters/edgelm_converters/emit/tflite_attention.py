"""Attention of a decoder as TFLite: over the keys and values of its own tokens, in a cache, and over those of a source.

Dimensions: ``b`` rows, which are sequences that go on side by side from the same position, ``n`` tokens of each (one of the
two is 1), ``T`` positions of the cache, ``S`` of the source, ``D`` width, ``H`` heads, ``K`` key/value heads, ``A`` width of a
head. Activations are ``(b*n, D)``.

A cache is ``(b, K, T, A)``. LiteRT-LM's own exporter writes ``(1, T, K, A)``, and takes any: with that order the graph has to
turn the whole cache around at every token, which takes 6-43 % more of the attention's time (LiteRT 2.3, one AVX-512 core,
K 3-6, A 48-64, T 512-1024, best of 60 runs). Values as ``(1, K, A, T)``, and a cache on
the left side of the product, were no faster than noise.

XNNPACK has all operators but the gathering of rows, the casts and DYNAMIC_UPDATE_SLICE, which splits the graph once a layer. It
takes sines and cosines too, and is off by no more than 4e-7 for the angle that it is given: 6 µs for 128 tokens, where a table
of them would weigh ``8 * A/2`` bytes a position.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgelm_converters.emit.tflite_blocks import HIDDEN, apply_norm
from edgelm_converters.emit.tflite_graph import Graph, Value
from edgelm_converters.emit.tflite_weights import Affine, Store, after_norm, plain, scaled
from edgelm_converters.relative import relative_bias
from edgelm_converters.spec import Attention, Norm, RelativeBias, Rotary

__all__ = ["Cache", "SourceView", "Step", "cached_keys", "cross_attention", "self_attention"]

Cache = tuple[Value, Value]  # keys and values


@dataclass(frozen=True)
class Step:
    """What all layers of a graph use.

    Attributes:
        rows: Sequences.
        count: Tokens of each.
        length: Positions of the cache.
        places: Positions of the tokens, int32 ``(n,)``.
        positions: The same as float32 ``(n, 1)``.
        start: Where the cache is written, int32 ``(4,)``.
    """

    rows: int
    count: int
    length: int
    places: Value
    positions: Value
    start: Value

    @classmethod
    def at(cls, graph: Graph, places: Value, *, rows: int, length: int) -> Step:
        """Return the step of tokens at these positions, int32 ``(n,)``."""
        count = places.shape[0]
        first = places if count == 1 else graph.slice(places, (0,), (1,))
        start = graph.concatenate([graph.integers([0, 0]), first, graph.integers([0])], 0)
        positions = graph.reshape(graph.cast(places, "float32"), (count, 1))
        return cls(rows, count, length, places, positions, start)


@dataclass(frozen=True)
class SourceView:
    """What a layer attends to of a source: the same for all rows.

    Attributes:
        keys: ``(1, K, S, A)``.
        values: ``(1, K, S, A)``.
        padding: What is added to the scores, ``(1, 1, 1, S)``: 0 or `HIDDEN`; None where all of the source counts.
    """

    keys: Value
    values: Value
    padding: Value | None


def cached_keys(
    graph: Graph, store: Store, attention: Attention, x: Value, norm: Norm | None, cache: Cache, step: Step
) -> tuple[Value, Cache]:
    """Return the queries of the tokens, ``(b, H, n, A)``, and the cache with their keys and values.

    With a norm, x is what `normalised` gave, and gamma and beta are folded in.
    """
    query, keys, values = _projected(graph, store, attention, x, norm, step)
    return query, (graph.update(cache[0], keys, step.start), graph.update(cache[1], values, step.start))


def _projected(
    graph: Graph, store: Store, attention: Attention, x: Value, norm: Norm | None, step: Step
) -> tuple[Value, Value, Value]:
    """Return query ``(b, H, n, A)``, key and value ``(b, K, n, A)``, with norms and rotation.

    One product gives the three, and one rotation turns query and key, whose heads follow each other. What the scores are
    multiplied with is inside the query's weights, or inside its norm.
    """
    heads, groups = attention.heads, attention.kv_heads
    factor = attention.scale if attention.soft_cap is None else attention.scale / attention.soft_cap
    query = plain(attention.query) if attention.query_norm is not None else scaled(plain(attention.query), factor)
    parts: list[Affine] = [query, plain(attention.key), plain(attention.value)]
    if norm is not None:
        parts = [after_norm(part, norm) for part in parts]
    x = store.joined(graph, parts, x)
    if step.count > 1:
        x = graph.reshape(x, (step.count, heads + 2 * groups, attention.head_dim))
        x = graph.transpose(x, (1, 0, 2))
    x = graph.reshape(x, (step.rows, heads + 2 * groups, step.count, attention.head_dim))
    both, v = _heads(graph, x, 0, heads + groups), _heads(graph, x, heads + groups, groups)
    if attention.query_norm is None and attention.key_norm is None:
        both = _rotated(graph, attention.rotary, both, step)
        return _heads(graph, both, 0, heads), _heads(graph, both, heads, groups), v
    q, k = _heads(graph, both, 0, heads), _heads(graph, both, heads, groups)
    q = q if attention.query_norm is None else apply_norm(graph, _times(attention.query_norm, factor), q)
    k = k if attention.key_norm is None else apply_norm(graph, attention.key_norm, k)
    return _rotated(graph, attention.rotary, q, step), _rotated(graph, attention.rotary, k, step), v


def _times(norm: Norm, factor: float) -> Norm:
    scale = np.float32(factor)
    return replace(norm, gamma=norm.gamma * scale, beta=None if norm.beta is None else norm.beta * scale)


def _heads(graph: Graph, x: Value, first: int, count: int) -> Value:
    return graph.slice(x, (0, first, 0, 0), (x.shape[0], count, *x.shape[2:]))


def _rotated(graph: Graph, rotary: Rotary | None, x: Value, step: Step) -> Value:
    """Turn ``(b, heads, n, A)`` by the tokens' positions."""
    if rotary is None:
        return x
    half = len(rotary.frequencies)
    cos, sin = (_angles(graph, rotary, step, name) for name in ("COS", "SIN"))

    def part(start: int, size: int) -> Value:
        return graph.slice(x, (0, 0, 0, start), (*x.shape[:3], size))

    left, right = part(0, half), part(half, half)
    turned = [
        graph.subtract(graph.multiply(left, cos), graph.multiply(right, sin)),
        graph.add(graph.multiply(right, cos), graph.multiply(left, sin)),
    ]
    rest = x.shape[3] - 2 * half
    return graph.concatenate([*turned, part(2 * half, rest)] if rest else turned, -1)


def _angles(graph: Graph, rotary: Rotary, step: Step, name: str) -> Value:
    """Return the cosines or sines of every token's angles, ``(1, 1, n, R/2)``: once for all layers with that rotation."""
    key = (rotary.frequencies.tobytes(), rotary.factor)

    def turned() -> Value:
        return graph.multiply(step.positions, graph.floats(rotary.frequencies[None]))

    def make() -> Value:
        x = graph.unary(name, graph.once(("angles", *key), turned))
        if rotary.factor != 1.0:
            x = graph.multiply(x, graph.floats([[rotary.factor]]))
        return graph.reshape(x, (1, 1, *x.shape))

    return graph.once((name, *key), make)


def self_attention(graph: Graph, store: Store, attention: Attention, query: Value, cache: Cache, step: Step) -> Value:
    """Return the output ``(b*n, D)`` of attention over a cache that holds the tokens' own keys and values already.

    The query heads that share a key head follow each other under it as further rows: nothing of the cache is repeated.
    """
    heads, groups, width = attention.heads, attention.kv_heads, attention.head_dim
    shared = heads // groups * step.count
    keys, values = cache
    grouped = graph.reshape(query, (step.rows, groups, shared, width))
    scores = graph.batch_matmul(grouped, keys, adjoint_right=True)
    scores = graph.reshape(scores, (step.rows, heads, step.count, step.length))
    if attention.soft_cap is not None:
        scores = graph.multiply(graph.unary("TANH", scores), graph.floats([[[[attention.soft_cap]]]]))
    if attention.relative is not None:
        scores = graph.add(scores, _relative(graph, attention.relative, step))
    if attention.relative is None or attention.window is not None:
        scores = graph.add(scores, _mask(graph, attention.window, step))
    weights = graph.softmax(scores)
    mixed = graph.batch_matmul(graph.reshape(weights, (step.rows, groups, shared, step.length)), values)
    mixed = graph.reshape(mixed, (step.rows, heads, step.count, width))
    if step.count > 1:
        mixed = graph.transpose(mixed, (0, 2, 1, 3))
    return store.linear(graph, plain(attention.output), graph.reshape(mixed, (step.rows * step.count, heads * width)))


def _mask(graph: Graph, window: int | None, step: Step) -> Value:
    """Return what is added to the scores, ``(1, 1, n, T)``: 0 where a token sees a position, `HIDDEN` or less elsewhere."""

    def behind() -> Value:
        """How far each position lies before each token; negative after it."""
        places = graph.floats(np.arange(step.length).reshape(1, 1, 1, step.length))
        return graph.subtract(graph.reshape(step.positions, (1, 1, step.count, 1)), places)

    def clipped(distance: Value) -> Value:
        negative = graph.minimum(distance, graph.floats([[[[0.0]]]]))
        return graph.multiply(negative, graph.floats([[[[-HIDDEN]]]]))

    def make() -> Value:
        distance = graph.once(("behind",), behind)
        if window is None:
            return clipped(distance)
        return graph.add(
            _mask(graph, None, step), clipped(graph.subtract(graph.floats([[[[window - 1.0]]]]), distance))
        )

    return graph.once(("mask", window), make)


def _relative(graph: Graph, bias: RelativeBias, step: Step) -> Value:
    """Return T5's bias with the mask in it, ``(1, H, n, T)``: once for all layers that share the table.

    Both depend on the distance alone, of which there are 2T - 1: ``4H`` bytes each, where a table of all pairs has T² of them.
    """

    def make() -> Value:
        last = step.length - 1
        table = relative_bias(bias, np.array([last]), np.arange(2 * last + 1))[:, 0].T.copy()
        table[last + 1 :] = HIDDEN  # ahead of the token
        places = graph.integers(np.arange(last, last + step.length)[None])
        ids = graph.subtract(places, graph.reshape(step.places, (step.count, 1)))
        found = graph.transpose(graph.gather(graph.floats(table), ids), (2, 0, 1))
        return graph.reshape(found, (1, *found.shape))

    return graph.once(("relative", id(bias.table), bias.max_distance, bias.bidirectional), make)


def cross_attention(
    graph: Graph, store: Store, attention: Attention, x: Value, norm: Norm | None, source: SourceView
) -> Value:
    """Return the output ``(b, D)`` of attention over a source, for one token of each row.

    The rows follow each other under each head, so that the source's keys and values are neither repeated nor turned around.
    With a norm, x is what `normalised` gave, and gamma and beta are folded in.
    """
    rows, heads, groups, width = x.shape[0], attention.heads, attention.kv_heads, attention.head_dim
    shared = heads // groups
    affine = scaled(plain(attention.query), attention.scale)
    query = store.linear(graph, affine if norm is None else after_norm(affine, norm), x)
    query = graph.reshape(query, (rows, groups, shared, width))
    if rows > 1:
        query = graph.transpose(query, (1, 0, 2, 3))
    query = graph.reshape(query, (1, groups, rows * shared, width))
    scores = graph.batch_matmul(query, source.keys, adjoint_right=True)
    if source.padding is not None:
        scores = graph.add(scores, source.padding)
    mixed = graph.batch_matmul(graph.softmax(scores), source.values)
    if rows > 1:
        mixed = graph.transpose(graph.reshape(mixed, (groups, rows, shared, width)), (1, 0, 2, 3))
    return store.linear(graph, plain(attention.output), graph.reshape(mixed, (rows, heads * width)))
