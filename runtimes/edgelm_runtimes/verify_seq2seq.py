"""An encoder-decoder's golden vectors in one runtime: the same token after an answer given at once, and token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import GoldenCase
from edgelm.errors import ExecutionError
from edgelm_runtimes.seq2seq_program import Seq2SeqProgram

__all__ = ["seq2seq_answers"]

_SOURCE, _TARGET, _SCORES = "source", "target", "logits"


def seq2seq_answers(
    program: Seq2SeqProgram, cases: Sequence[GoldenCase]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Yield the scores after each case's last token, as the program gives them, beside Keras's: ``(V,)`` both.

    Raises:
        ExecutionError: The program fails, or a case does not fit it.
    """
    for case in cases:
        source, ids = case.inputs[_SOURCE], case.inputs[_TARGET].astype(np.int32)
        wanted = case.outputs[_SCORES].reshape(-1)
        too_long = source.shape[1] > program.source_length or ids.shape[1] > program.target_length
        if too_long or wanted.size != program.vocabulary_size:
            raise ExecutionError(
                f"The golden vectors have {source.shape[1]} source and {ids.shape[1]} target tokens and {wanted.size} scores, "
                f"the model takes {program.source_length} and {program.target_length} and gives {program.vocabulary_size}: "
                "they do not belong together."
            )
        program.encode(source, np.array([source.shape[1]], np.int32), 1)
        yield np.array(program.forward(ids, 0)[0]), wanted
        program.encode(source, np.array([source.shape[1]], np.int32), 1)
        for at in range(ids.shape[1] - 1):
            program.forward(ids[:, at : at + 1], at)
        yield np.array(program.forward(ids[:, -1:], ids.shape[1] - 1)[0]), wanted
