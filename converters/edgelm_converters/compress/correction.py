"""Refits a kernel so that it gives what was wanted from the inputs that are left: least squares on calibration activations.

A kernel W0 ``(I, O)`` becomes the W that makes ``|y - x W|^2 / n + r |W - W0|^2`` least, over inputs x ``(n, I)`` and wanted
outputs y ``(n, O)``. It is drawn towards the kernel that was trained, not towards 0: then the fit on the calibration data is
never worse than leaving W0 as it is, however large the ridge r. All that is needed of the data are second moments, which are
added up chunk by chunk in float64.

A bias is one more row of the kernel, whose input is always 1.

Dimensions: ``n`` tokens, ``I`` inputs (with the 1, where there is a bias), ``O`` outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgelm_converters.spec import Float32, Linear

__all__ = ["RIDGE", "Fit", "Float64", "MomentSum", "fit_error", "ridge_of", "rows_of", "solve", "with_rows"]

Float64 = NDArray[np.float64]

# As a share of the mean of the moments' diagonal. What was tried, one-shot, on data that nothing was fitted to:
#   ridge                                                                 0.0001   0.01    0.1
#   intent classifier, 50 % of heads, 60 % of neurons, 16,000 tokens:
#   error of the last layer's output                                        30.1   30.0   30.4  %
#   15M language model, 30 % of 768 neurons: rise of the perplexity
#   4,000 tokens, 8 stories                                                          96     76  %
#   16,000 tokens, 30 stories and the first 12 of them                               55     63  %
# A large ridge is what holds where calibration data are few, which is when it matters.
RIDGE = 0.1


@dataclass(frozen=True, eq=False)
class Fit:
    """What a kernel is fitted by: means over the tokens.

    Attributes:
        moments: ``x^T x / n``, ``(I, I)``.
        products: ``x^T y / n``, ``(I, O)``.
        energy: ``|y|^2 / n``.
        tokens: ``n``.
    """

    moments: Float64
    products: Float64
    energy: float
    tokens: int

    def of(self, rows: NDArray[np.intp]) -> Fit:
        """Return the fit by a part of the inputs."""
        return Fit(self.moments[np.ix_(rows, rows)], self.products[rows], self.energy, self.tokens)


class MomentSum:
    """Adds up the moments of chunk after chunk.

    Args:
        linear: The kernel that they are for: with a bias, a 1 is appended to each row of inputs.
    """

    def __init__(self, linear: Linear) -> None:
        inputs = len(linear.kernel) + (linear.bias is not None)
        self._constant = linear.bias is not None
        self._moments = np.zeros((inputs, inputs))
        self._products = np.zeros((inputs, linear.kernel.shape[1]))
        self._energy = 0.0
        self._tokens = 0

    def add(self, x: Float32, wanted: Float32 | None = None) -> None:
        """Add inputs ``(n, I)``, without the 1, and wanted outputs ``(n, O)``; without those only the moments are of use."""
        rows = x.astype(np.float64)
        if self._constant:
            rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
        self._moments += rows.T @ rows
        self._tokens += len(rows)
        if wanted is not None:
            targets = wanted.astype(np.float64)
            self._products += rows.T @ targets
            self._energy += float(np.vdot(targets, targets))

    def mean(self) -> Fit:
        """Return the means so far."""
        count = self._tokens
        return Fit(self._moments / count, self._products / count, self._energy / count, count)


def rows_of(linear: Linear) -> Float64:
    """Return a kernel in float64 with its bias, if it has one, as the last row: ``(I, O)``."""
    kernel = linear.kernel.astype(np.float64)
    return kernel if linear.bias is None else np.concatenate([kernel, linear.bias[None].astype(np.float64)])


def with_rows(linear: Linear, rows: Float64) -> Linear:
    """Return a layer of that name with the kernel and the bias of `rows`, as `rows_of` makes them."""
    if linear.bias is None:
        return replace(linear, kernel=rows.astype(np.float32))
    return replace(linear, kernel=rows[:-1].astype(np.float32), bias=rows[-1].astype(np.float32))


def ridge_of(fit: Fit, ridge: float) -> float:
    """Return a ridge in units of the moments, above 0 even where all inputs are 0."""
    middle = float(np.diagonal(fit.moments).mean())
    return ridge * (middle if middle > 0 else 1.0)


def solve(fit: Fit, rows: Float64, *, ridge: float = RIDGE) -> Float64:
    """Return the rows ``(I, O)`` that fit best, drawn towards `rows`.

    Args:
        fit: Of exactly these inputs.
        rows: ``(I, O)``.
        ridge: How far the calibration data are mistrusted, as a share of the mean of the moments' diagonal; above 0.
    """
    weight = ridge_of(fit, ridge)
    damped = fit.moments.copy()
    damped[np.diag_indices_from(damped)] += weight
    return np.linalg.solve(damped, fit.products + weight * rows).astype(np.float64)


def fit_error(fit: Fit, rows: Float64) -> float:
    """Return ``|y - x W|^2 / |y|^2`` for rows W ``(I, O)``: 0 is perfect; 0 too where nothing but 0 is wanted."""
    if fit.energy == 0:
        return 0.0
    squared = fit.energy - 2 * np.vdot(rows, fit.products) + np.vdot(rows, fit.moments @ rows)
    return max(0.0, float(squared)) / fit.energy
