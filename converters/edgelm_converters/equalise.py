"""Evens out what a layer's inner channels carry, by factors that its own kernels undo: exact, and free at run time.

Activations that share a scale with one that is far larger lose their bits. A channel between two kernels may be divided by a
factor in the first and multiplied with it in the second, as SmoothQuant (Xiao et al. 2022,
https://arxiv.org/abs/2211.10438) and AWQ (Lin et al. 2023, https://arxiv.org/abs/2306.00978) do.

Dimensions: ``n`` tokens, ``F`` feed-forward width.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgelm_converters.spec import FeedForward, Float32, Linear

__all__ = ["equalise_feed_forward"]

# Of a channel's size, taken off it: the rest stays, so that the second kernel's rows do not become as uneven in its place.
_POWER = 0.5
_SMALLEST = 1e-4  # of the largest channel: a dead one has no factor of its own


def equalise_feed_forward(block: FeedForward, inner: Float32) -> tuple[FeedForward, Float32]:
    """Return a feed-forward that computes the same, with channels of a more even size.

    Without a gate it needs an activation that lets factors through, which only "relu" and "linear" do.

    Args:
        block: The feed-forward.
        inner: What its second kernel sees, ``(n, F)``.

    Returns:
        block: The feed-forward; as it was where its activation lets no factor through.
        factor: What each channel was divided by, ``(F,)``.
    """
    if block.gate is None and block.activation not in ("relu", "linear"):
        return block, np.ones(inner.shape[1], np.float32)
    factor = _factors(np.sqrt(np.square(inner).mean(axis=0)))
    down = replace(block.down, kernel=block.down.kernel * factor[:, None])
    return replace(block, up=_divided(block.up, factor), down=down), factor


def _factors(size: Float32) -> Float32:
    """Return a power of each size, around 1."""
    largest = float(size.max())
    if largest == 0:
        return np.ones_like(size)
    logarithm = _POWER * np.log(np.maximum(size, largest * _SMALLEST).astype(np.float64))
    factor: Float32 = np.exp(logarithm - logarithm.mean()).astype(np.float32)
    return factor


def _divided(linear: Linear, factor: Float32) -> Linear:
    bias = None if linear.bias is None else linear.bias / factor
    return replace(linear, kernel=linear.kernel / factor, bias=bias)
