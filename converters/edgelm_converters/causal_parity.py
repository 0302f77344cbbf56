"""Is a language model's artifact still the model? Its scores against Keras's at every position, in the device's runtime.

Scores are compared after each row's mean is taken off: a constant on all tokens changes no probability.

Dimensions: ``n`` tokens, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from edgelm_runtimes.program import CausalProgram
from numpy.typing import NDArray

from edgelm.bundle import Parity, Perplexity
from edgelm.errors import ConversionError, ParityError
from edgelm_converters.recipes import Recipe

__all__ = [
    "Sequences",
    "Tick",
    "compare_scores",
    "divergence",
    "enforce_scores",
    "log_softmax",
    "score_difference",
    "surprise",
]

Tick = Callable[[int, int], None]
Float32 = NDArray[np.float32]

_STEPS = 8  # tokens that are decoded one by one; the rest goes through prefill and through the scores of a whole chunk


@dataclass(frozen=True)
class Sequences:
    """Token sequences, with Keras's scores of each.

    Attributes:
        source: Where they are from: a file's name, or ``random ids``.
        kind: Whether they are the user's data.
        ids: int32 ``(n,)`` each.
        scores: float32 ``(n, V)`` of the first ones, which are compared score by score; 512 rows of a vocabulary of 50,000 are
            100 MB, so that the others only count for the perplexity.
        surprise: Of each sequence, by Keras: see `surprise`.
    """

    source: str
    kind: Literal["real", "random"]
    ids: tuple[NDArray[np.int32], ...]
    scores: tuple[Float32, ...]
    surprise: tuple[float, ...]

    @property
    def range(self) -> float:
        """The largest absolute score of all, each row without its mean."""
        return max(float(np.abs(_centred(scores)).max()) for scores in self.scores)

    @property
    def predicted(self) -> int:
        """Tokens that were predicted: all but the first of each sequence."""
        return sum(len(ids) - 1 for ids in self.ids)

    @property
    def perplexity(self) -> float | None:
        """Keras's, of a token; None where the sequences are no text."""
        if self.kind != "real" or not self.predicted:
            return None
        return float(np.exp(sum(self.surprise) / self.predicted))


def surprise(ids: NDArray[np.int32], scores: Float32) -> float:
    """Return the sum of the negative log-likelihoods, in nats, of the tokens but the first, which nothing predicts.

    Args:
        ids: int32 ``(n,)``.
        scores: float32 ``(n, V)``.
    """
    rows = np.arange(len(ids) - 1)
    values = scores[:-1]
    peak = values.max(axis=-1, keepdims=True, initial=-np.inf)
    logarithm = peak[:, 0] + np.log(np.exp(values - peak).sum(axis=-1, dtype=np.float64))
    return float((logarithm - values[rows, ids[1:]]).sum())


def compare_scores(
    program: CausalProgram, sequences: Sequences, recipe: Recipe, *, tick: Tick = lambda done, total: None
) -> tuple[Parity, Perplexity | None]:
    """Hold a language model against Keras: all at once, then prefilled and decoded token by token.

    `enforce_scores` holds what comes out against the recipe's bounds.

    Raises:
        ConversionError: It answers with NaN or infinity.
    """
    worst, same, positions, surprised = 0.0, 0, 0, 0.0
    for index, ids in enumerate(sequences.ids):
        found = np.array(program.forward(ids, 0, logits="all"))
        if not np.isfinite(found).all():
            raise ConversionError(
                f"{program.facts.runtime} answers with NaN or infinity where Keras does not: the file is not usable."
            )
        surprised += surprise(ids, found)
        if index < len(sequences.scores):
            wanted = sequences.scores[index]
            worst = max(worst, score_difference(found, wanted), *_decoded_differences(program, ids, wanted))
            same += int((found.argmax(axis=-1) == wanted.argmax(axis=-1)).sum())
            positions += len(ids)
        tick(index + 1, len(sequences.ids))
    parity = Parity(
        samples=len(sequences.scores),
        inputs=sequences.kind,
        max_abs_error=worst,
        reference_range=sequences.range,
        bound=recipe.bounds.score * max(sequences.range, 1e-6),
        agreement=same / positions,
        # On random ids many tokens are as likely; on real ones the perplexity says more.
        agreement_bound=None,
        reason=recipe.bounds.reason,
    )
    count = sequences.predicted
    perplexity = None
    keras = sequences.perplexity
    if keras is not None:
        perplexity = Perplexity(sequences.source, count, keras, float(np.exp(surprised / count)))
    return parity, perplexity


def divergence(program: CausalProgram, sequences: Sequences) -> float:
    """Return how far a language model's next tokens are from Keras's: the mean Kullback-Leibler divergence, in nats.

    Raises:
        ConversionError: It answers with NaN or infinity.
    """
    total, count = 0.0, 0
    for ids, wanted in zip(sequences.ids, sequences.scores, strict=False):
        keras, mine = (log_softmax(rows.astype(np.float64)) for rows in (wanted, program.forward(ids, 0, logits="all")))
        total += float((np.exp(keras) * (keras - mine)).sum())
        count += len(ids)
    if not np.isfinite(total):
        raise ConversionError(f"{program.facts.runtime} answers with NaN or infinity where Keras does not.")
    return total / max(count, 1)


def log_softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithms of probabilities, of scores ``(n, V)``."""
    centred: NDArray[np.float64] = scores - scores.max(axis=-1, keepdims=True)
    centred -= np.log(np.exp(centred).sum(axis=-1, keepdims=True))
    return centred


def _decoded_differences(program: CausalProgram, ids: NDArray[np.int32], wanted: Float32) -> Sequence[float]:
    """Return the differences where all but the last tokens are prefilled in two calls, and the last decoded one by one."""
    begin = max(len(ids) - _STEPS, 0)
    for start, end in ((0, begin // 2), (begin // 2, begin)):
        if end > start:
            program.forward(ids[start:end], start, logits="none")
    return [
        score_difference(program.forward(ids[at : at + 1], at, logits="last")[None], wanted[at : at + 1])
        for at in range(begin, len(ids))
    ]


def score_difference(found: Float32, wanted: Float32) -> float:
    """Return the largest difference of scores ``(n, V)``, but for a constant on each row.

    Raises:
        ConversionError: The shapes differ.
    """
    if found.shape != wanted.shape:
        raise ConversionError(f"The artifact's scores have the shape {found.shape}, Keras's {wanted.shape}.")
    return float(np.abs(_centred(found) - _centred(wanted)).max())


def _centred(scores: Float32) -> NDArray[np.float64]:
    values = scores.astype(np.float64)
    centred: NDArray[np.float64] = values - values.mean(axis=-1, keepdims=True)
    return centred


def enforce_scores(parity: Parity, perplexity: Perplexity | None, recipe: Recipe, runtime: str) -> None:
    """Hold what was measured against the recipe's bounds.

    Raises:
        ParityError: The scores leave the bound, or the perplexity rises by more than the recipe allows.
    """
    safer = "" if recipe.name == "fp32" else " Try a recipe with more bits (int8, fp16 or fp32)."
    where = f"{runtime} ({recipe.name})"
    if not parity.max_abs_error <= parity.bound:
        raise ParityError(
            f"{where} is off by up to {parity.max_abs_error:.3g} on scores of up to {parity.reference_range:.3g}; "
            f"the bound is {parity.bound:.3g} ({parity.reason}). Nothing was written.{safer}"
        )
    if perplexity is not None and not perplexity.artifact <= perplexity.keras * (1 + recipe.bounds.perplexity_rise):
        raise ParityError(
            f"{where} has a perplexity of {perplexity.artifact:.3f} on {perplexity.data}, Keras {perplexity.keras:.3f}; "
            f"the recipe allows a rise of {recipe.bounds.perplexity_rise:.1%}. Nothing was written.{safer}"
        )
