"""What a spec computes, in `keras.ops`: for training, and for the answers that artifacts are held against.

The weights of the spec that is handed in are Keras variables or tensors. Dimensions: ``B`` inputs, ``n`` tokens, ``D`` width,
``H`` heads, ``K`` key/value heads, ``A`` width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras

from edgelm_converters.keras_model.rounded import RoundedKernel
from edgelm_converters.spec import Activation, Attention, FeedForward, Layer, Linear, Norm, Rotary, TransformerSpec

__all__ = ["Taps", "forward"]

ops: Any = keras.ops  # whose functions are typed as if they might return None

_HIDDEN = -1e30


@dataclass
class Taps:
    """What is seen on the way through a model, in order of its layers.

    Attributes:
        states: The residual stream after each layer, ``(B, n, D)``.
        projections: Of each layer's attention, as its kernels give them: queries ``(B, n, H*A)``, keys and values
            ``(B, n, K*A)``.
    """

    states: list[Any] = field(default_factory=list)
    projections: list[tuple[Any, Any, Any]] = field(default_factory=list)


def forward(spec: TransformerSpec, inputs: Mapping[str, Any], taps: Taps | None = None) -> Any:
    """Return the model's output for int32 inputs ``(B, n)`` by name.

    Args:
        spec: The model, its arrays being variables or tensors.
        inputs: By name.
        taps: Takes what is seen on the way; None where nobody looks.

    Returns:
        float32 ``(B, C)``, or ``(B, n, C)`` without pooling; of a language model ``(B, n, V)``.
    """
    tokens = inputs[spec.token_input]
    real = _real_tokens(spec, inputs)
    x = _embed(spec, inputs)
    visible = real[:, None, None, :]
    for stack in (spec.encoder, spec.decoder):
        for layer in stack.layers:
            x = _layer(layer, x, visible, taps)
            if taps is not None:
                taps.states.append(x)
        if stack.final_norm is not None:
            x = _norm(stack.final_norm, x)
    head = spec.head.tokens
    if head is not None:
        scores = ops.matmul(x, ops.transpose(_value(head.table)))
        return _cap(head.soft_cap, scores if head.bias is None else scores + head.bias)
    x = _pool(spec, x, real if spec.head.pooling_masked else ops.ones_like(tokens, dtype="bool"))
    for head_layer in spec.head.layers:
        x = _activate(head_layer.activation, _linear(head_layer.linear, x))
    if spec.head.output == "probabilities":
        return ops.softmax(x, axis=-1)
    return ops.sigmoid(x) if spec.head.output == "sigmoid" else x


def _value(weight: Any) -> Any:
    return ops.convert_to_tensor(weight)


def _real_tokens(spec: TransformerSpec, inputs: Mapping[str, Any]) -> Any:
    tokens = inputs[spec.token_input]
    if spec.mask == "input" and spec.mask_input is not None:
        return ops.not_equal(inputs[spec.mask_input], 0)
    return ops.not_equal(tokens, 0) if spec.mask == "nonzero" else ops.ones_like(tokens, dtype="bool")


def _embed(spec: TransformerSpec, inputs: Mapping[str, Any]) -> Any:
    parts = spec.embeddings
    tokens = inputs[spec.token_input]
    x = ops.take(_value(parts.token), tokens, axis=0)
    if parts.token_scale != 1.0:
        x = x * parts.token_scale
    if parts.position is not None:
        x = x + _value(parts.position)[: ops.shape(tokens)[1]]
    if parts.segment is not None and spec.segment_input is not None:
        x = x + ops.take(_value(parts.segment), inputs[spec.segment_input], axis=0)
    if parts.norm is not None:
        x = _norm(parts.norm, x)
    return x if parts.projection is None else _linear(parts.projection, x)


def _layer(layer: Layer, x: Any, visible: Any, taps: Taps | None) -> Any:
    if layer.norm_placement == "pre":
        mixed = _attention(layer.attention, _norm(layer.attention_norm, x), visible, taps)
        x = x + (mixed if layer.attention_post_norm is None else _norm(layer.attention_post_norm, mixed))
        added = _feed_forward(layer.feed_forward, _norm(layer.feed_forward_norm, x))
        return x + (added if layer.feed_forward_post_norm is None else _norm(layer.feed_forward_post_norm, added))
    x = _norm(layer.attention_norm, x + _attention(layer.attention, x, visible, taps))
    return _norm(layer.feed_forward_norm, x + _feed_forward(layer.feed_forward, x))


def _attention(attention: Attention, x: Any, visible: Any, taps: Taps | None) -> Any:
    query, key, value = (_linear(part, x) for part in (attention.query, attention.key, attention.value))
    if taps is not None:
        taps.projections.append((query, key, value))
    query = _heads(query, attention.heads)
    key, value = _heads(key, attention.kv_heads), _heads(value, attention.kv_heads)
    query = query if attention.query_norm is None else _norm(attention.query_norm, query)
    key = key if attention.key_norm is None else _norm(attention.key_norm, key)
    if attention.rotary is not None:
        query, key = _rotate(attention.rotary, query), _rotate(attention.rotary, key)
    repeats = attention.heads // attention.kv_heads
    if repeats > 1:
        key, value = ops.repeat(key, repeats, axis=1), ops.repeat(value, repeats, axis=1)
    positions = ops.arange(ops.shape(x)[1])
    behind = positions[:, None] - positions[None, :]
    if attention.causal:
        visible = ops.logical_and(visible, behind >= 0)
    if attention.window is not None:
        visible = ops.logical_and(visible, behind < attention.window)
    scores = ops.matmul(query * attention.scale, ops.swapaxes(key, -1, -2))
    weights = ops.softmax(ops.where(visible, _cap(attention.soft_cap, scores), _HIDDEN), axis=-1)
    mixed = ops.swapaxes(ops.matmul(weights, value), 1, 2)
    return _linear(attention.output, ops.reshape(mixed, (*_leading(x), attention.heads * attention.head_dim)))


def _rotate(rotary: Rotary, x: Any) -> Any:
    """Turn ``(B, H, n, A)`` by its positions 0 to n - 1."""
    half = rotary.frequencies.shape[0]
    positions = ops.cast(ops.arange(ops.shape(x)[2]), "float32")
    angles = positions[:, None] * _value(rotary.frequencies)
    cos, sin = rotary.factor * ops.cos(angles), rotary.factor * ops.sin(angles)
    left, right, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return ops.concatenate([left * cos - right * sin, right * cos + left * sin, rest], axis=-1)


def _cap(cap: float | None, x: Any) -> Any:
    return x if cap is None else cap * ops.tanh(x / cap)


def _leading(x: Any) -> tuple[Any, Any]:
    shape = ops.shape(x)
    return shape[0], shape[1]


def _heads(x: Any, heads: int) -> Any:
    return ops.swapaxes(ops.reshape(x, (*_leading(x), heads, x.shape[-1] // heads)), 1, 2)


def _feed_forward(block: FeedForward, x: Any) -> Any:
    inner = _linear(block.up, x)
    if block.gate is None:
        inner = _activate(block.activation, inner)
    else:
        inner = _activate(block.activation, _linear(block.gate, x)) * inner
    return _linear(block.down, inner)


def _linear(linear: Linear, x: Any) -> Any:
    kernel: Any = linear.kernel
    y = kernel.apply(x) if isinstance(kernel, RoundedKernel) else ops.matmul(x, _value(kernel))
    return y if linear.bias is None else y + linear.bias


def _norm(norm: Norm, x: Any) -> Any:
    if norm.kind == "layer":
        x = x - ops.mean(x, axis=-1, keepdims=True)
    y = x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + norm.eps) * norm.gamma
    return y if norm.beta is None else y + norm.beta


def _pool(spec: TransformerSpec, x: Any, counted: Any) -> Any:
    pooling = spec.head.pooling
    if pooling == "none":
        return x
    if pooling == "first":
        return x[:, 0]
    if pooling == "max":
        return ops.max(ops.where(counted[..., None], x, _HIDDEN), axis=1)
    share = ops.cast(counted, x.dtype)
    return ops.sum(x * share[..., None], axis=1) / ops.sum(share, axis=1, keepdims=True)


def _activate(activation: Activation, x: Any) -> Any:
    if activation == "linear":
        return x
    if activation in ("gelu", "gelu_tanh"):
        return ops.gelu(x, approximate=activation == "gelu_tanh")
    return {"relu": ops.relu, "silu": ops.silu, "tanh": ops.tanh, "sigmoid": ops.sigmoid}[activation](x)
