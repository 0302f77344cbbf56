"""Where the likeliest token hangs on how many positions were computed in one call, and so has to be computed alone.

A runtime adds in another order when it computes several rows, and rounds activations to 8 bits in other places: scores of the
same position differ by a little. Where the two highest are nearer than that, guessing could give another answer than decoding
token by token. How much they differ is measured on the model itself: the first step of guesses is computed in both ways, and so
is each near tie later on. What was measured (SmolLM2-135M, int8, two threads; the largest difference of any of 49,152 scores):
see `_SAFETY`.

``V`` is the number of scores.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgelm_runtimes.sampling import Sampling, margin
from edgelm_runtimes.speculation import Draft

__all__ = ["NearTies"]

# Two scores may move towards each other, each by what was measured: 2. The rest is for positions that were not measured, and
# for keys and values of accepted guesses, which stay in the cache as they came out of a call of several rows.
_SAFETY = 4.0


class NearTies:
    """What is known of a program's scores when several positions are computed at once.

    Attributes:
        difference: The largest between a score computed among others and alone; None before it was measured.
    """

    def __init__(self) -> None:
        self.difference: float | None = None

    def note(self, among: NDArray[np.float32], alone: NDArray[np.float32]) -> None:
        """Take in the scores ``(V,)`` of one position, computed in both ways."""
        finite = np.isfinite(among) & np.isfinite(alone)
        largest = float(np.abs(among[finite] - alone[finite]).max(initial=0.0))
        self.difference = max(largest, self.difference or 0.0)

    def first(
        self, rows: NDArray[np.float32], draft: Draft, sampling: Sampling, seen: NDArray[np.bool_] | None
    ) -> int | None:
        """Return the first row in which the likeliest token is in doubt; None if a guess is refused before, or there is none.

        Args:
            rows: ``(n + 1, V)``, as `edgelm_runtimes.speculation.verify` takes them.
            draft: The n guesses.
            sampling: Takes the likeliest token.
            seen: bool ``(V,)``; it is not changed.
        """
        penalty = sampling.repetition_penalty
        bound = _SAFETY * (self.difference or 0.0) * max(penalty, 1 / penalty)  # a penalty stretches differences
        seen = None if seen is None else seen.copy()
        for place, row in enumerate(rows):
            best, ahead = margin(row, sampling, seen)
            if ahead < bound:
                return place
            if place == len(draft.ids) or draft.ids[place] != best:
                return None
            if seen is not None:
                seen[best] = True
        return None
