"""What a file holds of a model, as floats: the model that the reference computes to judge the file's arithmetic alone.

It follows the recipes' documentation, not the emitters: a kernel's columns or blocks and a table's rows have a scale each. The
search for the scales of 4-bit blocks is the project's own; `test_blocks` holds it against rounding to the nearest.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal

import numpy as np
from edgelm_converters.emit.blocks import choose_scales, quantize_blocks, round_to
from edgelm_converters.recipes import RECIPES
from edgelm_converters.spec import Attention, AudioFrontEnd, Embeddings, Linear, TokenHead, TransformerSpec
from numpy.typing import NDArray

__all__ = ["as_stored", "form_of"]

Float32 = NDArray[np.float32]
Target = Literal["tflite", "onnx"]

_BITS = {"float32": 32, "float16": 16, "int8": 8, "int4": 4}


def as_stored(spec: TransformerSpec, recipe: str, target: Target) -> TransformerSpec:
    """Return a model whose weights are those that a file of `target` holds, in float32.

    Its norms come after the layers, or are followed by none: a gamma that is folded into a kernel changes the kernel's scales.
    """
    made: dict[int, Float32] = {}

    def once(array: Float32, value: Float32) -> Float32:
        return made.setdefault(id(array), value)

    def walk(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(walk(item) for item in value)
        if not is_dataclass(value) or isinstance(value, type):
            return value
        changed = {entry.name: walk(getattr(value, entry.name)) for entry in fields(value)}
        if isinstance(value, AudioFrontEnd) and target == "tflite":
            changed["kernels"] = tuple(_convolution(kernel, recipe) for kernel in value.kernels)
            changed["position"] = _table(value.position, 8, recipe, target)
        if isinstance(value, Linear):
            changed["kernel"] = once(value.kernel, _kernel(value, recipe, target))
        if isinstance(value, Embeddings):
            for name in ("token", "position", "segment"):
                table = getattr(value, name)
                if table is not None:
                    changed[name] = once(table, _table(table, value.least_bits, recipe, target))
        if isinstance(value, TokenHead):
            # Not the lookup's, even where the two are tied: it takes a row's scale as a share of the largest.
            changed["table"] = _table(value.table, value.least_bits, recipe, target, scores=True)
        return replace(value, **changed)

    stored: TransformerSpec = walk(spec)
    return stored if target == "tflite" else _with_exact_biases(spec, stored)


def form_of(recipe: str, least_bits: int, shape: tuple[int, ...]) -> str:
    """Return ``"float32"``, ``"float16"``, ``"int8"`` or ``"int4"``: the narrowest that recipe, layer and shape allow."""
    rule = RECIPES[recipe]
    allowed = [name for name, bits in _BITS.items() if bits >= max(least_bits, _BITS[rule.weights])]
    if rule.block is not None and shape[0] % rule.block and "int4" in allowed:
        allowed.remove("int4")
    return "float32" if np.prod(shape) < 4096 else allowed[-1]


def _kernel(linear: Linear, recipe: str, target: Target) -> Float32:
    kernel = linear.kernel
    form = form_of(recipe, linear.least_bits, kernel.shape)
    if form == "int4":
        block = RECIPES[recipe].block
        assert block is not None
        if target == "tflite":
            scale = choose_scales(kernel, block).astype(np.float16).astype(np.float32)
            steps = round_to(kernel, scale)
        else:
            steps, scale = quantize_blocks(kernel, bits=4, block=block, positive=False)
        blocks = steps.reshape(*scale.shape, block) * scale[:, :, None]
        return np.ascontiguousarray(blocks.reshape(steps.shape).T.astype(np.float32))
    return _plain(kernel, form, axis=0)


def _convolution(kernel: Float32, recipe: str) -> Float32:
    """TFLite files have a convolution as a product of three rows side by side, in 8 bits or more."""
    return _kernel(Linear("", kernel.reshape(-1, kernel.shape[2]), None, least_bits=8), recipe, "tflite").reshape(
        kernel.shape
    )


def _table(table: Float32, least_bits: int, recipe: str, target: Target, *, scores: bool = False) -> Float32:
    form = form_of(recipe, max(least_bits, 8), table.shape)
    form = "int8" if form == "int4" else form
    if form != "int8" or scores or target == "onnx":
        return _plain(table, form, axis=1)
    scale = np.abs(table).max(axis=1, keepdims=True) / np.float32(127)
    largest = scale.max()
    shares = (scale / largest).astype(np.float16).astype(np.float32)  # what the format of a looked-up table has
    return np.rint(table / scale) * largest * shares


def _plain(weight: Float32, form: str, axis: int) -> Float32:
    if form == "float32":
        return weight
    if form == "float16":
        return weight.astype(np.float16).astype(np.float32)
    scale = np.abs(weight).max(axis=axis, keepdims=True) / np.float32(127)
    return np.rint(weight / scale) * scale


def _with_exact_biases(spec: TransformerSpec, stored: TransformerSpec) -> TransformerSpec:
    """ONNX files have the value's bias in the output's, where it came by the kernel before that was rounded."""

    def corrected(exact: Attention, rounded: Attention) -> Attention:
        if exact.value.bias is None or exact.output.bias is None:
            return rounded
        bias = exact.value.bias.reshape(exact.kv_heads, -1).repeat(exact.heads // exact.kv_heads, axis=0).reshape(-1)
        change = bias.astype(np.float64) @ (exact.output.kernel.astype(np.float64) - rounded.output.kernel)
        return replace(rounded, output=replace(rounded.output, bias=(exact.output.bias + change).astype(np.float32)))

    layers = tuple(
        replace(rounded, attention=corrected(exact.attention, rounded.attention))
        for exact, rounded in zip(spec.encoder.layers, stored.encoder.layers, strict=True)
    )
    return replace(stored, encoder=replace(stored.encoder, layers=layers))
