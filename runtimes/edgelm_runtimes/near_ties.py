"""Where the likeliest token hangs on how many positions were computed in one call, and so is computed again without guesses.

A runtime may add in another order when it computes several rows. Where the two highest scores are nearer than that moves them,
guessing could give another answer than decoding token by token. How much it moves them is measured on the program itself: its
first step of guesses is computed in both ways.

Measured with stories15M, one thread, 12 answers of 120 tokens with guesses from the text:

============================  ====================  =====================================
runtime, recipe               scores differ by      answers that part, settled and not
============================  ====================  =====================================
LiteRT 2.3, fp32 and int8     nothing, to the bit   0, 0
ONNX Runtime 1.32, fp32       2e-5                  0, 0
ONNX Runtime 1.32, int8       2e-5, or up to 0.4    3, 4
============================  ====================  =====================================

In ONNX Runtime it is `GroupQueryAttention` that gives other bits for one row than for two and more (those agree), and products
of 4 bits do. Under integers that is not the end: now and then an activation falls to the other side of a step, all that follow
on it are rounded otherwise, and every score after it moves by what 8 bits cost. Ties as wide as that are a fifth of all tokens:
settling them took longer than decoding without guesses, and answers parted all the same. So with integers in ONNX Runtime
guessing is refused where the likeliest tokens are taken, unless it was allowed to part (`inexact`).

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


class NearTies:
    """What is known of a program's scores when several positions are computed at once.

    Attributes:
        difference: The largest between a score computed among others and alone; None before it was measured.
    """

    def __init__(self) -> None:
        self.difference: float | None = None

    def measure(self, among: NDArray[np.float32], alone: NDArray[np.float32]) -> None:
        """Take in the scores ``(n, V)`` of some positions, computed in both ways."""
        finite = np.isfinite(among) & np.isfinite(alone)
        self.difference = float(np.abs(among[finite] - alone[finite]).max(initial=0.0))

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
        bound = _BOTH * (self.difference or 0.0) * max(penalty, 1 / penalty)  # a penalty stretches differences
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
