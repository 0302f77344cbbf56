"""One signature of a language model as a TFLite graph: n tokens, after those whose keys and values are in a cache.

Dimensions: ``b`` rows, ``n`` tokens of each, ``T`` positions of the cache, ``K`` key/value heads, ``A`` width of a head, ``V``
vocabulary. How attention is laid out says `edgelm_converters.emit.tflite_attention`; a language model has one row.
"""

from __future__ import annotations

from edgelm_converters.emit.tflite_attention import (
    Cache,
    SourceView,
    Step,
    cached_keys,
    cross_attention,
    self_attention,
)
from edgelm_converters.emit.tflite_blocks import apply_norm, feed_forward, normalised
from edgelm_converters.emit.tflite_graph import Graph, Value
from edgelm_converters.emit.tflite_weights import Store, plain
from edgelm_converters.spec import Attention, Embeddings, Layer, Norm, TokenHead, TransformerSpec

__all__ = [
    "KEYS",
    "LOGITS",
    "POSITIONS",
    "TOKENS",
    "VALUES",
    "build_cached",
    "cache_inputs",
    "decoder_layer",
    "embedded_at",
    "step_inputs",
    "token_scores",
]

# As LiteRT-LM looks for them.
TOKENS, POSITIONS, LOGITS = "tokens", "input_pos", "logits"
KEYS, VALUES = "kv_cache_k_{i}", "kv_cache_v_{i}"


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
    tokens, positions = step_inputs(graph, rows=1, count=count)
    caches = [
        cache_inputs(graph, layer.attention, i, rows=1, length=length) for i, layer in enumerate(spec.decoder.layers)
    ]
    step = Step.at(graph, positions, rows=1, length=length)
    x = embedded_at(graph, store, spec.embeddings, tokens, positions, longest)
    written: list[Cache] = []
    for index, (layer, cache) in enumerate(zip(spec.decoder.layers, caches, strict=True)):
        # Nothing reads what the last layer gives, if no scores are asked for: only its keys and values count.
        needed = scores or index < len(caches) - 1
        x, updated = decoder_layer(graph, store, layer, x, cache, step, needed=needed)
        written.append(updated)
    if scores and spec.head.tokens is not None:
        if spec.decoder.final_norm is not None:
            x = apply_norm(graph, spec.decoder.final_norm, x)
        found = token_scores(graph, store, spec.head.tokens, x)
        graph.output(LOGITS, graph.reshape(found, (1, *found.shape)))
    for index, (keys, values) in enumerate(written):
        graph.output(KEYS.format(i=index), keys)
        graph.output(VALUES.format(i=index), values)


def step_inputs(graph: Graph, *, rows: int, count: int) -> tuple[Value, Value]:
    """Add the inputs of every decoding graph: tokens int32 ``(b, n)`` and their positions int32 ``(n,)``."""
    return graph.input(TOKENS, (rows, count), "int32"), graph.input(POSITIONS, (count,), "int32")


def cache_inputs(graph: Graph, attention: Attention, index: int, *, rows: int, length: int) -> Cache:
    """Add a layer's cache to the inputs."""
    shape = (rows, attention.kv_heads, length, attention.head_dim)
    keys = graph.input(KEYS.format(i=index), shape, "float32")
    return keys, graph.input(VALUES.format(i=index), shape, "float32")


def embedded_at(graph: Graph, store: Store, parts: Embeddings, tokens: Value, positions: Value, longest: int) -> Value:
    """Return the embeddings ``(b*n, D)`` of tokens at these positions; `longest` is the largest number of them in the file."""
    bits = parts.least_bits
    ids = graph.reshape(tokens, (tokens.shape[0] * tokens.shape[1],))
    x = store.lookup(graph, ids, parts.token, parts.token_scale, least_bits=bits)
    if parts.position is not None:
        x = graph.add(x, store.lookup(graph, positions, store.used(parts.position, longest), least_bits=bits))
    if parts.norm is not None:
        x = apply_norm(graph, parts.norm, x)
    return x if parts.projection is None else store.linear(graph, plain(parts.projection), x)


def decoder_layer(
    graph: Graph,
    store: Store,
    layer: Layer,
    x: Value,
    cache: Cache,
    step: Step,
    *,
    source: SourceView | None = None,
    needed: bool = True,
) -> tuple[Value, Cache]:
    """Add a layer; return its output (x itself where that is not `needed`) and the cache with the new keys and values.

    A layer with cross-attention attends to `source`.
    """
    pre = layer.norm_placement == "pre"
    seen = normalised(graph, layer.attention_norm, x) if pre else x
    query, written = cached_keys(
        graph, store, layer.attention, seen, layer.attention_norm if pre else None, cache, step
    )
    if not needed:
        return x, written
    mixed = self_attention(graph, store, layer.attention, query, written, step)
    if not pre:
        x = apply_norm(graph, layer.attention_norm, graph.add(x, mixed))
        x = _crossed(graph, store, layer, x, source)
        added = feed_forward(graph, store, layer.feed_forward, x, None)
        return apply_norm(graph, layer.feed_forward_norm, graph.add(x, added)), written
    x = graph.add(x, _after(graph, layer.attention_post_norm, mixed))
    x = _crossed(graph, store, layer, x, source)
    seen = normalised(graph, layer.feed_forward_norm, x)
    added = feed_forward(graph, store, layer.feed_forward, seen, layer.feed_forward_norm)
    return graph.add(x, _after(graph, layer.feed_forward_post_norm, added)), written


def _crossed(graph: Graph, store: Store, layer: Layer, x: Value, source: SourceView | None) -> Value:
    """Return x after the cross-attention with its residual and its norm, where the layer has one."""
    attention, norm = layer.cross_attention, layer.cross_attention_norm
    if attention is None or norm is None or source is None:
        return x
    if layer.norm_placement == "pre":
        return graph.add(x, cross_attention(graph, store, attention, normalised(graph, norm, x), norm, source))
    return apply_norm(graph, norm, graph.add(x, cross_attention(graph, store, attention, x, None, source)))


def _after(graph: Graph, norm: Norm | None, x: Value) -> Value:
    return x if norm is None else apply_norm(graph, norm, x)


def token_scores(graph: Graph, store: Store, head: TokenHead, x: Value) -> Value:
    """Return the scores ``(b*n, V)`` after each token, of the last layer's normed output ``(b*n, D)``."""
    if head.mixing is not None:
        x = graph.add(x, store.linear(graph, plain(head.mixing), x))
    scores = store.scores(graph, x, head.table, head.bias, least_bits=head.least_bits)
    if head.soft_cap is not None:
        scores = graph.multiply(scores, graph.floats([[1.0 / head.soft_cap]]))
        scores = graph.multiply(graph.unary("TANH", scores), graph.floats([[head.soft_cap]]))
    return scores
