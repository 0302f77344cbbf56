"""The buckets of T5's relative positions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgelm_converters.spec import Float32, RelativeBias

__all__ = ["relative_bias", "relative_buckets"]


def relative_buckets(distance: NDArray[np.int64], bias: RelativeBias) -> NDArray[np.int64]:
    """Return the bucket of each distance, key's position less query's (Raffel et al. 2020, as in Mesh TensorFlow).

    Half of a side's buckets are single distances; the others divide the distances up to ``max_distance`` evenly on a
    logarithmic scale. The logarithm is taken in float32, as the models were trained with it.
    """
    buckets = len(bias.table)
    found = np.zeros_like(distance)
    if bias.bidirectional:
        buckets //= 2
        found = np.where(distance > 0, buckets, 0)
        distance = np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    exact = buckets // 2
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(bias.max_distance / exact)
    )
    far = exact + (ratio * np.float32(buckets - exact)).astype(np.int64)
    return found + np.where(distance < exact, distance, np.minimum(far, buckets - 1))


def relative_bias(bias: RelativeBias, queries: NDArray[np.int64], keys: NDArray[np.int64]) -> Float32:
    """Return what is added to the scores, float32 ``(H, queries, keys)``, for queries and keys at these positions."""
    buckets = relative_buckets(keys[None, :].astype(np.int64) - queries[:, None].astype(np.int64), bias)
    return np.ascontiguousarray(bias.table[buckets].transpose(2, 0, 1))
