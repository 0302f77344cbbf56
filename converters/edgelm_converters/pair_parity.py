"""Is an encoder-decoder's artifact still the model? Its scores against Keras's at every position, in the device's runtime.

Scores are compared after each row's mean is taken off: a constant on all tokens changes no probability.

Dimensions: ``S`` source tokens, ``n`` target tokens, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from edgelm_runtimes.seq2seq_program import Seq2SeqProgram
from numpy.typing import NDArray

from edgelm.bundle import Parity, Perplexity
from edgelm.errors import ConversionError
from edgelm_converters.causal_parity import log_softmax, score_difference, surprise
from edgelm_converters.recipes import Recipe

__all__ = ["Pairs", "compare_pairs", "pair_divergence"]

Float32 = NDArray[np.float32]
Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Pairs:
    """Sources and the answers to them, with Keras's scores.

    Attributes:
        source: Where they are from: a file's name, or ``random ids``.
        kind: Whether they are the user's data.
        sources: int32 ids ``(S,)`` each, with prefix and suffix; or float32 frames ``(S, M)``.
        targets: int32 ``(n,)`` each, with the tokens that an answer begins with.
        scores: float32 ``(n, V)`` each: Keras's, of the token after each one.
        begun: Tokens of each target that are given, not predicted.
    """

    source: str
    kind: Literal["real", "random"]
    sources: tuple[NDArray[Any], ...]
    targets: tuple[NDArray[np.int32], ...]
    scores: tuple[Float32, ...]
    begun: int

    @property
    def range(self) -> float:
        """The largest absolute score of all, each row without its mean."""
        return max(float(np.abs(rows - rows.mean(axis=-1, keepdims=True)).max()) for rows in self.scores)

    @property
    def predicted(self) -> int:
        """Tokens that were predicted."""
        return sum(max(len(ids) - self.begun, 0) for ids in self.targets)

    @property
    def perplexity(self) -> float | None:
        """Keras's, of a token of the answers; None where they are random."""
        return None if self.kind != "real" or not self.predicted else self.perplexity_of(self.scores)

    def perplexity_of(self, scores: tuple[Float32, ...]) -> float:
        """Return the perplexity of the answers by these scores."""
        first = self.begun - 1
        total = sum(surprise(ids[first:], rows[first:]) for ids, rows in zip(self.targets, scores, strict=True))
        return float(np.exp(total / max(self.predicted, 1)))


def compare_pairs(
    program: Seq2SeqProgram, pairs: Pairs, recipe: Recipe, *, tick: Tick = lambda done, total: None
) -> tuple[Parity, Perplexity | None]:
    """Hold an encoder-decoder against Keras: token by token, and after half of an answer was given at once.

    Raises:
        ConversionError: It answers with NaN or infinity.
    """
    worst, same, positions = 0.0, 0, 0
    found: list[Float32] = []
    for index, (source, ids, wanted) in enumerate(zip(pairs.sources, pairs.targets, pairs.scores, strict=True), 1):
        rows = _scores(program, source, ids)
        found.append(rows)
        half = (len(ids) + 1) // 2
        again = np.array(program.forward(ids[None, :half], 0))
        worst = max(worst, score_difference(rows, wanted), score_difference(again, wanted[half - 1 : half]))
        same += int((rows.argmax(axis=-1) == wanted.argmax(axis=-1)).sum())
        positions += len(ids)
        tick(index, len(pairs.sources))
    parity = Parity(
        samples=len(pairs.sources),
        inputs=pairs.kind,
        max_abs_error=worst,
        reference_range=pairs.range,
        bound=recipe.bounds.score * max(pairs.range, 1e-6),
        agreement=same / positions,
        agreement_bound=None,  # on random ids many tokens are as likely; on real ones the perplexity says more
        reason=recipe.bounds.reason,
    )
    keras = pairs.perplexity
    if keras is None:
        return parity, None
    return parity, Perplexity(pairs.source, pairs.predicted, keras, pairs.perplexity_of(tuple(found)))


def pair_divergence(program: Seq2SeqProgram, pairs: Pairs) -> float:
    """Return how far the next tokens are from Keras's: the mean Kullback-Leibler divergence, in nats.

    Raises:
        ConversionError: It answers with NaN or infinity.
    """
    total, count = 0.0, 0
    for source, ids, wanted in zip(pairs.sources, pairs.targets, pairs.scores, strict=True):
        keras, mine = (log_softmax(rows.astype(np.float64)) for rows in (wanted, _scores(program, source, ids)))
        total += float((np.exp(keras) * (keras - mine)).sum())
        count += len(ids)
    return total / max(count, 1)


def _scores(program: Seq2SeqProgram, source: NDArray[Any], ids: NDArray[np.int32]) -> Float32:
    """Return the scores after each token, ``(n, V)``."""
    program.encode(source[None], np.array([len(source)], np.int32), 1)
    rows = np.concatenate([np.array(program.forward(ids[None, at : at + 1], at)) for at in range(len(ids))])
    if not np.isfinite(rows).all():
        raise ConversionError(
            f"{program.facts.runtime} answers with NaN or infinity where Keras does not: the file is not usable."
        )
    return rows.astype(np.float32, copy=False)
