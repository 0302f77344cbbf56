"""The answer of a classifier: from its outputs to labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ExecutionError, InputError

__all__ = ["Classification", "Timing", "probabilities", "rank"]


@dataclass(frozen=True)
class Timing:
    """Where the time of one answer went.

    Attributes:
        tokenize_s: From the text to its ids.
        run_s: Inside the runtime, with the copying of inputs and outputs.
        total_s: All of it.
    """

    tokenize_s: float
    run_s: float
    total_s: float


@dataclass(frozen=True)
class Classification:
    """The answer to one text.

    Attributes:
        label: The best label; its index as a string where the bundle names none.
        score: Its probability, in [0, 1].
        ranking: The best labels with their scores, best first, as many as were asked for.
        tokens: Tokens of the text, with the special ones.
        truncated: Whether the end of the text was cut off, as the model takes no more.
        sequence_length: Tokens that the model was run with, padding included.
        timing: Where the time went.
    """

    label: str
    score: float
    ranking: tuple[tuple[str, float], ...]
    tokens: int
    truncated: bool
    sequence_length: int
    timing: Timing


def probabilities(output: NDArray[Any], role: str) -> NDArray[np.float64]:
    """Return the probability of each label; a single output is the probability of the second of two.

    Args:
        output: ``(1, C)`` or ``(C,)``.
        role: ``logits``, ``probabilities`` or ``sigmoid``.

    Raises:
        InputError: There is an answer for each token, not one for the text.
        ExecutionError: The answer holds a NaN or infinity.
    """
    if output.ndim > 2 or (output.ndim == 2 and output.shape[0] != 1):
        raise InputError(
            f"The model gives an answer for each token (its output is {list(output.shape)}), not one for the text: use run()."
        )
    values = np.asarray(output, np.float64).ravel()
    if not np.isfinite(values).all():
        raise ExecutionError(
            "The model answered with NaN or infinity: check the bundle on this device with 'edgelm verify'."
        )
    if values.size == 1:
        score = 1 / (1 + math.exp(-min(max(values[0], -700.0), 700.0))) if role == "logits" else values[0]
        return np.array([1 - score, score])
    if role == "logits":
        values = np.exp(values - values.max())
        values /= values.sum()
    return values


def rank(scores: NDArray[np.float64], labels: Sequence[str] | None, top: int) -> tuple[tuple[str, float], ...]:
    """Return the best labels with their scores, best first; of equal ones, the first."""
    best = [int(scores.argmax())] if top == 1 else np.argsort(-scores, kind="stable")[:top].tolist()
    return tuple((labels[index] if labels else str(index), float(scores[index])) for index in best)
