"""Makes a language model ready for few bits: it computes the same, and loses less of it when it is rounded.

In order, layer by layer, so that a layer is rounded for what the rounded ones before it give:

1. The residual stream, the values and the feed-forward's inner channels are rotated (`edgelm_converters.rotation`).
2. Channels are made more even, by the sizes that they have on a text (`edgelm_converters.equalise`).
3. For 4 bits the kernels are rounded by the activations of that text (`edgelm_converters.rounding`).

The first two are exact: they change a model by no more than float32 rounding. They serve the weights too: stories15M with
nothing but its weights rounded to 8 bits, a scale for each output, rises by 0.12 % in perplexity instead of 0.21.

Which kernels cost most (stories15M, 3,000 tokens, 4.3 % with all of them in 4 bits): with values and outputs as they were 3.3 %
is left, with the second kernel of the feed-forward 3.6 %, with its first ones 3.2 %. As int8 (`Linear.least_bits`) those take
0.5, 0.7 and 1.3 MB more: values and outputs gain most for a byte.

Dimensions: ``n`` tokens of the text, ``D`` width, ``F`` feed-forward width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgelm_converters.activations import add_attention, add_feed_forward, embed, hidden, mixed_values, seen_by, turned
from edgelm_converters.emit.quantize import worth_quantizing
from edgelm_converters.equalise import equalise_feed_forward
from edgelm_converters.own_text import write_text
from edgelm_converters.recipes import find
from edgelm_converters.rotation import (
    fold_layer,
    hadamard,
    obstacle,
    rotate_ends,
    rotate_layer,
    rotate_values,
    rotation,
    turn_hidden,
)
from edgelm_converters.rounding import drift_moments, make_up, refine, round_kernel, second_moments
from edgelm_converters.spec import Float32, Grid, Layer, Linear, TransformerSpec, parameters

__all__ = ["prepare_weights"]

Progress = Callable[[str, int, int], None]

# How far second moments are mistrusted, by what stands in front of the kernel. Squared error of one layer's outputs on 2,500
# tokens, by moments of 2,500 others (SmolLM2-135M, layer 3), as a share; rounding to the nearest: 2.5 %, 0.68 % and 0.65 %.
#   damping                       0.01   0.03   0.1    0.3    1      3
#   residual stream, 576 inputs   0.66   0.64   0.63   0.66   0.74   0.88  %
#   values, 576                   0.44   0.41   0.39   0.37   0.37   0.39  %
#   inner channels, 1,536         0.99   0.90   0.78   0.68   0.62   0.61  %
_STREAM, _VALUES, _INNER = 0.1, 0.3, 1.0
# Of `refine`. Perplexity of stories15M with these 4-bit kernels and nothing else rounded, 8,000 tokens: 0, 1, 2 and 4 sweeps
# raise it by 4.4, 4.3, 3.8 and 4.1 %. A kernel of 1536x576 takes 3 s for GPTQ and 2 s for each sweep.
_SWEEPS = 2
_RUNS = (32, 16)  # inner channels that are turned together: the longest that divides them
# Tokens of the text. Sizes of channels are known after a thousand; the second moments of 1,536 channels are not.
_ENOUGH = {"int8": 1024, "int4": 6144}
_WRITTEN = {"int8": (16, 64), "int4": (48, 128)}  # sequences and tokens of each, where the model writes it


def prepare_weights(
    spec: TransformerSpec,
    recipe: str,
    calibration_ids: Sequence[NDArray[np.int32]] | None,
    progress: Progress = lambda step, done, total: None,
) -> tuple[TransformerSpec, tuple[str, ...]]:
    """Return a language model that computes the same, and keeps more of it under a recipe with integers.

    The model that comes out is for one recipe: under one of 4 bits its kernels are rounded in its blocks (`Linear.grid`), but
    for those that are stored wider. Takes the memory of the model once more, and of its activations on a layer.

    Args:
        spec: The model.
        recipe: Its name; under ``fp32``, ``fp16`` and those with calibrated ranges the model stays as it is.
        calibration_ids: int32 ``(n,)`` each, text of the kind that the model is for; some 6,000 tokens are used. None lets the
            model write it.
        progress: Called with the step's description, and how much of it is done.

    Returns:
        spec: The model, with arrays of its own.
        notes: What was done and what could not be, one line each, for the manifest.

    Raises:
        RecipeError: There is no such recipe.
    """
    chosen = find(recipe)
    if chosen.static or chosen.weights not in _ENOUGH or not spec.generates:
        return spec, ()
    if _shares_weights(spec):
        return spec, ("The weights were rounded as they are: layers share them, and each would need its own.",)
    notes = []
    reason = obstacle(spec)
    turn = rotation(spec.width).astype(np.float32) if reason is None else None
    if reason is not None:
        notes.append(f"The residual stream was not rotated before rounding: {reason}.")
    text = _text(spec, chosen.weights, calibration_ids, progress)
    ends = spec if turn is None else rotate_ends(spec, turn)
    lengths = [len(ids) for ids in text]
    wanted = x = embed(ends, text)
    layers = []
    for number, read in enumerate(spec.decoder.layers):
        layer, after = _evened(_rotated(read, turn), wanted, lengths)
        if chosen.block is not None:
            layer, x = _rounded(layer, chosen.block, wanted, x, lengths)
        wanted = after
        layers.append(layer)
        progress("Fitting the weights", number + 1, len(spec.decoder.layers))
    source = "text that the model wrote itself" if calibration_ids is None else "the calibration text"
    verb = "scaled" if chosen.block is None else "rounded"
    notes.append(f"Weights were {verb} by the activations of {sum(lengths):,} tokens of {source}.")
    return replace(ends, decoder=replace(ends.decoder, layers=tuple(layers))), tuple(notes)


def _shares_weights(spec: TransformerSpec) -> bool:
    """Return whether an array of one layer is one of another's too."""
    owners: dict[int, int] = {}
    return any(
        owners.setdefault(id(array), number) != number
        for number, layer in enumerate(spec.decoder.layers)
        for path, array in parameters(layer)
        if path.endswith("kernel")
    )


def _text(
    spec: TransformerSpec, weights: str, given: Sequence[NDArray[np.int32]] | None, progress: Progress
) -> list[NDArray[np.int32]]:
    """Return sequences of enough tokens, the last one cut."""
    if given is None:
        sequences, length = _WRITTEN[weights]
        given = write_text(
            spec,
            sequences=sequences,
            length=length,
            tick=lambda done, total: progress("Letting the model write", done, total),
        )
    chosen, left = [], _ENOUGH[weights]
    for ids in given:
        if left <= 0:
            break
        chosen.append(ids[: min(left, spec.max_length or left)])
        left -= len(chosen[-1])
    return chosen


def _rotated(layer: Layer, turn: Float32 | None) -> Layer:
    layer = fold_layer(layer)
    layer = layer if turn is None else rotate_layer(layer, turn)
    return replace(layer, attention=rotate_values(layer.attention))


def _evened(layer: Layer, x: Float32, lengths: Sequence[int]) -> tuple[Layer, Float32]:
    """Return a layer that computes the same with even inner channels, and the residual stream ``(n, D)`` after it."""
    mixed = mixed_values(layer.attention, seen_by(layer, layer.attention_norm, x), lengths)
    x = add_attention(layer, x, mixed)
    inner = hidden(layer.feed_forward, seen_by(layer, layer.feed_forward_norm, x))
    block, factor = equalise_feed_forward(layer.feed_forward, inner)
    inner /= factor
    run = next((size for size in _RUNS if inner.shape[1] % size == 0), None)
    if run is not None:
        block, inner = turn_hidden(block, _TURNS[run]), turned(inner, _TURNS[run])
    layer = replace(layer, feed_forward=block)
    return layer, add_feed_forward(layer, x, inner)


_TURNS = {size: hadamard(size) for size in _RUNS}  # one array for all layers: it is stored once


def _rounded(
    layer: Layer, block_size: int, wanted: Float32, x: Float32, lengths: Sequence[int]
) -> tuple[Layer, Float32]:
    """Return a layer with rounded kernels, and the residual stream ``(n, D)`` after it.

    Args:
        layer: With even inner channels.
        block_size: Inputs that share a scale.
        wanted: The residual stream before it, had nothing been rounded.
        x: The same with the layers before it rounded.
        lengths: Of the sequences.
    """
    attention, block = layer.attention, layer.feed_forward
    ideal, seen = (seen_by(layer, layer.attention_norm, stream) for stream in (wanted, x))
    query, key, value = _round((attention.query, attention.key, attention.value), block_size, seen, ideal, _STREAM)
    changed = replace(attention, query=query, key=key, value=value)
    ideal, seen = mixed_values(attention, ideal, lengths), mixed_values(changed, seen, lengths)
    wanted = add_attention(layer, wanted, ideal)
    (output,) = _round((attention.output,), block_size, seen, ideal, _VALUES)
    layer = replace(layer, attention=replace(changed, output=output))
    x = add_attention(layer, x, seen)

    ideal, seen = (seen_by(layer, layer.feed_forward_norm, stream) for stream in (wanted, x))
    first = (block.up,) if block.gate is None else (block.up, block.gate)
    up, *gate = _round(first, block_size, seen, ideal, _STREAM)
    rounded = replace(block, up=up, gate=gate[0] if gate else None)
    ideal, seen = hidden(block, ideal), hidden(rounded, seen)
    (down,) = _round((block.down,), block_size, seen, ideal, _INNER)
    layer = replace(layer, feed_forward=replace(rounded, down=down))
    return layer, add_feed_forward(layer, x, seen)


def _round(
    linears: tuple[Linear, ...], block_size: int, seen: Float32, ideal: Float32, damping: float
) -> tuple[Linear, ...]:
    """Return layers of one input, rounded to 4 bits; for 8 where their inputs fill no blocks.

    One that is stored in more bits only makes up for what was rounded before it.

    Args:
        linears: The layers.
        block_size: Inputs that share a scale.
        seen: Their input, ``(n, in)``.
        ideal: What it would be, had nothing been rounded.
        damping: Of the second moments.
    """
    joined = np.concatenate([linear.kernel for linear in linears], axis=1)
    if not worth_quantizing(joined):
        return linears
    if len(joined) % block_size:
        return tuple(replace(linear, least_bits=max(8, linear.least_bits)) for linear in linears)
    moments = second_moments(seen)
    joined = make_up(joined, moments, drift_moments(seen, ideal), damping=damping)
    ends = np.cumsum([linear.kernel.shape[1] for linear in linears])[:-1]
    made = [
        replace(linear, kernel=np.ascontiguousarray(kernel))
        for linear, kernel in zip(linears, np.split(joined, ends, axis=1), strict=True)
    ]
    narrow = [number for number, linear in enumerate(made) if linear.least_bits == 4]
    if narrow:
        exact = np.concatenate([made[number].kernel for number in narrow], axis=1)
        rounded = round_kernel(exact, moments, block=block_size, damping=damping)
        rounded = refine(exact, moments, *rounded, damping=damping, sweeps=_SWEEPS)
        ends = np.cumsum([made[number].kernel.shape[1] for number in narrow])[:-1]
        for number, kernel, scale in zip(
            narrow, np.split(rounded[0], ends, 1), np.split(rounded[1], ends), strict=True
        ):
            made[number] = replace(made[number], kernel=np.ascontiguousarray(kernel), grid=Grid(scale))
    return tuple(made)
