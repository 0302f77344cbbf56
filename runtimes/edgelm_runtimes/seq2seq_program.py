"""What a runtime adapter gives for an encoder-decoder: a program that reads a source and scores the tokens of an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import Signature
from edgelm_runtimes.program import ProgramFacts, ProgramOptions

__all__ = ["OpenSeq2Seq", "Seq2SeqProgram"]


class Seq2SeqProgram(Protocol):
    """An encoder-decoder opened by one runtime, with what it read and the caches of the answers in the making.

    An answer in the making is a *row*: of ``B`` sources with ``b`` beams each there are ``R = B * b`` rows, and row r answers
    to source ``r // b``. All rows are equally long. A position is computed from those before it alone, so going back is a call
    with a smaller `start`. Not safe to run from two threads at once.
    """

    @property
    def facts(self) -> ProgramFacts:
        """What runs it."""
        ...

    @property
    def source_length(self) -> int:
        """The most source tokens, or frames of audio, that it reads."""
        ...

    @property
    def target_length(self) -> int:
        """The most positions of an answer."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """Scores of a step, ``V``."""
        ...

    @property
    def row_counts(self) -> tuple[int, ...] | None:
        """How many rows of one source it can take, ascending; None where sources and rows are free."""
        ...

    def encode(self, source: NDArray[np.int32] | NDArray[np.float32], lengths: NDArray[np.int32], beams: int) -> None:
        """Read sources, and forget what was read and answered before.

        Args:
            source: int32 ids ``(B, S)``, filled up with anything behind each one's length; or float32 frames ``(B, n, M)``.
            lengths: int32 ``(B,)``, at least 1: tokens or frames that count.
            beams: Rows of each source. ``B`` is 1 and ``beams`` one of `row_counts` where those are not free.

        Raises:
            ExecutionError: The runtime failed, or the program was closed.
        """
        ...

    def forward(self, ids: NDArray[np.int32], start: int) -> NDArray[np.float32]:
        """Compute the tokens at the positions `start` to ``start + n - 1`` of every row; those before were computed.

        Args:
            ids: int32 ``(R, n)``, n >= 1, each below `vocabulary_size`; ``start + n`` is at most `target_length`.
            start: Position of the first of them.

        Returns:
            The scores of the token after the last one, float32 ``(R, V)``; the next call may overwrite them.

        Raises:
            ExecutionError: The runtime failed, or the program was closed.
        """
        ...

    def reorder(self, rows: NDArray[np.int32], length: int) -> None:
        """Go on in row r with what row ``rows[r]`` holds in its first `length` positions: what beam search does with its beams.

        Args:
            rows: int32 ``(R,)``; a row and its origin answer to the same source.
            length: Positions that are computed.
        """
        ...

    def close(self) -> None:
        """Give back the memory. Running afterwards is an error."""
        ...


class OpenSeq2Seq(Protocol):
    """A function that opens an encoder-decoder."""

    def __call__(self, file: Path, signatures: tuple[Signature, ...], options: ProgramOptions) -> Seq2SeqProgram:
        """Open a model file, whose signatures encode and decode. `Signature.file` is beside `file`.

        Raises:
            RuntimeUnavailableError: The runtime is not installed, or refuses this file.
        """
        ...
