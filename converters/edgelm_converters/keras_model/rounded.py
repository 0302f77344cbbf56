"""Kernels that are rounded in every pass of a training, as a recipe will store them. Importing this module imports Keras.

A gradient goes through a rounding as if it were not there (the straight-through estimator: Bengio et al. 2013,
https://arxiv.org/abs/1308.3432; Jacob et al. 2017, https://arxiv.org/abs/1712.05877): the weights that are trained stay
float32, and settle where their rounding answers well. Scales are found anew in each pass, as the emitters find them. What is
rounded is the matrix products, where a Transformer's weights are: embedding tables, norms and what lies between two products
are computed in float32.

Dimensions: ``I`` inputs and ``O`` outputs of a kernel, ``b`` inputs of a block, ``G`` blocks.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import keras

from edgelm_converters.emit.quantize import stored_form
from edgelm_converters.recipes import Recipe
from edgelm_converters.spec import Linear, TransformerSpec

__all__ = ["RoundedKernel", "rounded"]

ops: Any = keras.ops  # whose functions are typed as if they might return None

_TINY = 1e-12
# Of the scales that `edgelm_converters.emit.blocks` searches, every other one.
_SHARES = (1.0, 0.94, 0.88, 0.82, 0.76)


class RoundedKernel:
    """A kernel in place of a variable: `apply` multiplies as the artifact will.

    Args:
        kernel: float32 ``(I, O)``, a variable.
        block: Inputs that share a scale of 4 bits; None rounds to 8 bits with one scale for each output.
        activations: As `Recipe.activations`.
    """

    def __init__(self, kernel: Any, block: int | None, activations: str) -> None:
        self.shape = kernel.shape
        self._kernel, self._block, self._activations = kernel, block, activations

    def apply(self, x: Any) -> Any:
        """Return ``x @ kernel``, float32 ``(..., O)``, for float32 ``(..., I)``."""
        kernel = ops.convert_to_tensor(self._kernel)
        stored = _per_output(kernel) if self._block is None else _in_blocks(kernel, self._block)
        return ops.matmul(_activations(x, self._activations), _straight_through(kernel, stored))


def rounded(spec: TransformerSpec, recipe: Recipe) -> TransformerSpec:
    """Return a spec of variables with every kernel that the recipe stores as integers replaced by a `RoundedKernel`."""

    def walk(value: Any) -> Any:
        if isinstance(value, Linear):
            form = stored_form(recipe, tuple(value.kernel.shape), value.least_bits)
            if form not in ("int8", "int4"):
                return value
            block = recipe.block if form == "int4" else None
            kernel: Any = RoundedKernel(value.kernel, block, recipe.activations)
            return replace(value, kernel=kernel)
        if isinstance(value, tuple):
            return tuple(walk(item) for item in value)
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{entry.name: walk(getattr(value, entry.name)) for entry in fields(value)})
        return value

    found: TransformerSpec = walk(spec)
    return found


def _straight_through(exact: Any, stored: Any) -> Any:
    return exact + ops.stop_gradient(stored - exact)


def _per_output(kernel: Any) -> Any:
    """As `edgelm_converters.emit.quantize.quantize_weight`."""
    scale = ops.maximum(ops.max(ops.abs(kernel), axis=0, keepdims=True) / 127.0, _TINY)
    return ops.round(kernel / scale) * scale


def _in_blocks(kernel: Any, block: int) -> Any:
    """As `edgelm_converters.emit.blocks.quantize_blocks`: of several scales the one with the least squared error."""
    inputs, outputs = kernel.shape
    parts = ops.reshape(kernel, (inputs // block, block, outputs))
    top, bottom = ops.max(parts, axis=1, keepdims=True), ops.min(parts, axis=1, keepdims=True)
    widest = ops.maximum(ops.maximum(top / 7.0, bottom / -8.0), _TINY)
    best, least = None, None
    for share in _SHARES:
        scale = widest * share
        tried = ops.clip(ops.round(parts / scale), -8.0, 7.0) * scale
        error = ops.sum(ops.square(tried - parts), axis=1, keepdims=True)
        if best is None:
            best, least = tried, error
        else:
            best, least = ops.where(error < least, tried, best), ops.minimum(error, least)
    return ops.reshape(best, (inputs, outputs))


def _activations(x: Any, kind: str) -> Any:
    """Round what a product meets: a token at a time where scales are found at run time, all at once where they are fixed."""
    if kind == "dynamic":
        scale = ops.maximum(ops.max(ops.abs(x), axis=-1, keepdims=True) / 127.0, _TINY)
        return _straight_through(x, ops.round(x / scale) * scale)
    if kind == "int8":
        low, high = ops.minimum(ops.min(x), 0.0), ops.maximum(ops.max(x), 0.0)
        scale = ops.maximum((high - low) / 255.0, _TINY)
        return _straight_through(x, ops.round(x / scale) * scale)
    return x
