"""Cuts heads and neurons out of a layer: what stays computes exactly as before.

Dimensions: ``H`` heads, ``K`` key/value heads, ``A`` width of a head, ``F`` neurons.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgelm_converters.compress.calibrate import Half
from edgelm_converters.spec import Attention, FeedForward, Layer, Linear, parameters

__all__ = ["input_rows", "keep_groups", "keep_neurons", "keep_units", "shares_weights", "units_of"]

Numbers = NDArray[np.intp]


def units_of(layer: Layer, half: Half) -> int:
    """Return how many units a half has: groups of a key head with its query heads, or neurons."""
    return layer.attention.kv_heads if half == "attention" else len(layer.feed_forward.down.kernel)


def input_rows(layer: Layer, half: Half, kept: Numbers) -> Numbers:
    """Return the rows of a half's last kernel that belong to units."""
    width = len(layer.attention.output.kernel) // layer.attention.kv_heads if half == "attention" else 1
    return _spread(kept, width)


def keep_units(layer: Layer, half: Half, kept: Numbers) -> Layer:
    """Return a layer with these units of a half only."""
    if half == "attention":
        return replace(layer, attention=keep_groups(layer.attention, kept))
    return replace(layer, feed_forward=keep_neurons(layer.feed_forward, kept))


def keep_groups(attention: Attention, kept: Numbers) -> Attention:
    """Return an attention with these key/value heads and the query heads that read them."""
    if len(kept) == attention.kv_heads:
        return attention
    queries = attention.heads // attention.kv_heads
    keys = _spread(kept, attention.head_dim)
    wide = _spread(kept, attention.head_dim * queries)
    return replace(
        attention,
        heads=len(kept) * queries,
        kv_heads=len(kept),
        query=_outputs(attention.query, wide),
        key=_outputs(attention.key, keys),
        value=_outputs(attention.value, keys),
        output=_inputs(attention.output, wide),
    )


def keep_neurons(block: FeedForward, kept: Numbers) -> FeedForward:
    """Return a feed-forward with these inner channels only."""
    if len(kept) == len(block.down.kernel):
        return block
    return replace(
        block,
        up=_outputs(block.up, kept),
        gate=None if block.gate is None else _outputs(block.gate, kept),
        down=_inputs(block.down, kept),
    )


def shares_weights(layers: tuple[Layer, ...]) -> bool:
    """Return whether a kernel of one layer is another's too."""
    owners: dict[int, int] = {}
    return any(
        owners.setdefault(id(array), number) != number
        for number, layer in enumerate(layers)
        for path, array in parameters(layer)
        if path.endswith("kernel")
    )


def _spread(numbers: Numbers, width: int) -> Numbers:
    return (numbers[:, None] * width + np.arange(width)).ravel()


def _outputs(linear: Linear, columns: Numbers) -> Linear:
    bias = None if linear.bias is None else linear.bias[columns]
    return replace(linear, kernel=np.ascontiguousarray(linear.kernel[:, columns]), bias=bias)


def _inputs(linear: Linear, rows: Numbers) -> Linear:
    return replace(linear, kernel=linear.kernel[rows])
