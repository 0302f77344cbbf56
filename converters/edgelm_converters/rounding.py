"""Rounds kernels to 4 bits such that what a layer gives stays, not the weights themselves.

This is GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323). The inputs of a kernel are rounded one after the other.
What the rounding of one does to the layer's output is taken up by the inputs that are still to come, as far as the activations
of a text say that they can.
What it leaves is made smaller by descent (`refine`): scales and steps are fitted in turns to the same squared error, which one
pass cannot go back to. Squared error of a layer's outputs on 2,500 tokens, by the moments of 6,144 others, as a share of them
(SmolLM2-135M, layer 14, 576 outputs of each kernel, blocks of 32):

===================================  =====  ======  ========  =======
rounding                             q,k,v  output  up, gate  down
===================================  =====  ======  ========  =======
to the nearest                       0.68   0.92    3.08      0.62  %
GPTQ                                 0.157  0.341   0.743     0.453 %
GPTQ, scales searched in its loop    0.152  0.326   0.725     0.452 %
GPTQ, large activations first        0.151  0.344   0.722     0.456 %
GPTQ, refined once                   0.144  0.316   0.687     0.430 %
GPTQ, refined three times            0.141  0.309   0.672     0.421 %
GPTQ with zero points                0.128  0.277   0.615     0.376 %
===================================  =====  ======  ========  =======

Zero points would be the next gain, and XNNPACK has none.

Dimensions: ``n`` rows of activations, ``I`` inputs and ``O`` outputs of a kernel, ``b`` inputs of a block, ``G`` blocks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgelm_converters.emit.blocks import choose_scales, round_scale
from edgelm_converters.spec import Float32

__all__ = ["Moments", "drift_moments", "make_up", "refine", "round_kernel", "second_moments"]

Moments = NDArray[np.float32]

_LOWEST, _HIGHEST = np.float32(-8), np.float32(7)
_OUTPUTS = 512  # at a time: the systems of equations for the scales of 4096 inputs are then 32 MB
_RIDGE = 1e-6  # of a system's mean diagonal: a block of zeros has no scale of its own
# A scale is fitted no further than this from what it was: beyond, its block's steps would all be others.
_SMALLEST_CHANGE, _LARGEST_CHANGE = np.float32(0.7), np.float32(1.4)


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


def refine(
    kernel: Float32, moments: Moments, rounded: Float32, scale: Float32, *, damping: float, sweeps: int
) -> tuple[Float32, Float32]:
    """Return a rounding that is nowhere worse for these moments: each output's squared error falls, or it stays as it was.

    A sweep fits the scales of an output by least squares, its steps as they are, and then each step, the others as they are.

    Args:
        kernel: ``(I, O)``, as it was.
        moments: ``(I, I)``, of the activations that it meets.
        rounded: As `round_kernel` gives it.
        scale: ``(O, G)``, of it.
        damping: As of `round_kernel`.
        sweeps: How often.

    Returns:
        As `round_kernel`.
    """
    damped = _damped(moments, damping)
    rounded, scale = rounded.copy(), scale.copy()
    for start in range(0, kernel.shape[1], _OUTPUTS):
        part = slice(start, start + _OUTPUTS)
        found = _descend(kernel[:, part], damped, rounded[:, part], scale[part].T, sweeps)
        rounded[:, part], scale[part] = found[0], found[1].T
    return rounded, scale


def _descend(
    kernel: Float32, damped: Moments, rounded: Float32, scale: Float32, sweeps: int
) -> tuple[Float32, Float32]:
    """Return the best of all sweeps for each output, with its scales ``(G, O)``."""
    groups, outputs = scale.shape
    steps = np.rint(rounded.reshape(groups, -1, outputs) / scale[:, None, :])
    best, best_scale = rounded, scale
    least = ((rounded - kernel) * (damped @ (rounded - kernel))).sum(axis=0)
    for _ in range(sweeps):
        scale = _fitted_scales(steps, scale, damped, damped @ kernel)
        rounded = (steps * scale[:, None, :]).reshape(kernel.shape)
        slope: Float32 = (damped @ (rounded - kernel)).astype(np.float32, copy=False)
        _fit_steps(steps, scale, damped, rounded, slope)
        error = ((rounded - kernel) * slope).sum(axis=0)
        better = error < least
        least = np.where(better, error, least)
        best, best_scale = np.where(better, rounded, best), np.where(better, scale, best_scale)
    return best, best_scale


def _fitted_scales(steps: Float32, scale: Float32, damped: Moments, target: Float32) -> Float32:
    """Return the scales ``(G, O)`` with the least squared error for steps ``(G, b, O)``; `target` is the moments @ kernel."""
    groups, block, outputs = steps.shape
    system = np.empty((outputs, groups, groups), np.float32)
    for number in range(groups):
        product = (damped[:, number * block : (number + 1) * block] @ steps[number]).reshape(steps.shape)
        system[:, :, number] = np.einsum("gbo,gbo->og", steps, product)
    middle = np.trace(system, axis1=1, axis2=2) / groups + np.finfo(np.float32).tiny
    system += np.float32(_RIDGE) * middle[:, None, None] * np.eye(groups, dtype=np.float32)
    wanted = np.einsum("gbo,gbo->og", steps, target.reshape(steps.shape))
    fitted = np.linalg.solve(system, wanted[:, :, None])[:, :, 0].T
    near = (fitted > _SMALLEST_CHANGE * scale) & (fitted < _LARGEST_CHANGE * scale)
    return round_scale(np.ascontiguousarray(np.where(near, fitted, scale), dtype=np.float32))


def _fit_steps(steps: Float32, scale: Float32, damped: Moments, rounded: Float32, slope: Float32) -> None:
    """Fit each step in turn, all others as they are; changes steps, kernel and ``slope = moments @ (rounded - kernel)``."""
    groups, block, outputs = steps.shape
    for number in range(groups):
        rows = slice(number * block, (number + 1) * block)
        own = damped[rows, rows]
        near = slope[rows].copy()  # of the block alone: the others are told when it is done
        change = np.empty((block, outputs), np.float32)
        for row in range(block):
            wanted = (rounded[rows][row] - near[row] / own[row, row]) / scale[number]
            chosen = np.clip(np.rint(wanted), _LOWEST, _HIGHEST)
            change[row] = (chosen - steps[number, row]) * scale[number]
            steps[number, row] = chosen
            near += own[:, row, None] * change[row]
        slope += damped[:, rows] @ change
        rounded[rows] = steps[number] * scale[number]


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
