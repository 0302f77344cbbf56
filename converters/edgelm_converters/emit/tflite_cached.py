"""One signature of a language model as a TFLite graph: n tokens, after those whose keys and values are in a cache.

Dimensions: ``n`` tokens of the call, ``T`` positions of the cache, ``D`` width, ``H`` heads, ``K`` key/value heads, ``G`` query
heads to a key/value head (``H/K``), ``A`` width of a head. Activations are ``(n, D)``; batch 1.

A cache is ``(1, K, T, A)``. LiteRT-LM's own exporter writes ``(1, T, K, A)``, and takes any: with that order the graph has to
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

from edgelm_converters.emit.tflite_blocks import HIDDEN, apply_norm, feed_forward, normalised
from edgelm_converters.emit.tflite_graph import Graph, Value
from edgelm_converters.emit.tflite_weights import Affine, Store, after_norm, plain, scaled
from edgelm_converters.spec import Attention, Embeddings, Layer, Norm, Rotary, TokenHead, TransformerSpec

__all__ = ["KEYS", "LOGITS", "POSITIONS", "TOKENS", "VALUES", "build_cached"]

# As LiteRT-LM looks for them.
TOKENS, POSITIONS, LOGITS = "tokens", "input_pos", "logits"
KEYS, VALUES = "kv_cache_k_{i}", "kv_cache_v_{i}"


@dataclass(frozen=True)
class _Step:
    """What all layers of a graph use.

    Attributes:
        count: Tokens.
        length: Positions of the cache.
        positions: float32 ``(n, 1)``.
        start: Where the cache is written, int32 ``(4,)``.
    """

    count: int
    length: int
    positions: Value
    start: Value


def build_cached(
    graph: Graph, store: Store, spec: TransformerSpec, *, count: int, length: int, longest: int, scores: bool
) -> None:
    """Add a whole language model to an empty graph, with its inputs and outputs.

    Inputs are ``tokens`` int32 ``(1, n)``, ``input_pos`` int32 ``(n,)`` and the caches; outputs are ``logits`` float32
    ``(1, n, V)`` where they are asked for, and the caches. The keys and values of token i are written at ``input_pos[0] + i``,
    and it sees the positions up to ``input_pos[i]``: what stands behind is never seen, so that a call may be filled up with
    padding. ``input_pos[0] + n`` must not be more than T: the runtime would write further to the front, over what is there.

    Args:
        graph: The graph, named as its signature.
        store: Constants that it shares with the other graphs of the file.
        spec: The model.
        count: Tokens.
        length: Positions of the cache.
        longest: Positions of the longest cache in the file.
        scores: Whether it gives the scores after each token.
    """
    tokens = graph.input(TOKENS, (1, count), "int32")
    positions = graph.input(POSITIONS, (count,), "int32")
    caches = [_caches(graph, layer.attention, index, length) for index, layer in enumerate(spec.decoder.layers)]
    first = positions if count == 1 else graph.slice(positions, (0,), (1,))
    start = graph.concatenate([graph.integers([0, 0]), first, graph.integers([0])], 0)
    step = _Step(count, length, graph.reshape(graph.cast(positions, "float32"), (count, 1)), start)
    x = _embed(graph, store, spec.embeddings, tokens, positions, longest)
    written: list[tuple[Value, Value]] = []
    for index, (layer, cache) in enumerate(zip(spec.decoder.layers, caches, strict=True)):
        # Nothing reads what the last layer gives, if no scores are asked for: only its keys and values count.
        needed = scores or index < len(caches) - 1
        x, updated = _layer(graph, store, layer, x, cache, step, needed=needed)
        written.append(updated)
    if scores and spec.head.tokens is not None:
        if spec.decoder.final_norm is not None:
            x = apply_norm(graph, spec.decoder.final_norm, x)
        graph.output(LOGITS, _scores(graph, store, spec.head.tokens, x))
    for index, (keys, values) in enumerate(written):
        graph.output(KEYS.format(i=index), keys)
        graph.output(VALUES.format(i=index), values)


def _caches(graph: Graph, attention: Attention, index: int, length: int) -> tuple[Value, Value]:
    shape = (1, attention.kv_heads, length, attention.head_dim)
    keys = graph.input(KEYS.format(i=index), shape, "float32")
    return keys, graph.input(VALUES.format(i=index), shape, "float32")


def _embed(graph: Graph, store: Store, parts: Embeddings, tokens: Value, positions: Value, longest: int) -> Value:
    bits = parts.least_bits
    ids = graph.reshape(tokens, (tokens.shape[1],))
    x = store.lookup(graph, ids, parts.token, parts.token_scale, least_bits=bits)
    if parts.position is not None:
        x = graph.add(x, store.lookup(graph, positions, store.used(parts.position, longest), least_bits=bits))
    if parts.norm is not None:
        x = apply_norm(graph, parts.norm, x)
    return x if parts.projection is None else store.linear(graph, plain(parts.projection), x)


def _layer(
    graph: Graph, store: Store, layer: Layer, x: Value, cache: tuple[Value, Value], step: _Step, *, needed: bool
) -> tuple[Value, tuple[Value, Value]]:
    """Add a layer; return its output (x itself where that is not needed) and the caches with the new keys and values."""
    pre = layer.norm_placement == "pre"
    seen = normalised(graph, layer.attention_norm, x) if pre else x
    query, keys, values = _projected(graph, store, layer.attention, seen, layer.attention_norm if pre else None, step)
    written = (graph.update(cache[0], keys, step.start), graph.update(cache[1], values, step.start))
    if not needed:
        return x, written
    mixed = _attention(graph, store, layer.attention, query, written, step)
    if not pre:
        x = apply_norm(graph, layer.attention_norm, graph.add(x, mixed))
        added = feed_forward(graph, store, layer.feed_forward, x, None)
        return apply_norm(graph, layer.feed_forward_norm, graph.add(x, added)), written
    x = graph.add(x, _after(graph, layer.attention_post_norm, mixed))
    seen = normalised(graph, layer.feed_forward_norm, x)
    added = feed_forward(graph, store, layer.feed_forward, seen, layer.feed_forward_norm)
    return graph.add(x, _after(graph, layer.feed_forward_post_norm, added)), written


def _after(graph: Graph, norm: Norm | None, x: Value) -> Value:
    return x if norm is None else apply_norm(graph, norm, x)


def _projected(
    graph: Graph, store: Store, attention: Attention, x: Value, norm: Norm | None, step: _Step
) -> tuple[Value, Value, Value]:
    """Return query ``(1, H, n, A)``, key and value ``(1, K, n, A)``, with norms and rotation.

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
    x = graph.reshape(x, (step.count, heads + 2 * groups, attention.head_dim))
    if step.count > 1:
        x = graph.transpose(x, (1, 0, 2))
    x = graph.reshape(x, (1, heads + 2 * groups, step.count, attention.head_dim))
    both, v = _heads(graph, x, 0, heads + groups), _heads(graph, x, heads + groups, groups)
    if attention.query_norm is None and attention.key_norm is None:
        both = _rotated(graph, attention.rotary, both, step)
        return _heads(graph, both, 0, heads), _heads(graph, both, heads, groups), v
    q, k = _heads(graph, both, 0, heads), _heads(graph, both, heads, groups)
    q = _after(graph, None if attention.query_norm is None else _times(attention.query_norm, factor), q)
    k = _after(graph, attention.key_norm, k)
    return _rotated(graph, attention.rotary, q, step), _rotated(graph, attention.rotary, k, step), v


def _times(norm: Norm, factor: float) -> Norm:
    scale = np.float32(factor)
    return replace(norm, gamma=norm.gamma * scale, beta=None if norm.beta is None else norm.beta * scale)


def _heads(graph: Graph, x: Value, first: int, count: int) -> Value:
    return graph.slice(x, (0, first, 0, 0), (1, count, *x.shape[2:]))


def _rotated(graph: Graph, rotary: Rotary | None, x: Value, step: _Step) -> Value:
    """Turn ``(1, heads, n, A)`` by the tokens' positions."""
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


def _angles(graph: Graph, rotary: Rotary, step: _Step, name: str) -> Value:
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


def _attention(
    graph: Graph, store: Store, attention: Attention, query: Value, cache: tuple[Value, Value], step: _Step
) -> Value:
    """Return the attention's output, ``(n, D)``.

    The query heads that share a key head follow each other under it as further rows: nothing of the cache is repeated.
    """
    heads, groups, width = attention.heads, attention.kv_heads, attention.head_dim
    rows = heads // groups * step.count
    keys, values = cache
    scores = graph.batch_matmul(graph.reshape(query, (1, groups, rows, width)), keys, adjoint_right=True)
    scores = graph.reshape(scores, (1, heads, step.count, step.length))
    if attention.soft_cap is not None:
        scores = graph.multiply(graph.unary("TANH", scores), graph.floats([[[[attention.soft_cap]]]]))
    weights = graph.softmax(graph.add(scores, _mask(graph, attention.window, step)))
    mixed = graph.batch_matmul(graph.reshape(weights, (1, groups, rows, step.length)), values)
    mixed = graph.reshape(mixed, (1, heads, step.count, width))
    if step.count > 1:
        mixed = graph.transpose(mixed, (0, 2, 1, 3))
    return store.linear(graph, plain(attention.output), graph.reshape(mixed, (step.count, heads * width)))


def _mask(graph: Graph, window: int | None, step: _Step) -> Value:
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


def _scores(graph: Graph, store: Store, head: TokenHead, x: Value) -> Value:
    if head.mixing is not None:
        x = graph.add(x, store.linear(graph, plain(head.mixing), x))
    scores = store.scores(graph, x, head.table, head.bias, least_bits=head.least_bits)
    if head.soft_cap is not None:
        scores = graph.multiply(scores, graph.floats([[1.0 / head.soft_cap]]))
        scores = graph.multiply(graph.unary("TANH", scores), graph.floats([[head.soft_cap]]))
    return graph.reshape(scores, (1, *scores.shape))
