"""Answers that are made token by token, each row for itself: the likeliest token, or one drawn from those that are left.

``R`` rows, ``V`` tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgelm_runtimes.sampling import Sampling, candidates, draw
from edgelm_runtimes.target_scores import log_normalisers, suppress
from edgelm_runtimes.translation_result import TranslationEnd

__all__ = ["Answer", "Forward", "Target", "decode_rows"]

# Computes int32 ids (R, n) from a position on, and gives the scores of the next token (R, V); None where time is up.
Forward = Callable[[NDArray[np.int32], int], NDArray[np.float32] | None]


@dataclass(frozen=True)
class Target:
    """What an answer begins and ends with.

    Attributes:
        prefix: Tokens that it begins with, at least one.
        stop_ids: Tokens that end it.
        forbidden: Tokens that never stand in it, int64.
        max_new_tokens: After its prefix.
        length_penalty: See `score`.
    """

    prefix: tuple[int, ...]
    stop_ids: frozenset[int]
    forbidden: NDArray[np.int64]
    max_new_tokens: int
    length_penalty: float

    def score(self, log_probability: float, tokens: int) -> float:
        """Return what answers are compared by: the sum of log-probabilities over ``tokens ** length_penalty``."""
        return float(log_probability / tokens**self.length_penalty)

    def start(self, rows: int) -> NDArray[np.int32]:
        """Return the prefix of every row, int32 ``(R, n)``."""
        return np.tile(np.array(self.prefix, np.int32), (rows, 1))


@dataclass
class Answer:
    """An answer in the making.

    Attributes:
        ids: Its tokens so far, without prefix and stop token.
        log_probability: Sum over its tokens, the stop token included.
        reason: Why it ended; None while it has not.
    """

    ids: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    reason: TranslationEnd | None = None

    @property
    def tokens(self) -> int:
        """Tokens that `log_probability` is of."""
        return len(self.ids) + (self.reason == "stop_token")


def decode_rows(forward: Forward, target: Target, answers: list[Answer], sampling: Sampling) -> Iterator[None]:
    """Make an answer for each row, and yield after each step.

    A row that has ended is computed on with its last token, whatever comes of it, until all have. Where `forward` gives None,
    what has not ended has no reason.

    Args:
        forward: Computes tokens of every row.
        target: Of each answer.
        answers: One for each row, empty; they are filled.
        sampling: How tokens are chosen; each row draws from numbers of its own, so that it does not hang on the others.
    """
    generators = [np.random.default_rng(sampling.seed) for _ in answers]
    ids, start = target.start(len(answers)), 0
    while (scores := forward(ids, start)) is not None:
        scores = suppress(scores, target.forbidden)
        normalisers = log_normalisers(scores)
        start += ids.shape[1]
        ids = ids[:, -1:].copy()
        for row, answer in enumerate(answers):
            if answer.reason is not None:
                continue
            token = draw(candidates(scores[row], sampling), generators[row])
            answer.log_probability += float(scores[row, token]) - float(normalisers[row])
            if token in target.stop_ids:
                answer.reason = "stop_token"
                continue
            answer.ids.append(token)
            ids[row] = token
            if len(answer.ids) == target.max_new_tokens:
                answer.reason = "length"
        yield
        if all(answer.reason is not None for answer in answers):
            return
