"""Scores of the next token into log-probabilities, for those tokens that count.

``R`` rows, ``V`` tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ExecutionError

__all__ = ["best_tokens", "log_normalisers", "suppress"]

Float32 = NDArray[np.float32]


def suppress(scores: Float32, forbidden: NDArray[np.int64]) -> Float32:
    """Return scores ``(R, V)`` in which forbidden tokens have minus infinity: they have no share of the probability either."""
    if not forbidden.size:
        return scores
    allowed = scores.copy()
    allowed[:, forbidden] = -np.inf
    return allowed


def log_normalisers(scores: Float32) -> NDArray[np.float64]:
    """Return what to take from scores ``(R, V)`` so that they are log-probabilities, float64 ``(R,)``.

    Raises:
        ExecutionError: The scores hold a NaN or plus infinity, or forbid every token.
    """
    peak = scores.max(axis=1)
    if not np.isfinite(peak).all():
        wrong = peak[~np.isfinite(peak)][0]
        raise ExecutionError(
            f"The model answered with {wrong} among its scores: check the bundle here with 'edgelm verify'."
        )
    total: NDArray[np.float64] = np.exp(scores - peak[:, None]).sum(axis=1, dtype=np.float64)
    normalisers: NDArray[np.float64] = peak + np.log(total)
    return normalisers


def best_tokens(scores: Float32, count: int) -> NDArray[np.int64]:
    """Return the `count` tokens of the highest scores ``(V,)``, highest first, of equal ones the lower id; all if fewer."""
    if count >= scores.size:
        places = np.arange(scores.size)
    else:
        border = np.partition(scores, scores.size - count)[scores.size - count]
        places = np.flatnonzero(scores >= border)
    return places[np.argsort(-scores[places], kind="stable")][:count]
