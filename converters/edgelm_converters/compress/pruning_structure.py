"""Removes heads, neurons and whole layers: how many of which layer, then layer after layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from edgelm.errors import RecipeError
from edgelm_converters.compress.calibrate import HALVES, Chunk, Half, add_half, half_input, stack_of, with_layers
from edgelm_converters.compress.importance import allocate, layers_by_output
from edgelm_converters.compress.pruning_layers import drift, prune_layer, removal_costs, skip_layer
from edgelm_converters.compress.pruning_settings import Pruning
from edgelm_converters.compress.pruning_units import shares_weights, units_of
from edgelm_converters.spec import Layer, TransformerSpec

__all__ = ["NEURONS", "prune_structure"]

Progress = Callable[[str, int, int], None]

NEURONS = 32
"""A feed-forward keeps a multiple of so many neurons: a block of 4-bit weights is 32 inputs, and SIMD registers are filled."""

_FEW = 2048  # tokens that layers are ranked by: each of L layers is left out in turn, which takes L^2 / 2 passes


def prune_structure(
    spec: TransformerSpec, pruning: Pruning, chunks: list[Chunk], notes: list[str], progress: Progress
) -> TransformerSpec:
    """Return a model with fewer heads, neurons and layers.

    Args:
        spec: The model.
        pruning: What to remove.
        chunks: The streams before its first layer; none where there are no calibration data.
        notes: What was done is added here, a line each.
        progress: Called with the step's description, and how much of it is done.

    Raises:
        RecipeError: There is nothing of the kind to remove, or too little.
    """
    stack = stack_of(spec)
    gone: list[int] = []
    if pruning.layers is not None:
        few = _first(chunks, _FEW)
        progress("Ranking the layers", 0, 1)
        gone = layers_by_output(stack, few, pruning.layers)
        notes.append(
            f"Layers {', '.join(str(number + 1) for number in gone)} of {len(stack.layers)} were removed: without them the "
            "output of the last layer changed least."
        )
    removed = _removed(spec, pruning, gone, chunks, notes, progress)
    # Kernels that layers share cannot be refitted for one of them.
    correct = pruning.correct and bool(chunks) and not shares_weights(stack.layers)
    layers: list[Layer] = []
    for number, layer in enumerate(stack.layers):
        if number in gone:
            chunks = skip_layer(layer, chunks)
        else:
            smaller, chunks = prune_layer(layer, chunks, removed[number], score=pruning.score, correct=correct)
            layers.append(smaller)
        progress("Pruning the layers", number + 1, len(stack.layers))
    if chunks:
        tokens = sum(sum(chunk.lengths) for chunk in chunks)
        words = "refitted on" if correct else "not refitted; measured on"
        notes.append(
            f"What stays was {words} {tokens:,} tokens of the calibration data: the output of the last layer is off by "
            f"{drift(chunks):.1%}."
        )
    else:
        notes.append("What stays was not refitted: there were no calibration data.")
    return with_layers(spec, layers)


def _first(chunks: Sequence[Chunk], tokens: int) -> list[Chunk]:
    """Return the first chunks of as many tokens, at least one: they are spread over the samples already."""
    chosen: list[Chunk] = []
    for chunk in chunks:
        if chosen and sum(sum(part.lengths) for part in chosen) >= tokens:
            break
        chosen.append(chunk)
    return chosen


def _removed(
    spec: TransformerSpec,
    pruning: Pruning,
    gone: Sequence[int],
    chunks: list[Chunk],
    notes: list[str],
    progress: Progress,
) -> dict[int, dict[Half, int]]:
    """Return for each layer how many units each half loses."""
    layers = stack_of(spec).layers
    staying = [number for number in range(len(layers)) if number not in gone]
    removed: dict[int, dict[Half, int]] = {number: {"attention": 0, "feed_forward": 0} for number in staying}
    for half, share in zip(HALVES, (pruning.heads, pruning.ffn), strict=True):
        if share is None:
            continue
        step = 1 if half == "attention" else NEURONS
        counts = {number: _count(layers[number], half, share, spec.name) for number in staying}
        if pruning.scope == "global":
            counts = _ranked_together(spec, pruning, half, counts, step, chunks, progress)
        for number, count in counts.items():
            removed[number][half] = count
        notes.append(_word(layers, half, counts))
    return removed


def _count(layer: Layer, half: Half, share: float, name: str) -> int:
    """Return how many units a half loses by a share: rounded, and for neurons such that a multiple of 32 stays.

    Raises:
        RecipeError: None, or all.
    """
    units = units_of(layer, half)
    if half == "attention":
        count = min(math.ceil(share * units - 0.5), units - 1)  # of two that are as near, the fewer
        if count < 1:
            what = "heads" if layer.attention.heads == units else "groups of heads that share keys and values"
            raise RecipeError(
                f"heads={share:g} removes none of the {units} {what} of each layer of '{name}': "
                + ("give more, or leave it out." if units > 1 else "leave it out.")
            )
        return count
    kept = max(NEURONS, NEURONS * round(units * (1 - share) / NEURONS))
    if kept >= units:
        raise RecipeError(
            f"ffn={share:g} removes none of the {units} neurons of each layer of '{name}', of which a multiple of {NEURONS} "
            "stays: give more, or leave it out."
        )
    return units - kept


def _ranked_together(
    spec: TransformerSpec,
    pruning: Pruning,
    half: Half,
    counts: dict[int, int],
    step: int,
    chunks: list[Chunk],
    progress: Progress,
) -> dict[int, int]:
    """Return as many units as `counts` together, the cheapest of all layers."""
    layers = stack_of(spec).layers
    costs, rest = [], {}
    flow = chunks
    for number, layer in enumerate(layers):
        if number in counts:
            units = units_of(layer, half)
            rest[number] = units % step  # goes with the first step, so that a multiple stays
            most = (units - rest[number]) // step - 1
            ranked = removal_costs(layer, _at(layer, half, flow), half, rest[number] + most * step, pruning.score)
            costs.append(ranked[rest[number] :].reshape(most, step).sum(axis=1))
        flow = skip_layer(layer, [Chunk(chunk.lengths, chunk.wanted, chunk.wanted) for chunk in flow])
        flow = [Chunk(chunk.lengths, chunk.wanted, chunk.wanted) for chunk in flow]
        progress("Ranking all layers together", number + 1, len(layers))
    total = sum(counts.values()) - sum(rest.values())
    shares = allocate(costs, total // step)
    return {number: rest[number] + share * step for number, share in zip(counts, shares, strict=True)}


def _at(layer: Layer, half: Half, chunks: Sequence[Chunk]) -> list[Chunk]:
    """Return the original streams in front of a half of a layer, from those in front of the layer."""
    if half == "attention":
        return list(chunks)
    after = [
        add_half(layer, "attention", chunk.wanted, half_input(layer, "attention", chunk.wanted, chunk.lengths))
        for chunk in chunks
    ]
    return [Chunk(chunk.lengths, x, x) for chunk, x in zip(chunks, after, strict=True)]


def _word(layers: Sequence[Layer], half: Half, counts: dict[int, int]) -> str:
    what = "heads" if half == "attention" else "neurons"
    units = [units_of(layers[number], half) for number in counts]
    grouped = half == "attention" and any(
        layers[number].attention.heads != layers[number].attention.kv_heads for number in counts
    )
    what = "groups of heads that share keys and values" if grouped else what
    changes = [f"{total} to {total - count}" for total, count in zip(units, counts.values(), strict=True)]
    each = changes[0] + " in each layer" if len(set(changes)) == 1 else ", ".join(changes)
    return f"Units of the {half.replace('_', '-')} ({what}) went from {each}."
