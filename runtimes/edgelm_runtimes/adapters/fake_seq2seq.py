"""An encoder-decoder that computes nothing: for tests of applications, without a model's time and memory.

Its scores depend on a row's source and its ids so far alone. A test that needs certain scores gives a function:

>>> def copies(source, ids):  # answers with the source, shifted by one
...     return np.eye(100, dtype=np.float32)[(source[len(ids) - 1] + 1) % 100]
>>> program = FakeSeq2SeqProgram(100, 32, 32, scores=copies)

It keeps to the protocol more strictly than a runtime has to: what a runtime might compute nonsense for is an error here.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import Signature
from edgelm.errors import ExecutionError, RuntimeUnavailableError
from edgelm_runtimes.adapters.shared import closed
from edgelm_runtimes.program import ProgramFacts, ProgramOptions

__all__ = ["FakeSeq2SeqProgram", "PairScores", "open_seq2seq"]

# Of a source (its ids, or its frames) and the ids so far, from the prefix on.
PairScores = Callable[[Any, list[int]], NDArray[Any]]

_VERSION = "1"
# Where neither the file nor its signatures say how much it holds.
_LENGTH = 512


class FakeSeq2SeqProgram:
    """A `Seq2SeqProgram` whose scores come from a function.

    Args:
        vocabulary_size: ``V``.
        source_length: The most source tokens, or frames.
        target_length: The most positions of an answer.
        options: Reported in `facts`.
        row_counts: Reported, and kept to; None takes any.
        scores: Makes the ``(V,)`` scores of the next token; without it they are drawn from a normal distribution, seeded with
            the ids of both.

    Attributes:
        rows: Ids of each row's positions that are computed.
        calls: The rows, the start and the number of tokens of each call of `forward`.
    """

    def __init__(
        self,
        vocabulary_size: int,
        source_length: int,
        target_length: int,
        options: ProgramOptions | None = None,
        *,
        row_counts: tuple[int, ...] | None = None,
        scores: PairScores | None = None,
    ) -> None:
        self.rows: list[list[int]] = []
        self.calls: list[tuple[int, int, int]] = []
        self._sources: list[Any] = []
        self._vocabulary_size = vocabulary_size
        self._lengths = source_length, target_length
        self._options = options or ProgramOptions(threads=1)
        self._row_counts = row_counts
        self._scores = scores or self._drawn
        self._buffer = np.zeros((0, vocabulary_size), np.float32)
        self._closed = False

    @property
    def facts(self) -> ProgramFacts:
        """What it claims to be."""
        notes = ("a fake for tests: its words mean nothing",)
        return ProgramFacts("fake", _VERSION, self._options.device, self._options.threads or 1, "none", notes)

    @property
    def source_length(self) -> int:
        """See `Seq2SeqProgram.source_length`."""
        return self._lengths[0]

    @property
    def target_length(self) -> int:
        """See `Seq2SeqProgram.target_length`."""
        return self._lengths[1]

    @property
    def vocabulary_size(self) -> int:
        """See `Seq2SeqProgram.vocabulary_size`."""
        return self._vocabulary_size

    @property
    def row_counts(self) -> tuple[int, ...] | None:
        """See `Seq2SeqProgram.row_counts`."""
        return self._row_counts

    def encode(self, source: NDArray[Any], lengths: NDArray[np.int32], beams: int) -> None:
        """See `Seq2SeqProgram.encode`.

        Raises:
            ExecutionError: The program was closed, or the call breaks a rule of the protocol.
        """
        self._check_open()
        if source.dtype not in (np.int32, np.float32) or source.ndim != (2 if source.dtype == np.int32 else 3):
            raise ExecutionError(
                f"fake takes int32 ids (B, S) or float32 frames, and got {source.dtype} {source.shape}."
            )
        if lengths.shape != (len(source),) or lengths.min() < 1 or lengths.max() > source.shape[1]:
            raise ExecutionError(f"fake takes a length for each source, and got {lengths} for {source.shape}.")
        if source.shape[1] > self.source_length:
            raise ExecutionError(f"fake takes {self.source_length} source tokens, and got {source.shape[1]}.")
        if self._row_counts is not None and (len(source) > 1 or beams not in self._row_counts):
            raise ExecutionError(
                f"fake takes one source with {self._row_counts} rows, and got {len(source)} with {beams}."
            )
        read = [row[:length] for row, length in zip(source, lengths, strict=True)]
        self._sources = [each.tolist() if each.ndim == 1 else each.copy() for each in read for _ in range(beams)]
        self.rows = [[] for _ in self._sources]

    def forward(self, ids: NDArray[np.int32], start: int) -> NDArray[np.float32]:
        """See `Seq2SeqProgram.forward`.

        Raises:
            ExecutionError: The program was closed, or the call breaks a rule of the protocol.
        """
        self._check_open()
        if ids.ndim != 2 or ids.dtype != np.int32 or len(ids) != len(self.rows) or not ids.size:
            raise ExecutionError(
                f"fake takes int32 ids of {len(self.rows)} rows, and got {ids.dtype} {list(ids.shape)}."
            )
        if not 0 <= start <= len(self.rows[0]) or start + ids.shape[1] > self.target_length:
            raise ExecutionError(
                f"fake has computed {len(self.rows[0])} of {self.target_length} positions, and was to compute {ids.shape[1]} "
                f"from {start} on."
            )
        if ids.min() < 0 or ids.max() >= self._vocabulary_size:
            raise ExecutionError(
                f"fake knows the ids below {self._vocabulary_size}, and got {ids.min()} to {ids.max()}."
            )
        self.calls.append((len(ids), start, ids.shape[1]))
        for row, new in zip(self.rows, ids.tolist(), strict=True):
            row[start:] = new
        # What an earlier call gave is overwritten, as the protocol allows: who still looks at it finds NaNs.
        self._buffer.fill(np.nan)
        scores = [self._scores(source, row) for source, row in zip(self._sources, self.rows, strict=True)]
        self._buffer = np.stack(scores).astype(np.float32)
        return self._buffer

    def reorder(self, rows: NDArray[np.int32], length: int) -> None:
        """See `Seq2SeqProgram.reorder`.

        Raises:
            ExecutionError: The program was closed, or a row is to go on with another source's.
        """
        self._check_open()
        if rows.shape != (len(self.rows),) or not 0 <= length <= len(self.rows[0]):
            raise ExecutionError(
                f"fake has {len(self.rows)} rows, and was to reorder {list(rows.shape)} up to {length}."
            )
        if any(self._sources[row] != self._sources[origin] for row, origin in enumerate(rows)):
            raise ExecutionError(f"fake was to let rows go on with other sources': {rows.tolist()}.")
        self.rows = [self.rows[origin][:length] for origin in rows]

    def close(self) -> None:
        """See `Seq2SeqProgram.close`."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise closed("fake")

    def _drawn(self, source: Any, ids: list[int]) -> NDArray[Any]:
        seed = zlib.crc32(np.asarray(ids, np.int32).tobytes(), zlib.crc32(np.asarray(source).tobytes()))
        return np.random.default_rng(seed).normal(size=self._vocabulary_size)


def open_seq2seq(file: Path, signatures: tuple[Signature, ...], options: ProgramOptions) -> FakeSeq2SeqProgram:
    """Open nothing: the file only has to be there, and its signatures to tell their sizes.

    Raises:
        RuntimeUnavailableError: There is no such file, or no signature gives scores of a known number.
    """
    if not file.is_file():
        raise RuntimeUnavailableError(f"fake does not open {file.name}: there is no such file.")
    decodes = [signature for signature in signatures if signature.kind == "decode"]
    sizes = [signature.outputs[0].shape[-1] for signature in decodes]
    if not sizes or sizes[0] is None:
        raise RuntimeUnavailableError(f"fake finds no signature of {file.name} that gives a known number of scores.")
    sources = [signature.sequence_length for signature in signatures if signature.kind == "encode"]
    targets = [signature.cache.length for signature in decodes if signature.cache is not None]
    longest = [max((length for length in lengths if length), default=_LENGTH) for lengths in (sources, targets)]
    rows = sorted({signature.rows for signature in decodes if signature.rows is not None})
    free = any(signature.rows is None for signature in decodes)
    return FakeSeq2SeqProgram(sizes[0], longest[0], longest[1], options, row_counts=None if free else tuple(rows))
