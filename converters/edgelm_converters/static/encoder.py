"""The walk through an encoder, written once for calibration and for both formats.

Every operation whose result may be stored in integers is told a *point*: the name of that result, by which its range is
found. Points are named after the place in the model, not after its weights, so that layers that share weights (ALBERT) have
their own ranges.

Dimensions: ``n`` tokens, ``r`` rows (n, or 1 in a last layer of which only the first token is used), ``D`` width, ``H`` heads,
``K`` key/value heads, ``A`` width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol, TypeVar

import numpy as np

from edgelm.errors import ConversionError
from edgelm_converters.spec import Activation, Attention, FeedForward, Head, Layer, Linear, Norm, Stack, TransformerSpec

__all__ = ["Operators", "linears", "prepared", "walk"]

T = TypeVar("T")


class Operators(Protocol[T]):
    """What a target computes with. Batch 1 for the shapes given here; ONNX puts its batch in front."""

    def embed(self, spec: TransformerSpec, point: str) -> T:
        """Return the sum of the embeddings, ``(n, E)``."""
        ...

    def dense(self, x: T, linear: Linear, activation: Activation, point: str) -> T:
        """Return ``activation(x @ kernel + bias)``; before the activation it is `point`, after it ``point/activation``."""
        ...

    def add(self, x: T, y: T, point: str) -> T:
        """Return ``x + y``: the residual."""
        ...

    def multiply(self, x: T, y: T, point: str) -> T:
        """Return ``x * y``: a gate."""
        ...

    def norm(self, x: T, norm: Norm, point: str) -> T:
        """Return x normalised over its last axis."""
        ...

    def first_row(self, x: T) -> T:
        """Return the first token's row, ``(1, D)``."""
        ...

    def split_heads(self, x: T, heads: int, width: int) -> T:
        """Return ``(r, heads * width)`` as ``(heads, r, width)``."""
        ...

    def scores(self, query: T, key: T, point: str) -> T:
        """Return ``query @ key^T`` of heads, ``(H, r, n)``; query head h reads key head ``h // (H/K)``."""
        ...

    def hide(self, scores: T, *, causal: bool, point: str) -> T:
        """Return the scores with those of unseen tokens at the bottom of the range of `point`, or below."""
        ...

    def softmax(self, x: T, point: str) -> T:
        """Return the softmax over the last axis."""
        ...

    def mix(self, weights: T, value: T, point: str) -> T:
        """Return ``weights @ value`` of heads, ``(H, r, A)``."""
        ...

    def merge_heads(self, x: T) -> T:
        """Return ``(H, r, A)`` as ``(r, H * A)``."""
        ...

    def pool(self, x: T, head: Head, point: str) -> T:
        """Return the mean or the maximum over the tokens, ``(1, D)``."""
        ...


def walk(spec: TransformerSpec, operators: Operators[T]) -> T:
    """Walk through a prepared encoder; return what comes before the answer's own softmax or sigmoid."""
    x = operators.embed(spec, "embeddings/sum")
    if spec.embeddings.norm is not None:
        x = operators.norm(x, spec.embeddings.norm, "embeddings/norm")
    if spec.embeddings.projection is not None:
        x = operators.dense(x, spec.embeddings.projection, "linear", "embeddings/projection")
    layers = spec.encoder.layers
    for index, layer in enumerate(layers):
        # Of a last layer whose first token alone is used, the other rows' queries and feed-forward are dead.
        first_only = index == len(layers) - 1 and spec.head.pooling == "first"
        x = _layer(operators, layer, x, f"layer_{index}", first_only=first_only)
    if spec.encoder.final_norm is not None:
        x = operators.norm(x, spec.encoder.final_norm, "final_norm")
    if spec.head.pooling == "first" and not layers:
        x = operators.first_row(x)
    if spec.head.pooling in ("mean", "max"):
        x = operators.pool(x, spec.head, "head/pooled")
    for index, dense in enumerate(spec.head.layers):
        x = operators.dense(x, dense.linear, dense.activation, f"head/{index}")
    return x


def prepared(spec: TransformerSpec) -> TransformerSpec:
    """Return a spec with the attention's scale inside the query's weights: a step less to round.

    Raises:
        ConversionError: The model has what no encoder in integers has here.
    """
    if spec.generates or spec.head.tokens is not None:
        raise ConversionError(
            f"'{spec.name}' is a language model, and recipes with calibrated ranges write encoders only, without a cache: "
            "choose dynamic_wi8_afp32."
        )
    known: dict[int, Layer] = {}
    for layer in spec.encoder.layers:
        if id(layer) not in known:
            _check(layer, spec.name)
            attention = layer.attention
            query = _scaled(attention.query, attention.scale)
            known[id(layer)] = replace(layer, attention=replace(attention, query=query, scale=1.0))
    layers = tuple(known[id(layer)] for layer in spec.encoder.layers)
    return replace(spec, encoder=Stack(layers, spec.encoder.final_norm))


def linears(spec: TransformerSpec) -> Iterator[Linear]:
    """Yield every linear layer of an encoder, in order; a shared one as often as it is used."""
    if spec.embeddings.projection is not None:
        yield spec.embeddings.projection
    for layer in spec.encoder.layers:
        attention, block = layer.attention, layer.feed_forward
        yield from (attention.query, attention.key, attention.value, attention.output, block.up)
        yield from (() if block.gate is None else (block.gate,))
        yield block.down
    yield from (layer.linear for layer in spec.head.layers)


def _scaled(linear: Linear, factor: float) -> Linear:
    scale = np.float32(factor)
    bias = None if linear.bias is None else linear.bias * scale
    return replace(linear, kernel=linear.kernel * scale, bias=bias, grid=None)


def _check(layer: Layer, model: str) -> None:
    attention = layer.attention
    found = {
        "rotary positions": attention.rotary,
        "norms of queries or keys": attention.query_norm or attention.key_norm,
        "capped scores": attention.soft_cap,
        "a window of attention": attention.window,
        "second norms": layer.attention_post_norm or layer.feed_forward_post_norm,
        "rotated channels": layer.feed_forward.turn,
    }
    for what, part in found.items():
        if part is not None:
            raise ConversionError(
                f"The encoder '{model}' has {what}, which no recipe with calibrated ranges takes: choose dynamic_wi8_afp32."
            )


def _layer(operators: Operators[T], layer: Layer, x: T, name: str, *, first_only: bool) -> T:
    pre = layer.norm_placement == "pre"
    seen = operators.norm(x, layer.attention_norm, f"{name}/attention_norm") if pre else x
    mixed = _attention(operators, layer.attention, seen, f"{name}/attention", first_only=first_only)
    x = operators.add(operators.first_row(x) if first_only else x, mixed, f"{name}/attention_sum")
    if pre:
        seen = operators.norm(x, layer.feed_forward_norm, f"{name}/feed_forward_norm")
    else:
        seen = x = operators.norm(x, layer.attention_norm, f"{name}/attention_norm")
    x = operators.add(x, _feed_forward(operators, layer.feed_forward, seen, name), f"{name}/feed_forward_sum")
    return x if pre else operators.norm(x, layer.feed_forward_norm, f"{name}/feed_forward_norm")


def _attention(operators: Operators[T], attention: Attention, x: T, name: str, *, first_only: bool) -> T:
    """Return the attention's output, ``(r, D)``.

    Query, key and value are products of their own: each has its own range, and the input's integers are shared anyway.
    """
    early = first_only and not attention.causal
    asking = operators.first_row(x) if early else x
    query, key, value = (
        operators.split_heads(operators.dense(rows, linear, "linear", f"{name}/{part}"), heads, attention.head_dim)
        for rows, linear, part, heads in (
            (asking, attention.query, "query", attention.heads),
            (x, attention.key, "key", attention.kv_heads),
            (x, attention.value, "value", attention.kv_heads),
        )
    )
    point = f"{name}/scores"
    scores = operators.hide(operators.scores(query, key, point), causal=attention.causal, point=point)
    mixed = operators.mix(operators.softmax(scores, f"{name}/weights"), value, f"{name}/mixed")
    mixed = operators.merge_heads(mixed)
    if first_only and not early:
        mixed = operators.first_row(mixed)
    return operators.dense(mixed, attention.output, "linear", f"{name}/output")


def _feed_forward(operators: Operators[T], block: FeedForward, x: T, name: str) -> T:
    if block.gate is None:
        hidden = operators.dense(x, block.up, block.activation, f"{name}/up")
    else:
        gate = operators.dense(x, block.gate, block.activation, f"{name}/gate")
        hidden = operators.multiply(gate, operators.dense(x, block.up, "linear", f"{name}/up"), f"{name}/gated")
    return operators.dense(hidden, block.down, "linear", f"{name}/down")
