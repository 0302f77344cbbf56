"""Rounds kernels to 4 bits such that what a layer gives stays, not the weights themselves.

This is GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323). The inputs of a kernel are rounded one after the other.
What the rounding of one does to the layer's output is taken up by the inputs that are still to come, as far as the activations
of a text say that they can.

Dimensions: ``n`` rows of activations, ``I`` inputs and ``O`` outputs of a kernel, ``b`` inputs of a block.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgelm_converters.emit.blocks import choose_scales
from edgelm_converters.spec import Float32

__all__ = ["Moments", "drift_moments", "make_up", "round_kernel", "second_moments"]

Moments = NDArray[np.float32]

_LOWEST, _HIGHEST = np.float32(-8), np.float32(7)


def second_moments(activations: Float32) -> Moments:
    """Return ``x^T x / n`` of activations ``(n, I)``, float32 ``(I, I)``: all that the rounding needs of them."""
    moments: Moments = activations.T @ activations
    moments /= np.float32(len(activations))
    return moments


def drift_moments(activations: Float32, wanted: Float32) -> Moments:
    """Return ``x^T (w - x) / n`` of activations x ``(n, I)`` and of what they would be, w, had nothing been rounded before."""
    missing: Float32 = wanted - activations
    moments: Moments = activations.T @ missing
    moments /= np.float32(len(activations))
    return moments


def make_up(kernel: Float32, moments: Moments, drift: Moments, *, damping: float) -> Float32:
    """Return a kernel that makes up for what was rounded before it: least squares towards ``w @ kernel`` from x.

    As GPTAQ (Li et al. 2025, https://arxiv.org/abs/2504.02692) does, before the rounding in place of within it.

    Args:
        kernel: ``(I, O)``.
        moments: Of the activations that it meets, x.
        drift: As `drift_moments` gives it.
        damping: As of `round_kernel`: with more, less is made up for.
    """
    change: Float32 = np.linalg.solve(_damped(moments, damping), drift @ kernel)
    return kernel + change


def round_kernel(kernel: Float32, moments: Moments, *, block: int, damping: float) -> tuple[Float32, Float32]:
    """Round a kernel to 4-bit steps, such that ``x @ kernel`` changes least for activations with these second moments.

    Takes a second for a kernel of 1536x576, and some 30 MB.

    Args:
        kernel: ``(I, O)``; `I` is a multiple of `block`.
        moments: ``(I, I)``, of the activations that it meets.
        block: Inputs that share a scale.
        damping: Added to the diagonal of the moments, as a share of its mean: how far they are mistrusted. With too little,
            what is rounded fits the text and nothing else.

    Returns:
        kernel: ``(I, O)``, each value exactly a step times its scale.
        scale: float32 ``(O, I / block)``, as `edgelm_converters.emit.blocks.choose_scales` gives them.
    """
    inputs, outputs = kernel.shape
    upper = _inverse_factor(moments, damping)
    left = kernel.copy()  # what is still to be rounded, with what the others left to it
    rounded = np.empty_like(kernel)
    scales = np.empty((inputs // block, outputs), np.float32)
    errors = np.empty((block, outputs), np.float32)
    for number, start in enumerate(range(0, inputs, block)):
        rows = slice(start, start + block)
        part, factor = left[rows], upper[rows, rows]
        scale = choose_scales(part, block)[:, 0]
        for row in range(block):
            wanted = part[row] - factor[:row, row] @ errors[:row]
            steps = np.rint(wanted / scale)
            np.clip(steps, _LOWEST, _HIGHEST, out=steps)
            steps *= scale
            rounded[start + row] = steps
            errors[row] = (wanted - steps) / factor[row, row]
        left[start + block :] -= upper[rows, start + block :].T @ errors
        scales[number] = scale
    return rounded, np.ascontiguousarray(scales.T)


def _inverse_factor(moments: Moments, damping: float) -> Float32:
    """Return the upper triangular U with ``U^T U`` the inverse of the damped moments."""
    damped = _damped(moments, damping)
    # The factor of the matrix read backwards: its inverse, read backwards again, is U, without inverting the moments first.
    backwards = np.linalg.cholesky(damped[::-1, ::-1])
    return np.ascontiguousarray(np.linalg.inv(backwards)[::-1, ::-1], dtype=np.float32)


def _damped(moments: Moments, damping: float) -> Moments:
    damped = moments.copy()
    middle = float(np.diagonal(moments).mean())
    damped[np.diag_indices_from(damped)] += np.float32(damping) * np.float32(middle if middle > 0 else 1.0)
    return damped
