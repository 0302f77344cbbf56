"""Ranks heads, neurons and layers by what a model loses without them.

Heads and neurons are rows of the kernel that ends a half of a layer, and are removed one after the other. Three ways to score:

- ``obs``: the rise of the layer's error when the unit goes and all others make up for it as well as they can: the optimal brain
  surgeon (Hassibi and Stork 1992) on whole units, one at a time, as ZipLM does (Kurtic et al. 2023,
  https://arxiv.org/abs/2302.04089). It knows that two units that say the same can replace each other.
- ``activation``: the mean square of what the unit adds to the residual stream; of a neuron that is Wanda's score (Sun et al.
  2023, https://arxiv.org/abs/2306.11695), squared and summed over the outputs.
- ``magnitude``: the product of the norms of the unit's weights; needs no data.

Dimensions: ``I`` inputs of the kernel, ``O`` its outputs, ``w`` inputs of a unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm_converters.activations import layer_output, normalise
from edgelm_converters.compress.calibrate import Chunk, Half
from edgelm_converters.compress.correction import RIDGE, Fit, Float64, ridge_of, solve
from edgelm_converters.spec import Float32, Layer, Stack

__all__ = [
    "Ranking",
    "allocate",
    "layers_by_influence",
    "layers_by_output",
    "rank_by_activation",
    "rank_by_magnitude",
    "rank_by_surgery",
]

_LAZY = 64  # rank-one changes that are gathered before the inverse is changed: a product of matrices then does it


@dataclass(frozen=True, eq=False)
class Ranking:
    """Units in the order in which they go.

    Attributes:
        order: Their numbers, intp.
        costs: What the removal of each adds to the squared error of a token; a number that ascends for the other two scores.
    """

    order: NDArray[np.intp]
    costs: Float64

    def kept(self, removed: int, units: int) -> NDArray[np.intp]:
        """Return the numbers of the units that stay when the first `removed` go, ascending."""
        return np.setdiff1d(np.arange(units), self.order[:removed])


def rank_by_surgery(fit: Fit, rows: Float64, units: int, removed: int, *, ridge: float = RIDGE) -> Ranking:
    """Rank by the rise of the error that is left after the others made up for it.

    Takes ``removed * I * (O + 64)`` multiplications for units of one input.

    Args:
        fit: Of all inputs.
        rows: The kernel, ``(I, O)``, with the bias as its last row if it has one: that belongs to no unit, and stays.
        units: How many there are, each of the same number of inputs that follow each other.
        removed: How many are ranked, fewer than `units`.
        ridge: As of `solve`.
    """
    width = (
        len(rows) // units
    )  # the bias is less than a unit more: fewer than all are removed, so that there are two or more
    damped = fit.moments.copy()
    damped[np.diag_indices_from(damped)] += ridge_of(fit, ridge)
    inverse: Float64 = np.linalg.inv(damped).astype(np.float64)
    weights = solve(fit, rows, ridge=ridge)
    rank = _rank_rows if width == 1 else _rank_blocks
    order, costs = rank(inverse, weights, units, width, removed)
    return Ranking(np.asarray(order, np.intp), np.asarray(costs))


def _rank_rows(
    inverse: Float64, weights: Float64, units: int, width: int, removed: int
) -> tuple[list[int], list[float]]:
    """Rank units of one row. Changes both arrays."""
    diagonal = np.diagonal(inverse).copy()
    pending = np.zeros((_LAZY, len(inverse)))
    alive = np.ones(units, np.bool_)
    order: list[int] = []
    costs: list[float] = []
    norms = np.einsum("io,io->i", weights, weights)
    for step in range(removed):
        waiting = step % _LAZY
        if step and not waiting:
            inverse -= pending.T @ pending
        with np.errstate(divide="ignore", invalid="ignore"):
            scores = np.where(alive, norms[:units] / diagonal[:units], np.inf)
        unit = int(scores.argmin())
        order.append(unit)
        costs.append(float(scores[unit]))
        column = inverse[:, unit] - pending[:waiting].T @ pending[:waiting, unit]
        factor = column / column[unit]
        pending[waiting] = column / np.sqrt(column[unit])
        diagonal -= pending[waiting] ** 2
        # |w - f v|^2 row by row, from the rows before the change.
        gone = weights[unit].copy()
        weights -= np.outer(factor, gone)
        norms = np.einsum("io,io->i", weights, weights)
        alive[unit] = False
    return order, costs


def _rank_blocks(
    inverse: Float64, weights: Float64, units: int, width: int, removed: int
) -> tuple[list[int], list[float]]:
    """Rank units of several rows. Changes both arrays."""
    left = list(range(units))
    order: list[int] = []
    costs: list[float] = []
    for _ in range(removed):
        parts = [slice(unit * width, (unit + 1) * width) for unit in left]
        scores = [float(np.vdot(weights[part], np.linalg.solve(inverse[part, part], weights[part]))) for part in parts]
        best = int(np.argmin(scores))
        part = parts[best]
        factor = np.linalg.solve(inverse[part, part], inverse[part]).T  # (I, w)
        weights -= factor @ weights[part].copy()
        inverse -= factor @ inverse[part].copy()
        order.append(left.pop(best))
        costs.append(scores[best])
    return order, costs


def rank_by_activation(fit: Fit, rows: Float64, units: int) -> Ranking:
    """Rank all units by the mean square of what each adds, ``tr(W_u^T M_uu W_u)``; arguments as of `rank_by_surgery`."""
    width = len(rows) // units
    parts = [slice(unit * width, (unit + 1) * width) for unit in range(units)]
    return _ascending(
        np.array([np.vdot(rows[part], fit.moments[part, part] @ rows[part]) for part in parts], np.float64)
    )


def rank_by_magnitude(layer: Layer, half: Half) -> Ranking:
    """Rank all heads (groups that share a key head), or all neurons, by the product of the norms of their weights."""
    if half == "attention":
        attention = layer.attention
        units = attention.kv_heads
        value, output = attention.value, attention.output
        return _ascending(_norms(value.kernel.T, units) * _norms(output.kernel, units))
    block = layer.feed_forward
    units = len(block.down.kernel)
    score = _norms(block.up.kernel.T, units) * _norms(block.down.kernel, units)
    return _ascending(score if block.gate is None else score * _norms(block.gate.kernel.T, units))


def _norms(rows: Float32, units: int) -> Float64:
    norms: Float64 = np.sqrt(np.square(rows, dtype=np.float64).reshape(units, -1).sum(axis=1))
    return norms


def _ascending(scores: Float64) -> Ranking:
    order = np.argsort(scores, kind="stable")
    return Ranking(order, scores[order])


def allocate(costs: Sequence[Float64], total: int) -> list[int]:
    """Return how many units each layer loses when all layers together lose `total`, the cheapest first.

    A unit goes only after those that its layer ranks before it, so costs are taken as never descending.

    Args:
        costs: For each layer, of the units that it may lose, in the order in which they go; in a unit that layers share.
        total: At most as many as there are costs.
    """
    entries = sorted(
        (float(cost), layer, step)
        for layer, ranked in enumerate(costs)
        for step, cost in enumerate(np.maximum.accumulate(ranked) if len(ranked) else ranked)
    )
    counts = [0] * len(costs)
    for _, layer, _ in entries[:total]:
        counts[layer] += 1
    return counts


def layers_by_influence(stack: Stack, chunks: Sequence[Chunk], removed: int) -> list[int]:
    """Return the layers that turn the residual stream least: ``1 - cos(input, output)``, mean over the tokens.

    Block influence, Men et al. 2024 (ShortGPT, https://arxiv.org/abs/2403.03853).
    """
    influence = np.zeros(len(stack.layers))
    for chunk in chunks:
        x = chunk.wanted
        for number, layer in enumerate(stack.layers):
            after = layer_output(layer, x, chunk.lengths)
            lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(after, axis=1)
            influence[number] += float((1 - np.einsum("nd,nd->n", x, after) / np.maximum(lengths, 1e-30)).sum())
            x = after
    return sorted(int(number) for number in np.argsort(influence, kind="stable")[:removed])


def layers_by_output(stack: Stack, chunks: Sequence[Chunk], removed: int) -> list[int]:
    """Return the layers without which the output of the stack changes least, chosen one after the other.

    Takes ``removed * L^2 / 2`` passes of a layer over all chunks, for ``L`` layers.
    """
    left = list(range(len(stack.layers)))
    wanted = [_finished(stack, _through(stack, left, chunk.wanted, chunk)) for chunk in chunks]
    gone: list[int] = []
    for _ in range(removed):
        changes = np.zeros(len(left))
        for chunk, target in zip(chunks, wanted, strict=True):
            x = chunk.wanted
            for place, number in enumerate(left):
                answer = _finished(stack, _through(stack, left[place + 1 :], x, chunk))
                changes[place] += float(np.square(answer - target, dtype=np.float64).sum())
                x = layer_output(stack.layers[number], x, chunk.lengths)
        gone.append(left.pop(int(changes.argmin())))
    return sorted(gone)


def _through(stack: Stack, numbers: Sequence[int], x: Float32, chunk: Chunk) -> Float32:
    for number in numbers:
        x = layer_output(stack.layers[number], x, chunk.lengths)
    return x


def _finished(stack: Stack, x: Float32) -> Float32:
    return x if stack.final_norm is None else normalise(stack.final_norm, x)
