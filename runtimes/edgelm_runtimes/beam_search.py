"""Beam search: the likeliest answers of a source, kept side by side.

A step looks at every continuation of the open beams. Of all of them, best first, those that end in a stop token and are among
the best ``b`` become finished answers; the best ``b`` that do not end are the open beams of the next step. Finished answers are
compared by `Target.score`. A source is done when it has b finished answers and no open beam's score, as it stands, is above the
worst of them. That is the usual rule, and exact where the length penalty is 0; elsewhere, likelier tokens later could lift a
beam that stands below. At the last token, open beams count as answers too.

``B`` sources, ``b`` beams, ``R = B * b`` rows, ``V`` tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgelm_runtimes.row_decoding import Answer, Forward, Target
from edgelm_runtimes.target_scores import best_tokens, log_normalisers, suppress

__all__ = ["Beams", "beam_search"]

# Lets row r go on with what row rows[r] holds in its first positions, as `Seq2SeqProgram.reorder`.
Reorder = Callable[[NDArray[np.int32], int], None]


@dataclass
class Beams:
    """What is known of one source's answers.

    Attributes:
        open: Those that go on, best first; at first one that is empty.
        finished: Those that have ended, best first, at most as many as there are beams.
        done: Whether no better one is looked for.
    """

    open: list[Answer] = field(default_factory=lambda: [Answer()])
    finished: list[Answer] = field(default_factory=list)
    done: bool = False

    def best(self, target: Target) -> Answer:
        """Return the best answer: of those that have ended, or where none has, of the open ones."""
        return self.finished[0] if self.finished else max(self.open, key=lambda answer: _score(target, answer))


def beam_search(forward: Forward, reorder: Reorder, target: Target, sources: list[Beams], beams: int) -> Iterator[None]:
    """Look for the likeliest answers of each source, and yield after each step.

    Where `forward` gives None, the search ends with what there is: answers that have not ended have no reason.

    Args:
        forward: Computes tokens of every row, those of one source beside each other.
        reorder: Moves caches between the rows of a source.
        target: Of each answer.
        sources: One for each source, empty; they are filled.
        beams: ``b``, at least 1.
    """
    ids, start = target.start(len(sources) * beams), 0
    while (scores := forward(ids, start)) is not None:
        scores = suppress(scores, target.forbidden)
        normalisers = log_normalisers(scores)
        start += ids.shape[1]
        origins = np.arange(len(ids), dtype=np.int32)
        ids = ids[:, -1:].copy()
        for index, source in enumerate(sources):
            if source.done:
                continue
            first = index * beams
            chosen = _step(source, target, beams, scores[first : first + beams], normalisers[first : first + beams])
            for place, (origin, token) in enumerate(chosen):
                origins[first + place], ids[first + place] = first + origin, token
        yield
        if all(source.done for source in sources):
            return
        reorder(origins, start)


def _step(
    source: Beams, target: Target, beams: int, scores: NDArray[np.float32], normalisers: NDArray[np.float64]
) -> list[tuple[int, int]]:
    """Go on with one source; return the row of the source and the token that each of its open beams comes from."""
    found: list[tuple[float, int, int]] = []
    for row, answer in enumerate(source.open):
        # With as many more as may end, the best that do not are among them.
        tokens = best_tokens(scores[row], beams + len(target.stop_ids))
        values = answer.log_probability + (scores[row, tokens].astype(np.float64) - normalisers[row])
        found.extend((-value, row, token) for value, token in zip(values.tolist(), tokens.tolist(), strict=True))
    found = sorted(entry for entry in found if entry[0] < np.inf)
    going: list[Answer] = []
    chosen: list[tuple[int, int]] = []
    for rank, (cost, row, token) in enumerate(found):
        before = source.open[row].ids
        if token in target.stop_ids:
            if rank < beams:
                source.finished.append(Answer(list(before), -cost, "stop_token"))
        elif len(going) < beams:
            going.append(Answer([*before, token], -cost))
            chosen.append((row, token))
    source.open = going
    if not going:
        source.done = True
    elif len(going[0].ids) == target.max_new_tokens:
        for answer in going:
            answer.reason = "length"
        source.finished.extend(going)
        source.done = True
    source.finished.sort(key=lambda answer: -_score(target, answer))
    del source.finished[beams:]
    if not source.done and len(source.finished) == beams:
        source.done = _score(target, source.finished[-1]) >= max(_score(target, answer) for answer in going)
    return chosen


def _score(target: Target, answer: Answer) -> float:
    return target.score(answer.log_probability, answer.tokens) if answer.tokens else 0.0
