"""A language model's golden vectors in one runtime: the same token by several ways through the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import GoldenCase
from edgelm.errors import ExecutionError
from edgelm_runtimes.program import CausalProgram

__all__ = ["causal_answers"]

_TOKENS, _SCORES = "token_ids", "logits"


def causal_answers(
    program: CausalProgram, cases: Sequence[GoldenCase]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Yield the scores after each case's last token, as the program gives them, beside Keras's: ``(V,)`` both.

    Each case runs three times: as one call, all but the last token prefilled, and the last four tokens decoded one by one.

    Raises:
        ExecutionError: The program fails, or a case does not fit it.
    """
    for case in cases:
        ids = case.inputs[_TOKENS][0].astype(np.int32)
        wanted = case.outputs[_SCORES].reshape(-1)
        if len(ids) > program.context_length or wanted.size != program.vocabulary_size:
            raise ExecutionError(
                f"The golden vectors have {len(ids)} tokens and {wanted.size} scores, the model takes "
                f"{program.context_length} and gives {program.vocabulary_size}: they do not belong together."
            )
        for first in dict.fromkeys((0, len(ids) - 1, max(len(ids) - 4, 0))):
            if first:
                program.forward(ids[:first], 0, logits="none")
            single = range(first, len(ids) - 1) if first else ()
            for at in single:
                program.forward(ids[at : at + 1], at, logits="last")
            start = len(ids) - 1 if first else 0
            yield program.forward(ids[start:], start, logits="last"), wanted
