"""A language model's activations in float32: what weights are rounded and equalised by.

The parts of a layer by themselves, so that a caller can look at what goes into each kernel, and change the kernel, on the way.
Several sequences are computed at once: their tokens are the rows of one matrix, and only the attention looks at each alone.

Dimensions: ``n`` tokens of all sequences together, ``m`` of one, ``D`` width, ``H`` heads, ``K`` key/value heads, ``A`` width
of one head, ``F`` feed-forward width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ConversionError
from edgelm_converters.spec import (
    Activation,
    Attention,
    FeedForward,
    Float32,
    Layer,
    Linear,
    Norm,
    TransformerSpec,
)

__all__ = [
    "add_attention",
    "add_feed_forward",
    "apply",
    "cap_scores",
    "embed",
    "hidden",
    "layer_output",
    "mixed_values",
    "normalise",
    "placed",
    "scores_of",
    "seen_by",
    "softmax",
    "turned",
]

Ids = NDArray[np.int32]

_HIDDEN = np.float32(-1e30)
_ROWS = 1024  # of the widest activations at a time


def embed(spec: TransformerSpec, sequences: Sequence[Ids], *, start: int = 0) -> Float32:
    """Return the embedded tokens of all sequences, ``(n, D)``, each sequence from the position `start` on."""
    parts = spec.embeddings
    x = parts.token[np.concatenate(sequences)]
    if parts.token_scale != 1.0:
        x *= np.float32(parts.token_scale)
    if parts.position is not None:
        x = x + np.concatenate([parts.position[start : start + len(ids)] for ids in sequences])
    if parts.norm is not None:
        x = normalise(parts.norm, x)
    return x if parts.projection is None else apply(parts.projection, x)


def seen_by(layer: Layer, norm: Norm, x: Float32) -> Float32:
    """Return what the kernels behind one of a layer's norms see of the residual stream ``(n, D)``."""
    return normalise(norm, x) if layer.norm_placement == "pre" else x


def mixed_values(attention: Attention, seen: Float32, lengths: Sequence[int]) -> Float32:
    """Return what the attention's output kernel sees, ``(n, H*A)``, for sequences of the given lengths."""
    query, key, value = (apply(linear, seen) for linear in (attention.query, attention.key, attention.value))
    mixed = np.empty_like(query)
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        mixed[part] = _attend(attention, query[part], key[part], value[part])
        start += length
    return mixed


def add_attention(layer: Layer, x: Float32, mixed: Float32) -> Float32:
    """Return the residual stream ``(n, D)`` after the attention, of whose output kernel `mixed` is the input."""
    return _add(layer, layer.attention_norm, layer.attention_post_norm, x, apply(layer.attention.output, mixed))


def hidden(block: FeedForward, seen: Float32) -> Float32:
    """Return what the feed-forward's second kernel sees, ``(n, F)``."""
    inner = apply(block.up if block.gate is None else block.gate, seen)
    for start in range(0, len(inner), _ROWS):  # in place: it is the largest of all activations
        part = inner[start : start + _ROWS]
        part[...] = _activate(block.activation, part)
    if block.gate is not None:
        inner *= apply(block.up, seen)
    return inner if block.turn is None else turned(inner, block.turn)


def turned(inner: Float32, turn: Float32) -> Float32:
    """Return ``(n, F)`` with each run of b channels multiplied with a matrix ``(b, b)``."""
    return (inner.reshape(-1, len(turn)) @ turn).reshape(inner.shape)


def add_feed_forward(layer: Layer, x: Float32, inner: Float32) -> Float32:
    """Return the residual stream ``(n, D)`` after the feed-forward, of whose second kernel `inner` is the input."""
    return _add(layer, layer.feed_forward_norm, layer.feed_forward_post_norm, x, apply(layer.feed_forward.down, inner))


def layer_output(layer: Layer, x: Float32, lengths: Sequence[int]) -> Float32:
    """Return the residual stream ``(n, D)`` after a whole layer."""
    x = add_attention(layer, x, mixed_values(layer.attention, seen_by(layer, layer.attention_norm, x), lengths))
    return add_feed_forward(layer, x, hidden(layer.feed_forward, seen_by(layer, layer.feed_forward_norm, x)))


def scores_of(spec: TransformerSpec, x: Float32) -> Float32:
    """Return the scores ``(n, V)`` of what the last layer gives, ``(n, D)``.

    Raises:
        ConversionError: The model has no head over a vocabulary.
    """
    head = spec.head.tokens
    if head is None:
        raise ConversionError(f"The model '{spec.name}' scores no tokens: it is no language model.")
    x = x if spec.decoder.final_norm is None else normalise(spec.decoder.final_norm, x)
    x = x if head.mixing is None else x + apply(head.mixing, x)
    scores = x @ head.table.T
    return cap_scores(head.soft_cap, scores if head.bias is None else scores + head.bias)


def apply(linear: Linear, x: Float32) -> Float32:
    """Return ``x @ kernel + bias``."""
    y = x @ linear.kernel
    if linear.bias is not None:
        y += linear.bias
    return y


def _add(layer: Layer, norm: Norm, post: Norm | None, x: Float32, added: Float32) -> Float32:
    if layer.norm_placement == "post":
        return normalise(norm, x + added)
    return x + (added if post is None else normalise(post, added))


def normalise(norm: Norm, x: Float32) -> Float32:
    """Return a norm over the last axis."""
    if norm.kind == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    y: Float32 = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(norm.eps)) * norm.gamma
    return y if norm.beta is None else y + norm.beta


def _attend(attention: Attention, query: Float32, key: Float32, value: Float32) -> Float32:
    """Return the mixed values ``(m, H*A)`` of one sequence."""
    count, groups = len(query), attention.heads // attention.kv_heads
    q, k, v = (rows.reshape(count, -1, attention.head_dim).swapaxes(0, 1) for rows in (query, key, value))
    q, k = placed(attention, q, attention.query_norm, 0), placed(attention, k, attention.key_norm, 0)
    # The query heads that share a key head follow each other under it as further rows.
    q = q.reshape(attention.kv_heads, groups * count, attention.head_dim)
    scores = (q @ k.swapaxes(1, 2)).reshape(attention.heads, count, count)
    scores = cap_scores(attention.soft_cap, scores * np.float32(attention.scale))
    visible = np.tri(count, dtype=np.bool_) if attention.causal else np.ones((count, count), np.bool_)
    if attention.window is not None:
        visible &= ~np.tri(count, k=-attention.window, dtype=np.bool_)
    mixed = softmax(np.where(visible, scores, _HIDDEN)).reshape(attention.kv_heads, groups * count, count) @ v
    rows: Float32 = mixed.reshape(attention.heads, count, attention.head_dim).swapaxes(0, 1).reshape(count, -1)
    return rows


def softmax(scores: Float32) -> Float32:
    """Return the softmax over the last axis, in the memory of its argument."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def cap_scores(cap: float | None, scores: Float32) -> Float32:
    """Return ``cap * tanh(scores / cap)``, or the scores where there is no cap."""
    if cap is None:
        return scores
    capped: Float32 = np.float32(cap) * np.tanh(scores / np.float32(cap))
    return capped


def placed(attention: Attention, x: Float32, norm: Norm | None, start: int) -> Float32:
    """Return queries or keys ``(heads, m, A)`` with their norm, turned by the positions from `start` on."""
    x = x if norm is None else normalise(norm, x)
    rotary = attention.rotary
    if rotary is None:
        return x
    half = len(rotary.frequencies)
    angles = np.arange(start, start + x.shape[-2], dtype=np.float32)[:, None] * rotary.frequencies
    cos, sin = ((np.float32(rotary.factor) * turn).astype(np.float32) for turn in (np.cos(angles), np.sin(angles)))
    left, right, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned_parts = [left * cos - right * sin, right * cos + left * sin, rest]
    return np.concatenate(turned_parts, axis=-1).astype(np.float32, copy=False)


def _activate(activation: Activation, x: Float32) -> Float32:
    if activation == "relu":
        return np.maximum(x, np.float32(0))
    if activation == "gelu":
        exact: Float32 = np.float32(0.5) * x * (1 + _erf(x * np.float32(math.sqrt(0.5))))
        return exact
    if activation == "gelu_tanh":
        inner = np.float32(math.sqrt(2.0 / math.pi)) * (x + np.float32(0.044715) * x**3)
        smooth: Float32 = np.float32(0.5) * x * (1 + np.tanh(inner))
        return smooth
    if activation == "linear":
        return x
    if activation == "tanh":
        bent: Float32 = np.tanh(x)
        return bent
    sigmoid: Float32 = np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * x))  # tanh never overflows
    return x * sigmoid if activation == "silu" else sigmoid


def _erf(x: Float32) -> Float32:
    """Return the error function to 1.5e-7 (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26)."""
    size = np.abs(x)
    t = 1 / (1 + np.float32(0.3275911) * size)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    value: Float32 = (np.sign(x) * (1 - series * np.exp(-size * size))).astype(np.float32)
    return value
