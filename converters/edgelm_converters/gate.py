"""The gate: an artifact keeps what was asked for of a metric, on the user's data and in the device's runtime, or is refused.

Where it falls short, the parts of the model are ranked by what each of them costs when it alone is compressed, and the worst
are kept in more bits, some more at each step, until it passes: first in 8 bits where the recipe has 4, then in 16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from edgelm.bundle import GateRecord, GateStep
from edgelm.errors import ParityError, RecipeError, unknown_name
from edgelm_converters.parts import parts_of, widen
from edgelm_converters.recipes import Recipe
from edgelm_converters.spec import TransformerSpec

__all__ = ["METRICS", "Gate", "Metric", "Trial", "climb", "lost", "make_gate", "rank"]

Metric = Literal["accuracy", "perplexity", "bleu", "parity"]
METRICS: dict[str, Metric] = {"accuracy": "accuracy", "perplexity": "perplexity", "bleu": "bleu", "parity": "parity"}

_STEPS = 12  # on one rung of the ladder at most: each is a whole artifact, written and measured


@dataclass(frozen=True)
class Gate:
    """What must be kept.

    Attributes:
        metric: ``accuracy`` and ``bleu`` are to be high, ``perplexity`` and ``parity`` low.
        max_drop: The most that may be lost: points of an accuracy (0.01 is one of a hundred), a share of a perplexity, points
            of BLEU; of ``parity``, the largest error as a share of the largest output.
        sensitivity: Whether the ranking is measured even where nothing has to be kept.
    """

    metric: Metric
    max_drop: float
    sensitivity: bool = False


@dataclass(frozen=True)
class Trial:
    """What an artifact measured.

    Attributes:
        value: The metric.
        size_bytes: Of its files.
    """

    value: float
    size_bytes: int


def make_gate(metric: str | None, max_drop: float | None, *, sensitivity: bool = False) -> Gate | None:
    """Return the gate that was asked for; None where none was.

    Raises:
        RecipeError: One of the two lacks the other, the metric is unknown, or the drop is no share or number of points.
    """
    if metric is None and max_drop is None and not sensitivity:
        return None
    if metric is None or max_drop is None:
        raise RecipeError(
            "A gate needs both --metric accuracy|perplexity|bleu|parity and --max-drop, and one of them is missing."
        )
    if metric not in METRICS:
        raise RecipeError(unknown_name("metric", metric, METRICS))
    if not (math.isfinite(max_drop) and max_drop >= 0):
        raise RecipeError(f"--max-drop {max_drop} is no drop: give 0 or more, such as 0.01 for one point of accuracy.")
    return Gate(METRICS[metric], max_drop, sensitivity)


def lost(metric: Metric, keras: float, value: float) -> float:
    """Return how much of a metric an artifact loses, in the unit of `Gate.max_drop`; below 0 where it gains."""
    if metric == "perplexity":
        return value / keras - 1
    return value if metric == "parity" else keras - value


def rank(
    spec: TransformerSpec,
    error: Callable[[TransformerSpec], float],
    *,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Return what each part of a model costs where it alone is compressed and the others have 16 bits, worst first.

    Args:
        spec: The model.
        error: Writes a model in the recipe, runs it, and returns how far its answers are off.
        tick: Called with parts done and in total.
    """
    parts = parts_of(spec)
    costs = {}
    for number, part in enumerate(parts, 1):
        costs[part.name] = error(widen(spec, {other.name: 16 for other in parts if other is not part}))
        tick(number, len(parts))
    return dict(sorted(costs.items(), key=lambda item: -item[1]))


def climb(
    spec: TransformerSpec | None,
    recipe: Recipe,
    gate: Gate,
    *,
    keras: float,
    data: str,
    samples: int,
    attempt: Callable[[TransformerSpec | None], Trial],
    ranking: Callable[[], Mapping[str, float]],
) -> GateRecord:
    """Write artifacts until one passes the gate, and return what it took; the last one that was written passed.

    Args:
        spec: The model; None where it is a traced graph, of which nothing can be kept.
        recipe: That it is stored in.
        gate: What must be kept.
        keras: The metric of the Keras model as it was given.
        data: The validation file's name.
        samples: Samples of it, or tokens that were predicted.
        attempt: Writes a model in the recipe, and measures it.
        ranking: Measures what each part costs, worst first; called once, and only where it is needed.

    Raises:
        ParityError: Nothing passes; the message says what was closest.
    """
    steps: list[GateStep] = []
    order: dict[str, float] = {}

    def passes(tried: TransformerSpec | None, kept: tuple[str, ...]) -> bool:
        trial = attempt(tried)
        steps.append(GateStep(kept, trial.value, trial.size_bytes))
        return lost(gate.metric, keras, trial.value) <= gate.max_drop

    done = passes(spec, ())
    if spec is not None and recipe.weights in ("int8", "int4") and (not done or gate.sensitivity):
        order = dict(ranking())
        if not done:
            done = any(
                passes(widen(spec, kept), tuple(f"{name} ({count} bits)" for name, count in kept.items()))
                for kept in _rungs(recipe, list(order))
            )
    if not done:
        raise ParityError(_refusal(recipe, gate, keras, data, steps))
    return GateRecord(gate.metric, data, samples, keras, gate.max_drop, steps[-1].value, tuple(steps), order)


def _rungs(recipe: Recipe, names: list[str]) -> Iterator[dict[str, Literal[8, 16]]]:
    """Yield what is kept at each step: more and more of the worst parts, in 8 bits first where the recipe has 4."""
    stride = max(1, math.ceil(len(names) / _STEPS))
    kept: dict[str, Literal[8, 16]] = {}
    rungs: tuple[Literal[8, 16], ...] = (8, 16) if recipe.weights == "int4" else (16,)
    for bits in rungs:
        for start in range(0, len(names), stride):
            kept.update(dict.fromkeys(names[start : start + stride], bits))
            yield dict(kept)


def _refusal(recipe: Recipe, gate: Gate, keras: float, data: str, steps: list[GateStep]) -> str:
    closest = min(steps, key=lambda step: lost(gate.metric, keras, step.value))
    with_what = f"with parts in more bits: {len(closest.kept)}" if closest.kept else "with nothing kept in more bits"
    figures = f"{closest.value:.4g}" if gate.metric == "parity" else f"{closest.value:.4g}, Keras {keras:.4g}"
    return (
        f"No {recipe.name} artifact keeps what --max-drop {gate.max_drop:g} asks for ({gate.metric} on {data}): the closest of "
        f"{len(steps)} tried has {figures}, {with_what}. Nothing was written. Allow more, or take a recipe with more bits."
    )
