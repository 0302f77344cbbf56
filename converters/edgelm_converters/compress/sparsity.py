"""Sets single weights of a kernel to 0 such that what it gives stays, as SparseGPT does (https://arxiv.org/abs/2301.00774).

The inputs are gone through one after the other, and what a weight that became 0 gave is taken up by the inputs still to come.
Which weights become 0 is decided block by block, from the weights as they are by then.

Dimensions: ``I`` inputs of a kernel (with the constant 1 of a bias as the last), ``O`` outputs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import RecipeError
from edgelm_converters.compress.correction import Fit, Float64, ridge_of, rows_of, with_rows
from edgelm_converters.spec import Linear

__all__ = ["sparsify", "sparsify_by_magnitude"]

_BLOCK = 128  # inputs that are decided on together; a multiple of 4
_DAMPING = 0.01  # of the moments' mean, SparseGPT's own


def sparsify(linear: Linear, fit: Fit, share: float, *, pattern: bool = False) -> Linear:
    """Return a layer with a share of its weights at 0, and the others and the bias changed to make up for it.

    Args:
        linear: The layer.
        fit: Moments of its inputs, as `MomentSum` gives them.
        share: Of each output's weights, block by block, in (0, 1).
        pattern: 2:4 in place of a share: in each 4 inputs that follow each other, 2 weights of every output are 0.

    Raises:
        RecipeError: 2:4 was asked for, and the inputs are no multiple of 4.
    """
    rows = rows_of(linear)
    count = len(linear.kernel)
    _check(linear, pattern)
    upper = _inverse_factor(fit)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        factor = upper[start:stop, start:stop]
        part = rows[start:stop]
        scale = np.diagonal(factor)[:, None]
        drop = np.zeros(part.shape, np.bool_) if pattern else _smallest(np.abs(part / scale), share)
        errors = np.zeros_like(part)
        for row in range(stop - start):
            if pattern and row % 4 == 0:
                four = slice(row, row + 4)
                now = part[four] - factor[:row, four].T @ errors[:row]
                drop[four] = _smallest(np.abs(now / scale[four]), 0.5)
            value = part[row] - factor[:row, row] @ errors[:row]
            left = np.where(drop[row], 0.0, value)
            errors[row] = (value - left) / factor[row, row]
            part[row] = left
        rows[stop:] -= upper[start:stop, stop:].T @ errors
    return with_rows(linear, rows)


def sparsify_by_magnitude(linear: Linear, share: float, *, pattern: bool = False) -> Linear:
    """Return a layer whose smallest weights are 0 and whose others are as they were; arguments as of `sparsify`.

    Raises:
        RecipeError: 2:4 was asked for, and the inputs are no multiple of 4.
    """
    _check(linear, pattern)
    rows = rows_of(linear)
    step = 4 if pattern else _BLOCK
    for start in range(0, len(linear.kernel), step):
        part = rows[start : min(start + step, len(linear.kernel))]
        part[_smallest(np.abs(part), 0.5 if pattern else share)] = 0.0
    return with_rows(linear, rows)


def _smallest(scores: Float64, share: float) -> NDArray[np.bool_]:
    """Return where each column's smallest scores are."""
    count = round(share * len(scores))
    marked = np.zeros(scores.shape, np.bool_)
    np.put_along_axis(marked, np.argsort(scores, axis=0, kind="stable")[:count], values=True, axis=0)
    return marked


def _check(linear: Linear, pattern: bool) -> None:
    if pattern and len(linear.kernel) % 4:
        raise RecipeError(
            f"pattern=2:4 needs inputs in fours, and '{linear.name}' has {len(linear.kernel)}: ask for sparsity=0.5 alone."
        )


def _inverse_factor(fit: Fit) -> Float64:
    """Return the upper triangular U with ``U^T U`` the inverse of the damped moments."""
    damped = fit.moments.copy()
    damped[np.diag_indices_from(damped)] += ridge_of(fit, _DAMPING)
    # The factor of the matrix read backwards: its inverse, read backwards again, is U.
    backwards = np.linalg.cholesky(damped[::-1, ::-1])
    upper: Float64 = np.ascontiguousarray(np.linalg.inv(backwards)[::-1, ::-1], dtype=np.float64)
    return upper
