"""Weights in blocks: a few bits a value, and a scale for each run of values along the input axis.

Symmetric, without zero points: what XNNPACK's ``qd8-f32-qb4w`` kernels and ONNX Runtime's ``MatMulNBits`` both take.

Dimensions: ``I`` inputs and ``O`` outputs of a kernel, ``b`` values of a block.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ConversionError
from edgelm_converters.emit.quantize import Int8
from edgelm_converters.spec import Float32, Grid

__all__ = ["check_grid", "choose_scales", "pack_pairs", "quantize_blocks", "round_scale", "round_to"]

# Candidates for a block's scale, as shares of the one that just holds its largest value. A smaller one cuts that value and
# serves the many others better: on normally distributed weights the squared error of 4-bit blocks of 32 falls by 29 %.
_SHARES = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.76, 0.72)
# Rows at a time: bounds what the search holds at once to some 30 MB for a kernel 4096 wide.
_CHUNK = 256
_SMALLEST_SCALE = 1e-30  # what is smaller is 0: a subnormal scale is refused by XNNPACK, and its inverse overflows


def quantize_blocks(kernel: Float32, *, bits: int, block: int, positive: bool) -> tuple[Int8, Float32]:
    """Quantise a kernel in blocks along its input axis, each scale the one of several with the least squared error.

    The range is uneven, -2^(bits-1) to 2^(bits-1) - 1. Where scales may be negative, a block's largest value takes the longer
    side, and its sign is the scale's: 10 % less squared error.

    Args:
        kernel: ``(I, O)``, finite.
        bits: Of a value, 2 to 8.
        block: Values that share a scale; `I` is a multiple of it.
        positive: Whether scales have to be above 0, as XNNPACK wants them.

    Returns:
        values: int8 ``(O, I)``, in [-2^(bits-1), 2^(bits-1) - 1].
        scale: float32 ``(O, I / block)``, never 0; ``kernel.T ≈ values * scale``, each block by its own.

    Raises:
        ConversionError: The input axis is no multiple of the block.
    """
    inputs, outputs = kernel.shape
    if inputs % block:
        raise ConversionError(f"A kernel with {inputs} inputs cannot be cut into blocks of {block}.")
    values = np.empty((outputs, inputs), np.int8)
    scale = np.empty((outputs, inputs // block), np.float32)
    for start in range(0, outputs, _CHUNK):
        rows = slice(start, min(start + _CHUNK, outputs))
        blocks = np.ascontiguousarray(kernel[:, rows].T).reshape(-1, block)
        steps, scales = _best(blocks, bits, positive=positive)
        values[rows] = steps.reshape(-1, inputs)
        scale[rows] = scales.reshape(-1, inputs // block)
    return values, scale


def choose_scales(kernel: Float32, block: int) -> Float32:
    """Return the scales of a kernel ``(I, O)`` in 4-bit blocks, ``(O, I / block)``, as XNNPACK computes with them.

    It uses the first 8 bits of a scale, which is above 0: `quantize_blocks`' choice, rounded to that.
    """
    _, best = quantize_blocks(kernel, bits=4, block=block, positive=True)
    return round_scale(best)


def round_scale(scale: Float32) -> Float32:
    """Round to 8 significant bits, as bfloat16 has them: add half of the last one, cut the rest off."""
    return ((scale.view(np.uint32) + np.uint32(1 << 15)) & np.uint32(0xFFFF0000)).view(np.float32)


def round_to(kernel: Float32, scale: Float32) -> Int8:
    """Return the 4-bit steps of a kernel ``(I, O)`` for given scales ``(O, blocks)``: int8 ``(O, I)`` in [-8, 7]."""
    inputs, outputs = kernel.shape
    values = np.empty((outputs, inputs), np.int8)
    for start in range(0, outputs, _CHUNK):
        part = slice(start, start + _CHUNK)
        blocks = np.ascontiguousarray(kernel[:, part].T).reshape(-1, scale.shape[1], inputs // scale.shape[1])
        values[part] = np.clip(np.rint(blocks / scale[part, :, None]), -8, 7).reshape(-1, inputs)
    return values


def check_grid(grid: Grid, inputs: int, block: int) -> None:
    """Check that a kernel that was rounded before has the blocks of the recipe that stores it.

    Raises:
        ConversionError: It has others: rounding it again would lose what was made up for in the first rounding.
    """
    rounded = inputs // grid.scale.shape[1]
    if rounded != block:
        raise ConversionError(
            f"A kernel of {inputs} inputs was rounded in blocks of {rounded}, and the recipe has blocks of {block}: "
            "prepare the model for the recipe that it is stored with."
        )


def pack_pairs(values: Int8) -> NDArray[np.uint8]:
    """Return the lower 4 bits of each value, two in a byte, the first in its lower half: uint8, half the last axis.

    In two's complement, as TFLite stores int4; ``values + 8`` gives the bytes of ONNX Runtime's ``MatMulNBits``.
    """
    nibbles = values.view(np.uint8) & np.uint8(15)
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << np.uint8(4))


def _best(blocks: Float32, bits: int, *, positive: bool) -> tuple[Int8, Float32]:
    """Return the steps of blocks ``(n, b)``, and their scales ``(n, 1)``, with the least squared error."""
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if positive:
        top, bottom = blocks.max(axis=1, keepdims=True), blocks.min(axis=1, keepdims=True)
        widest = np.maximum(top / np.float32(highest), bottom / np.float32(lowest))
    else:
        places = np.abs(blocks).argmax(axis=1)[:, None]
        widest = np.take_along_axis(blocks, places, axis=1) / np.float32(lowest)
    widest = np.where(np.abs(widest) < _SMALLEST_SCALE, np.float32(1), widest)
    best_error = np.full((len(blocks), 1), np.inf, np.float32)
    best_scale = widest
    peak = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(highest)
    plain = np.where(peak < _SMALLEST_SCALE, np.float32(1), peak)
    for scale in (plain, *(widest * np.float32(share) for share in _SHARES)):
        steps = np.clip(np.rint(blocks / scale), lowest, highest)
        # The scale that fits these steps best, by least squares.
        weight = (steps * steps).sum(axis=1, keepdims=True)
        product = (steps * blocks).sum(axis=1, keepdims=True)
        fitted = np.where(product == 0, scale, product / np.maximum(weight, 1))
        error = np.square(steps * fitted - blocks).sum(axis=1, keepdims=True)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, fitted, best_scale).astype(np.float32)
    steps = np.clip(np.rint(blocks / best_scale), lowest, highest)
    return steps.astype(np.int8), best_scale
