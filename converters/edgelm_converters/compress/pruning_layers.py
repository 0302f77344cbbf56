"""Prunes layer after layer, each for what the pruned ones before it give.

Each half of a layer loses units and has its last kernel refitted, so that the residual stream after it is again the original
model's. What was lost before, with whole layers too, is made up for as far as the half can.

Dimensions: ``n`` tokens, ``D`` width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from edgelm_converters.activations import apply
from edgelm_converters.compress.calibrate import (
    HALVES,
    Chunk,
    Half,
    add_half,
    half_input,
    last_linear,
    layer_norms,
    seen_by_half,
    with_last,
)
from edgelm_converters.compress.correction import Fit, Float64, MomentSum, rows_of, solve, with_rows
from edgelm_converters.compress.importance import Ranking, rank_by_activation, rank_by_magnitude, rank_by_surgery
from edgelm_converters.compress.pruning_settings import Score
from edgelm_converters.compress.pruning_units import input_rows, keep_units, units_of
from edgelm_converters.compress.sparsity import sparsify, sparsify_by_magnitude
from edgelm_converters.spec import Float32, Layer, Linear

__all__ = ["drift", "prune_layer", "removal_costs", "skip_layer", "sparsify_layer"]

Removed = dict[Half, int]


def prune_layer(
    layer: Layer, chunks: Sequence[Chunk], removed: Removed, *, score: Score, correct: bool
) -> tuple[Layer, list[Chunk]]:
    """Return a layer with fewer units, and the streams after it.

    Args:
        layer: As it was read.
        chunks: The streams before it; none where nothing is known of the data, with the score "magnitude" and no correction.
        removed: Units that each half loses.
        score: How they are chosen.
        correct: Whether the last kernel of each half is refitted.
    """
    smaller, flow = layer, list(chunks)
    for half in HALVES:
        count = removed[half]
        fit, flow = _gathered(layer, smaller, half, flow) if flow else (None, flow)
        before = last_linear(smaller, half)
        if count:
            ranking = _ranking(smaller, half, fit, count, score)
            kept = ranking.kept(count, units_of(smaller, half))
            rows = input_rows(smaller, half, kept)
            smaller = keep_units(smaller, half, kept)
            if fit is not None:
                constant = [] if before.bias is None else [len(before.kernel)]
                fit = fit.of(np.concatenate([rows, np.asarray(constant, np.intp)]))
        # A layer that gets what it always got and loses nothing is right as it is.
        changed = count or any(chunk.x is not chunk.wanted for chunk in chunks) or smaller is not layer
        if correct and fit is not None and changed:
            linear = last_linear(smaller, half)
            smaller = with_last(smaller, half, with_rows(linear, solve(fit, rows_of(linear))))
        flow = [_advanced(smaller, half, chunk, changed=bool(changed)) for chunk in flow]
    return smaller, flow


def skip_layer(layer: Layer, chunks: Sequence[Chunk]) -> list[Chunk]:
    """Return the streams after a layer that only the original model has."""
    flow = list(chunks)
    for half in HALVES:
        flow = [
            replace(
                chunk, wanted=add_half(layer, half, chunk.wanted, half_input(layer, half, chunk.wanted, chunk.lengths))
            )
            for chunk in flow
        ]
    return flow


def removal_costs(layer: Layer, chunks: Sequence[Chunk], half: Half, count: int, score: Score) -> Float64:
    """Return what each of the first `count` removals costs in an otherwise whole model, as a share of the stream's energy."""
    fit, _ = _gathered(layer, layer, half, chunks)
    energy = sum(float(np.square(chunk.wanted, dtype=np.float64).sum()) for chunk in chunks) / fit.tokens
    return _ranking(layer, half, fit, count, score).costs[:count] / max(energy, 1e-30)


def sparsify_layer(
    layer: Layer, chunks: Sequence[Chunk], share: float, *, pattern: bool, score: Score
) -> tuple[Layer, list[Chunk]]:
    """Return a layer with a share of the weights of each kernel at 0, and the streams after it.

    Args:
        layer: The layer.
        chunks: The streams before it; none where the score is "magnitude" and nothing makes up for what is lost.
        share: Of the weights.
        pattern: 2:4, as of `sparsify`.
        score: "magnitude" takes the smallest and changes no other; otherwise as SparseGPT.
    """
    sparse, flow = layer, list(chunks)

    def thinned(linear: Linear, inputs: Iterable[Float32]) -> Linear:
        if score == "magnitude":
            return sparsify_by_magnitude(linear, share, pattern=pattern)
        moments = MomentSum(linear)
        for x in inputs:
            moments.add(x)
        return sparsify(linear, moments.mean(), share, pattern=pattern)

    for half in HALVES:
        seen = [seen_by_half(layer, half, chunk.x) for chunk in flow]
        if half == "attention":
            attention = layer.attention
            query, key, value = (thinned(linear, seen) for linear in (attention.query, attention.key, attention.value))
            sparse = replace(sparse, attention=replace(attention, query=query, key=key, value=value))
        else:
            block = layer.feed_forward
            gate = None if block.gate is None else thinned(block.gate, seen)
            sparse = replace(sparse, feed_forward=replace(block, up=thinned(block.up, seen), gate=gate))
        inner = (half_input(sparse, half, chunk.x, chunk.lengths) for chunk in flow)
        sparse = with_last(sparse, half, thinned(last_linear(layer, half), inner))
        flow = [
            Chunk(
                chunk.lengths,
                add_half(layer, half, chunk.wanted, half_input(layer, half, chunk.wanted, chunk.lengths)),
                add_half(sparse, half, chunk.x, half_input(sparse, half, chunk.x, chunk.lengths)),
            )
            for chunk in flow
        ]
    return sparse, flow


def drift(chunks: Sequence[Chunk]) -> float:
    """Return how far the smaller model's stream is off: the norm of the difference as a share of the original's."""
    off = sum(float(np.square(chunk.x - chunk.wanted, dtype=np.float64).sum()) for chunk in chunks)
    whole = sum(float(np.square(chunk.wanted, dtype=np.float64).sum()) for chunk in chunks)
    return (off / whole) ** 0.5 if whole else 0.0


def _gathered(layer: Layer, smaller: Layer, half: Half, chunks: Sequence[Chunk]) -> tuple[Fit, list[Chunk]]:
    """Return what the last kernel of a half of the smaller layer is fitted by, and the chunks with the original one ahead."""
    linear = last_linear(layer, half)
    moments = MomentSum(linear)
    flow: list[Chunk] = []
    for chunk in chunks:
        inner = half_input(layer, half, chunk.wanted, chunk.lengths)
        added = apply(linear, inner)
        same = chunk.x is chunk.wanted
        # Behind a norm of its own, what a half adds has the norm's size whatever comes in: the stream before it cannot be
        # made up for there.
        if not same and layer_norms(layer, half)[1] is None:
            added += chunk.wanted - chunk.x
        ours = inner if same and smaller is layer else half_input(smaller, half, chunk.x, chunk.lengths)
        moments.add(ours, added)
        flow.append(Chunk(chunk.lengths, add_half(layer, half, chunk.wanted, inner), chunk.x))
    return moments.mean(), flow


def _advanced(smaller: Layer, half: Half, chunk: Chunk, *, changed: bool) -> Chunk:
    x = chunk.wanted
    if changed:
        x = add_half(smaller, half, chunk.x, half_input(smaller, half, chunk.x, chunk.lengths))
    return Chunk(chunk.lengths, chunk.wanted, x)


def _ranking(layer: Layer, half: Half, fit: Fit | None, count: int, score: Score) -> Ranking:
    if score == "magnitude" or fit is None:
        return rank_by_magnitude(layer, half)
    units, rows = units_of(layer, half), rows_of(last_linear(layer, half))
    if score == "activation":
        return rank_by_activation(fit, rows, units)
    return rank_by_surgery(fit, rows, units, count)
