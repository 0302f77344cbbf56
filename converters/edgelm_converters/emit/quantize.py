"""Weights as int8: the arithmetic, and the one place that decides in which form a recipe stores each weight.

Symmetric, one scale per output channel (or per embedding row), values in [-127, 127]: what XNNPACK's ``qd8-f32-qc8w``
kernels and ONNX's integer matrix products both take. -128 stays unused, so that the range is as wide on both sides.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ModelError, RecipeError, unknown_name
from edgelm_converters.recipes import RECIPES, Recipe
from edgelm_converters.spec import Float32, TransformerSpec, parameters

__all__ = ["Form", "Int8", "check_finite", "quantize_weight", "stored_form", "weight_recipe", "worth_quantizing"]

Int8 = NDArray[np.int8]
Form = Literal["float32", "float16", "int8", "int4"]

_STEPS = 127
# Below this many elements a matrix stays float: a head of a few classes decides the answer, and its bytes do not show.
_SMALLEST = 4096
# XNNPACK refuses a scale that is subnormal.
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


def quantize_weight(weight: Float32, axis: int) -> tuple[Int8, Float32]:
    """Quantise a weight tensor to int8, one scale per slice along `axis`.

    ``weight ≈ values * scale``, with an error of at most ``scale / 2`` per element.

    Args:
        weight: Any shape, finite values. A Dense kernel is ``(in, out)``, so axis 1; an embedding is ``(V, E)``, and one
            scale a row is axis 0.
        axis: The output-channel axis.

    Returns:
        values: int8, same shape as `weight`, in [-127, 127].
        scale: float32, shape ``(weight.shape[axis],)``, in units of weight per step; 1 where the slice is all zeros.

    Raises:
        ValueError: `weight` holds a NaN or an infinity.
    """
    others = tuple(other for other in range(weight.ndim) if other != axis % weight.ndim)
    # Two reductions instead of np.abs: an embedding table is not copied only to be measured.
    peak = np.maximum(weight.max(axis=others), -weight.min(axis=others)).astype(np.float32)
    if not np.isfinite(peak).all():
        raise ValueError(f"A weight of shape {weight.shape} holds NaN or infinity: it cannot be quantised.")
    scale = np.where(peak == 0, np.float32(1), np.maximum(peak / np.float32(_STEPS), np.float32(_SMALLEST_SCALE)))
    steps = weight / np.expand_dims(scale, others)
    np.rint(steps, out=steps)
    np.clip(steps, -_STEPS, _STEPS, out=steps)
    return steps.astype(np.int8), scale


def worth_quantizing(weight: Float32 | tuple[int, ...]) -> bool:
    """Return whether a kernel or an embedding table becomes int8 where the recipe asks for int8.

    Vectors (biases, gammas) and small matrices stay float32: they cost nothing, and an error in them reaches everything.

    Args:
        weight: The weight, or the shape of one that is not made yet.
    """
    shape = weight if isinstance(weight, tuple) else weight.shape
    return len(shape) == 2 and math.prod(shape) >= _SMALLEST


def weight_recipe(name: str) -> Recipe:
    """Return the recipe of that name, if all it asks of an emitter is how to store weights: nothing is calibrated.

    Raises:
        RecipeError: There is none.
    """
    known = {recipe.name: recipe for recipe in RECIPES.values() if not recipe.static}
    if name not in known:
        raise RecipeError(unknown_name("recipe", name, known))
    return known[name]


def stored_form(recipe: Recipe, shape: tuple[int, ...], least_bits: int) -> Form:
    """Return in which form a kernel or a table is stored.

    What may not be as narrow as the recipe has it takes the next form that is wide enough: int8 in place of int4, where its
    inputs fill no blocks too, and float16, which is computed with in float32, in place of either.

    Args:
        recipe: One without calibrated ranges.
        shape: Of a kernel, ``(in, out)``; of a table ``(V, E)``.
        least_bits: As `Linear.least_bits`; of a table 8 or 16, so that it never is int4.
    """
    if recipe.weights == "float32" or not worth_quantizing(shape):
        return "float32"
    if recipe.weights == "float16" or least_bits > 8:
        return "float16"
    if recipe.block is None or least_bits > 4 or shape[0] % recipe.block:
        return "int8"
    return "int4"


def check_finite(spec: TransformerSpec) -> None:
    """Check every weight of a spec.

    Raises:
        ModelError: One holds a NaN or an infinity; the message names it.
    """
    for path, array in parameters(spec):
        # The sum of a finite array can overflow, but not that of its extremes.
        if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
            count = int(array.size - np.isfinite(array).sum())
            raise ModelError(
                f"The weight {path} of the model '{spec.name}' holds {count} NaN or infinite values of {array.size}: "
                "its training diverged, or the file is damaged. Train again, or load an earlier checkpoint."
            )
