"""A Transformer spec computed in plain NumPy, in float64, straight from the definitions: what the emitters are held to.

Shapes: ``B`` inputs, ``n`` tokens, ``D`` width, ``H`` heads, ``A`` width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from edgelm_converters.spec import (
    Activation,
    Attention,
    AudioFrontEnd,
    Embeddings,
    FeedForward,
    Layer,
    Linear,
    Norm,
    RelativeBias,
    Rotary,
    Source,
    Stack,
    TransformerSpec,
)
from numpy.typing import NDArray

__all__ = ["forward"]

Float64 = NDArray[np.float64]
Visible = NDArray[np.bool_]

_ERF = np.vectorize(math.erf, otypes=[np.float64])


def forward(spec: TransformerSpec, inputs: Mapping[str, NDArray[Any]]) -> Float64:
    """Return the model's output for int inputs ``(B, n)`` by name.

    ``(B, C)``, or ``(B, n, C)`` without pooling; of a language model or an encoder-decoder ``(B, n, V)``: the scores of each
    next token.
    """
    tokens = inputs[spec.token_input]
    real = _real_tokens(tokens, spec.mask, spec.mask_input, inputs)
    x = _embed(spec.embeddings, tokens, inputs, spec.segment_input)
    visible = np.broadcast_to(real[:, None, None, :], (len(tokens), 1, tokens.shape[1], tokens.shape[1]))
    source = None if spec.source is None else _encode(spec, spec.source, inputs)
    for stack in (Stack(()) if source is not None else spec.encoder, spec.decoder):
        for layer in stack.layers:
            x = _layer(layer, x, visible, source)
        if stack.final_norm is not None:
            x = _norm(stack.final_norm, x)
    if spec.head.tokens is not None:
        head = spec.head.tokens
        x = x if head.mixing is None else x + _linear(head.mixing, x)
        scores = x @ head.table.astype(np.float64).T
        return _cap(head.soft_cap, scores if head.bias is None else scores + head.bias)
    x = _pool(spec, x, real)
    for head_layer in spec.head.layers:
        x = _activate(head_layer.activation, _linear(head_layer.linear, x))
    if spec.head.output == "probabilities":
        return _softmax(x)
    return _activate("sigmoid", x) if spec.head.output == "sigmoid" else x


def _encode(spec: TransformerSpec, source: Source, inputs: Mapping[str, NDArray[Any]]) -> tuple[Float64, Visible]:
    """Return the encoder's output ``(B, S, D)``, and which of it the decoder sees, ``(B, 1, 1, S)``."""
    if source.audio is not None:
        x = _hear(source.audio, inputs[source.input])
        real = np.ones(x.shape[:2], np.bool_)
    else:
        assert source.embeddings is not None
        tokens = inputs[source.input]
        real = _real_tokens(tokens, source.mask, source.mask_input, inputs)
        x = _embed(source.embeddings, tokens, inputs, None)
    visible = np.broadcast_to(real[:, None, None, :], (len(x), 1, x.shape[1], x.shape[1]))
    for layer in spec.encoder.layers:
        x = _layer(layer, x, visible, None)
    x = x if spec.encoder.final_norm is None else _norm(spec.encoder.final_norm, x)
    return x, real[:, None, None, :]


def _hear(audio: AudioFrontEnd, frames: NDArray[Any]) -> Float64:
    x = frames.astype(np.float64)
    for kernel, bias, stride in zip(audio.kernels, audio.biases, (1, 2), strict=True):
        padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
        places = np.arange(0, x.shape[1], stride)
        x = sum((padded[:, places + tap] @ kernel[tap].astype(np.float64) for tap in range(3)), np.zeros(())) + bias
        x = _activate("gelu", x)
    return x + audio.position[: x.shape[1]]


def _real_tokens(
    tokens: NDArray[Any], mask: str, mask_input: str | None, inputs: Mapping[str, NDArray[Any]]
) -> NDArray[np.bool_]:
    if mask == "input":
        assert mask_input is not None
        return inputs[mask_input] != 0
    return tokens != 0 if mask == "nonzero" else np.ones(tokens.shape, np.bool_)


def _embed(
    parts: Embeddings, tokens: NDArray[Any], inputs: Mapping[str, NDArray[Any]], segment_input: str | None
) -> Float64:
    x = parts.token[tokens].astype(np.float64) * parts.token_scale
    if parts.position is not None:
        x = x + parts.position[: tokens.shape[1]]
    if parts.segment is not None:
        assert segment_input is not None
        x = x + parts.segment[inputs[segment_input]]
    if parts.norm is not None:
        x = _norm(parts.norm, x)
    return _linear(parts.projection, x) if parts.projection is not None else x


def _layer(layer: Layer, x: Float64, visible: Visible, source: tuple[Float64, Visible] | None) -> Float64:
    if layer.norm_placement == "pre":
        seen = _norm(layer.attention_norm, x)
        mixed = _attention(layer.attention, seen, seen, visible)
        x = x + (mixed if layer.attention_post_norm is None else _norm(layer.attention_post_norm, mixed))
        if layer.cross_attention is not None:
            assert layer.cross_attention_norm is not None
            assert source is not None
            x = x + _attention(layer.cross_attention, _norm(layer.cross_attention_norm, x), *source)
        added = _feed_forward(layer.feed_forward, _norm(layer.feed_forward_norm, x))
        return x + (added if layer.feed_forward_post_norm is None else _norm(layer.feed_forward_post_norm, added))
    x = _norm(layer.attention_norm, x + _attention(layer.attention, x, x, visible))
    if layer.cross_attention is not None:
        assert layer.cross_attention_norm is not None
        assert source is not None
        x = _norm(layer.cross_attention_norm, x + _attention(layer.cross_attention, x, *source))
    return _norm(layer.feed_forward_norm, x + _feed_forward(layer.feed_forward, x))


def _attention(attention: Attention, x: Float64, of: Float64, visible: Visible) -> Float64:
    """Attend from ``(B, n, D)`` to ``(B, m, D)``; `visible` is ``(B, 1, n or 1, m)``."""
    query = _heads(_linear(attention.query, x), attention.heads)
    repeats = attention.heads // attention.kv_heads
    key = _heads(_linear(attention.key, of), attention.kv_heads)
    query = query if attention.query_norm is None else _norm(attention.query_norm, query)
    key = key if attention.key_norm is None else _norm(attention.key_norm, key)
    if attention.rotary is not None:
        query, key = _rotate(attention.rotary, query), _rotate(attention.rotary, key)
    key = key.repeat(repeats, axis=1)
    value = _heads(_linear(attention.value, of), attention.kv_heads).repeat(repeats, axis=1)
    if attention.causal:
        visible = visible & np.tri(x.shape[1], dtype=np.bool_)
    if attention.window is not None:
        visible = visible & ~np.tri(x.shape[1], k=-attention.window, dtype=np.bool_)
    scores = _cap(attention.soft_cap, attention.scale * query @ key.swapaxes(-1, -2))
    if attention.relative is not None:
        scores = scores + _relative(attention.relative, x.shape[1])
    scores = np.where(visible, scores, -1e30)
    mixed = (_softmax(scores) @ value).swapaxes(1, 2)
    return _linear(attention.output, mixed.reshape(*x.shape[:2], -1))


def _relative(bias: RelativeBias, count: int) -> Float64:
    """Return ``(H, n, n)``: the bias of each distance, bucket by bucket in plain Python."""

    def bucket(distance: int) -> int:
        buckets = len(bias.table) // 2 if bias.bidirectional else len(bias.table)
        first = buckets if bias.bidirectional and distance > 0 else 0
        away = abs(distance) if bias.bidirectional else max(-distance, 0)
        exact = buckets // 2
        if away < exact:
            return first + away
        share = np.log(np.float32(away) / np.float32(exact)) / np.float32(math.log(bias.max_distance / exact))
        return first + min(exact + int(share * np.float32(buckets - exact)), buckets - 1)

    found = np.array([[bucket(key - query) for key in range(count)] for query in range(count)])
    return bias.table[found].transpose(2, 0, 1).astype(np.float64)


def _rotate(rotary: Rotary, x: Float64) -> Float64:
    """Turn ``(B, H, n, A)`` by its positions 0 to n - 1."""
    half = len(rotary.frequencies)
    angles = np.arange(x.shape[2])[:, None] * rotary.frequencies.astype(np.float64)
    cos, sin = rotary.factor * np.cos(angles), rotary.factor * np.sin(angles)
    left, right, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([left * cos - right * sin, right * cos + left * sin, rest], axis=-1)


def _cap(cap: float | None, x: Float64) -> Float64:
    return x if cap is None else cap * np.tanh(x / cap)


def _heads(x: Float64, heads: int) -> Float64:
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _feed_forward(feed_forward: FeedForward, x: Float64) -> Float64:
    hidden = _linear(feed_forward.up, x)
    if feed_forward.gate is None:
        hidden = _activate(feed_forward.activation, hidden)
    else:
        hidden = _activate(feed_forward.activation, _linear(feed_forward.gate, x)) * hidden
    if feed_forward.turn is not None:
        runs = hidden.reshape(*hidden.shape[:-1], -1, len(feed_forward.turn))
        hidden = (runs @ feed_forward.turn.astype(np.float64)).reshape(hidden.shape)
    return _linear(feed_forward.down, hidden)


def _linear(linear: Linear, x: Float64) -> Float64:
    y = x @ linear.kernel.astype(np.float64)
    return y if linear.bias is None else y + linear.bias


def _norm(norm: Norm, x: Float64) -> Float64:
    if norm.kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + norm.eps) * norm.gamma
    return y if norm.beta is None else y + norm.beta


def _pool(spec: TransformerSpec, x: Float64, real: NDArray[np.bool_]) -> Float64:
    pooling = spec.head.pooling
    if pooling == "none":
        return x
    if pooling == "first":
        return x[:, 0]
    counted = real[..., None] if spec.head.pooling_masked else np.ones((*real.shape, 1), np.bool_)
    if pooling == "max":
        return np.where(counted, x, -np.inf).max(axis=1)
    return np.where(counted, x, 0.0).sum(axis=1) / counted.sum(axis=1)


def _softmax(x: Float64) -> Float64:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _activate(activation: Activation, x: Float64) -> Float64:
    if activation == "relu":
        return np.maximum(x, 0.0)
    if activation == "gelu":
        return 0.5 * x * (1.0 + _ERF(x / math.sqrt(2.0)))
    if activation == "gelu_tanh":
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    if activation == "silu":
        return x / (1.0 + np.exp(-x))
    if activation == "tanh":
        return np.tanh(x)
    return 1.0 / (1.0 + np.exp(-x)) if activation == "sigmoid" else x
