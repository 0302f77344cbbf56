"""The tokens whose keys and values a program holds, so that nothing is computed twice, and how fast it computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgelm_runtimes.program import CausalProgram, Logits

__all__ = ["CachedSequence"]

# Calls of up to so many tokens are steps of decoding, as long as reading the weights once; longer ones grow with the tokens.
_STEP_TOKENS = 8


class CachedSequence:
    """A program, with the ids of the positions that it has computed.

    Args:
        program: The language model.
        clock: Gives seconds.

    Attributes:
        program: The language model.
        ids: Of the positions computed, from 0 on. If a call fails, what it was to compute is not among them.
    """

    def __init__(self, program: CausalProgram, clock: Callable[[], float]) -> None:
        self.program = program
        self.ids: list[int] = []
        self._clock = clock
        self._step_s = 0.0
        self._prompt_token_s = 0.0

    def expected_s(self, tokens: int) -> float:
        """Return the seconds that a call will take, going by the last such one; 0 before there was any."""
        return self._step_s if tokens <= _STEP_TOKENS else self._prompt_token_s * tokens

    def reuse(self, ids: Sequence[int]) -> int:
        """Keep what is computed of a sequence, and return how many tokens that is: never the last, whose scores count."""
        common = _common(self.ids, ids, len(ids) - 1)
        self.rewind(common)
        return common

    def rewind(self, count: int) -> None:
        """Forget the positions from `count` on."""
        del self.ids[count:]

    def advance(
        self, ids: Sequence[int], chunk: int, proceed: Callable[[int], bool], *, logits: Logits = "last"
    ) -> NDArray[np.float32] | None:
        """Compute the tokens of `ids` that follow on those that are computed.

        Args:
            ids: All of them, beginning with `CachedSequence.ids`.
            chunk: Tokens of one call, at most.
            proceed: Asked before each call with its number of tokens; False stops.
            logits: Which scores to give, of the last call.

        Returns:
            As of `CausalProgram.forward` for the last call; None where it was stopped, with what was computed kept.

        Raises:
            ExecutionError: The runtime failed.
        """
        scores = None
        for start in range(len(self.ids), len(ids), chunk):
            part = ids[start : start + chunk]
            if not proceed(len(part)):
                return None
            last = start + len(part) == len(ids)
            began = self._clock()
            scores = self.program.forward(np.asarray(part, np.int32), start, logits=logits if last else "none")
            self._measure(len(part), self._clock() - began)
            self.ids.extend(part)
        return scores

    def _measure(self, tokens: int, seconds: float) -> None:
        if tokens <= _STEP_TOKENS:
            self._step_s = seconds
        else:
            self._prompt_token_s = seconds / tokens


def _common(first: Sequence[int], second: Sequence[int], limit: int) -> int:
    """Return how many ids two sequences begin with alike, at most `limit`."""
    pairs = zip(first[:limit], second[:limit], strict=False)
    same = min(len(first), len(second), limit)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), same)
