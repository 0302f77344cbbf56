"""From the scores of a step to a token: what the field's samplers do, in the field's order, on NumPy arrays.

The order is Hugging Face's (``generation/logits_process.py`` of transformers): repetition penalty, temperature, top-k,
top-p, min-p. Whatever the order, each later filter sees only what the earlier ones left. A choice is two steps, so that
speculation can compare two models: `candidates` gives the distribution, `draw` takes a token from it. Being greedy is a
distribution with one token.

``V`` is the number of scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ExecutionError, InputError

__all__ = ["Candidates", "Sampling", "candidates", "draw", "margin", "probability"]

# Tokens that top-p looks at first, and more where they do not hold the probability: picking some out is linear in their
# number, sorting all is not.
_NUCLEUS = 64
_NUCLEUS_GROWTH = 8


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. What is left at its default does nothing.

    Attributes:
        temperature: Scores are divided by it; 0 takes the likeliest token (of equal ones the first).
        top_k: Keep the likeliest tokens, this many, and those that are as likely as the last of them; 0 keeps all.
        top_p: Keep the fewest likeliest tokens that have this probability together, in (0, 1].
        min_p: Keep the tokens that are at least this share as likely as the likeliest, in [0, 1].
        repetition_penalty: The scores of tokens that were seen are divided by it where positive, multiplied where negative
            (Keskar et al. 2019, https://arxiv.org/abs/1909.05858); more than 0, 1 changes nothing.
        seed: Of the random numbers; None takes fresh ones.

    Raises:
        InputError: A value is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, self.temperature >= 0, "0 or more; 0 takes the likeliest token")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "more than 0 and at most 1; 1 keeps every token")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1; 0 keeps every token")
        penalty = self.repetition_penalty
        _check("repetition_penalty", penalty, penalty > 0, "more than 0; 1 changes nothing, 1.1 is usual")
        _check_whole("top_k", self.top_k, "a whole number, 0 or more; 0 keeps every token")
        if self.seed is not None:
            _check_whole("seed", self.seed, "a whole number, 0 or more")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, without chance."""
        return self.temperature == 0

    @property
    def certain(self) -> bool:
        """Whether one token is left to choose from, whatever the scores."""
        return self.greedy or self.top_k == 1


def _check(name: str, value: float, fits: bool, wanted: str) -> None:
    if not isfinite(value) or not fits:
        raise InputError(f"{name} is {value}, and has to be {wanted}.")


def _check_whole(name: str, value: int, wanted: str) -> None:
    if not isinstance(value, int) or value < 0:
        raise InputError(f"{name} is {value!r}, and has to be {wanted}.")


@dataclass(frozen=True, eq=False)
class Candidates:
    """The tokens that a step can take.

    Attributes:
        ids: int64 ``(n,)``, each once, n >= 1.
        probabilities: float64 ``(n,)``, above 0 or at least one of them, summing to 1.
    """

    ids: NDArray[np.int64]
    probabilities: NDArray[np.float64]


def candidates(scores: NDArray[np.float32], sampling: Sampling, seen: NDArray[np.bool_] | None = None) -> Candidates:
    """Return the distribution that a token is drawn from.

    Args:
        scores: float32 ``(V,)``, as the model gives them; they are not changed. Minus infinity forbids a token.
        sampling: How tokens are chosen.
        seen: bool ``(V,)``: the tokens of the prompt and the answer so far. Needed where there is a repetition penalty.

    Raises:
        ExecutionError: The scores hold a NaN or plus infinity, or forbid every token.
    """
    if seen is not None and sampling.repetition_penalty != 1:
        scores = _penalize(scores, np.flatnonzero(seen), sampling.repetition_penalty)
    best = int(scores.argmax())
    if not isfinite(scores[best]):  # a NaN is the largest of all to argmax
        raise ExecutionError(
            f"The model answered with {scores[best]} among its scores: check the bundle here with 'edgelm verify'."
        )
    if sampling.certain:
        # With top_k = 1, tokens of equal scores would share; that is a matter of rounding, and not worth a partition.
        return Candidates(np.array([best]), np.ones(1))
    ids = _likeliest(scores, sampling.top_k)
    weights = np.exp((scores[ids].astype(np.float64) - float(scores[best])) / sampling.temperature)
    if sampling.top_p < 1:
        kept = _nucleus(weights, sampling.top_p)
        ids, weights = ids[kept], weights[kept]
    if sampling.min_p > 0:
        kept = np.flatnonzero(weights >= sampling.min_p)  # the likeliest has the weight 1
        ids, weights = ids[kept], weights[kept]
    return Candidates(ids, weights / weights.sum())


def margin(scores: NDArray[np.float32], sampling: Sampling, seen: NDArray[np.bool_] | None = None) -> tuple[int, float]:
    """Return the likeliest token, and how far its score is ahead of the second highest.

    Args:
        scores: As of `candidates`. A NaN counts as infinitely high, and is 0 ahead.
        sampling: Of it, the repetition penalty counts.
        seen: As of `candidates`.
    """
    if seen is not None and sampling.repetition_penalty != 1:
        scores = _penalize(scores, np.flatnonzero(seen), sampling.repetition_penalty)
    best = int(scores.argmax())
    second = max(scores[:best].max(initial=-np.inf), scores[best + 1 :].max(initial=-np.inf))
    ahead = float(scores[best]) - float(second)
    return best, 0.0 if np.isnan(ahead) else ahead


def _penalize(scores: NDArray[np.float32], seen: NDArray[np.int64], penalty: float) -> NDArray[np.float32]:
    changed = scores.copy()
    values = changed[seen]
    changed[seen] = np.where(values < 0, values * penalty, values / penalty)
    return changed


def _likeliest(scores: NDArray[np.float32] | NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return the ids of the highest scores, in the order of their ids, without sorting; all of them for 0."""
    if not 0 < count < scores.size:
        return np.arange(scores.size)
    place = scores.size - count
    return np.flatnonzero(scores >= np.partition(scores, place)[place])


def _nucleus(weights: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """Return the places of the fewest likeliest tokens that hold `top_p` of the weight, likeliest first."""
    wanted = top_p * weights.sum()
    count = _NUCLEUS
    while True:
        top = _likeliest(weights, count)
        top = top[np.argsort(-weights[top], kind="stable")]
        total = np.cumsum(weights[top])
        if total[-1] >= wanted or top.size == weights.size:
            return top[: int(np.searchsorted(total, wanted)) + 1]
        count *= _NUCLEUS_GROWTH


def draw(choice: Candidates, generator: np.random.Generator) -> int:
    """Return a token, drawn with its probability. A single candidate needs, and uses up, no random number."""
    if choice.ids.size == 1:
        return int(choice.ids[0])
    total = np.cumsum(choice.probabilities)
    place = int(np.searchsorted(total, generator.random() * total[-1], side="right"))
    return int(choice.ids[min(place, choice.ids.size - 1)])  # rounding may reach the end of the last one


def probability(choice: Candidates, token: int) -> float:
    """Return the probability of a token, 0 where it is no candidate."""
    places = np.flatnonzero(choice.ids == token)
    return float(choice.probabilities[places[0]]) if places.size else 0.0
