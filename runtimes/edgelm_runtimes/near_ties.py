"""Where the likeliest token hangs on how many positions were computed in one call, and so is computed again without guesses.

A runtime may add in another order when it computes several rows. Scores of the same position then differ by some 1e-5; but
where activations are rounded to 8 bits, now and then one falls to the other side of a step, all that follow on it are rounded
otherwise, and the scores move by as much as 8 bits cost. Where the two highest are nearer than that, guessing could give
another answer than decoding token by token. How much they differ is measured on the program itself: the first steps of guesses
are computed in both ways, and so is what leads to a near tie.

Measured with stories15M, one thread: in LiteRT 2.3 nothing differs, to the last bit, under fp32 and int8, and nothing is
computed again after the first step. In ONNX Runtime 1.32 it is the attention that differs (and the products of 4 bits, not
those of 8): under fp32 scores by 2e-5, under int8 by up to 0.4.

``V`` is the number of scores.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgelm_runtimes.sampling import Sampling, margin
from edgelm_runtimes.speculation import Draft

__all__ = ["NearTies"]

# Two scores may move towards each other, each by what was measured. That is the largest difference of a whole vocabulary; the
# two highest move by a quarter of it as a rule.
_BOTH = 2.0
# Positions that are compared before what was found is relied on. Nearly all of them differ by 1e-5, and the few that do not
# are those that count.
_COMPARED = 32


class NearTies:
    """What is known of a program's scores when several positions are computed at once.

    Attributes:
        difference: The largest between a score computed among others and alone.
        compared: Positions that were computed in both ways.
    """

    def __init__(self) -> None:
        self.difference = 0.0
        self.compared = 0

    @property
    def known(self) -> bool:
        """Whether enough was compared: of a program that gives the same to the last bit, one step of guesses is."""
        return self.compared >= (_COMPARED if self.difference > 0 else 1)

    def note(self, among: NDArray[np.float32], alone: NDArray[np.float32]) -> None:
        """Take in the scores ``(V,)`` of one position, computed in both ways."""
        finite = np.isfinite(among) & np.isfinite(alone)
        largest = float(np.abs(among[finite] - alone[finite]).max(initial=0.0))
        self.difference = max(largest, self.difference)
        self.compared += 1

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
        bound = _BOTH * self.difference * max(penalty, 1 / penalty)  # a penalty stretches differences
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
